"""Values that leave the range of a narrow comparison are noticed, wherever they are; values in range pass."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from mpc_imaging.protocols import compare
from mpc_imaging.protocols.fss import KeyComparison
from mpc_imaging.protocols.ranges import BLOCK, RangeCheck
from mpc_imaging.randomness.streams import Stream
from tests.protocols.parties import run

BOUND = 2**31 - 1


def _passes(*values, bounds=(BOUND,)):
    """What both parties together find of tensors that were watched one after the other."""

    def program(ctx, *shares):
        check = RangeCheck(Stream(bytes(32)))
        assert not check.pending()
        for share, bound in zip(shares, bounds * len(shares), strict=False):
            check.watch(share, bound)
        assert check.pending()
        before = ctx.channel.rounds
        result = check.in_range(ctx)
        assert ctx.channel.rounds == before + 4 and not check.pending()
        return result

    result, _ = run(program, 2, *values)
    assert result.shape == () and result.item() in (0, 1)
    return bool(result)


@pytest.mark.parametrize("count", [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_values_in_range(count):
    assert _passes(torch.randint(-(2**21), 2**21, (count,)))


def test_a_value_at_the_bound():
    for value in (BOUND, -BOUND):
        x = torch.zeros(100, dtype=torch.int64)
        x[7] = value
        assert _passes(x)


@pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 5])
@pytest.mark.parametrize("value", [BOUND + 1, -BOUND - 1, 2**40, -(2**50), 2**62 - 1, -(2**62) + 1])
def test_one_value_out_of_range(place, value):
    x = torch.randint(-(2**20), 2**20, (2 * BLOCK + 6,))
    x[place] = value
    assert not _passes(x)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-(2**62) + 1, 2**62 - 1), min_size=1, max_size=8), st.integers(16, 60))
def test_no_violation_escapes(values, bits):
    bound = 2**bits
    if max(map(abs, values)) > bound:
        assert not _passes(torch.tensor(values), bounds=(bound,))


@pytest.mark.parametrize("bad", [None, 0, 1, 2])
def test_many_tensors_have_one_answer(bad):
    values = [torch.randint(-100, 100, shape) for shape in ((3, 4), (0,), (BLOCK + 3,), (7,))]
    values.pop(1)
    if bad is not None:
        values[bad].view(-1)[-1] = 2**20
    assert _passes(*values, bounds=(2**20 - 1,)) == (bad is None)


@pytest.mark.parametrize(("shift", "bits", "watched"), [(0, 32, True), (16, 32, True), (0, 64, False), (16, 48, False)])
def test_narrow_comparisons_are_watched(shift, bits, watched):
    """Those on all the bits that there are have nothing to check; nor have wide ones."""
    top = (2 ** (bits - 1) - 1) << shift

    def program(ctx, x):
        check = RangeCheck(Stream(bytes(32)))
        family = KeyComparison(bits, check)
        object.__setattr__(ctx, "comparison", family)
        compare.relu(ctx, x, shift)
        pending = check.pending()
        object.__setattr__(ctx, "comparison", family.wide())
        compare.relu(ctx, x, shift)
        assert pending == check.pending() == watched
        return check.in_range(ctx) if watched else torch.tensor(0)

    for value in (top, top + 1):
        x = torch.zeros(9, dtype=torch.int64)
        x[4] = min(value, 2**62 - 1)
        result, _ = run(program, 2, x)
        assert result.item() == (watched and value == top)


def test_settled_violations_are_not_forgotten():
    """What was settled before counts, and is forgotten once it was told."""

    def program(ctx, fine, bad):
        check = RangeCheck(Stream(bytes(32)))
        results = []
        for share in (bad, fine):
            check.watch(share, BOUND)
            check.settle(ctx)
        results.append(check.in_range(ctx))
        check.watch(fine, BOUND)
        results.append(check.in_range(ctx))
        return torch.stack(results)

    result, _ = run(program, 2, torch.zeros(9, dtype=torch.int64), torch.full((9,), 2**40))
    assert result.tolist() == [0, 1]
