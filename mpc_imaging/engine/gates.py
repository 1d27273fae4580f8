"""CrypTen's tensor methods, on this package's protocols. `install` puts them into CrypTen's classes.

Each function has the name and signature of the CrypTen method that it replaces and works on whatever context is
installed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from mpc_imaging.engine import compat
from mpc_imaging.engine.corrections import axis
from mpc_imaging.engine.tensors import excess, from_share, precision, rescaled
from mpc_imaging.protocols import bilinear, compare, tournament, truncate
from mpc_imaging.protocols.context import Context
from mpc_imaging.protocols.ranges import BLOCK, FINE_BLOCK, Bound, Margins, Verdict
from mpc_imaging.protocols.sign import Sign
from mpc_imaging.randomness.ring import BilinearOp

crypten = compat.load()

from crypten.mpc import MPCTensor  # noqa: E402
from crypten.mpc.primitives import ArithmeticSharedTensor  # noqa: E402

# Padding of a max-pool window: below every activation, and differences to it stay below 2**62.
PAD_VALUE = -(2**61)
# Bounds below what overflows: of layers in units, of parameters and gradients in units times 2**precision.
# The optimiser's products of gradients with rates, and of wider ones with factors of 24 bits, then stay below 2**62.
LAYER_BITS = 37
COARSE_BITS = 16
PARAMETER_BITS = 13

_context: Context | None = None
_bounded = False  # whether inputs of the layer that runs were checked, so that its result is in range


def context() -> Context:
    """The installed context; `installation.install` sets it. Raises `RuntimeError` before."""
    if _context is None:
        raise RuntimeError("no secure session: call mpc_imaging.engine.install first")
    return _context


def installed() -> bool:
    """Whether CrypTen computes with this package's protocols."""
    return _context is not None


def set_context(ctx: Context | None) -> None:
    """Used by `installation` alone."""
    global _context
    _context = ctx


def watching() -> bool:
    """Whether the range of values is checked."""
    return _context is not None and _context.check is not None


def watch(x: MPCTensor) -> MPCTensor:
    """Note the result of a layer for the range check, if there is one; returns it.

    It may be half as large as the truncation of a product can take, 2**(61 - fraction_bits) units, and at most
    2**`LAYER_BITS`. A result that wrapped around modulo 2**64 is anywhere, so one alone may escape, and where values
    are powers of two many may: inputs with bounds (`in_range`) leave no such chance.
    """
    if not _bounded:
        _watch(x, min(LAYER_BITS, 61 - precision()), None, BLOCK)
    return x


def in_range(x: MPCTensor, bound: Bound) -> MPCTensor:
    """Note an input of an operation for the range check, if there is one; returns it at the session's precision.

    bound: of x in units, such that the result of the operation cannot overflow.
    """
    x = rescaled(x)
    if watching():
        # With many bits of fraction there is little room: smaller blocks take larger values.
        block = BLOCK if precision() <= COARSE_BITS else FINE_BLOCK
        _context.check.watch(_context, x.share, bound, block=block)
    return x


@contextlib.contextmanager
def inputs_in_range() -> Iterator[None]:
    """While an operation runs whose inputs were noted: its result is in range if they are, and need not be."""
    global _bounded
    _bounded = True
    try:
        yield
    finally:
        _bounded = False


def watch_parameter(x: MPCTensor, place: str) -> None:
    """Note a parameter, or its gradient, for the range check, if there is one: up to 2**`PARAMETER_BITS` in size."""
    # Small tensors, such as kernels and biases, have the largest gradients; there the finer check costs little.
    block = FINE_BLOCK if x.nelement() <= 16 * FINE_BLOCK else BLOCK
    _watch(x, min(PARAMETER_BITS + precision(), 61 - precision()), place, block)


def _watch(x: MPCTensor, bits: int, place: str | None, block: int) -> None:
    if watching():
        _context.check.watch(_context, x.share, 1 << min(bits + excess(x), 61), place, block)


def settle_ranges() -> None:
    """Count values out of range, on shares, since the last time: one comparison, if any were watched."""
    if watching():
        _context.check.settle(_context)


def take_margins() -> Margins:
    """Hand out what is to be compared of values watched since the last time; `give_margins` takes it back."""
    return _context.check.take(_context) if watching() else {}


def give_margins(margins: Margins) -> None:
    """Have these compared at the next `settle_ranges` or `range_verdict`."""
    if margins:
        _context.check.give(margins)


def range_verdict() -> Verdict | None:
    """Whether all values watched since the last time were in range; None if nothing was."""
    return _context.check.verdict(_context) if watching() and _context.check.pending() else None


def _like(share: torch.Tensor, x: MPCTensor) -> MPCTensor:
    result = from_share(share)
    result.encoder = x.encoder
    return result


# crypten.mpc.primitives.beaver, as `ArithmeticSharedTensor` calls it


def _pairs(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    return (value,) * count if isinstance(value, int) else tuple(value)


def _product(name: str):
    dims = {"1": 1, "2": 2}.get(name[-2:-1], 0)

    def function(x, y, **kwargs):
        params = {k: v if k == "groups" else _pairs(v, dims) for k, v in kwargs.items() if v is not None}
        op = BilinearOp.of(name, **params)
        return ArithmeticSharedTensor.from_shares(bilinear.multiply(context(), op, x.share, y.share), precision=0)

    function.__name__ = name
    return function


mul, matmul, conv1d, conv2d, conv_transpose1d, conv_transpose2d = map(
    _product, ("mul", "matmul", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d")
)


def square(x):
    """Share of x * x, not truncated."""
    share = bilinear.multiply(context(), BilinearOp("mul"), x.share, x.share)
    return ArithmeticSharedTensor.from_shares(share, precision=x.encoder._precision_bits)


# ArithmeticSharedTensor


def div_(self, y):
    """Division in place by a public number; by several, a tensor, through reciprocals with the fraction's precision."""
    if torch.is_tensor(y):
        values = y.unique()
        if len(values) != 1:
            return self.mul_(y.double().reciprocal())
        y = values.item()
    self.share = truncate.divide(context(), self.share, y)
    return self


# MPCTensor


def _ltz(self):
    """[x < 0] as an integer 0 or 1."""
    return from_share(compare.less_than_zero(context(), self.share), 0)


def eq(self, y):
    """[x == y]: neither x - y nor y - x is negative; |x - y| < 2**63 in fixed point. CrypTen's `ne` is 1 less this."""
    difference = (self - y).share
    bit = compare.less_than_zero(context(), torch.stack([difference, -difference]))
    return 1 - from_share(bit.sum(0), 0)


def settled(share: torch.Tensor, x: MPCTensor) -> MPCTensor:
    """What came of x when a comparison truncated its excess bits, if it had any."""
    return from_share(share) if excess(x) else _like(share, x)


def relu(self):
    """max(x, 0)."""
    return relu_with_sign(self)[0]


def relu_with_sign(x: MPCTensor) -> tuple[MPCTensor, Sign]:
    """ReLU, and the comparison x > 0 for the gradient. A product that is not rescaled yet is so in the same rounds."""
    y, sign = compare.relu(context(), x.share, excess(x))
    return settled(y, x), sign


def hardtanh_with_sign(x: MPCTensor, low: float, high: float) -> tuple[MPCTensor, Sign]:
    """min(max(x, low), high) for low < high, and the comparisons x > low and x < high, stacked, in the same rounds."""
    if excess(x) and max(abs(low), abs(high)) * 4.0 ** precision() > 2**60:
        x = rescaled(x)  # else the difference to a bound could leave the range
    y, sign = compare.clamp(context(), (low - x).share, (x - high).share, excess(x))
    return settled(y, x) + low, sign


def bounds(low: float, high: float, min_val: float | None, max_val: float | None) -> tuple[float, float]:
    """The bounds of `hardtanh`, by either of CrypTen's names. Raises `ValueError`, as torch, where low > high."""
    low, high = low if min_val is None else min_val, high if max_val is None else max_val
    if low > high:
        raise ValueError(f"hardtanh: min_val, {low}, is greater than max_val, {high}")
    return low, high


def constant(x: MPCTensor, value: float) -> MPCTensor:
    """A public value in the shape of x, at the session's precision."""
    return from_share(torch.zeros_like(x.share)) + value


def hardtanh(self, min_value=-1, max_value=1, *, min_val=None, max_val=None):
    """min(max(x, min_value), max_value); CrypTen's gradient has the bounds as `min_val` and `max_val`."""
    low, high = bounds(min_value, max_value, min_val, max_val)
    return hardtanh_with_sign(self, low, high)[0] if low < high else constant(self, low)


def abs_(self):
    """|x|."""
    return settled(compare.absolute(context(), self.share, excess(self)), self)


def abs_with_sign(x: MPCTensor) -> tuple[MPCTensor, Sign]:
    """|x|, and the comparisons x > 0 and x < 0, stacked, for the gradient: it is 0 where x is 0."""
    y, sign = compare.absolute_with_sign(context(), x.share, excess(x))
    return settled(y, x), sign


def maximum(self, dim=None, keepdim=False, one_hot=True):
    """The maximum: alone without `dim`, else with its one-hot (or its index). The first of equal values wins.

    A scalar counts as one dimension of one value. Raises `IndexError` if there is no such dimension, or nothing in it.
    """
    ctx = context()
    place = 0 if dim is None else axis(self, dim)
    share = self.share.flatten() if dim is None or self.dim() == 0 else self.share
    if not share.shape[place]:
        raise IndexError(f"the largest of no values was asked for: size {tuple(self.size())}, dimension {dim}")
    value, levels = tournament.maximum(ctx, share, place, excess(self))
    if dim is None:
        return _like(value.reshape(()), self)
    ones = torch.ones_like(value) if ctx.first else torch.zeros_like(value)
    hot = tournament.distribute(ctx, ones, levels, place)
    if not one_hot:
        index = torch.arange(hot.shape[place]).view([-1 if i == place else 1 for i in range(hot.dim())])
        hot = (hot * index).sum(place, keepdim=keepdim)
    value = value if keepdim else value.squeeze(place)
    if self.dim() == 0:
        value, hot = value.reshape(()), hot.reshape(())
    return _like(value, self), from_share(hot, 0)


def argmax(self, dim=None, keepdim=False, one_hot=True):
    """One-hot (or index) of the maximum; the first of equal values wins."""
    if dim is not None:
        return maximum(self, dim, keepdim, one_hot)[1]
    flat = maximum(_like(self.share.flatten(), self), 0, False, one_hot)[1].share
    size = self.size() if one_hot else (1,) * self.dim() if keepdim else ()
    return from_share(flat.view(size), 0)


class Windows:
    """The windows of a 2-d pooling: how (..., H, W) becomes (..., kh * kw, H', W'), and the way back.

    Raises `ValueError` if no window fits.
    """

    def __init__(self, size: torch.Size, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False) -> None:
        self.kernel = _pairs(kernel_size, 2)
        self.stride = self.kernel if stride is None else _pairs(stride, 2)
        self.padding, self.dilation = _pairs(padding, 2), _pairs(dilation, 2)
        self.size, sides = size, size[-2:]
        self.out, self.extra = [], []
        for i in (0, 1):
            reach = self.dilation[i] * (self.kernel[i] - 1) + 1
            room = sides[i] + 2 * self.padding[i] - reach
            if room < 0:
                raise ValueError(
                    f"a window of {reach} is larger than side {i}, {sides[i]} and padding of {self.padding[i]}"
                )
            count = room // self.stride[i] + 1
            if ceil_mode and room % self.stride[i] and count * self.stride[i] < sides[i] + self.padding[i]:
                count += 1
            self.out.append(count)
            self.extra.append(max(0, (count - 1) * self.stride[i] + reach - sides[i] - 2 * self.padding[i]))

    @property
    def place(self) -> int:
        """The dimension along which a window's elements are."""
        return len(self.size) - 2

    def padded(self) -> bool:
        """Whether windows reach beyond the edges."""
        return any(self._pads())

    def _pads(self) -> tuple[int, int, int, int]:
        (top, left), (bottom, right) = self.padding, self.extra
        return (left, left + right, top, top + bottom)

    def gather(self, x: torch.Tensor, value: int) -> torch.Tensor:
        """(..., kh * kw, H', W') from (..., H, W), padded with the same `value` in every share's sum."""
        x = F.pad(x, self._pads(), value=value)
        return torch.stack([x[..., rows, cols] for rows, cols in self._slices()], self.place)

    def scatter(self, windows: torch.Tensor) -> torch.Tensor:
        """The transpose of `gather`: windows are added up at the places that they came from."""
        left, right, top, bottom = self._pads()
        *images, h, w = self.size
        x = windows.new_zeros(*images, h + top + bottom, w + left + right)
        for i, (rows, cols) in enumerate(self._slices()):
            x[..., rows, cols] += windows.select(self.place, i)
        return x[..., top : top + h, left : left + w].contiguous()

    def _slices(self) -> list[tuple[slice, slice]]:
        def along(axis: int, offset: int) -> slice:
            start = offset * self.dilation[axis]
            return slice(start, start + (self.out[axis] - 1) * self.stride[axis] + 1, self.stride[axis])

        return [(along(0, i), along(1, j)) for i in range(self.kernel[0]) for j in range(self.kernel[1])]


def max_pool_levels(x: MPCTensor, windows: Windows) -> tuple[MPCTensor, list[Sign]]:
    """Max-pool, and the comparisons that its gradient needs."""
    ctx = context()
    if windows.padded():
        ctx = replace(ctx, comparison=ctx.comparison.wide())
    gathered = windows.gather(x.share, PAD_VALUE if ctx.first else 0)
    value, levels = tournament.maximum(ctx, gathered, windows.place, excess(x))
    return _like(value.squeeze(windows.place), x), levels


def max_pool2d(self, kernel_size, padding=0, stride=None, dilation=1, ceil_mode=False, return_indices=False):
    """2-d max-pool of (..., H, W); `return_indices` gives one-hot windows as CrypTen does, (..., H', W', kh, kw)."""
    windows = Windows(self.size(), kernel_size, stride, padding, dilation, ceil_mode)
    value, levels = max_pool_levels(self, windows)
    return (value, window_onehots(windows, levels, value)) if return_indices else value


def window_onehots(windows: Windows, levels: list[Sign], value: MPCTensor) -> MPCTensor:
    """Where each window's largest value is, (..., H', W', kh, kw)."""
    ctx = context()
    ones = torch.ones_like(value.share) if ctx.first else torch.zeros_like(value.share)
    hot = tournament.distribute(ctx, ones.unsqueeze(windows.place), levels, windows.place)
    return from_share(hot.movedim(windows.place, -1).reshape(*value.size(), *windows.kernel), 0)
