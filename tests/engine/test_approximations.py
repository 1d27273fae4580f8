"""Approximations against torch, with the errors that their docstrings promise."""

import pytest
import torch
import torch.nn.functional as F

from mpc_imaging.engine import approximations as approx

UNIT = 2.0**-16


def exp(x):
    return approx.exp_nonpositive(x)


def test_exponential_on_its_whole_range(two):
    x = -torch.cat([torch.linspace(0, 1, 1000), torch.linspace(1, 60, 2000)])
    error = (two.run(exp, x) - x.double().exp()).abs()
    print(error.max() / UNIT, error[:1000].mean() / UNIT, error[1000:].mean() / UNIT, two.rounds)
    assert error.max() < 24 * UNIT
    # A third of a thousandth where it is worst; a missing term of the series would be seen at once.
    assert error[:1000].mean() < 16 * UNIT and error[1000:].mean() < UNIT


def inverse(s, high):
    return approx.reciprocal(s, high)


@pytest.mark.parametrize("high", [1.0, 2.0, 10.0, 100.0, 128.0, 1000.0])
def test_reciprocal(two, high):
    s = torch.linspace(1, high, 500)
    error = (two.run(inverse, s, high=high) - 1 / s.double()).abs()
    print(high, error.max() / UNIT, error.mean() / UNIT, two.rounds)
    assert error.max() < 8 * UNIT


def logarithm(s, high):
    return approx.log(s, high)


@pytest.mark.parametrize("high", [2.0, 10.0, 100.0, 1000.0])
def test_logarithm(two, high):
    s = torch.linspace(1, high, 500)
    assert (two.run(logarithm, s, high=high) - s.double().log()).abs().max() < 1e-3


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
        assert (r[name] - value.double()).abs().max() < 2e-3, name


def through_crypten(x, weights):
    x.requires_grad = True
    logarithms = x.log_softmax(1)
    logarithms.backward(weights)
    return x.detach().softmax(-1), logarithms.detach(), x.grad


def test_the_softmax_of_crypten_programs_is_as_close(two):
    """CrypTen's own logarithm of a softmax is off by up to 0.008, too much for the test of nn.LogSoftmax."""
    x, weights = torch.randn(2000, 4) * 3, torch.randn(2000, 4)
    probabilities, logarithms, gradient = two.run(through_crypten, x, weights)
    assert (probabilities - F.softmax(x.double(), 1)).abs().max() < 64 * UNIT
    x.requires_grad_()
    expected = F.log_softmax(x.double(), 1)
    assert (logarithms - expected).abs().max() < 0.002
    expected.backward(weights.double())
    assert (gradient - x.grad.double()).abs().max() < 0.003
