"""The largest of k values by pairs, ceil(log2 k) comparisons deep; and the way back, for one-hots and gradients."""

from __future__ import annotations

import torch

from mpc_imaging.protocols import bilinear, compare
from mpc_imaging.protocols.context import Context
from mpc_imaging.randomness.ring import BilinearOp

_MUL = BilinearOp("mul")


def maximum(ctx: Context, x: torch.Tensor, dim: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Share of the maximum along `dim` (kept, of size 1), and the levels that found it. Six rounds for each level.

    A level holds shares of "the first of a pair is smaller" (integers 0 or 1), half as many as there were values along
    `dim`, rounded down: a last one without a partner goes on alone. `dim` counts from the front; differences must stay
    below 2**63.
    """
    levels = []
    while x.shape[dim] > 1:
        half, odd = divmod(x.shape[dim], 2)
        pairs, rest = x.split([2 * half, odd], dim)
        # Neighbours meet, so that of equal values the first wins, as in torch.
        first, second = pairs.unflatten(dim, (half, 2)).unbind(dim + 1)
        larger, sign = compare.maximum(ctx, first, second)
        levels.append(sign.bit())
        x = torch.cat([larger, rest], dim)
    return x, levels


def distribute(ctx: Context, g: torch.Tensor, levels: list[torch.Tensor], dim: int) -> torch.Tensor:
    """Send `g` (size 1 along `dim`) to where the maximum came from, zero elsewhere: the gradient of `maximum`.

    With g = 1 this is the one-hot of the maximum; of equal values the first wins. One round for each level.
    """
    for smaller in reversed(levels):
        half = smaller.shape[dim]
        pairs, rest = g.split([half, g.shape[dim] - half], dim)
        second = bilinear.multiply(ctx, _MUL, pairs, smaller)
        g = torch.cat([torch.stack([pairs - second, second], dim + 1).flatten(dim, dim + 1), rest], dim)
    return g
