"""Truncation: never off by more than one unit, unbiased, for any sign, size and number of parties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mpc_imaging.errors import RandomnessError
from mpc_imaging.protocols import truncate
from tests.protocols.parties import run


@pytest.mark.parametrize("parties", [2, 3, 4, 5])
@pytest.mark.parametrize("bits", [1, 16, 24, 32, 33, 40, 61])
def test_floor_or_the_next_integer(parties, bits):
    edges = torch.tensor([0, 1, -1, (1 << bits) - 1, -(1 << bits), 2**62 - 1, -(2**62) + 1])
    x = torch.cat([edges, torch.randint(-(2**62), 2**62, (5000,)), torch.randint(-(2**30), 2**30, (5000,))])
    y, ctxs = run(lambda ctx, x: truncate.truncate(ctx, x, bits), parties, x)
    off = y - (x >> bits)
    assert set(off.tolist()) <= {0, 1}
    assert torch.all(off[(x & ((1 << bits) - 1)) == 0] == 0), "exact multiples stay exact"
    assert ctxs[0].channel.rounds == 1


@pytest.mark.parametrize("value", [3.25, -3.25, 1000.5, -0.125])
def test_rounding_is_unbiased(value):
    x = torch.full((200_000,), round(value * 2**16))
    y, _ = run(lambda ctx, x: truncate.truncate(ctx, x, 16), 2, x)
    fraction = value % 1
    assert abs(y.double().mean().item() - value) < 5.5 * (fraction * (1 - fraction) / len(x)) ** 0.5


@pytest.mark.parametrize("bits", [62, 63, 64, -1])
def test_bits_that_are_not_possible(bits):
    with pytest.raises(RandomnessError, match=f"truncation by {bits} bits: 1 to 61 are possible"):
        run(lambda ctx, x: truncate.truncate(ctx, x, bits), 2, torch.ones(3).long())


def test_nothing_to_do():
    x = torch.randint(-(2**63), 2**63 - 1, (5,))
    y, ctxs = run(lambda ctx, x: truncate.truncate(ctx, x, 0), 2, x)
    assert torch.equal(y, x) and ctxs[0].channel.rounds == 0
    y, ctxs = run(lambda ctx, x: truncate.truncate(ctx, x[:0].view(0, 2), 16), 2, x)
    assert y.shape == (0, 2) and ctxs[0].channel.rounds == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-(2**37), 2**37), min_size=1, max_size=10), st.integers(1, 10_000), st.booleans())
def test_division_by_any_public_number(quotients, divisor, negative):
    """Quotients up to 2**37, whatever the dividend: of sums of that many values the averages are right."""
    x = torch.tensor(quotients) * divisor
    y, _ = run(lambda ctx, x: truncate.divide(ctx, x, -divisor if negative else divisor), 2, x)
    exact = np.array(quotients) * (-1 if negative else 1)
    assert np.all(np.abs(y.numpy() - exact) <= 2 + np.abs(exact) * 2.0**-24)


def test_the_average_of_many_large_values():
    """It came out as -257: the sum times the reciprocal had left the range."""
    count = 224 * 224
    x = torch.tensor([255 * count << 16])
    y, _ = run(lambda ctx, x: truncate.divide(ctx, x, count), 2, x)
    assert abs(y.item() / 2**16 - 255) < 1e-4


@pytest.mark.parametrize("divisor", [1, 2, 2**20, -(2**16), 0.5, 0.25, -3, 1 / 3, 2.0**60])
def test_division_by_particular_numbers(divisor):
    x = torch.tensor([0, 1, -1, 2**37, -(2**37), 12345678])
    y, _ = run(lambda ctx, x: truncate.divide(ctx, x, divisor), 2, x)
    exact = x.numpy() / divisor
    assert np.all(np.abs(y.numpy() - exact) <= 2 + np.abs(exact) * 2.0**-24)


def test_divisors_that_are_not_possible():
    with pytest.raises(ZeroDivisionError, match="divided by zero"):
        run(lambda ctx, x: truncate.divide(ctx, x, 0), 2, torch.ones(3).long())
    with pytest.raises(RandomnessError, match="1 to 61 are possible"):
        run(lambda ctx, x: truncate.divide(ctx, x, 2.0**63 + 2.0**12), 2, torch.ones(3).long())
