"""Comparison: exact on the whole ring, for two to five parties, in the number of rounds that it claims."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from mpc_imaging.protocols import compare
from tests.protocols.parties import run

EDGES = torch.tensor(
    [0, 1, -1, 2, -2, 15, 16, -16, 2**31, -(2**31), 2**62, -(2**62), 2**63 - 1, -(2**63), -(2**63) + 1]
)


def _values(count: int = 1000) -> torch.Tensor:
    wide = torch.randint(-(2**63), 2**63 - 1, (count,))
    return torch.cat([EDGES, wide, wide >> 40, wide >> 56])


@pytest.mark.parametrize("parties", [2, 3, 4, 5])
def test_sign_is_exact_on_the_whole_ring(parties):
    x = _values()

    def program(ctx, x):
        sign = compare.less_than_zero(ctx, x)
        return sign.bit(), sign.select(x)

    (bit, product), ctxs = run(program, parties, x)
    assert torch.equal(bit, (x < 0).long())
    assert torch.equal(product, torch.where(x < 0, x, 0))
    assert ctxs[0].channel.rounds == 6


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_relu_of_any_integers(values):
    x = torch.tensor(values)
    y, _ = run(lambda ctx, x: compare.relu(ctx, x)[0], 2, x)
    assert torch.equal(y, x.clamp(min=0))


def test_blocks_meet_without_a_seam():
    x = torch.randint(-(2**40), 2**40, (compare.BLOCK * 2 + 5,))
    y, _ = run(lambda ctx, x: compare.less_than_zero(ctx, x).bit(), 2, x)
    assert torch.equal(y, (x < 0).long())


def test_maximum():
    a, b = torch.randint(-(2**40), 2**40, (2, 7, 9))
    y, _ = run(lambda ctx, a, b: compare.maximum(ctx, a, b)[0], 3, a, b)
    assert torch.equal(y, torch.maximum(a, b))
