"""The maximum of several values and the way back equal torch's, for any number of values along any dimension."""

import pytest
import torch

from mpc_imaging.protocols import tournament
from mpc_imaging.protocols.fss import KeyComparison
from tests.protocols.parties import FEW_FAMILIES, run


@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, 16])
def test_maximum_and_its_gradient(count, parties, comparison):
    x = torch.randint(-(2**61), 2**61, (3, count, 2))
    g = torch.randint(-(2**63), 2**63 - 1, (3, 1, 2))

    def program(ctx, x, g):
        value, levels = tournament.maximum(ctx, x, 1)
        rounds = ctx.channel.rounds
        back = tournament.distribute(ctx, g, levels, 1)
        depth = (count - 1).bit_length()
        each = 2 if isinstance(comparison, KeyComparison) else 6
        assert rounds == each * depth and ctx.channel.rounds == (each + 1) * depth
        return value, back

    (value, back), _ = run(program, parties, x, g, comparison=comparison)
    largest = x.max(1, keepdim=True)
    assert torch.equal(value, largest.values)
    assert torch.equal(back, torch.zeros_like(x).scatter(1, largest.indices, g))


@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
@pytest.mark.parametrize("count", [2, 4, 9])
def test_coarse_maximum(count, parties, comparison):
    """One of the values comes out, unchanged, at most one unit of a comparison below the largest for each level."""
    x = torch.randint(-(4 << 16), 4 << 16, (300, count))
    value, _ = run(lambda ctx, x: tournament.maximum(ctx, x, 1, 16)[0], parties, x, comparison=comparison)
    assert torch.all((x == value).any(1))
    assert torch.all(x.max(1, keepdim=True).values - value < (count - 1).bit_length() << 16)


PADDING = -(2**61)


@pytest.mark.parametrize("shift", [0, 16])
@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
def test_padding_never_wins(parties, comparison, shift):
    """As in a max-pool at an image's edge."""
    x = torch.randint(-(2**60), 2**60, (300, 5))
    x[::2] >>= 30
    x[:, [0, 3]] = PADDING

    def program(ctx, x):
        value, levels = tournament.maximum(ctx, x, 1, shift)
        ones = torch.ones_like(value) if ctx.first else torch.zeros_like(value)
        return value, tournament.distribute(ctx, ones, levels, 1)

    (value, hot), _ = run(program, parties, x, comparison=comparison.wide())
    assert torch.all((x[:, [1, 2, 4]] == value).any(1))
    assert torch.all(hot.sum(1) == 1) and torch.all(hot[:, [0, 3]] == 0)
    assert torch.equal((hot * x).sum(1, keepdim=True), value)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
def test_any_dimension(dim, parties, comparison):
    x = torch.randint(-100, 100, (3, 4, 5)).permute(2, 0, 1)
    value, _ = run(lambda ctx, x: tournament.maximum(ctx, x, dim)[0], parties, x, comparison=comparison)
    assert torch.equal(value, x.max(dim, keepdim=True).values)


@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
def test_of_equal_values_the_first_wins(parties, comparison):
    x = torch.randint(0, 3, (500, 7))

    def one_hot(ctx, x):
        value, levels = tournament.maximum(ctx, x, 1)
        ones = torch.ones_like(value) if ctx.first else torch.zeros_like(value)
        return tournament.distribute(ctx, ones, levels, 1)

    hot, _ = run(one_hot, parties, x, comparison=comparison)
    assert torch.equal(hot, torch.nn.functional.one_hot(x.argmax(1), 7))


@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
@pytest.mark.parametrize("distance", [2**63 - 1, 2**63 - 2**40])
def test_values_far_apart(distance, parties, comparison):
    low = -(2**62)
    x = torch.tensor([[low, low + distance], [low + distance, low]])
    value, _ = run(lambda ctx, x: tournament.maximum(ctx, x, 1)[0], parties, x, comparison=comparison)
    assert torch.equal(value, torch.full((2, 1), low + distance))


@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
def test_nothing(parties, comparison):
    x = torch.empty(0, 4, dtype=torch.int64)
    value, _ = run(lambda ctx, x: tournament.maximum(ctx, x, 1)[0], parties, x, comparison=comparison)
    assert value.shape == (0, 1)
