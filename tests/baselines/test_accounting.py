"""Epsilon of Gaussian noise, against the closed form and against what subsampling would have promised."""

import math

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from mpc_imaging.baselines.accounting import Mechanism, epsilon


def closed_form(mu, delta):
    """Balle and Wang (ICML 2018), theorem 8, with mu = sensitivity / deviation."""
    return brentq(lambda e: norm.cdf(mu / 2 - e / mu) - math.exp(e) * norm.cdf(-mu / 2 - e / mu) - delta, 0.0, 100.0)


def test_three_epochs_without_amplification():
    """4,708 images in batches of 128 would give 1.99 if the schedule were secret. It is not."""
    assert epsilon([Mechanism(1.0, 3)], 1e-5) == pytest.approx(8.39, abs=0.05)


@pytest.mark.parametrize(("sigma", "count"), [(1.0, 3), (4.0, 1), (2.0, 50), (0.7, 1)])
def test_the_closed_form(sigma, count):
    assert epsilon([Mechanism(sigma, count)], 1e-5) == pytest.approx(
        closed_form(math.sqrt(count) / sigma, 1e-5), rel=2e-3
    )


def test_sessions_compose():
    assert epsilon([Mechanism(1.0, 2), Mechanism(2.0, 4)], 1e-5) == pytest.approx(
        closed_form(math.sqrt(2 + 1), 1e-5), rel=2e-3
    )


def test_nothing_and_no_noise():
    assert epsilon([], 1e-5) == 0 == epsilon([Mechanism(0.0, 0)], 1e-5)
    assert epsilon([Mechanism(0.0, 1), Mechanism(5.0, 1)], 1e-5) == math.inf


def test_a_sensitivity_that_may_not_hold():
    plain = epsilon([Mechanism(2.0, 3)], 1e-5)
    assert epsilon([Mechanism(2.0, 3, 3 * 2.0**-40)], 1e-5) == pytest.approx(plain, abs=1e-3)
    assert plain < epsilon([Mechanism(2.0, 3, 1e-8)], 1e-5) < plain + math.log(2)
    assert epsilon([Mechanism(2.0, 3, 1e-5)], 1e-5) == math.inf


def test_noise_that_guarantees_nothing_is_not_accounted_for():
    assert epsilon([Mechanism(0.001, 1)], 1e-5) == math.inf
    assert 30 < epsilon([Mechanism(0.21, 1)], 1e-5) < math.inf
