"""What comparisons are used for equals torch's own, whichever family compares."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from mpc_imaging.protocols import compare
from mpc_imaging.protocols.fss import KeyComparison
from mpc_imaging.protocols.selection import select
from tests.protocols.parties import FAMILIES, FEW_FAMILIES, run

EDGES = torch.tensor([0, 1, -1, 2**16 - 1, -(2**16) + 1, 2**16, -(2**16), 2**61, -(2**61), 2**62 - 1, -(2**62) + 1])


def _values(count=500):
    wide = torch.randint(-(2**62) + 1, 2**62, (count,))
    return torch.cat([EDGES, wide, wide >> 30, wide >> 45, wide >> 55])


def _rounds(comparison, shift):
    return 2 if isinstance(comparison, KeyComparison) else 6 + bool(shift)


def _assert_truncated(y, exact, shift):
    """y is exact / 2**shift, rounded to one of the two nearest integers."""
    off = y - (exact >> shift)
    assert off.min() >= 0 and off.max() <= 1
    assert torch.all(off[exact % (1 << shift) == 0] == 0), "exact multiples stay exact"


@pytest.mark.parametrize(("parties", "comparison"), FAMILIES)
def test_less_than_zero(parties, comparison):
    x = _values().view(-1, 1)
    y, ctxs = run(compare.less_than_zero, parties, x, comparison=comparison)
    assert torch.equal(y, (x < 0).long())
    assert ctxs[0].channel.rounds == _rounds(comparison, 0)


@pytest.mark.parametrize(("parties", "comparison"), FAMILIES)
@pytest.mark.parametrize("shift", [0, 1, 16, 32, 33])
def test_relu(parties, comparison, shift):
    x = _values()

    def program(ctx, x):
        y, sign = compare.relu(ctx, x, shift)
        return y, sign.bit(), sign.value(), sign.selected()

    (y, bit, value, selected), ctxs = run(program, parties, x, comparison=comparison)
    # It is -x that is compared, so that the bit, x > 0, is torch's gradient where x is 0.
    _assert_truncated(value, -x, shift)
    # The bit is that of the value that it comes with, however that was rounded.
    assert torch.equal(bit, (value < 0).long()) and not bit[x == 0].any()
    assert torch.equal(y, (-value).clamp(min=0)) and torch.equal(selected, value.clamp(max=0))
    assert ctxs[0].channel.rounds == _rounds(comparison, shift)


@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
@pytest.mark.parametrize("shift", [0, 16])
def test_clamp(parties, comparison, shift):
    """Values at the bounds count as beyond them, below and above alike."""
    low, high = -3 << shift, 5 << shift
    x = torch.cat([torch.arange(-6, 8) << shift, _values() >> 2])
    grad = torch.arange(1, len(x) + 1)

    def program(ctx, x, grad):
        below, above = (low - x, x - high) if ctx.first else (-x, x)
        y, sign = compare.clamp(ctx, below, above, shift)
        return y, sign.bit(), compare.inside(select(ctx, sign, torch.stack([grad, grad])))

    (y, bits, inside), ctxs = run(program, parties, x, grad, comparison=comparison)
    assert torch.equal(inside, torch.where(bits.all(0), grad, 0))
    if not shift:
        assert torch.equal(y, x.clamp(low, high) - low)
        assert torch.equal(bits, torch.stack([x > low, x < high]).long())
    few = torch.arange(-6, 8)
    assert torch.equal(y[:14], few.clamp(-3, 5) + 3)
    assert torch.equal(bits[:, :14], torch.stack([few > -3, few < 5]).long())
    assert ctxs[0].channel.rounds == _rounds(comparison, shift) + 1  # one for the gradient


@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
@pytest.mark.parametrize("shift", [0, 16])
def test_absolute_with_sign(parties, comparison, shift):
    x = torch.cat([torch.arange(-6, 8) << shift, _values()])

    def program(ctx, x):
        y, sign = compare.absolute_with_sign(ctx, x, shift)
        return y, sign.bit()

    (y, bits), ctxs = run(program, parties, x, comparison=comparison)
    off = (y.double() * 2.0**shift - x.double().abs()).abs()
    assert torch.all(off <= 2.0**shift + x.double().abs() * 2**-50)
    large = (x.abs() >= 1 << shift) | (x == 0)
    assert torch.equal(bits[:, large], torch.stack([x > 0, x < 0]).long()[:, large])
    assert ctxs[0].channel.rounds == _rounds(comparison, shift)


@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
@pytest.mark.parametrize("shift", [0, 16])
def test_absolute(parties, comparison, shift):
    x = _values()
    y, ctxs = run(lambda ctx, x: compare.absolute(ctx, x, shift), parties, x, comparison=comparison)
    assert y.min() >= 0
    off = (y.double() * 2.0**shift - x.double().abs()).abs()
    assert torch.all(off <= 2.0**shift + x.double().abs() * 2**-50)
    assert ctxs[0].channel.rounds == _rounds(comparison, shift)


@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
def test_maximum(parties, comparison):
    a, b = torch.randint(-(2**61), 2**61, (2, 700))
    b[::3] = a[::3] + torch.randint(-2, 3, a[::3].shape)

    def program(ctx, a, b):
        y, sign = compare.maximum(ctx, a, b)
        return y, sign.bit()

    (y, bit), ctxs = run(program, parties, a, b, comparison=comparison)
    assert torch.equal(y, torch.maximum(a, b))
    assert torch.equal(bit, (a < b).long())
    assert ctxs[0].channel.rounds == _rounds(comparison, 0)


@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
@pytest.mark.parametrize("shift", [1, 16])
def test_coarse_maximum(parties, comparison, shift):
    """One of the two comes out, unchanged, and only of values within a unit of the comparison the smaller one."""
    a, b = torch.randint(-(2**60), 2**60, (2, 3000))
    b[::2] = a[::2] + torch.randint(-(3 << shift), 3 << shift, a[::2].shape)
    run_max = run(lambda ctx, a, b: compare.maximum(ctx, a, b, shift)[0], parties, a, b, comparison=comparison)
    y, ctxs = run_max
    assert torch.all((y == a) | (y == b))
    assert torch.all(torch.maximum(a, b) - y < 1 << shift)
    assert ctxs[0].channel.rounds == _rounds(comparison, 0)


@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-(2**62) + 1, 2**62 - 1), min_size=1, max_size=20))
def test_relu_of_any_integers(parties, comparison, values):
    x = torch.tensor(values)
    y, _ = run(lambda ctx, x: compare.relu(ctx, x)[0], parties, x, comparison=comparison)
    assert torch.equal(y, x.clamp(min=0))


@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-(2**62) + 1, 2**62 - 1), min_size=1, max_size=20), st.integers(1, 55))
def test_truncated_relu_of_any_integers(parties, comparison, values, shift):
    x = torch.tensor(values)

    def program(ctx, x):
        y, sign = compare.relu(ctx, x, shift)
        return y, sign.value()

    (y, value), _ = run(program, parties, x, comparison=comparison)
    _assert_truncated(value, -x, shift)
    assert torch.equal(y, (-value).clamp(min=0))


@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
@pytest.mark.parametrize("shape", [(0,), (2, 0, 3), (1,), ()])
def test_few_elements_of_any_shape(parties, comparison, shape):
    x = torch.full(shape, -(5 << 16))

    def program(ctx, x):
        relu, sign = compare.relu(ctx, x, 16)
        return (
            relu,
            sign.value(),
            compare.less_than_zero(ctx, x),
            compare.absolute(ctx, x),
            compare.maximum(ctx, x, -x)[0],
        )

    results, ctxs = run(program, parties, x, comparison=comparison)
    for y, expected in zip(results, (0, 5, 1, 5 << 16, 5 << 16), strict=True):
        assert torch.equal(y, torch.full(shape, expected))
    if not x.numel():
        assert ctxs[0].channel.rounds == 0 and ctxs[0].provider.log.count == 0


@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
def test_rounding_before_a_comparison_is_unbiased(parties, comparison):
    x = torch.full((100_000,), 3 * 2**16 + 2**14)
    y, _ = run(lambda ctx, x: compare.relu(ctx, x, 16)[0], parties, x, comparison=comparison)
    assert abs(y.double().mean().item() - 3.25) < 5.5 * (0.25 * 0.75 / len(x)) ** 0.5


@pytest.mark.parametrize(("parties", "comparison"), FEW_FAMILIES)
def test_inputs_stay_as_they_are(parties, comparison):
    x = _values()

    def program(ctx, x):
        before = x.clone()
        for shift in (0, 16):
            compare.relu(ctx, x, shift)
            compare.maximum(ctx, x, x, shift)
            compare.absolute(ctx, x, shift)
        compare.less_than_zero(ctx, x)
        assert torch.equal(x, before)
        return x

    run(program, parties, x, comparison=comparison)
