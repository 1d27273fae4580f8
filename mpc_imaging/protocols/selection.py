"""The product of a comparison's bit with a value: right after the comparison, or later with another value.

The dealer knows the bit's output mask rho and the value's mask r, so that shares of rho * r unmask rho * v: for
m = v + r, rho * v = m * rho - rho * r, and with a truncation the same of the terms of `truncate` (DESIGN section 5).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from mpc_imaging.protocols.arrays import joined, words
from mpc_imaging.protocols.sign import Sign
from mpc_imaging.protocols.truncate import open_masked, shifted_mask, unmasked, wrap
from mpc_imaging.randomness.demands import Selection

if TYPE_CHECKING:
    from mpc_imaging.protocols.context import Context


def concealed(
    first: bool, flat: np.ndarray, c: np.ndarray, shift: int, rho: np.ndarray, hidden: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of v and of rho * v, where v is x, or x / 2**shift, and c = x + r (after a shift + 2**62) is public.

    `hidden` are the shares that `demands._hide` lists, `flat` is that of x.
    """
    if not shift:
        return flat, c * rho - hidden[0]
    r_shifted, rho_r, top, rho_top = hidden
    value = unmasked(first, c, shift, r_shifted, top)
    return value, shifted_mask(c, shift) * rho - rho_r + wrap(c, shift) * rho_top


def select(ctx: Context, sign: Sign, x: torch.Tensor, shift: int = 0) -> Sign:
    """The same bits for another value of their shape: x, or x / 2**shift stochastically rounded. One round, 8 bytes."""
    flat = words(x)
    if not flat.size:
        return replace(sign, v=flat, rho_v=flat)
    dealt = [ctx.provider.get(Selection(ref.count, shift, ref)) for ref in sign.sources]
    c = open_masked(ctx, flat, joined([piece.shares[0] for piece in dealt]), shift)
    hidden = [joined(parts) for parts in zip(*(piece.shares[1:] for piece in dealt), strict=True)]
    v, rho_v = concealed(ctx.first, flat, c, shift, sign.rho, hidden)
    return replace(sign, v=v, rho_v=rho_v)
