"""The operations that a `SecureModule` needs, on plain torch tensors.

`engine/layers.py` supplies the same names and signatures on shares. Every hyper-parameter arrives as plain numbers: one
integer per spatial dimension, dimensions counted from the front, tensors before numbers.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812 (its usual name)

Tensor = torch.Tensor
Ints = tuple[int, ...]


def _plain(*sizes: object) -> None:
    """Fail unless sizes are integers or tuples of integers: the contract that the engine relies on."""
    for size in sizes:
        for value in size if isinstance(size, tuple) else (size,):
            assert type(value) is int, size


def conv1d(x: Tensor, w: Tensor, b: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Tensor:
    _plain(stride, padding, dilation, groups)
    return F.conv1d(x, w, b, stride, padding, dilation, groups)


def conv2d(x: Tensor, w: Tensor, b: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Tensor:
    _plain(stride, padding, dilation, groups)
    return F.conv2d(x, w, b, stride, padding, dilation, groups)


def conv_transpose2d(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    groups: int,
    dilation: Ints,
) -> Tensor:
    _plain(stride, padding, output_padding, groups, dilation)
    return F.conv_transpose2d(x, w, b, stride, padding, output_padding, groups, dilation)


def linear(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return F.linear(x, w, b)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


def add(a: Tensor, b: Tensor | float) -> Tensor:
    assert isinstance(a, Tensor)
    return a + b


def sub(a: Tensor, b: Tensor | float) -> Tensor:
    assert isinstance(a, Tensor)
    return a - b


def mul(a: Tensor, b: Tensor | float) -> Tensor:
    assert isinstance(a, Tensor)
    return a * b


def div(a: Tensor, b: float) -> Tensor:
    assert isinstance(a, Tensor) and isinstance(b, int | float)
    return a / b


def relu(x: Tensor) -> Tensor:
    return F.relu(x)


def hardtanh(x: Tensor, lo: float, hi: float) -> Tensor:
    return F.hardtanh(x, lo, hi)


def leaky_relu(x: Tensor, slope: float) -> Tensor:
    return F.leaky_relu(x, slope)


def sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


def tanh(x: Tensor) -> Tensor:
    return torch.tanh(x)


def softmax(x: Tensor, dim: int) -> Tensor:
    _plain(dim)
    return torch.softmax(x, dim)


def log_softmax(x: Tensor, dim: int) -> Tensor:
    _plain(dim)
    return torch.log_softmax(x, dim)


def max_pool2d(x: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    _plain(kernel, stride, padding, dilation)
    return F.max_pool2d(x, kernel, stride, padding, dilation)


def avg_pool2d(x: Tensor, kernel: Ints, stride: Ints, padding: Ints, count_include_pad: bool) -> Tensor:
    _plain(kernel, stride, padding)
    return F.avg_pool2d(x, kernel, stride, padding, count_include_pad=count_include_pad)


def adaptive_avg_pool2d(x: Tensor, size: Ints) -> Tensor:
    _plain(size)
    return F.adaptive_avg_pool2d(x, size)


def upsample_nearest(x: Tensor, scale: Ints) -> Tensor:
    _plain(scale)
    return x.repeat_interleave(scale[0], dim=2).repeat_interleave(scale[1], dim=3)


def upsample_bilinear(x: Tensor, size: Ints, align_corners: bool) -> Tensor:
    _plain(size)
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def pad(x: Tensor, pad: Ints, value: float) -> Tensor:
    _plain(pad)
    return F.pad(x, pad, value=value)


def cat(tensors: list[Tensor], dim: int) -> Tensor:
    _plain(dim)
    assert type(tensors) is list
    return torch.cat(tensors, dim)


def split(x: Tensor, sizes: Ints, dim: int) -> tuple[Tensor, ...]:
    _plain(sizes, dim)
    return torch.split(x, sizes, dim)


def getitem(x: Tensor, index: object) -> Tensor:
    return x[index]


def flatten(x: Tensor, start: int, end: int) -> Tensor:
    _plain(start, end)
    return torch.flatten(x, start, end)


def reshape(x: Tensor, shape: Ints) -> Tensor:
    _plain(shape)
    assert -1 not in shape
    return x.reshape(shape)


def transpose(x: Tensor, a: int, b: int) -> Tensor:
    _plain(a, b)
    return x.transpose(a, b)


def permute(x: Tensor, dims: Ints) -> Tensor:
    _plain(dims)
    return x.permute(dims)


def mean(x: Tensor, dims: Ints, keepdim: bool) -> Tensor:
    _plain(dims)
    return x.mean(dims, keepdim)


def sum(x: Tensor, dims: Ints, keepdim: bool) -> Tensor:
    _plain(dims)
    return x.sum(dims, keepdim)


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor, channel_dim: int) -> Tensor:
    _plain(channel_dim)
    shape = [1] * x.dim()
    shape[channel_dim] = -1
    return x * scale.reshape(shape) + shift.reshape(shape)
