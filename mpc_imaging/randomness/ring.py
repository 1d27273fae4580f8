"""Bilinear operations on the ring of integers modulo 2**64 (int64 tensors, wrapping).

The dealer and the compute parties use the same functions: what is exact here is exact there. torch's own int64
convolution runs at 1 to 4 GMAC/s per core; gathered patches and one matrix product reach 8 to 9.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F

from mpc_imaging.errors import RandomnessError


def _patches(x: torch.Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> torch.Tensor:
    """Sliding windows of a padded (N, C, H, W) tensor: (N, C, kh, kw, H', W'), a view."""
    out = [(x.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]
    n, c, h, w = x.stride()
    return x.as_strided(
        (x.shape[0], x.shape[1], kernel[0], kernel[1], *out),
        (n, c, h * dilation[0], w * dilation[1], h * stride[0], w * stride[1]),
    )


def conv2d(
    x: torch.Tensor, w: torch.Tensor, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups: int = 1
) -> torch.Tensor:
    """Convolution of (N, C, H, W) with (O, C / groups, kh, kw)."""
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).contiguous()
    patches = _patches(x, w.shape[2:], stride, dilation)
    n, _, kh, kw, oh, ow = patches.shape
    per_group = w.shape[1] * kh * kw
    # (G, C/G * kh * kw, N * H' * W')
    columns = patches.permute(1, 2, 3, 0, 4, 5).reshape(groups, per_group, n * oh * ow)
    y = w.reshape(groups, w.shape[0] // groups, per_group) @ columns
    return y.reshape(w.shape[0], n, oh, ow).transpose(0, 1).contiguous()


def conv_transpose2d(
    x: torch.Tensor,
    w: torch.Tensor,
    stride=(1, 1),
    padding=(0, 0),
    output_padding=(0, 0),
    groups: int = 1,
    dilation=(1, 1),
) -> torch.Tensor:
    """Transposed convolution of (N, C, H, W) with (C, O / groups, kh, kw): the gradient of `conv2d` for its input."""
    n, c, h, width = x.shape
    if stride != (1, 1):
        spread = x.new_zeros(n, c, (h - 1) * stride[0] + 1, (width - 1) * stride[1] + 1)
        spread[:, :, :: stride[0], :: stride[1]] = x
        x = spread
    edge = [dilation[i] * (w.shape[2 + i] - 1) - padding[i] for i in range(2)]
    x = F.pad(x, (edge[1], edge[1] + output_padding[1], edge[0], edge[0] + output_padding[0]))
    kernel = w.flip(2, 3).reshape(groups, c // groups, w.shape[1], *w.shape[2:]).transpose(1, 2)
    return conv2d(x, kernel.reshape(groups * w.shape[1], c // groups, *w.shape[2:]), dilation=dilation, groups=groups)


def conv2d_weight(
    x: torch.Tensor, grad: torch.Tensor, kernel=(1, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups: int = 1
) -> torch.Tensor:
    """Gradient of `conv2d` for its kernel: (N, C, H, W) and (N, O, H', W') give (O, C / groups, kh, kw)."""
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).contiguous()
    patches = _patches(x, kernel, stride, dilation)[..., : grad.shape[2], : grad.shape[3]]
    per_group = x.shape[1] // groups * kernel[0] * kernel[1]
    columns = patches.permute(1, 2, 3, 0, 4, 5).reshape(groups, per_group, -1)
    g = grad.transpose(0, 1).reshape(groups, grad.shape[1] // groups, -1)
    return (g @ columns.transpose(1, 2)).reshape(grad.shape[1], x.shape[1] // groups, *kernel)


# Shapes of results, in formulas: torch's meta device tells them too, but its first use imports 900 modules in a second.

Shape = Sequence[int]


def _fit(fits: bool, x: Shape, y: Shape) -> None:
    if not fits:
        raise RandomnessError(f"shapes {tuple(x)} and {tuple(y)} do not fit this bilinear operation")


def _mul_shape(x: Shape, y: Shape) -> Shape:
    sizes = list(zip_longest(reversed(x), reversed(y), fillvalue=1))
    _fit(all(a == b or 1 in (a, b) for a, b in sizes), x, y)
    return [b if a == 1 else a for a, b in reversed(sizes)]


def _matmul_shape(x: Shape, y: Shape) -> Shape:
    _fit(len(x) > 0 and len(y) > 0, x, y)
    left, right = (1, *x)[-max(len(x), 2) :], (*y, 1)[: max(len(y), 2)]
    _fit(left[-1] == right[-2], x, y)
    rows, columns = ([] if len(shape) == 1 else [size] for shape, size in ((x, left[-2]), (y, right[-1])))
    return [*_mul_shape(left[:-2], right[:-2]), *rows, *columns]


def _conv2d_shape(x: Shape, w: Shape, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups: int = 1) -> Shape:
    _fit(len(x) == len(w) == 4 and x[1] == groups * w[1] and w[0] % groups == 0 and 0 not in (*x[1:], *w), x, w)
    room = [x[2 + i] + 2 * padding[i] - dilation[i] * (w[2 + i] - 1) - 1 for i in (0, 1)]
    _fit(min(room) >= 0, x, w)
    return [x[0], w[0], *(room[i] // stride[i] + 1 for i in (0, 1))]


def _conv_transpose2d_shape(
    x: Shape, w: Shape, stride=(1, 1), padding=(0, 0), output_padding=(0, 0), groups: int = 1, dilation=(1, 1)
) -> Shape:
    _fit(len(x) == len(w) == 4 and x[1] == w[0] and w[0] % groups == 0 and 0 not in (*x[1:], *w), x, w)
    full = [(x[2 + i] - 1) * stride[i] + dilation[i] * (w[2 + i] - 1) + 1 for i in (0, 1)]
    out = [full[i] - 2 * padding[i] + output_padding[i] for i in (0, 1)]
    _fit(min(out) > 0 and all(full[i] >= padding[i] for i in (0, 1)), x, w)
    return [x[0], groups * w[1], *out]


def _conv2d_weight_shape(x: Shape, grad: Shape, kernel=(1, 1), groups: int = 1, **params: Any) -> Shape:
    _fit(len(x) == len(grad) == 4 and x[0] == grad[0] and x[1] % groups == 0, x, grad)
    w = [grad[1], x[1] // groups, *kernel]
    out = _conv2d_shape(x, w, groups=groups, **params)
    _fit(grad[2] <= out[2] and grad[3] <= out[3], x, grad)
    return w


def _in_2d(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a 1-d convolution for a 2-d one over a height of one."""
    neutral = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}
    return {name: (neutral[name], *value) if name in neutral else value for name, value in params.items()}


def _as_2d(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def wrapped(x: torch.Tensor, w: torch.Tensor, **params: Any) -> torch.Tensor:
        return function(x.unsqueeze(2), w.unsqueeze(2), **_in_2d(params)).squeeze(2)

    return wrapped


def _shape_as_2d(function: Callable[..., Shape]) -> Callable[..., Shape]:
    def wrapped(x: Shape, w: Shape, **params: Any) -> Shape:
        _fit(len(x) == len(w) == 3, x, w)
        n, channels, _, length = function((*x[:2], 1, x[2]), (*w[:2], 1, w[2]), **_in_2d(params))
        return [n, channels, length]

    return wrapped


OPERATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "mul": torch.mul,
    "matmul": torch.matmul,
    "conv1d": _as_2d(conv2d),
    "conv2d": conv2d,
    "conv_transpose1d": _as_2d(conv_transpose2d),
    "conv_transpose2d": conv_transpose2d,
    "conv2d_weight": conv2d_weight,
}
_SHAPES: dict[str, Callable[..., Shape]] = {
    "mul": _mul_shape,
    "matmul": _matmul_shape,
    "conv1d": _shape_as_2d(_conv2d_shape),
    "conv2d": _conv2d_shape,
    "conv_transpose1d": _shape_as_2d(_conv_transpose2d_shape),
    "conv_transpose2d": _conv_transpose2d_shape,
    "conv2d_weight": _conv2d_weight_shape,
}


@dataclass(frozen=True)
class BilinearOp:
    """A bilinear operation with its public parameters: ``BilinearOp("conv2d", (("stride", (2, 2)),))``."""

    name: str
    params: tuple[tuple[str, Any], ...] = field(default=())

    def __post_init__(self) -> None:
        if self.name not in OPERATIONS:
            raise RandomnessError(f"no bilinear operation {self.name!r}; known: {', '.join(OPERATIONS)}")

    @classmethod
    def of(cls, name: str, **params: Any) -> BilinearOp:
        """The operation with parameters by name, in whatever order they are given."""
        return cls(name, tuple(sorted(params.items())))

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The operation on two int64 tensors."""
        return OPERATIONS[self.name](x, y, **dict(self.params))

    def result_shape(self, x_shape: Sequence[int], y_shape: Sequence[int]) -> torch.Size:
        """Shape of the result, found without computing it. Raises `RandomnessError` if the operands do not fit."""
        return torch.Size(_SHAPES[self.name](tuple(x_shape), tuple(y_shape), **dict(self.params)))


def size_of(shape: Sequence[int]) -> int:
    """Bytes of ring elements of ``shape``."""
    return 8 * torch.Size(shape).numel()


def octets(values: torch.Tensor) -> memoryview:
    """The bytes of an int64 tensor, row by row, to send; no copy if it is contiguous. Raises `TypeError` for others."""
    if values.dtype != torch.int64:
        raise TypeError(f"ring elements are int64, not {values.dtype}")
    flat = values.contiguous().view(-1).numpy()
    return memoryview(flat).cast("B") if flat.size else memoryview(b"")  # a view of nothing cannot be cast


def from_octets(payload: bytearray, shape: Sequence[int]) -> torch.Tensor:
    """The int64 tensor of ``shape`` whose bytes a peer sent; shares their memory."""
    if not payload:  # which torch refuses
        return torch.empty(*shape, dtype=torch.int64)
    return torch.frombuffer(payload, dtype=torch.int64).view(torch.Size(shape))
