"""The bit of a comparison times another value, later: with and without truncation, for both families."""

import pytest
import torch

from mpc_imaging.protocols import compare, fss
from mpc_imaging.protocols.selection import select
from mpc_imaging.randomness.demands import Output, Selection
from tests.protocols.parties import FAMILIES, FEW_FAMILIES, demands, run

EDGES = torch.tensor([0, 1, -1, 2**16 - 1, -(2**16), 2**62 - 1, -(2**62) + 1])


def _pairs(count=500):
    """x that is compared, g that is selected: every edge of one meets every edge of the other."""
    wide = torch.randint(-(2**62) + 1, 2**62, (2, count))
    a, b = torch.meshgrid(EDGES, EDGES, indexing="ij")
    return torch.cat([a.reshape(-1), wide[0]]), torch.cat([b.reshape(-1), wide[1]])


@pytest.mark.parametrize("output", [Output.bit, Output.value])
@pytest.mark.parametrize(("parties", "comparison"), FAMILIES)
def test_another_value(parties, comparison, output):
    x, g = _pairs()

    def program(ctx, x, g):
        sign = ctx.comparison.compare(ctx, x, output, 0).bits()
        rounds = ctx.channel.rounds
        other = select(ctx, sign, g)
        assert ctx.channel.rounds == rounds + 1
        return other.selected(), other.relu(), other.value(), other.bit()

    (selected, rest, value, bit), _ = run(program, parties, x, g, comparison=comparison)
    assert torch.equal(selected, torch.where(x < 0, g, 0))
    assert torch.equal(rest, torch.where(x < 0, 0, g))
    assert torch.equal(value, g)
    assert torch.equal(bit, (x < 0).long())


@pytest.mark.parametrize("shift", [1, 16, 32, 40, 61])
@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
def test_another_value_truncated(parties, comparison, shift):
    x, g = _pairs()

    def program(ctx, x, g):
        sign = select(ctx, compare.relu(ctx, x)[1], g, shift)
        return sign.selected(), sign.relu(), sign.value()

    (selected, rest, value), _ = run(program, parties, x, g, comparison=comparison)
    off = value - (g >> shift)
    assert off.min() >= 0 and off.max() <= 1 and torch.all(off[g % (1 << shift) == 0] == 0)
    # Whole values are selected, of one rounding.
    assert torch.equal(selected, torch.where(x > 0, value, 0))
    assert torch.equal(rest, torch.where(x > 0, 0, value))


@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
def test_the_bit_of_a_truncated_value(parties, comparison):
    """The gradient of a fused ReLU: the bit is that of the value that the ReLU gave, however it was rounded."""
    x, g = _pairs()

    def program(ctx, x, g):
        y, sign = compare.relu(ctx, x, 16)
        return sign.value(), select(ctx, sign.bits(), g).selected()

    (value, selected), _ = run(program, parties, x, g, comparison=comparison)
    assert torch.equal(selected, torch.where(value < 0, g, 0))


@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
def test_many_values_by_one_comparison(parties, comparison):
    x, g = _pairs()

    def program(ctx, x, g):
        sign = compare.relu(ctx, x)[1]
        return tuple(select(ctx, sign, g * factor, factor % 2).selected() for factor in (1, 2, 3))

    results, ctxs = run(program, parties, x, g >> 3, comparison=comparison)
    for factor, y in zip((1, 2, 3), results, strict=True):
        exact = torch.where(x > 0, (g >> 3) * factor, 0)
        assert torch.all(y - (exact >> factor % 2) <= factor % 2) and torch.all(y >= exact >> factor % 2)
    assert [d.rho.index for d in demands(ctxs[0]) if isinstance(d, Selection)] == [0, 0, 0]


def test_blocks_of_keys():
    """A selection takes its masks in the blocks of the comparison, whose bits the dealer looks up."""
    count = 2 * fss.BLOCK + 5
    x, g = torch.randint(-(2**40), 2**40, (2, count))

    def program(ctx, x, g):
        return select(ctx, compare.relu(ctx, x)[1], g, 16).selected()

    y, ctxs = run(program, 2, x, g, comparison=fss.KeyComparison())
    off = y - torch.where(x > 0, g >> 16, 0)
    assert off.min() >= 0 and off.max() <= 1 and torch.all(off[x <= 0] == 0)
    assert [(d.count, d.rho.index) for d in demands(ctxs[0]) if isinstance(d, Selection)] == [
        (fss.BLOCK, 0), (fss.BLOCK, 1), (5, 2)
    ]  # fmt: skip


@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
def test_shapes_that_are_not_contiguous_and_nothing(parties, comparison):
    x, g = torch.randint(-100, 100, (2, 4, 6))

    def program(ctx, x, g):
        none = select(ctx, compare.relu(ctx, x[:0])[1], g[:0], 3)
        assert none.selected().shape == (0, 6)
        return select(ctx, compare.relu(ctx, x.t())[1], g.t()).selected()

    y, _ = run(program, parties, x, g, comparison=comparison)
    assert torch.equal(y, torch.where(x > 0, g, 0).t())


@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
def test_rounding_of_what_is_selected_is_unbiased(parties, comparison):
    x, g = torch.full((100_000,), 1), torch.full((100_000,), -3 * 2**16 - 2**14)
    y, _ = run(
        lambda ctx, x, g: select(ctx, compare.relu(ctx, x)[1], g, 16).selected(), parties, x, g, comparison=comparison
    )
    assert abs(y.double().mean().item() + 3.25) < 5.5 * (0.25 * 0.75 / len(x)) ** 0.5
