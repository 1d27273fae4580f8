"""Comparison with zero for any number of compute parties, and what follows from it without further openings.

x + r is opened, with r from the dealer, who has also shared one-hot tables of r's 4-bit chunks. The public chunks
select from the tables locally ("less" and "equal" bits of each chunk), and a prefix tree of AND gates merges them to
[low(x + r) < low(r)], which is the borrow into the top bit:

    msb(x) = msb(x + r) ^ msb(r) ^ borrow

That bit, b, is masked by the dealer's rho and opened as beta. Then these cost nothing more:

    [b]   = beta + (1 - 2 beta) [rho]
    [b x] = beta [x] + (1 - 2 beta) ((x + r) [rho] - [rho r])

Source: Damgard et al., TCC 2006, for the bit-decomposed mask; DESIGN section 5 for the tables and the selection.

Rounds: 1 + 4 + 1. Bytes per element to each peer: 8 + 41/8 + 1/8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mpc_imaging.protocols.context import Context
from mpc_imaging.randomness.correlations import CHUNKS, ComparisonMask, packed

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


@dataclass(frozen=True)
class Sign:
    """The secret bit b = [x < 0] of one comparison, ready for use; all fields are flat, (N,) uint64."""

    shape: torch.Size
    beta: np.ndarray  # public: b ^ rho
    rho: np.ndarray
    rho_r: np.ndarray
    opened: np.ndarray  # public: x + r
    first: bool

    def bit(self) -> torch.Tensor:
        """Share of b as an integer 0 or 1, shaped like x."""
        b = self.rho * (np.uint64(1) - np.uint64(2) * self.beta)
        if self.first:
            b += self.beta
        return torch.from_numpy(b.view(np.int64)).view(self.shape)

    def select(self, x: torch.Tensor) -> torch.Tensor:
        """Share of b * x. `x` must be the very share that was compared."""
        flat = x.contiguous().view(-1).numpy().view(np.uint64)
        masked = self.opened * self.rho - self.rho_r
        product = self.beta * flat + (np.uint64(1) - np.uint64(2) * self.beta) * masked
        return torch.from_numpy(product.view(np.int64)).view(self.shape)


def less_than_zero(ctx: Context, x: torch.Tensor) -> Sign:
    """Compare int64 shares of any shape with zero: exact for every ring element read as a signed number. Six rounds."""
    count = x.numel()
    if count == 0:
        return Sign(x.shape, *[np.empty(0, np.uint64)] * 4, ctx.first)
    plane = packed(count)
    flat = x.contiguous().view(-1).numpy().view(np.uint64)
    r, a, b, b2, rho_bits, tables, top, c, c2, rho, rho_r = ctx.provider.get(ComparisonMask(count))
    (opened,) = ctx.channel.open_ring([torch.from_numpy((flat + r).view(np.int64))])
    opened = opened.numpy().view(np.uint64)
    less, equal = _select(tables.view(np.uint16).reshape(CHUNKS, count), opened)
    borrow = _merge(ctx, less, equal, [part.reshape(-1, plane) for part in (a, b, b2, c, c2)])
    masked = borrow ^ top ^ rho_bits
    if ctx.first:
        masked ^= np.packbits((opened >> np.uint64(63)).astype(np.uint8))
    beta = np.unpackbits(ctx.channel.open_bits(masked), count=count).astype(np.uint64)
    return Sign(x.shape, beta, rho, rho_r, opened, ctx.first)


def relu(ctx: Context, x: torch.Tensor) -> tuple[torch.Tensor, Sign]:
    """Share of max(x, 0), shaped like x, and the comparison, whose bit the gradient needs. Six rounds."""
    sign = less_than_zero(ctx, x)
    return x - sign.select(x), sign


def maximum(ctx: Context, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, Sign]:
    """Share of the larger of two of one shape (|a - b| < 2**63), and the comparison a < b. Six rounds."""
    difference, sign = relu(ctx, a - b)
    return b + difference, sign
