"""Gradient descent on shares against torch's, step by step."""

import pytest
import torch

from mpc_imaging.baselines import optimisers
from mpc_imaging.choices import Optimiser
from mpc_imaging.settings import TaskSettings

BATCH = 8


def descend(*tensors, rates=None, again=0, **options):
    """Parameters after each step; the first two tensors are the parameters, then come summed gradients in pairs.

    again: after so many steps, a new optimiser goes on from the state of the first.
    """
    from mpc_imaging.engine.optimiser import make

    parameters = dict(zip(("weight", "bias"), tensors[:2], strict=True))
    optimiser = make(parameters, TaskSettings(**options))
    steps = []
    for start in range(2, len(tensors), 2):
        for parameter, gradient in zip(parameters.values(), tensors[start : start + 2], strict=True):
            parameter.grad = gradient
        optimiser.step(BATCH, rates[len(steps)] if rates else options["lr"])
        if len(steps) + 1 == again:
            state, optimiser = optimiser.state(), make(parameters, TaskSettings(**options))
            optimiser.load(state, again)
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
    from mpc_imaging.engine.optimiser import make

    optimiser = make({"used": used, "unused": unused}, TaskSettings(lr=0.5, momentum=0.9, weight_decay=0.1))
    used.grad = used.clone()
    optimiser.step(1, 0.5)
    optimiser.step(1, 0.5)
    return [used, unused]


def test_parameters_without_gradient_stay(two):
    used, unused = two.run(without_gradient, torch.ones(3), torch.ones(2))
    assert torch.equal(unused, torch.ones(2, dtype=torch.float64))
    assert (used - (1 - 0.5 * 1.1)).abs().max() < 2**-14


def small_rate(p):
    from mpc_imaging.engine.optimiser import make

    p.grad = p * 1000
    make({"p": p}, TaskSettings(momentum=0.0)).step(1, 1e-5)
    return p


def test_factors_have_more_fraction_than_values(two):
    """1e-5 in 16 bits of fraction would be 1.5e-5."""
    p = two.run(small_rate, torch.ones(100) * 8)
    assert (p - 8 * (1 - 1e-2)).abs().max() < 0.002 * 8 * 1e-2 + 2 * 2**-16


def problem(steps, scale=1.0):
    """Parameters, and mean gradients of so many steps, some of them tiny."""
    torch.manual_seed(2)
    start = [torch.randn(4, 5), torch.randn(5)]
    sizes = torch.logspace(-3, 0, steps) * scale
    return start, [[torch.randn(4, 5) * size, torch.randn(5) * size] for size in sizes.tolist()]


def plain_steps(start, gradients, task, rates):
    """What the baseline's optimiser makes of them, in double precision."""
    plain = [torch.nn.Parameter(p.double()) for p in start]
    optimiser, after = optimisers.make(plain, task), []
    for pair, rate in zip(gradients, rates, strict=True):
        for parameter, gradient in zip(plain, pair, strict=True):
            parameter.grad = gradient.double()
        optimisers.descend(optimiser, task, rate)
        after.append([p.detach().clone() for p in plain])
    return after


CASES = {
    "nesterov": ({"momentum": 0.9, "nesterov": True}, 1e-3),
    "adam": ({"optimiser": Optimiser.adam, "lr": 0.01}, 3e-3),
    "adam with decay": ({"optimiser": Optimiser.adam, "lr": 0.01, "weight_decay": 0.01, "betas": [0.8, 0.9]}, 4e-3),
    "amsgrad": ({"optimiser": Optimiser.amsgrad, "lr": 0.01, "betas": [0.9, 0.7]}, 3e-3),
    "clipped values": ({"momentum": 0.9, "clip_value": 0.1}, 1e-3),
    "clipped norm": ({"momentum": 0.0, "clip_norm": 0.5}, 1e-3),
    "clipped norm and values": ({"momentum": 0.9, "clip_norm": 0.5, "clip_value": 0.2, "weight_decay": 0.01}, 1e-3),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("again", [0, 7])
def test_they_follow_the_baseline_also_from_a_state(two, case, again):
    options, tolerance = CASES[case]
    options = {"lr": 0.05} | options
    start, gradients = problem(20)
    rates = [options["lr"] / (1 + step / 10) for step in range(20)]
    summed = [g * BATCH for pair in gradients for g in pair]
    steps = two.run(descend, *start, *summed, rates=rates, again=again, **options)
    for got, want in zip(steps, plain_steps(start, gradients, TaskSettings(**options), rates), strict=True):
        for a, b in zip(got, want, strict=True):
            assert (a - b).abs().max() < tolerance
    assert (steps[-1][0] - start[0]).abs().max() > 10 * tolerance


@pytest.mark.parametrize("group", ["two", "precise"])
@pytest.mark.parametrize("size", [0.0, 0.2, 30.0, 90.0, 125.0, 160.0, 3000.0])
def test_a_norm_is_clipped_whatever_its_size(request, group, size):
    gradient = torch.randn(4, 5)
    gradient *= size / gradient.norm()
    zero = torch.zeros(5)
    options = {"lr": 1.0, "momentum": 0.0, "clip_norm": 0.5}
    parties = request.getfixturevalue(group)
    (after,) = parties.run(descend, torch.zeros(4, 5), zero, gradient * BATCH, zero, **options)
    wanted = gradient * min(1.0, 0.5 / max(size, 1e-9))
    assert (after[0] + wanted).abs().max() < 1e-3


ADAMS = {
    "adam": ({}, 0.005),
    "amsgrad": ({"optimiser": Optimiser.amsgrad}, 0.03),
    "small eps": ({"eps": 1e-5}, 0.06),
    "large eps": ({"eps": 0.1}, 0.005),
    "decay": ({"betas": [0.8, 0.9], "weight_decay": 0.01}, 0.005),
}


@pytest.mark.parametrize("group", ["two", "precise"])
@pytest.mark.parametrize("case", ADAMS)
def test_adam_is_right_for_gradients_of_all_sizes(request, group, case):
    """From 1e-5 to 30: each step is off by so much of the rate at most."""
    torch.manual_seed(3)
    parties, (options, tolerance) = request.getfixturevalue(group), ADAMS[case]
    options, steps = {"lr": 0.01, "optimiser": Optimiser.adam} | options, 8
    start, sizes = [torch.randn(400), torch.randn(5)], torch.logspace(-5, 1.5, 400)
    # What the parties get is rounded.
    units = 2**parties.bits
    summed = [
        (g * BATCH * units).round() / units for _ in range(steps) for g in (torch.randn(400) * sizes, torch.randn(5))
    ]
    pairs = [[g / BATCH for g in pair] for pair in zip(summed[::2], summed[1::2], strict=True)]
    got = parties.run(descend, *start, *summed, **options)
    want = plain_steps(start, pairs, TaskSettings(**options), [0.01] * steps)
    rounding = 2 / units
    for past, now, before, after in zip([start, *got], got, [start, *want], want, strict=False):
        for a, b, c, d in zip(past, now, before, after, strict=True):
            assert ((b - a) - (d - c)).abs().max() < tolerance * 0.01 + rounding


def test_steps_of_one_class_of_rates_demand_the_same():
    from mpc_imaging.engine.optimiser import rate_class

    plain, momentum = TaskSettings(momentum=0.0), TaskSettings(momentum=0.9)
    assert rate_class(plain, 0.1, 32) == rate_class(plain, 0.09, 32) != rate_class(plain, 0.01, 32)
    assert rate_class(momentum, 0.1, 32) == rate_class(momentum, 0.001, 32)
