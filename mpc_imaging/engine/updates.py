"""Owners' model updates on shares: each scaled down to length 1 at most, then added up, weighted by public counts.

Updates are in units of the length that is allowed, so that every number here is the same for any such length. What the
scaling gives is not trusted: a comparison verifies the length of the result, and an update for which it fails counts
as zero. So no update weighs more than `sensitivity` says, whatever the inverse square root made of it. Values that wrap
around the ring are beyond that: owners, who are semi-honest, send no update longer than `LIMIT` (`fitting`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from mpc_imaging.engine import gates
from mpc_imaging.engine.encoding import encode
from mpc_imaging.engine.roots import inverse_root
from mpc_imaging.engine.tensors import from_share, no_grad, precision, share_of
from mpc_imaging.protocols import bilinear, compare
from mpc_imaging.protocols.context import Context
from mpc_imaging.protocols.truncate import truncate
from mpc_imaging.randomness.ring import BilinearOp

# Length up to which the inverse square root is right: 2**OCTAVES. Squared, with 48 bits of fraction, below 2**62.
LIMIT, OCTAVES = 16.0, 4
# By how much a scaled update may be longer than 1, of which verification makes sure.
CLIPPING_ERROR = 2.0**-7


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


def sensitivity(counts: Sequence[int], size: int, bits: int) -> int:
    """How far one owner's update, if it is replaced by zero, moves the clipped sum at most, in units of 2**-bits.

    What is verified is the factor; truncation then adds less than a unit to each of the ``size`` entries.
    """
    return math.ceil(max(counts) * ((1 + CLIPPING_ERROR) * 2**bits + math.sqrt(size)))


def _clipped(updates: list[torch.Tensor]) -> list[torch.Tensor]:
    ctx, size = gates.context(), updates[0].numel()
    # All in one round; the products below then find their masks.
    ctx.masks.open(ctx, updates)
    square = BilinearOp("matmul")
    squares = [bilinear.multiply(ctx, square, update.view(1, size), update.view(size, 1)) for update in updates]
    lengths = truncate(ctx, torch.cat([part.flatten() for part in squares]), precision())
    factors = _factors(ctx, lengths)
    factors = [factor.clone() for factor in factors.split(1)]
    ctx.masks.open(ctx, factors)
    scaled = [
        bilinear.multiply(ctx, square, update.view(size, 1), factor.view(1, 1)).flatten()
        for update, factor in zip(updates, factors, strict=True)
    ]
    return list(truncate(ctx, torch.cat(scaled), precision()).split(size))


def _factors(ctx: Context, squares: torch.Tensor) -> torch.Tensor:
    """Share of min(1, 1 / length) for squared lengths (M,), 0 where the result would be too long."""
    wide = replace(ctx, comparison=ctx.comparison.wide())
    with no_grad():
        s = from_share(squares)
        a = from_share(compare.relu(wide, (s - 1).share)[0]) + 1
        factor = inverse_root(wide, a, OCTAVES)
        # A step of Newton's. In this order no product is much smaller than its operands.
        factor = factor * (1.5 - factor * (factor * a) / 2)
        result = factor * (factor * s)
        most = encode(torch.tensor([[LIMIT**2], [1 + 2 * CLIPPING_ERROR]]), precision())
        margins = (most if ctx.first else torch.zeros_like(most)) - torch.stack([squares, share_of(result)])
        known, verified = 1 - from_share(compare.less_than_zero(wide, margins), 0)
        return share_of(factor * (known * verified))
