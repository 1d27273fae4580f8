"""Comparison with zero for two compute parties by function secret sharing: two rounds, 8.125 bytes to the peer.

x + r is opened, with r from the dealer. With y = x >> shift, r' = -(r >> shift) and n-bit values

    msb(y) = msb(y + (r >> shift)) ^ msb(r') ^ [low(r') > 2**(n-1) - 1 - low(y + (r >> shift))]

and the bracket is one evaluation of a distributed comparison function at a public point (Boyle et al., EUROCRYPT 2021,
section 4; `randomness.dcf`). A second round opens the bit under the dealer's rho.

Fused with truncation: c = x + 2**62 + r is opened, and (c >> shift) - 2**(62 - shift) is y plus the mask r >> shift
modulo 2**n exactly, if n <= 64 - shift: this is the reason for that bound. The truncated value itself is that of
`truncate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mpc_imaging.errors import RandomnessError
from mpc_imaging.protocols.arrays import joined, words
from mpc_imaging.protocols.selection import concealed
from mpc_imaging.protocols.sign import Sign
from mpc_imaging.protocols.truncate import OFFSET, open_masked, shifted_mask
from mpc_imaging.randomness import dcf
from mpc_imaging.randomness.correlations import Dealt
from mpc_imaging.randomness.demands import Output, SignKeys
from mpc_imaging.randomness.fields import BitsRef

if TYPE_CHECKING:
    from mpc_imaging.protocols.context import Context

# Comparisons of one demand: the dealer works on several demands at once, and sends one while it makes the next.
BLOCK = 1 << 15

_ONE = np.uint64(1)


class KeyComparison:
    """Comparison on `bits` bits, at most 64 (and at most 64 - shift after a shift, whatever `bits` is).

    Right while |x| <= (2**(bits - 1) - 1) * 2**shift, since x / 2**shift may be rounded up, and |x| < 2**62 after a
    shift. With `checked`, the context's range check watches all values of comparisons that are narrower than they could
    be; otherwise nothing notices a value that is too large.
    """

    def __init__(self, bits: int = 64, checked: bool = False) -> None:
        if not dcf.MIN_BITS < bits <= 64:
            raise RandomnessError(f"a comparison on {bits} bits is not possible; use {dcf.MIN_BITS + 1} to 64")
        self.bits, self.checked = bits, checked

    def width(self, shift: int) -> int:
        """Bits that are compared after a shift."""
        return min(self.bits, 64 - shift)

    def wide(self) -> KeyComparison:
        """See `Comparison`."""
        return KeyComparison()

    def compare(self, ctx: Context, x: torch.Tensor, output: Output, shift: int) -> Sign:
        """See `Comparison`. Two rounds."""
        count = x.numel()
        if count == 0:
            return Sign.of_nothing(x.shape, ctx.first)
        if self.checked and self.bits < 64 - shift:
            ctx.check.watch(ctx, x, (2 ** (self.bits - 1) - 1) << shift)
        parts = [slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
        demands = [SignKeys(part.stop - part.start, self.width(shift), shift, int(output)) for part in parts]
        dealt = [ctx.provider.get(demand) for demand in demands]
        flat = words(x)
        c = open_masked(ctx, flat, joined([piece.shares[1] for piece in dealt]), shift)
        y = shifted_mask(c, shift) if shift else c
        planes = [_sign_share(ctx, *each) for each in zip(demands, dealt, (y[part] for part in parts), strict=True)]
        beta = np.unpackbits(ctx.channel.open_bits(joined(planes)), count=count).astype(np.uint64)
        rho, *hidden = (joined(each) for each in zip(*(piece.shares[2:-1] for piece in dealt), strict=True))
        sources = tuple(BitsRef(piece.index, demand.count) for piece, demand in zip(dealt, demands, strict=True))
        if output is Output.bit:
            return Sign(x.shape, ctx.first, sources, beta, rho)
        if shift and output is Output.value:
            c, shift = c - OFFSET, 0
        return Sign(x.shape, ctx.first, sources, beta, rho, *concealed(ctx.first, flat, c, shift, rho, hidden))


def _sign_share(ctx: Context, demand: SignKeys, dealt: Dealt, shifted: np.ndarray) -> np.ndarray:
    """Packed shares of msb(y) ^ rho."""
    n = demand.bits
    low = np.uint64(2 ** (n - 1) - 1)
    point = low - (shifted & low)
    roots = dealt.own[0].reshape(demand.count, 16)
    share = dcf.evaluate(ctx.channel.rank, roots, dealt.common, point, n - 1, dealt.key_id)
    if ctx.first:
        share ^= ((shifted >> np.uint64(n - 1)) & _ONE).astype(np.uint8)
    plane = np.packbits(share)
    plane ^= dealt.shares[0]
    plane ^= dealt.shares[-1]
    return plane
