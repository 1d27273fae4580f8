"""Convolution, pooling, resizing and padding: torch's own signatures, in terms of the engine's operations.

As in `operations.py`; every stride, padding, kernel and size becomes a tuple of integers, one per spatial dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mpc_imaging.models.problems import NotBuiltYet


def _ints(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims // len(value))


# Convolution


def conv1d(
    ops: Any,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """(N, C, L) with weight (K, C / groups, kernel)."""
    return _conv(ops, ops.conv1d, 1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    ops: Any,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """(N, C, H, W) with weight (K, C / groups, kernel, kernel)."""
    return _conv(ops, ops.conv2d, 2, input, weight, bias, stride, padding, dilation, groups)


def _conv(
    ops: Any,
    conv: Any,
    dims: int,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Any:
    dilation = _ints(dilation, dims)
    if padding == "same":
        total = [step * (kernel - 1) for step, kernel in zip(dilation, weight.shape[2:], strict=True)]
        padding = tuple(n // 2 for n in total)
        if any(n % 2 for n in total):
            # Torch puts the odd pixel at the end; `pad` counts from the last dimension to the first.
            input = ops.pad(input, tuple(side for n in reversed(total) for side in (0, n % 2)), 0)
    elif padding == "valid":
        padding = 0
    return conv(input, weight, bias, _ints(stride, dims), _ints(padding, dims), dilation, groups)


def conv_transpose2d(
    ops: Any,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """(N, C, H, W) with weight (C, K / groups, kernel, kernel)."""
    return ops.conv_transpose2d(
        input, weight, bias, _ints(stride, 2), _ints(padding, 2), _ints(output_padding, 2), groups, _ints(dilation, 2)
    )


def conv_transpose1d(
    ops: Any,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """(N, C, L) with weight (C, K / groups, kernel), as one row of an image."""
    row = conv_transpose2d(
        ops, _as_row(ops, input), _as_row(ops, weight), bias, (1, *_ints(stride, 1)), (0, *_ints(padding, 1)),
        (0, *_ints(output_padding, 1)), groups, (1, *_ints(dilation, 1)),
    )  # fmt: skip
    return _from_row(ops, row)


def _as_row(ops: Any, x: Any) -> Any:
    return ops.reshape(x, (x.shape[0], x.shape[1], 1, x.shape[2]))


def _from_row(ops: Any, x: Any) -> Any:
    return ops.reshape(x, (x.shape[0], x.shape[1], x.shape[3]))


# Pooling


def max_pool2d(
    ops: Any,
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """(N, C, H, W): the largest value of each window."""
    kernel, padding, dilation = _ints(kernel_size, 2), _ints(padding, 2), _ints(dilation, 2)
    stride = _ints(stride, 2) if stride else kernel
    if ceil_mode:
        for axis in (0, 1):
            missing = _overhang(input.shape[axis + 2], kernel[axis], stride[axis], padding[axis])
            input = _repeat_last(ops, input, axis + 2, missing)
    return ops.max_pool2d(input, kernel, stride, padding, dilation)


def _overhang(length: int, kernel: int, stride: int, padding: int) -> int:
    """How far the last window of ``ceil_mode`` reaches over the padded end (a window must start before that end)."""
    windows = math.ceil((length + 2 * padding - kernel) / stride) + 1
    if (windows - 1) * stride >= length + padding:
        windows -= 1
    return max(0, (windows - 1) * stride + kernel - length - 2 * padding)


def _repeat_last(ops: Any, x: Any, dim: int, times: int) -> Any:
    # A window that hangs over holds the last value: repeating that keeps the maximum. Fixed point has no -inf.
    if not times:
        return x
    last = ops.getitem(x, (slice(None),) * dim + (slice(x.shape[dim] - 1, x.shape[dim]),))
    return ops.cat([x] + [last] * times, dim)


def max_pool1d(
    ops: Any,
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """(N, C, L), as one row of an image."""
    stride = _ints(stride or kernel_size, 1)
    row = max_pool2d(
        ops, _as_row(ops, input), (1, *_ints(kernel_size, 1)), (1, *stride), (0, *_ints(padding, 1)),
        (1, *_ints(dilation, 1)), ceil_mode,
    )  # fmt: skip
    return _from_row(ops, row)


def avg_pool2d(
    ops: Any,
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """(N, C, H, W): the mean of each window."""
    kernel = _ints(kernel_size, 2)
    return ops.avg_pool2d(input, kernel, _ints(stride, 2) if stride else kernel, _ints(padding, 2), count_include_pad)


def avg_pool1d(
    ops: Any,
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:
    """(N, C, L), as one row of an image."""
    kernel, stride, padding = (
        (1, *_ints(kernel_size, 1)),
        (1, *_ints(stride or kernel_size, 1)),
        (0, *_ints(padding, 1)),
    )
    return _from_row(ops, ops.avg_pool2d(_as_row(ops, input), kernel, stride, padding, count_include_pad))


def adaptive_avg_pool2d(ops: Any, input: Any, output_size: Any) -> Any:
    """(N, C, H, W): the means of a grid of windows; None in the size keeps that of the input."""
    sizes = zip(_ints_or_none(output_size), input.shape[2:], strict=True)
    return ops.adaptive_avg_pool2d(input, tuple(n if size is None else size for size, n in sizes))


def _ints_or_none(size: Any) -> tuple[int | None, ...]:
    return (size, size) if size is None or isinstance(size, int) else tuple(size)


def adaptive_avg_pool1d(ops: Any, input: Any, output_size: Any) -> Any:
    """(N, C, L), as one row of an image."""
    return _from_row(ops, ops.adaptive_avg_pool2d(_as_row(ops, input), (1, *_ints(output_size, 1))))


# Resizing and padding


def interpolate(
    ops: Any,
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Any:
    """(N, C, H, W) resized: by whole factors for nearest, to any size for bilinear."""
    if len(input.shape) != 4:
        raise NotBuiltYet(f"it resizes {len(input.shape)} dimensions", "use it on (N, C, H, W) only")
    old = tuple(input.shape[2:])
    new = _resized(old, scale_factor, recompute_scale_factor) if size is None else _ints(size, 2)
    if mode == "bilinear":
        return ops.upsample_bilinear(input, new, bool(align_corners))
    if any(n % o for n, o in zip(new, old, strict=True)):
        raise NotBuiltYet(
            f"{mode} from {old} to {new} is not by whole factors", 'use mode="bilinear" or a whole factor'
        )
    return ops.upsample_nearest(input, tuple(n // o for n, o in zip(new, old, strict=True)))


def _resized(old: tuple[int, ...], scale_factor: Any, recompute: bool | None) -> tuple[int, ...]:
    factors = (scale_factor,) * 2 if isinstance(scale_factor, int | float) else tuple(scale_factor)
    exact = tuple(n * factor for n, factor in zip(old, factors, strict=True))
    new = tuple(math.floor(n) for n in exact)
    # Torch then resizes by the given factor, which is not the ratio of the sizes.
    if new != exact and not recompute:
        raise NotBuiltYet(f"scale_factor {scale_factor} of {old} is no whole size", f"use size={new}")
    return new


def pad(ops: Any, input: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    """Zeros or another constant around the value, listed from the last dimension to the first."""
    return ops.pad(input, tuple(pad), value or 0)
