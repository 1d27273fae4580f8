"""Products of two shared values: Beaver's protocol (CRYPTO 1991) for every bilinear operation, and squares."""

from __future__ import annotations

import numpy as np
import torch

from mpc_imaging.protocols.context import Context
from mpc_imaging.randomness.correlations import BilinearTriple, SquarePair
from mpc_imaging.randomness.ring import BilinearOp


def _tensor(words: np.ndarray, shape: torch.Size) -> torch.Tensor:
    return torch.from_numpy(words.view(np.int64)).view(shape)


def multiply(ctx: Context, op: BilinearOp, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Share of op(x, y), int64 of op's result shape, not truncated. One round; x - a and y - b are opened.

    op(x, y) = c + op(d, b) + op(a, e) + op(d, e) with d = x - a, e = y - b (Beaver, CRYPTO 1991, section 2); the first
    party adds e to its b, which saves one of the three products.
    """
    demand = BilinearTriple(op, tuple(x.shape), tuple(y.shape))
    a, b, c = ctx.provider.get(demand)
    a, b = _tensor(a, x.shape), _tensor(b, y.shape)
    d, e = ctx.channel.open_ring([x - a, y - b])
    z = op(d, b + e if ctx.first else b)
    z += op(a, e)
    z += _tensor(c, z.shape)
    return z


def square(ctx: Context, x: torch.Tensor) -> torch.Tensor:
    """Share of x * x, shaped like x, not truncated. One round: x**2 = r**2 + 2 d r + d**2 with d = x - r opened."""
    r, r2 = ctx.provider.get(SquarePair(x.numel()))
    r, r2 = _tensor(r, x.shape), _tensor(r2, x.shape)
    (d,) = ctx.channel.open_ring([x - r])
    z = r2 + 2 * d * r
    return z + d * d if ctx.first else z
