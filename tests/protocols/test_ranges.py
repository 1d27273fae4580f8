"""Values that leave their range are noticed, wherever they are, whatever the protocol; values in range pass."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from mpc_imaging.errors import RandomnessError
from mpc_imaging.protocols import compare
from mpc_imaging.protocols.fss import KeyComparison
from mpc_imaging.protocols.ranges import BLOCK, FINE_BLOCK, PROJECTIONS, RangeCheck
from mpc_imaging.protocols.tables import TableComparison
from mpc_imaging.randomness.streams import Stream
from tests.protocols.parties import FEW_FAMILIES, run

BOUND = 2**31 - 1


def _check(coins=bytes(32)):
    return RangeCheck(Stream(coins))


KEYS = KeyComparison()


def _passes(*values, bounds=(BOUND,), block=BLOCK, parties=2, comparison=KEYS):
    """What the parties together find of tensors that were watched one after the other."""
    rounds = 2 if isinstance(comparison, KeyComparison) else 6

    def program(ctx, *shares):
        check = _check()
        assert not check.pending()
        for share, bound in zip(shares, bounds * len(shares), strict=False):
            check.watch(share, bound, block=block)
        assert check.pending()
        before = ctx.channel.rounds
        verdict = check.verdict(ctx)
        assert ctx.channel.rounds == before + 2 * rounds and not check.pending()
        assert verdict.places == ("values",)
        return verdict.bits

    result, _ = run(program, parties, *values, comparison=comparison)
    assert result.shape == (2,) and result[0] == result[1] and result[0] in (0, 1)
    return bool(result[0])


@pytest.mark.parametrize("count", [1, 5, PROJECTIONS, PROJECTIONS + 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_values_in_range(count):
    assert _passes(torch.randint(-(2**21), 2**21, (count,)))


@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
@pytest.mark.parametrize("count", [3, 100])
def test_a_value_at_the_bound_and_one_beyond(parties, comparison, count):
    for value, fits in ((BOUND, True), (-BOUND, True), (BOUND + 1, False), (-BOUND - 1, False)):
        x = torch.zeros(count, dtype=torch.int64)
        x[2] = value
        assert _passes(x, parties=parties, comparison=comparison) == fits


@pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 5])
@pytest.mark.parametrize("value", [BOUND + 1, -BOUND - 1, 2**40, -(2**50), 2**62 - 1, -(2**62) + 1])
def test_one_value_out_of_range(place, value):
    x = torch.randint(-(2**20), 2**20, (2 * BLOCK + 6,))
    x[place] = value
    assert not _passes(x)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-(2**62) + 1, 2**62 - 1), min_size=1, max_size=60), st.integers(16, 60))
def test_no_violation_escapes(values, bits):
    bound = 2**bits
    if max(map(abs, values)) > bound:
        assert not _passes(torch.tensor(values), bounds=(bound,))


@pytest.mark.parametrize("size", [0.9, 1.0])
def test_large_values_pass_up_to_the_mean_square_of_the_docstring(size):
    bound = 2**61
    for block in (BLOCK, FINE_BLOCK):
        large = int(size * bound / (7 * block**0.5))
        signs = torch.randint(0, 2, (3 * block,), generator=torch.Generator().manual_seed(3)) * 2 - 1
        assert _passes(signs * large, bounds=(bound,), block=block)
        assert not _passes(signs * large * 4, bounds=(bound,), block=block)


def test_values_that_wrapped_around_are_noticed():
    """Twenty values anywhere modulo 2**64 among others that fit, with the widest bound that training uses."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        x = torch.randint(-(2**40), 2**40, (BLOCK,), generator=generator)
        x[:20] = torch.randint(-(2**63), 2**63 - 1, (20,), generator=generator)
        assert not _passes(x, bounds=(2**61,))


@pytest.mark.parametrize("bad", [None, 0, 1, 2])
def test_many_tensors_have_one_answer(bad):
    values = [torch.randint(-100, 100, shape) for shape in ((3, 4), (0,), (BLOCK + 3,), (7,))]
    values.pop(1)
    if bad is not None:
        values[bad].view(-1)[-1] = 2**20
    assert _passes(*values, bounds=(2**20 - 1,)) == (bad is None)


def test_places_have_answers_of_their_own():
    """In the order in which they were first watched; several tensors of one place count together."""

    def program(ctx, fine, bad):
        check = _check()
        for place, share in (("conv1", fine), ("conv2", bad), ("fc", fine), ("conv1", fine), ("conv2", fine)):
            check.place = place
            check.watch(share, BOUND)
        check.watch(bad, BOUND, "fc (weights)")
        verdict = check.verdict(ctx)
        assert verdict.places == ("conv1", "conv2", "fc", "fc (weights)")
        return verdict.bits

    result, _ = run(program, 2, torch.zeros(9, dtype=torch.int64), torch.full((90,), 2**40))
    assert result.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(("shift", "bits", "watched"), [(0, 32, True), (16, 32, True), (0, 64, False), (16, 48, False)])
def test_narrow_comparisons_are_watched(shift, bits, watched):
    """Those on all the bits that there are have nothing to check; nor have wide ones, nor those told not to."""
    top = (2 ** (bits - 1) - 1) << shift

    def program(ctx, x):
        checked = replace(ctx, check=_check(), comparison=KeyComparison(bits, checked=True))
        compare.relu(checked, x, shift)
        pending = checked.check.pending()
        compare.relu(replace(checked, comparison=checked.comparison.wide()), x, shift)
        assert pending == checked.check.pending() == watched
        unchecked = replace(checked, check=_check(), comparison=KeyComparison(bits))
        compare.relu(unchecked, x, shift)
        assert not unchecked.check.pending()
        return checked.check.verdict(checked).bits[0] if watched else torch.tensor(0)

    for value in (top, top + 1):
        x = torch.zeros(9, dtype=torch.int64)
        x[4] = min(value, 2**62 - 1)
        result, _ = run(program, 2, x, comparison=KeyComparison())
        assert result.item() == (watched and value == top)


@pytest.mark.parametrize("comparison", [KeyComparison(), TableComparison()])
def test_settled_violations_are_not_forgotten(comparison):
    """What was settled before counts, and is forgotten once it was told."""

    def program(ctx, fine, bad):
        check = _check()
        results = []
        for share in (bad, fine):
            check.watch(share, BOUND)
            check.settle(ctx)
        results.append(check.verdict(ctx).bits[0])
        check.watch(fine, BOUND)
        results.append(check.verdict(ctx).bits[0])
        with pytest.raises(RandomnessError, match="nothing was watched"):
            check.verdict(ctx)
        return torch.stack(results)

    values = torch.zeros(9, dtype=torch.int64), torch.full((9,), 2**40)
    result, _ = run(program, 2, *values, comparison=comparison)
    assert result.tolist() == [0, 1]
