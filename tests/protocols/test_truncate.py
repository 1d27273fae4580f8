"""Truncation: never off by more than one unit, unbiased, for any sign, size and number of parties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mpc_imaging.protocols import truncate
from tests.protocols.parties import run


@pytest.mark.parametrize("parties", [2, 3, 5])
@pytest.mark.parametrize("bits", [1, 16, 24, 40])
def test_floor_or_the_next_integer(parties, bits):
    edges = torch.tensor([0, 1, -1, (1 << bits) - 1, -(1 << bits), 2**62 - 1, -(2**62) + 1])
    x = torch.cat([edges, torch.randint(-(2**62), 2**62, (5000,)), torch.randint(-(2**30), 2**30, (5000,))])
    y, ctxs = run(lambda ctx, x: truncate.truncate(ctx, x, bits), parties, x)
    off = y - (x >> bits)
    assert set(off.tolist()) <= {0, 1}
    assert torch.all(off[(x & ((1 << bits) - 1)) == 0] == 0), "exact multiples stay exact"
    assert ctxs[0].channel.rounds == 1


def test_rounding_is_unbiased():
    x = torch.full((200_000,), 3 * 2**16 + 2**14)
    y, _ = run(lambda ctx, x: truncate.truncate(ctx, x, 16), 2, x)
    assert abs(y.double().mean().item() - 3.25) < 5 * (0.25 * 0.75 / len(x)) ** 0.5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-(2**37), 2**37), min_size=1, max_size=10), st.integers(1, 10_000), st.booleans())
def test_division_by_any_public_number(values, divisor, negative):
    divisor = -divisor if negative else divisor
    x = torch.tensor(values)
    y, _ = run(lambda ctx, x: truncate.divide(ctx, x, divisor), 2, x)
    exact = x.numpy() / divisor
    assert np.all(np.abs(y.numpy() - exact) <= 1 + np.abs(exact) * 2.0**-24)
