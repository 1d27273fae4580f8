"""Bilinear operations on the ring of integers modulo 2**64 (int64 tensors, wrapping).

The dealer and the compute parties use the same functions: what is exact here is exact there. torch's own int64
convolution runs at 1 to 4 GMAC/s per core; gathered patches and one matrix product reach 8 to 9.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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


def _as_2d(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A 1-d convolution as a 2-d one over a height of one."""

    def wrapped(x: torch.Tensor, w: torch.Tensor, **params: Any) -> torch.Tensor:
        neutral = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}
        params = {k: (neutral[k], *v) if k in neutral else v for k, v in params.items()}
        return function(x.unsqueeze(2), w.unsqueeze(2), **params).squeeze(2)

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


@dataclass(frozen=True)
class BilinearOp:
    """A bilinear operation with its public parameters: ``BilinearOp("conv2d", (("stride", (2, 2)),))``."""

    name: str
    params: tuple[tuple[str, Any], ...] = field(default=())

    def __post_init__(self) -> None:
        if self.name not in OPERATIONS:
            raise RandomnessError(f"no bilinear operation {self.name!r}; known: {', '.join(OPERATIONS)}")

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The operation on two int64 tensors."""
        return OPERATIONS[self.name](x, y, **dict(self.params))

    def result_shape(self, x_shape: Sequence[int], y_shape: Sequence[int]) -> torch.Size:
        """Shape of the result, found without computing it."""
        with torch.device("meta"):
            return self(
                torch.empty(tuple(x_shape), dtype=torch.int64), torch.empty(tuple(y_shape), dtype=torch.int64)
            ).shape
