"""Comparison with zero for any number of compute parties, by shared tables.

x + r is opened, with r from the dealer, who has also shared one-hot tables of r's 4-bit chunks. The public chunks
select from the tables locally ("less" and "equal" bits of each chunk), and a prefix tree of AND gates merges them to
[low(x + r) < low(r)], which is the borrow into the top bit:

    msb(x) = msb(x + r) ^ msb(r) ^ borrow

That bit is masked by the dealer's rho and opened (`sign.Sign`).

Source: Damgard et al., TCC 2006, for the bit-decomposed mask; DESIGN section 5 for the tables and the selection.

Rounds: 1 + 4 + 1. Bytes per element to each peer: 8 + 41/8 + 1/8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mpc_imaging.protocols.arrays import words
from mpc_imaging.protocols.sign import Sign
from mpc_imaging.protocols.truncate import open_masked, truncate
from mpc_imaging.randomness.demands import CHUNKS, ComparisonMask, Output
from mpc_imaging.randomness.fields import BitsRef, packed

if TYPE_CHECKING:
    from mpc_imaging.protocols.context import Context

# Elements handled together: the tables of a block (32 bytes an element) fit the L2 cache.
BLOCK = 8192


def _suffix_xor(table: np.ndarray) -> np.ndarray:
    """Bit j is the exclusive-or of bits j to 15: for a share of a one-hot table, a share of [index >= j]."""
    s = table ^ (table >> np.uint16(1))
    s ^= s >> np.uint16(2)
    s ^= s >> np.uint16(4)
    s ^= s >> np.uint16(8)
    return s


def _select(tables: np.ndarray, opened: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of "opened chunk < r's chunk" and "equal" as planes, each (CHUNKS, packed(N))."""
    count = len(opened)
    less = np.empty((CHUNKS, packed(count)), np.uint8)
    equal = np.empty_like(less)
    low = opened & np.uint64(2**63 - 1)
    for start in range(0, count, BLOCK):
        part = slice(start, min(start + BLOCK, count))
        plane = slice(start // 8, start // 8 + packed(part.stop - start))
        for k in range(CHUNKS):
            chunk = ((low[part] >> np.uint64(4 * k)) & np.uint64(15)).astype(np.uint16)
            table = tables[k, part]
            equal[k, plane] = np.packbits(((table >> chunk) & np.uint16(1)).astype(np.uint8))
            # Shifting by chunk and then by one more: a shift by 16 would be undefined.
            more = (_suffix_xor(table) >> chunk) >> np.uint16(1)
            less[k, plane] = np.packbits((more & np.uint16(1)).astype(np.uint8))
    return less, equal


def _merge(ctx: Context, less: np.ndarray, equal: np.ndarray, triples: list[np.ndarray]) -> np.ndarray:
    """The prefix tree: planes of 16 chunks, lowest first, become one plane of "less". Four rounds.

    (less, equal) of a pair = (less_hi ^ equal_hi & less_lo, equal_hi & equal_lo); the lowest pair's "equal" is never
    needed. Both products open equal_hi under one mask, once: a value may enter several products.
    """
    a, b, b2, c, c2 = triples
    used, used2 = 0, 0
    while len(less) > 1:
        pairs = len(less) // 2
        rows, rows2 = slice(used, used + pairs), slice(used2, used2 + pairs - 1)
        used, used2 = rows.stop, rows2.stop
        hi, lo, lo2 = equal[1::2], less[0::2], equal[2::2]
        masked = np.concatenate([hi ^ a[rows], lo ^ b[rows], lo2 ^ b2[rows2]])
        opened = ctx.channel.open_bits(masked.reshape(-1)).reshape(masked.shape)
        d, e, e2 = opened[:pairs], opened[pairs : 2 * pairs], opened[2 * pairs :]
        less = less[1::2] ^ c[rows] ^ (d & b[rows]) ^ (a[rows] & e)
        merged = c2[rows2] ^ (d[1:] & b2[rows2]) ^ (a[rows][1:] & e2)
        if ctx.first:
            less ^= d & e
            merged ^= d[1:] & e2
        # Row 0 is never read: it keeps the rows of `equal` beside those of `less`.
        equal = np.concatenate([np.zeros_like(less[:1]), merged])
    return less[0]


class TableComparison:
    """Comparison on all 64 bits, for any number of compute parties: exact for every ring element read as signed."""

    def wide(self) -> TableComparison:
        """See `Comparison`."""
        return self

    def compare(self, ctx: Context, x: torch.Tensor, output: Output, shift: int) -> Sign:
        """See `Comparison`. Six rounds, and one to truncate."""
        if output is Output.truncated:
            x = truncate(ctx, x, shift)
        count = x.numel()
        if count == 0:
            return Sign.of_nothing(x.shape, ctx.first)
        plane = packed(count)
        flat = words(x)
        dealt = ctx.provider.get(ComparisonMask(count))
        rho_bits, r, a, b, b2, rho, rho_r, table, top, c, c2 = dealt.shares
        opened = open_masked(ctx, flat, r)
        less, equal = _select(table.view(np.uint16).reshape(CHUNKS, count), opened)
        borrow = _merge(ctx, less, equal, [part.reshape(-1, plane) for part in (a, b, b2, c, c2)])
        masked = borrow ^ top ^ rho_bits
        if ctx.first:
            masked ^= np.packbits((opened >> np.uint64(63)).astype(np.uint8))
        beta = np.unpackbits(ctx.channel.open_bits(masked), count=count).astype(np.uint64)
        sources = (BitsRef(dealt.index, count),)
        if output is Output.bit:
            return Sign(x.shape, ctx.first, sources, beta, rho)
        return Sign(x.shape, ctx.first, sources, beta, rho, flat, opened * rho - rho_r)
