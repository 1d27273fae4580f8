"""Division by a public number: stochastic truncation with the dealer's help, for any number of parties.

CrypTen's local truncation for two parties ruins an element with probability |x| / 2**64; this one never does. One
masked opening, c = x + 2**62 + r. Then for |x| < 2**62, and up to the carry of the low f bits,

    x >> f = (c >> f) - 2**(62 - f) - (r >> f) + (1 - msb(c)) * 2**(64 - f) * msb(r)

which is floor or floor + 1, unbiased (Escudero et al., CRYPTO 2020, section 4; the wrap term as in DESIGN section 5).
What it computes is floor(x / 2**f) + [c_low < x mod 2**f] with c_low uniform and known to all, so an opened result pins
x to one window of width 2**f.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from mpc_imaging.protocols.arrays import tensor, words
from mpc_imaging.randomness.demands import TruncationPair

if TYPE_CHECKING:
    from mpc_imaging.protocols.context import Context

RECIPROCAL_BITS = 24

# Added before masking: c >= 2**63 then tells whether the addition of r wrapped around.
OFFSET = np.uint64(1 << 62)


def truncate(ctx: Context, x: torch.Tensor, bits: int) -> torch.Tensor:
    """Share of x / 2**bits, shaped like x, rounded to one of the two nearest integers; |x| < 2**62. One round.

    Raises `RandomnessError` unless 0 <= bits <= 61.
    """
    if bits == 0 or x.numel() == 0:
        return x.clone()
    r, r_shifted, top = ctx.provider.get(TruncationPair(x.numel(), bits)).shares
    c = open_masked(ctx, words(x), r, bits)
    return tensor(unmasked(ctx.first, c, bits, r_shifted, top), x.shape)


def open_masked(ctx: Context, flat: np.ndarray, r: np.ndarray, bits: int = 0) -> np.ndarray:
    """x + r, and 2**62 more where `bits` are to be truncated, from shares of both; all uint64 (N,). One round."""
    masked = flat + r
    if bits and ctx.first:
        masked += OFFSET
    (c,) = ctx.channel.open_ring([tensor(masked, masked.shape)])
    return words(c)


def shifted_mask(c: np.ndarray, bits: int) -> np.ndarray:
    """(c >> bits) - 2**(62 - bits): modulo 2**(64 - bits) the truncated value plus r >> bits."""
    return (c >> np.uint64(bits)) - np.uint64(1 << (62 - bits))


def wrap(c: np.ndarray, bits: int) -> np.ndarray:
    """(1 - msb(c)) * 2**(64 - bits), the factor of msb(r), of which so only the low bits of the share matter."""
    return (np.uint64(1) - (c >> np.uint64(63))) << np.uint64(64 - bits)


def unmasked(first: bool, c: np.ndarray, bits: int, r_shifted: np.ndarray, top: np.ndarray) -> np.ndarray:
    """Share of the truncated value, uint64 (N,), by the formula above; r_shifted, top: shares of r >> bits, msb(r)."""
    y = wrap(c, bits) * top
    y -= r_shifted
    if first:
        y += shifted_mask(c, bits)
    return y


def divide(ctx: Context, x: torch.Tensor, divisor: float) -> torch.Tensor:
    """Share of x / divisor for a public number, off by less than 2 and a relative error of 2**-24. At most two rounds.

    |x| < 2**62 and |x / divisor| < 2**37; powers of two from 1 on need one round, and |x| < 2**62 alone, and are off by
    less than 1. Raises `ZeroDivisionError`, and `RandomnessError` for a divisor of 2**62 or more.
    """
    if divisor < 0:
        return divide(ctx, -x, -divisor)
    if divisor == 0:
        raise ZeroDivisionError("a shared value is divided by zero")
    mantissa, exponent = math.frexp(divisor)  # divisor = mantissa * 2**exponent, mantissa from 1/2 to 1
    if mantissa == 0.5 and exponent <= 1:
        return x * round(1 / divisor)
    # By the power of two first: else an average's sum, times the reciprocal, would overflow long before the average.
    x = truncate(ctx, x, max(exponent - 1, 0))
    if mantissa == 0.5:
        return x
    bits = RECIPROCAL_BITS + min(exponent - 1, 0)
    rest = divisor / 2.0 ** max(exponent - 1, 0)
    return truncate(ctx, x * round(2.0 ** max(bits, 0) / rest), max(bits, 0))
