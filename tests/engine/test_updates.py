"""Updates on shares: scaled to length 1 at most and added up, whatever an owner sent."""

import math

import pytest
import torch

from mpc_imaging.protocols.noise import CLIPPING_ERROR, MOST_FACTOR, UpdateSum

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
    for length in torch.linspace(0.5, 20, 27).tolist():
        (update,) = _updates(length, size=64)
        assert two.run(alone, update).norm() <= UpdateSum((1,), 64, 16).length


def with_factor(update, factor):
    """`alone` where the inverse square root gives ``factor`` (1,), whatever the update's length."""
    from mpc_imaging.engine import updates

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(updates, "_roots", lambda ctx, squares: factor.share.clone())
        return alone(update)


@pytest.mark.parametrize("factor", [-0.5, 0.25, 1.0, MOST_FACTOR, MOST_FACTOR + 2**-10, 3.0])
@pytest.mark.parametrize("length", [0.3, 0.99, 1.02, 15.9])
def test_nothing_depends_on_the_root(two, length, factor):
    (update,) = _updates(length, size=64)
    got = two.run(with_factor, update, torch.tensor([factor]))
    kept = 0 <= factor <= MOST_FACTOR and length * factor < 1 + CLIPPING_ERROR
    assert (got - update * factor * kept).abs().max() < 2 * 2**-16


def with_worst_coins(update, factor, bits):
    """`with_factor` at so many bits of fraction, where each truncation is rounded as makes the result longest.

    update, factor: in units of 2**-16, whatever ``bits`` are. Integers again, of `bits`.
    """
    import crypten

    from mpc_imaging.engine import updates
    from mpc_imaging.engine.tensors import from_share

    # The length, twice what is compared, and what is scaled.
    directions = iter([math.floor, math.floor, math.floor, math.ceil])

    def rounded(ctx, x, count):
        (known,) = ctx.channel.open_ring([x])
        direction = next(directions)
        result = torch.tensor([direction(value / (1 << count)) for value in known.flatten().tolist()]).view(x.shape)
        return result if ctx.first else torch.zeros_like(result)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crypten.cfg.encoder, "precision_bits", bits)
        patch.setattr(updates, "truncate", rounded)
        patch.setattr(updates, "_roots", lambda ctx, squares: factor.share.clone())
        return from_share(updates.weighted_sum([update.share], [1], True), 0)


def _longest(bits):
    """(size, entry, factor, result), in units: of updates with equal entries that pass, one with the longest result."""
    one, found = 1 << bits, []
    for size in range(1, 40):
        seeming = math.floor(one * math.sqrt((1 + 2 * CLIPPING_ERROR) / size))
        for factor in range(one // 2, one + 1, max(1, one // 512)):
            for result in range(seeming, seeming + 3):
                # So that it is rounded up from just above the integer before.
                entry = (result - 1) * one // factor + 1
                square = size * entry**2 >> bits
                if factor * (factor * square >> bits) >> bits <= one * (1 + 2 * CLIPPING_ERROR):
                    found.append((math.sqrt(size) * (result - 1), size, entry, factor, result))
    return max(found)[1:]


@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16, 20])
def test_rounding_is_counted_at_its_worst(two, bits):
    """With few bits what is verified may be longer than it seems; that and the rounding of entries are both counted."""
    size, entry, factor, result = _longest(bits)
    units = (torch.full((size,), entry) / 2.0**16, torch.tensor([factor]) / 2.0**16)
    got = two.run(with_worst_coins, *(u.double() for u in units), bits=bits)
    assert got.tolist() == [result] * size, "it passes the check, as predicted"
    counted = UpdateSum((1,), size, bits).length * 2**bits
    assert got.norm() <= counted < got.norm() + 3
    # As if what is compared were the length of what is scaled.
    seeming = 2**bits * (1 + CLIPPING_ERROR) + math.sqrt(size)
    assert (got.norm() > seeming) == (bits < 16)


def test_an_owner_sends_nothing_longer_than_the_limit():
    from mpc_imaging.engine.updates import LIMIT, fitting

    short, long = _updates(3.0, 1e6)
    assert torch.equal(fitting(short), short.double())
    assert 0.98 * LIMIT < fitting(long).norm() < LIMIT
    assert torch.allclose(fitting(long) / fitting(long).norm(), (long / long.norm()).double())
