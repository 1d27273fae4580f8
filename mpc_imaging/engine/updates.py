"""Owners' model updates on shares: each scaled down to length 1 at most, then added up, weighted by public counts.

Updates are in units of the length that is allowed, so that every number here is the same for any such length. What the
scaling gives is not trusted: comparisons verify the factor and the length of the result, and an update for which one
fails counts as zero. So no update weighs more than `protocols.noise.UpdateSum` says, whatever the inverse square root
made of it. Values that wrap around the ring are beyond that: owners, who are semi-honest, send no update longer than
`LIMIT` (`fitting`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from mpc_imaging.engine import gates
from mpc_imaging.engine.encoding import encode
from mpc_imaging.engine.roots import inverse_root
from mpc_imaging.engine.tensors import from_share, no_grad, precision, share_of
from mpc_imaging.protocols import bilinear, compare
from mpc_imaging.protocols.context import Context
from mpc_imaging.protocols.noise import CLIPPING_ERROR, MOST_FACTOR
from mpc_imaging.protocols.truncate import truncate
from mpc_imaging.randomness.ring import BilinearOp

# Length up to which the inverse square root is right: 2**OCTAVES. Squared, with 48 bits of fraction, below 2**62.
LIMIT, OCTAVES = 16.0, 4
MATMUL, MUL = BilinearOp("matmul"), BilinearOp("mul")


def fitting(update: torch.Tensor) -> torch.Tensor:
    """An owner's update (D,), in units of the length that is allowed, at most `LIMIT` long; float64."""
    update = update.double()
    # Rounding may not make it longer than that either.
    length = update.norm().item() * (1 + 2.0**-7)
    return update * (LIMIT / length) if length > LIMIT else update


def weighted_sum(updates: Sequence[torch.Tensor], counts: Sequence[int], clip: bool) -> torch.Tensor:
    """Share (D,) of the sum of ``counts[i] * updates[i]``, each update (D,) scaled to length 1 at most if ``clip``.

    Shares are int64 with the session's precision, of which the sum has as much: counts are whole numbers. About fifty
    rounds, however many updates there are; none without clipping.
    """
    parts = _clipped(list(updates)) if clip else updates
    return sum((part * count for part, count in zip(parts, counts, strict=True)), torch.zeros_like(updates[0]))


def _clipped(updates: list[torch.Tensor]) -> list[torch.Tensor]:
    ctx, size = gates.context(), updates[0].numel()
    # All in one round; the products below then find their masks.
    ctx.masks.open(ctx, updates)
    squares = [bilinear.multiply(ctx, MATMUL, update.view(1, size), update.view(size, 1)) for update in updates]
    lengths = truncate(ctx, torch.cat([part.flatten() for part in squares]), precision())
    factors = _factors(ctx, lengths)
    factors = [factor.clone() for factor in factors.split(1)]
    ctx.masks.open(ctx, factors)
    scaled = [
        bilinear.multiply(ctx, MATMUL, update.view(size, 1), factor.view(1, 1)).flatten()
        for update, factor in zip(updates, factors, strict=True)
    ]
    return list(truncate(ctx, torch.cat(scaled), precision()).split(size))


def _factors(ctx: Context, squares: torch.Tensor) -> torch.Tensor:
    """Share of min(1, 1 / length) for squared lengths (M,), 0 where the result would be too long."""
    ctx = replace(ctx, comparison=ctx.comparison.wide())
    factors = _roots(ctx, squares)
    return bilinear.multiply(ctx, MUL, factors, _verified(ctx, factors, squares))


def _roots(ctx: Context, squares: torch.Tensor) -> torch.Tensor:
    """Share of min(1, 1 / length), approximately, for squared lengths (M,) up to `LIMIT` squared; else anything."""
    with no_grad():
        a = from_share(compare.relu(ctx, (from_share(squares) - 1).share)[0]) + 1
        factor = inverse_root(ctx, a, OCTAVES)
        # A step of Newton's. In this order no product is much smaller than its operands.
        return share_of(factor * (1.5 - factor * (factor * a) / 2))


def _verified(ctx: Context, factors: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Share of 1 (M,) where a factor is from 0 to `MOST_FACTOR` and what it scales no longer than 1, else of 0."""
    # What is truncated here makes the length that is compared smaller than it is: `UpdateSum` counts that.
    once = truncate(ctx, bilinear.multiply(ctx, MUL, factors, squares), precision())
    twice = truncate(ctx, bilinear.multiply(ctx, MUL, factors, once), precision())
    most = encode(torch.tensor([[0.0], [MOST_FACTOR], [LIMIT**2], [1 + 2 * CLIPPING_ERROR]]), precision())
    margins = (most if ctx.first else torch.zeros_like(most)) + torch.stack([factors, -factors, -squares, -twice])
    good = share_of(1 - from_share(compare.less_than_zero(ctx, margins), 0))
    both = bilinear.multiply(ctx, MUL, good[:2].clone(), good[2:].clone())
    return bilinear.multiply(ctx, MUL, both[0].clone(), both[1].clone())
