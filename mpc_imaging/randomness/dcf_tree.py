"""The walk down the trees of a distributed comparison function, one chunk of elements at a time: `dcf` has the scheme.

Everything runs on whole arrays of blocks, each two 64-bit words of which the first has the control bits, in memory that
is allocated once for all levels and chunks. Operations on all words of an array are preferred to those on every other
word, which are not vectorised, and no word is broadcast over a block, which would cost numpy a loop of length 2 for
every block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BLOCK_BYTES = 16
LEAF_BITS = 7  # a block of payload bits replaces the last 7 levels
WORD = np.dtype("<u8")  # little-endian on every machine, so that control bits are where the format says

Encrypt = Callable[[memoryview, memoryview], int]


def _constant(value: int) -> np.ndarray:
    # Ufuncs take an array of no dimensions 0.2 us faster than a scalar.
    return np.array(value, WORD)


_SHIFT = [_constant(k) for k in range(64)]
_ONE, _TWO, _FOUR, _FIVE, _SEVEN, _LOW = (_constant(k) for k in (1, 2, 4, 5, 7, 2**LEAF_BITS - 1))


def _payload_table() -> np.ndarray:
    """Blocks (256, 2): row j has bits 0 to j - 1 set, row 128 + j the others."""
    below = [(1 << j) - 1 for j in range(128)]
    rows = np.array([[bits & (2**64 - 1), bits >> 64] for bits in below], WORD)
    return np.concatenate([rows, ~rows])


_PAYLOAD = _payload_table()


class _Scratch:
    """Memory for `count` elements whose seeds and their expansions are blocks of `shape`, (..., count)."""

    def __init__(self, count: int, *shape: int) -> None:
        self.count = count
        self.plain = np.empty((*shape, 2), WORD)
        # update_into asks for room for almost a block more than it writes.
        room = np.empty(self.plain.nbytes + BLOCK_BYTES, np.uint8)
        self.cipher = room[: self.plain.nbytes].view(WORD).reshape(self.plain.shape)
        self.source, self.target = memoryview(self.plain.reshape(-1).view(np.uint8)), memoryview(room)
        self.spare = np.empty((count, 2), WORD)
        self.mask = np.empty((count, 2), WORD)  # all ones where t is 1
        self.mask_first, self.mask_second = self.mask[:, 0], self.mask[:, 1]
        self.seed_bits = np.tile(np.array([2**64 - 8, 2**64 - 1], WORD), (count, 1))
        self.bit = np.empty(count, WORD)
        self.value = np.empty(count, WORD)  # the payload so far, in bit 2

    def _take_bit(self, points: np.ndarray, shift: int) -> None:
        np.right_shift(points, _SHIFT[shift], out=self.bit)
        np.bitwise_and(self.bit, _ONE, out=self.bit)

    def _take_t(self, seed_first: np.ndarray, t: np.ndarray) -> None:
        """Spread t, which is bit 0 in a left child and bit 1 in a right one, over the mask; `t` is overwritten."""
        np.right_shift(seed_first, self.bit, out=t)
        np.bitwise_and(t, _ONE, out=t)
        np.negative(t, out=self.mask_first)
        np.negative(t, out=self.mask_second)


class KeyGeneration(_Scratch):
    """Corrections for `count` elements. Walks alpha's path with party 0's seeds and their difference to party 1's."""

    def __init__(self, count: int) -> None:
        super().__init__(count, 2, 2, count)  # (kept or lost child, party, element)
        self.seed = self.plain[0, 0]
        self.seed_first = self.seed[:, 0]
        self.difference = np.empty((count, 2), WORD)
        self.kept = np.empty((count, 2), WORD)
        self.kept_first = self.kept[:, 0]
        self.right = np.tile(np.array([1, 0], WORD), (count, 1))
        self.flip = np.empty(count, WORD)
        self.control = np.empty(count, WORD)

    def run(self, encrypt: Encrypt, alpha: np.ndarray, bits: int, roots: np.ndarray, levels: np.ndarray) -> None:
        """Write `levels` (bits - 6, n, 2) for `alpha` (n,) and `roots` (2, n, 2)."""
        np.bitwise_and(roots[0], self.seed_bits, out=self.seed)
        np.bitwise_xor(roots[0], roots[1], out=self.difference)
        np.bitwise_and(self.difference, self.seed_bits, out=self.difference)
        self.mask.fill(0)
        self.value.fill(0)
        for level in range(bits - LEAF_BITS):
            correction = levels[level]
            self._take_bit(alpha, bits - 1 - level)
            self._expand(encrypt, correction)
            self._correct_controls(correction[:, 0])
            self._descend(correction)
        self._end(encrypt, alpha, levels[-1])

    def _expand(self, encrypt: Encrypt, lost: np.ndarray) -> None:
        """`seed` becomes party 0's kept child, `kept` and `lost` the differences of the parties' children."""
        np.bitwise_xor(self.seed_first, self.bit, out=self.seed_first)
        np.bitwise_xor(self.seed, self.difference, out=self.plain[0, 1])
        np.bitwise_xor(self.plain[0], self.right, out=self.plain[1])
        encrypt(self.source, self.target)
        # Both parties' inputs differ by `difference` on either side: what MMO's feed-forward adds to their outputs'.
        np.bitwise_xor(self.cipher[0, 0], self.cipher[0, 1], out=self.kept)
        np.bitwise_xor(self.kept, self.difference, out=self.kept)
        np.bitwise_xor(self.cipher[1, 0], self.cipher[1, 1], out=lost)
        np.bitwise_xor(lost, self.difference, out=lost)
        np.bitwise_xor(self.seed, self.cipher[0, 0], out=self.seed)

    def _correct_controls(self, first: np.ndarray) -> None:
        """Turn the lost children's difference, `first`, into corrections of t and v; `value` moves to the kept child.

        Figure 1: with alpha's bit a and the differences k and l of the kept and the lost child, t is corrected by k ^ 1
        in the kept child and by l in the lost one, v by l ^ value ^ a in both, and the new value is k ^ l ^ a.
        """
        np.multiply(self.bit, _FIVE, out=self.flip)
        np.add(self.flip, _ONE, out=self.flip)  # 1 or 6: bits 0 and 1 mark the kept child's t, bit 2 is a
        np.bitwise_xor(self.kept_first, first, out=self.control)
        np.bitwise_xor(self.control, self.flip, out=self.control)  # k ^ l ^ 1 in the kept child's t, k ^ l ^ a in v
        np.bitwise_xor(self.flip, self.value, out=self.flip)
        np.bitwise_and(self.control, _FOUR, out=self.value)
        np.bitwise_or(self.control, _FOUR, out=self.control)
        np.bitwise_and(self.control, self.flip, out=self.control)  # k ^ l ^ 1 in the kept child's t, value ^ a in v
        np.bitwise_xor(first, self.control, out=first)

    def _descend(self, correction: np.ndarray) -> None:
        """The party with t = 1 applies the correction: on alpha's path that is one of the two."""
        np.bitwise_xor(self.kept, correction, out=self.difference)
        np.bitwise_and(self.difference, self.seed_bits, out=self.difference)
        np.bitwise_and(correction, self.mask, out=self.spare)
        np.bitwise_xor(self.seed, self.spare, out=self.seed)
        self._take_t(self.seed_first, self.control)
        np.bitwise_and(self.seed, self.seed_bits, out=self.seed)

    def _end(self, encrypt: Encrypt, alpha: np.ndarray, correction: np.ndarray) -> None:
        """The difference of the payload bits, plus [j < low bits of alpha] for each point j, plus the value reached."""
        np.bitwise_or(self.seed_first, _TWO, out=self.seed_first)
        np.bitwise_xor(self.seed, self.difference, out=self.plain[0, 1])
        half = self.plain.nbytes // 2
        encrypt(self.source[:half], self.target[: half + BLOCK_BYTES])
        np.bitwise_xor(self.cipher[0, 0], self.cipher[0, 1], out=correction)
        np.bitwise_xor(correction, self.difference, out=correction)
        np.bitwise_and(alpha, _LOW, out=self.control)
        np.left_shift(self.value, _FIVE, out=self.value)  # from bit 2 to bit 7: the inverted rows
        np.bitwise_or(self.control, self.value, out=self.control)
        np.take(_PAYLOAD, self.control.view("<i8"), axis=0, out=self.spare, mode="clip")
        np.bitwise_xor(correction, self.spare, out=correction)


class Evaluation(_Scratch):
    """One party's shares for `count` elements."""

    def __init__(self, count: int) -> None:
        super().__init__(count, count)
        self.seed_first = self.plain[:, 0]
        self.octets = np.arange(0, BLOCK_BYTES * count, BLOCK_BYTES)

    def run(
        self,
        encrypt: Encrypt,
        party: int,
        x: np.ndarray,
        bits: int,
        roots: np.ndarray,
        levels: np.ndarray,
        shares: np.ndarray,
    ) -> None:
        """Write `shares`, uint8 (n,), for `x` (n,), `roots` (n, 2) and the corrections `levels` (bits - 6, n, 2)."""
        np.bitwise_and(roots, self.seed_bits, out=self.plain)
        self.mask.fill(2**64 - 1 if party else 0)
        self.value.fill(0)
        for level in range(bits - LEAF_BITS):
            self._take_bit(x, bits - 1 - level)
            np.bitwise_xor(self.seed_first, self.bit, out=self.seed_first)
            self._expand(encrypt, levels[level])
            np.bitwise_xor(self.value, self.seed_first, out=self.value)
            self._take_t(self.seed_first, self.bit)
            np.bitwise_and(self.plain, self.seed_bits, out=self.plain)
        np.bitwise_or(self.seed_first, _TWO, out=self.seed_first)
        self._expand(encrypt, levels[-1])
        self._select(x, shares)

    def _expand(self, encrypt: Encrypt, correction: np.ndarray) -> None:
        """Each block becomes its hash, corrected where t is 1."""
        encrypt(self.source, self.target)
        np.bitwise_xor(self.plain, self.cipher, out=self.plain)
        np.bitwise_and(correction, self.mask, out=self.spare)
        np.bitwise_xor(self.plain, self.spare, out=self.plain)

    def _select(self, x: np.ndarray, shares: np.ndarray) -> None:
        """Payload bit x % 128 of each block, plus the value."""
        octets = self.octets + ((x & _LOW) >> _SHIFT[3]).astype(np.intp)
        payload = self.plain.reshape(-1).view(np.uint8)[octets] >> (x & _SEVEN).astype(np.uint8)
        payload ^= (self.value >> _TWO).astype(np.uint8)
        np.bitwise_and(payload, 1, out=shares)
