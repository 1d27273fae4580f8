"""The largest of k values by pairs, ceil(log2 k) comparisons deep; and the way back, for one-hots and gradients."""

from __future__ import annotations

import torch

from mpc_imaging.protocols import compare
from mpc_imaging.protocols.context import Context
from mpc_imaging.protocols.selection import select
from mpc_imaging.protocols.sign import Sign


def maximum(ctx: Context, x: torch.Tensor, dim: int, shift: int = 0) -> tuple[torch.Tensor, list[Sign]]:
    """Share of the maximum along `dim` (kept, of size 1), and the comparisons of each level that found it.

    A level compares neighbours, "the first of a pair is smaller", half as many as there were values along `dim`,
    rounded down: a last one without a partner goes on alone. `dim` counts from the front. With a shift, values closer
    than 2**shift count as equal (`compare.maximum`).
    """
    levels = []
    while x.shape[dim] > 1:
        half, odd = divmod(x.shape[dim], 2)
        pairs, rest = x.split([2 * half, odd], dim)
        # Neighbours meet, so that of equal values the first wins, as in torch.
        first, second = pairs.unflatten(dim, (half, 2)).unbind(dim + 1)
        larger, sign = compare.maximum(ctx, first, second, shift)
        levels.append(sign)
        x = torch.cat([larger, rest], dim)
    return x, levels


def distribute(ctx: Context, g: torch.Tensor, levels: list[Sign], dim: int) -> torch.Tensor:
    """Send `g` (size 1 along `dim`) to where the maximum came from, zero elsewhere: the gradient of `maximum`.

    With g = 1 this is the one-hot of the maximum; of equal values the first wins. One round for each level.
    """
    for sign in reversed(levels):
        half = sign.shape[dim]
        pairs, rest = g.split([half, g.shape[dim] - half], dim)
        second = select(ctx, sign, pairs).selected()
        g = torch.cat([torch.stack([pairs - second, second], dim + 1).flatten(dim, dim + 1), rest], dim)
    return g
