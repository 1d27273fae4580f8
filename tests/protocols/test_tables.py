"""Comparison by tables: exact on the whole ring for two to five parties, in the rounds and bytes that it claims."""

import pytest
import torch

from mpc_imaging.protocols import tables
from mpc_imaging.randomness.demands import Output
from tests.protocols.parties import run

EDGES = torch.tensor(
    [0, 1, -1, 2, -2, 15, 16, -16, 2**31, -(2**31), 2**62, -(2**62), 2**63 - 1, -(2**63), -(2**63) + 1]
)


def _values(count=1000):
    wide = torch.randint(-(2**63), 2**63 - 1, (count,))
    return torch.cat([EDGES, wide, wide >> 40, wide >> 56])


@pytest.mark.parametrize("parties", [2, 3, 4, 5])
def test_sign_is_exact_on_the_whole_ring(parties):
    x = _values()

    def program(ctx, x):
        sign = ctx.comparison.compare(ctx, x, Output.value, 0)
        return sign.bit(), sign.selected(), sign.value()

    (bit, product, value), ctxs = run(program, parties, x)
    assert torch.equal(bit, (x < 0).long())
    assert torch.equal(product, torch.where(x < 0, x, 0))
    assert torch.equal(value, x)
    assert ctxs[0].channel.rounds == 6


@pytest.mark.parametrize("shift", [1, 16, 61])
def test_truncation_first(shift):
    x = torch.cat([torch.tensor([0, 1, -1, 2**62 - 1, -(2**62) + 1]), torch.randint(-(2**62), 2**62, (1000,))])

    def program(ctx, x):
        sign = ctx.comparison.compare(ctx, x, Output.truncated, shift)
        return sign.bit(), sign.value()

    (bit, value), ctxs = run(program, 3, x)
    assert set((value - (x >> shift)).tolist()) <= {0, 1}
    assert torch.equal(bit, (value < 0).long())
    assert ctxs[0].channel.rounds == 7


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, tables.BLOCK, 2 * tables.BLOCK + 5])
def test_blocks_meet_without_a_seam(count):
    x = torch.randint(-(2**40), 2**40, (count,))
    y, ctxs = run(lambda ctx, x: ctx.comparison.compare(ctx, x, Output.bit, 0).bit(), 2, x)
    assert torch.equal(y, (x < 0).long())
    assert ctxs[0].channel.rounds == (6 if count else 0)


def test_all_comparisons_are_wide():
    family = tables.TableComparison()
    assert family.wide() is family
