"""The largest of several values, by pairs: ceil(log2 k) comparisons deep, with the way back that one-hot and gradients need."""

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
    """Share of the maximum along `dim` (kept, of size 1); differences must stay below 2**63. Six rounds for each level."""
    levels = []
    while x.shape[dim] > 1:
        half, odd = divmod(x.shape[dim], 2)
        first, second, rest = x.split([half, half, odd], dim)
        larger, sign = compare.maximum(ctx, first, second)
        levels.append(Level(sign.bit(), bool(odd)))
        x = torch.cat([larger, rest], dim)
    return x, levels


def distribute(ctx: Context, g: torch.Tensor, levels: list[Level], dim: int) -> torch.Tensor:
    """Send `g` (size 1 along `dim`) to where the maximum came from, zero elsewhere: the gradient of `maximum`.

    With g = 1 this is the one-hot of the maximum; of equal values the one that was compared first wins. One round a level.
    """
    for level in reversed(levels):
        half = level.smaller.shape[dim]
        pairs, rest = g.split([half, g.shape[dim] - half], dim)
        second = bilinear.multiply(ctx, _MUL, pairs, level.smaller)
        g = torch.cat([pairs - second, second, rest], dim)
    return g
