"""Updates on shares: scaled to length 1 at most and added up, whatever an owner sent."""

import math

import pytest
import torch

COUNTS = (3, 5, 2)


def summed(*updates, clip):
    from mpc_imaging.engine.tensors import from_share
    from mpc_imaging.engine.updates import weighted_sum

    return from_share(weighted_sum([u.share for u in updates], COUNTS, clip))


def _updates(*lengths, size=500):
    torch.manual_seed(3)
    return [length * torch.nn.functional.normalize(torch.randn(size), dim=0) for length in lengths]


def _plain(updates):
    return sum(count * u / max(1.0, u.norm().item()) for count, u in zip(COUNTS, updates, strict=True))


@pytest.mark.parametrize("lengths", [(0.0, 0.3, 0.999), (1.01, 2.5, 5.0), (15.99, 1.0, 7.0)])
def test_the_sum_is_that_of_clipped_updates(parties, lengths):
    updates = _updates(*lengths)
    total = parties.run(summed, *updates, clip=True)
    plain = _plain(updates)
    # A unit of rounding at each entry and weight, and the relative error of the inverse root.
    assert (total - plain).abs().max() < sum(COUNTS) * 2 * 2**-16 + 2e-3 * plain.abs().max()
    assert parties.rounds < 60


def test_without_clipping_nothing_is_exchanged(two):
    updates = _updates(0.5, 3.0, 40.0)
    total = two.run(summed, *updates, clip=False)
    assert two.rounds == 0
    plain = sum(count * u for count, u in zip(COUNTS, updates, strict=True))
    assert (total - plain).abs().max() < sum(COUNTS) * 2**-16


@pytest.mark.parametrize("length", [17.0, 40.0, 90.0])
def test_an_update_beyond_the_limit_counts_as_zero(two, length):
    updates = _updates(length, 0.5, 0.25)
    total = two.run(summed, *updates, clip=True)
    assert (total - _plain([torch.zeros(500), *updates[1:]])).abs().max() < sum(COUNTS) * 2 * 2**-16


def alone(update):
    from mpc_imaging.engine.tensors import from_share
    from mpc_imaging.engine.updates import weighted_sum

    return from_share(weighted_sum([update.share], [1], True))


def test_no_update_is_longer_than_what_is_stated(two):
    from mpc_imaging.engine.updates import CLIPPING_ERROR

    for length in torch.linspace(0.5, 20, 27).tolist():
        (update,) = _updates(length, size=64)
        assert two.run(alone, update).norm() <= 1 + CLIPPING_ERROR + math.sqrt(64) * 2**-16


def test_an_owner_sends_nothing_longer_than_the_limit():
    from mpc_imaging.engine.updates import LIMIT, fitting

    short, long = _updates(3.0, 1e6)
    assert torch.equal(fitting(short), short.double())
    assert 0.98 * LIMIT < fitting(long).norm() < LIMIT
    assert torch.allclose(fitting(long) / fitting(long).norm(), (long / long.norm()).double())
