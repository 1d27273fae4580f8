"""Noise on shares, and how far one image moves a sum."""

import math
import sys

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis

from mpc_imaging.errors import PrivacyError
from mpc_imaging.protocols import noise
from mpc_imaging.protocols.noise import ClippedSum, HeadSum, UpdateSum, gaussian, integer_sensitivity


@pytest.mark.parametrize("scale", [2.5, 2.0**30, 1.3 * 2.0**45])
def test_it_is_gaussian_of_that_deviation(scale):
    count = 5000
    values = gaussian(count, scale)
    assert values.dtype is torch.int64 and values.shape == (count,)
    relative = values.numpy().astype(np.float64) / scale
    assert abs(relative.mean()) < 5 / math.sqrt(count)
    assert abs(relative.std() - 1) < 5 / math.sqrt(2 * count)
    assert abs(kurtosis(relative)) < 5 * math.sqrt(24 / count)


def test_no_two_draws_are_alike():
    assert not torch.equal(gaussian(20, 2.0**20), gaussian(20, 2.0**20))


def test_variance_of_all_parties_noise_together():
    """k parties add k times the variance: what outsiders face."""
    total = sum(gaussian(5000, 2.0**20) for _ in range(3)).double() / 2.0**20
    assert total.std().item() == pytest.approx(math.sqrt(3), rel=5 / math.sqrt(2 * 5000))


def test_noise_drawn_ahead_is_used_once_and_only_where_it_fits():
    ahead = noise.NoiseAhead()
    draws = [ahead(1000, scale) for scale in (2.0**20, 2.0**20, 2.0**30, 2.0**20)]
    assert [round(math.log2(x.double().std().item())) for x in draws] == [20, 20, 30, 20]
    assert len({x.numpy().tobytes() for x in draws}) == 4
    assert "hidden" in repr(ahead)


@pytest.mark.parametrize("scale", [0.0, -1.0, 2.0**60, math.inf])
def test_scales_that_cannot_be(scale):
    with pytest.raises(PrivacyError, match="units"):
        gaussian(3, scale)


def test_a_missing_sampler_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "opendp.prelude", None)
    noise._opendp.cache_clear()
    with pytest.raises(PrivacyError, match=r"pip install 'mpc-imaging\[dp\]'"):
        noise.require_sampler()


def test_sensitivities():
    plain = ClippedSum(clip=2.0, micro_batch=1, linear=2, materialised=True)
    assert 2 < plain.sensitivity < 2.003 and plain.error == pytest.approx(plain.sensitivity / 2 - 1)
    # A micro-batch's mean is clipped to 2, its sum to 8, and one image moves that from anywhere to anywhere: 2 C.
    assert 16 < ClippedSum(2.0, 4, 2, True).sensitivity < 16.1
    head = HeadSum(input_norm=5.0, features=784, classes=2, fraction_bits=16)
    exact = math.sqrt(26) * math.sqrt(2)
    assert head.sensitivity == pytest.approx(exact * (1 + head.error)) and 0 < head.error < 1e-4
    assert integer_sensitivity(1.0, 16) == 2**16 and integer_sensitivity(1.00001, 16) == 2**16 + 1


@pytest.mark.parametrize("clip", [0.01, 0.3, 1.0, 1.1, 4.0, 16.0])
def test_the_check_is_as_sharp_for_any_bound(clip):
    assert ClippedSum(clip, 1, 3, True).error < 1e-3


def test_an_update_counts_as_its_images_and_for_its_rounding():
    exact = math.sqrt(1 + 2 * noise.CLIPPING_ERROR)
    assert UpdateSum((3, 5, 2), 400, 24).sensitivity == pytest.approx(5 * exact, rel=1e-5)
    # Of 400 entries, each off by less than a unit.
    assert UpdateSum((1,), 400, 8).length > exact + 20 / 2**8 + 3 / 2 / exact / 2**8
    lengths = [UpdateSum((1,), 400, bits).length for bits in range(8, 25)]
    assert lengths == sorted(lengths, reverse=True)
