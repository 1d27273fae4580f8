"""Inverse square roots on shares, with comparisons on all bits, whatever the session compares with."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch

from mpc_imaging.engine.approximations import _combination, _fitted, _powers
from mpc_imaging.engine.tensors import from_share, scaled_bit
from mpc_imaging.protocols import compare
from mpc_imaging.protocols.selection import select
from mpc_imaging.randomness.demands import Output

if TYPE_CHECKING:
    from crypten.mpc import MPCTensor

    from mpc_imaging.protocols.context import Context

# Relative error below 2e-4 on [1, 4].
DEGREE = 7


def inverse_root(ctx: Context, x: MPCTensor, octaves: int) -> MPCTensor:
    """min(1, 1 / sqrt(x)) for x below 4**octaves: relative error below 3e-4, and 2 units; beyond, anything.

    Comparisons with 4, 16 ... bring x to [1, 4], where a polynomial serves. 14 rounds, and two comparisons.
    """
    above, _ = compare.relu(ctx, (x - 1).share)
    x = from_share(above) + 1
    # x less 3/4, 3/16 ... of it where it is above 4, 16 ...; and for the root 1 less 1/2, 1/4 ...
    powers = range(1, octaves)
    sign = ctx.comparison.compare(ctx, torch.stack([(x - 4.0**k).share for k in powers]), Output.bit, 0)
    bits = 2 * octaves
    shares = torch.stack([x.share * (3 * 4 ** (octaves - k)) for k in powers])
    x = x - from_share(select(ctx, sign, shares, bits).relu().sum(0))
    reached = 1 - from_share(sign.bit(), 0)
    scale = 1 - sum(scaled_bit(from_share(reached.share[k - 1], 0), 2.0**-k) for k in powers)
    return scale * _combination(_powers((x - 2.5) / 1.5, DEGREE), _coefficients())


@functools.cache
def _coefficients() -> list[float]:
    return _fitted(lambda u: 1 / np.sqrt(1.5 * u + 2.5), DEGREE)
