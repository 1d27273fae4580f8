"""Approximations and losses against torch, with the errors that their docstrings promise."""

import pytest
import torch
import torch.nn.functional as F

from mpc_imaging.engine import approximations as approx
from mpc_imaging.settings import Loss


def exp(x):
    return approx.exp_nonpositive(x)


def test_exponential_on_its_whole_range(two):
    x = -torch.linspace(0, 60, 2000)
    assert (two.run(exp, x) - x.double().exp()).abs().max() < 1e-3


def inverse(s, high):
    return approx.reciprocal(s, high)


@pytest.mark.parametrize("high", [1.0, 2.0, 10.0, 100.0])
def test_reciprocal(two, high):
    s = torch.linspace(1, high, 500)
    assert (two.run(inverse, s, high=high) - 1 / s.double()).abs().max() < 3e-4


def logarithm(s, high):
    return approx.log(s, high)


@pytest.mark.parametrize("high", [2.0, 10.0, 100.0])
def test_logarithm(two, high):
    s = torch.linspace(1, high, 500)
    assert (two.run(logarithm, s, high=high) - s.double().log()).abs().max() < 4e-3


def functions(x):
    return {
        "sigmoid": approx.sigmoid(x), "softmax": approx.softmax(x, 1), "log_softmax": approx.log_softmax(x, 1),
        "softplus": approx.softplus(x),
    }  # fmt: skip


def test_functions(parties):
    x = torch.randn(20, 6) * 4
    r = parties.run(functions, x)
    expected = {
        "sigmoid": x.sigmoid(), "softmax": x.softmax(1), "log_softmax": x.log_softmax(1), "softplus": F.softplus(x)
    }  # fmt: skip
    for name, value in expected.items():
        assert (r[name] - value.double()).abs().max() < 5e-3, name


def loss(logits, onehot, kind):
    from mpc_imaging.engine.losses import loss_and_gradient

    return loss_and_gradient(kind, logits, onehot, True)


@pytest.mark.parametrize("kind", list(Loss))
@pytest.mark.parametrize("classes", [2, 7])
def test_losses_equal_the_baseline_times_the_batch(two, kind, classes):
    from mpc_imaging.baselines.plaintext import loss_function

    logits, labels = torch.randn(16, classes) * 3, torch.randint(classes, (16,))
    value, gradient = two.run(loss, logits, F.one_hot(labels, classes).double(), kind=kind)
    logits.requires_grad_()
    expected = loss_function(kind)(logits, labels) * 16
    expected.backward()
    assert abs(value - expected.item()) < 0.002 * expected.item() + 0.01
    assert (gradient - logits.grad.double()).abs().max() < 2e-3
