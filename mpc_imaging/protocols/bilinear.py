"""Products of two shared values: Beaver's protocol (CRYPTO 1991) for every bilinear operation."""

from __future__ import annotations

import torch

from mpc_imaging.protocols.arrays import tensor
from mpc_imaging.protocols.context import Context
from mpc_imaging.randomness.demands import Product
from mpc_imaging.randomness.ring import BilinearOp


def multiply(ctx: Context, op: BilinearOp, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Share of op(x, y), int64 of op's result shape, not truncated.

    At most one round, which opens x - a and y - b; none for an operand that is masked already (`masked.Masks`).
    op(x, y) = c + op(d, b) + op(a, e) + op(d, e) with d = x - a, e = y - b (Beaver, CRYPTO 1991, section 2); the first
    party adds e to its b, which saves one of the three products.
    """
    x, y = ctx.masks.open(ctx, [x, y])
    demand = Product(op, x.ref, y.ref)
    (c,) = ctx.provider.get(demand).shares
    z = op(x.opened, y.mask + y.opened if ctx.first else y.mask)
    z += op(x.mask, y.opened)
    z += tensor(c, demand.shape())
    return z
