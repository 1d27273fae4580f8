"""Gradient descent on shares against torch's, step by step."""

import pytest
import torch

BATCH = 8


def descend(*tensors, lr, momentum, weight_decay):
    """Parameters after each step; the first two tensors are the parameters, then come summed gradients in pairs."""
    from mpc_imaging.engine.optimiser import SGD

    parameters = dict(zip(("weight", "bias"), tensors[:2], strict=True))
    optimiser = SGD(parameters, lr, momentum, weight_decay)
    steps = []
    for start in range(2, len(tensors), 2):
        for parameter, gradient in zip(parameters.values(), tensors[start : start + 2], strict=True):
            parameter.grad = gradient
        optimiser.step(BATCH)
        assert all(p.grad is None for p in parameters.values())
        steps.append([p.clone() for p in parameters.values()])
    return steps


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0, 0), (0.9, 0), (0, 0.01), (0.9, 0.01)])
def test_steps_equal_torchs(two, momentum, weight_decay):
    torch.manual_seed(1)
    options = {"lr": 0.05, "momentum": momentum, "weight_decay": weight_decay}
    start = [torch.randn(4, 5), torch.randn(5)]
    gradients = [[torch.randn(4, 5) * BATCH, torch.randn(5) * BATCH] for _ in range(6)]
    steps = two.run(descend, *start, *sum(gradients, []), **options)
    truncations = 2 if momentum or weight_decay else 1
    assert two.rounds == truncations * len(gradients), "all parameters together"
    plain = [torch.nn.Parameter(p.double()) for p in start]
    optimiser = torch.optim.SGD(plain, **options)
    for step, pair in zip(steps, gradients, strict=True):
        for parameter, gradient in zip(plain, pair, strict=True):
            parameter.grad = gradient.double() / BATCH
        optimiser.step()
        for got, want in zip(step, plain, strict=True):
            assert (got - want.detach()).abs().max() < 16 * 2.0**-16


def without_gradient(used, unused):
    from mpc_imaging.engine.optimiser import SGD

    optimiser = SGD({"used": used, "unused": unused}, 0.5, 0.9, 0.1)
    used.grad = used.clone()
    optimiser.step(1)
    optimiser.step(1)
    return [used, unused]


def test_parameters_without_gradient_stay(two):
    used, unused = two.run(without_gradient, torch.ones(3), torch.ones(2))
    assert torch.equal(unused, torch.ones(2, dtype=torch.float64))
    assert (used - (1 - 0.5 * 1.1)).abs().max() < 2**-14


def small_rate(p):
    from mpc_imaging.engine.optimiser import SGD

    p.grad = p * 1000
    SGD({"p": p}, 1e-5, 0, 0).step(1)
    return p


def test_factors_have_more_fraction_than_values(two):
    """1e-5 in 16 bits of fraction would be 1.5e-5."""
    p = two.run(small_rate, torch.ones(100) * 8)
    assert (p - 8 * (1 - 1e-2)).abs().max() < 0.002 * 8 * 1e-2 + 2 * 2**-16
