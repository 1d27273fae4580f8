"""Square roots of secret numbers of any size: a binary search by comparisons scales each into one range.

The numbers are whole, from 1 to 2**60, without a scale of their own: a caller counts in what unit it likes.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch

from mpc_imaging.engine.approximations import _combination, _fitted, _powers
from mpc_imaging.engine.tensors import from_share, precision
from mpc_imaging.protocols.selection import select
from mpc_imaging.protocols.truncate import truncate
from mpc_imaging.randomness.demands import Output

if TYPE_CHECKING:
    from crypten.mpc import MPCTensor

    from mpc_imaging.protocols.context import Context

# Whole numbers below 2**`TOP` can be scaled; a root is 2**`ROOT_BITS` / multiplier times that of what is in the range.
TOP, ROOT_BITS = 60, 28
# What is below 2**threshold is multiplied by 2**up: after all four, everything is between 2**56 and 2**60.
STAGES = ((28, 32), (44, 16), (52, 8), (56, 4))
# Comparisons look at no more than this many bits below a threshold: fewer bits, shorter keys. So they may be off by a
# sixteenth, and the range is [15 / 16, 17] instead of [1, 16].
LOOK = 4
# Absolute error below 6e-4 on that range.
DEGREE = 9


def scaled(ctx: Context, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Shares of u = (x - 9) / 8 at the session's precision, and of a, such that v = x * (2**28 / a)**2.

    v: share of whole numbers (N,), at least 0. x is between 15/16 and 17, or 0 for v = 0. a: a power of four,
    2**28 / 4**j for v between 16**j and 16**(j + 1). 12 rounds with keys for comparisons.
    """
    wide, a = ctx.comparison.wide(), None
    for threshold, up in STAGES:
        sign = wide.compare(ctx, v - _public(ctx, 1 << threshold), Output.value, threshold - LOOK)
        low = sign.bit()
        v = v + (sign.selected() + (low << threshold)) * ((1 << up) - 1)
        grown = (1 << up // 2) - 1
        # Nothing is selected in the first stage: there a is 1.
        a = _public(ctx, 1) + low * grown if a is None else a + select(ctx, sign.bits(), a).selected() * grown
    return truncate(ctx, v - _public(ctx, 9 << 56), 59 - precision()), a


def root(u: torch.Tensor) -> MPCTensor:
    """sqrt(8 u + 9) for u as `scaled` gives it: error below 6e-4, and some units."""
    return _combination(_powers(from_share(u), DEGREE), _root_coefficients())


def _public(ctx: Context, value: int) -> int:
    return value if ctx.first else 0


@functools.cache
def _root_coefficients() -> list[float]:
    return _fitted(lambda u: np.sqrt(8 * u + 9), DEGREE)
