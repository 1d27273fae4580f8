"""The largest of several values, by pairs, ceil(log2 k) comparisons deep; and the way back, for one-hot and gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpc_imaging.protocols import bilinear, compare
from mpc_imaging.protocols.context import Context
from mpc_imaging.randomness.ring import BilinearOp

_MUL = BilinearOp("mul")


@dataclass(frozen=True)
class Level:
    """One level: shares of "the first of a pair is smaller" (integers 0 or 1), and whether one value had no partner."""

    smaller: torch.Tensor
    odd: bool


def maximum(ctx: Context, x: torch.Tensor, dim: int) -> tuple[torch.Tensor, list[Level]]:
    """Share of the maximum along `dim` (kept, of size 1), and the comparisons that found it. Six rounds for each level.

    `dim` counts from the front. Differences must stay below 2**63.
    """
    levels = []
    while x.shape[dim] > 1:
        half, odd = divmod(x.shape[dim], 2)
        pairs, rest = x.split([2 * half, odd], dim)
        # Neighbours meet, so that of equal values the first wins, as in torch.
        first, second = pairs.unflatten(dim, (half, 2)).unbind(dim + 1)
        larger, sign = compare.maximum(ctx, first, second)
        levels.append(Level(sign.bit(), bool(odd)))
        x = torch.cat([larger, rest], dim)
    return x, levels


def distribute(ctx: Context, g: torch.Tensor, levels: list[Level], dim: int) -> torch.Tensor:
    """Send `g` (size 1 along `dim`) to where the maximum came from, zero elsewhere: the gradient of `maximum`.

    With g = 1 this is the one-hot of the maximum; of equal values the first wins. One round for each level.
    """
    for level in reversed(levels):
        half = level.smaller.shape[dim]
        pairs, rest = g.split([half, g.shape[dim] - half], dim)
        second = bilinear.multiply(ctx, _MUL, pairs, level.smaller)
        g = torch.cat([torch.stack([pairs - second, second], dim + 1).flatten(dim, dim + 1), rest], dim)
    return g
