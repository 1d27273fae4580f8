"""The maximum of several values and the way back equal torch's, for any number of values along any dimension."""

import pytest
import torch

from mpc_imaging.protocols import tournament
from tests.protocols.parties import run


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, 16])
def test_maximum_and_its_gradient(count, parties):
    x = torch.randint(-(2**61), 2**61, (3, count, 2))
    g = torch.randint(-(2**63), 2**63 - 1, (3, 1, 2))

    def program(ctx, x, g):
        value, levels = tournament.maximum(ctx, x, 1)
        rounds = ctx.channel.rounds
        back = tournament.distribute(ctx, g, levels, 1)
        depth = (count - 1).bit_length()
        assert rounds == 6 * depth and ctx.channel.rounds == 7 * depth
        return value, back

    (value, back), _ = run(program, parties, x, g)
    largest = x.max(1, keepdim=True)
    assert torch.equal(value, largest.values)
    assert torch.equal(back, torch.zeros_like(x).scatter(1, largest.indices, g))


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_any_dimension(dim):
    x = torch.randint(-100, 100, (3, 4, 5)).permute(2, 0, 1)
    value, _ = run(lambda ctx, x: tournament.maximum(ctx, x, dim)[0], 2, x)
    assert torch.equal(value, x.max(dim, keepdim=True).values)


def test_of_equal_values_the_first_wins():
    x = torch.randint(0, 3, (500, 7))

    def one_hot(ctx, x):
        value, levels = tournament.maximum(ctx, x, 1)
        ones = torch.ones_like(value) if ctx.first else torch.zeros_like(value)
        return tournament.distribute(ctx, ones, levels, 1)

    hot, _ = run(one_hot, 2, x)
    assert torch.equal(hot, torch.nn.functional.one_hot(x.argmax(1), 7))


@pytest.mark.parametrize("distance", [2**63 - 1, 2**63 - 2**40])
def test_values_far_apart(distance):
    low = -(2**62)
    x = torch.tensor([[low, low + distance], [low + distance, low]])
    value, _ = run(lambda ctx, x: tournament.maximum(ctx, x, 1)[0], 2, x)
    assert torch.equal(value, torch.full((2, 1), low + distance))
