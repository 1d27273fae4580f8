"""Demands: the kinds of correlated randomness that a protocol step asks the dealer for.

A demand lists *random* fields, of which each compute party draws its share from the keystream that it shares with the
dealer alone; *own* fields, drawn alike, which do not add up (the roots of comparison keys); *derived* fields, which
follow from the sums (RING) or exclusive-ors (BITS) of the random ones; and *common* bytes, the same for every party.
Of a derived field all parties but one, the holder, draw their share too; the holder receives a correction from the
dealer (`correlations`). A demand serves one use, ever.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

import numpy as np
import torch

from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness import dcf
from mpc_imaging.randomness.fields import BitsRef, Field, Group, MaskRef, packed
from mpc_imaging.randomness.ring import BilinearOp

CHUNKS = 16  # of 4 bits each: the low 63 bits of a ring element


class Demand:
    """What the kinds below have in common; each overrides what it needs."""

    name: ClassVar[str]

    def random(self) -> list[Field]:
        """Uniform shares, whose sums the dealer knows."""
        return []

    def own(self) -> list[Field]:
        """Uniform values that the dealer shares with one party each."""
        return []

    def derived(self) -> list[Field]:
        """Shares of what `derive` returns; fields of wider elements come first, for alignment."""
        return []

    def common_octets(self) -> int:
        """Bytes that every party gets alike."""
        return 0

    def references(self) -> list[MaskRef | BitsRef]:
        """Earlier masks of which `derive` needs the clear values, after the sums of the random fields."""
        return []

    def derive(self, *clear: np.ndarray) -> list[np.ndarray]:
        """The derived fields in the clear (dealer only)."""
        return []

    def common(self, clear: list[np.ndarray], own: list[list[np.ndarray]], key_id: bytes) -> np.ndarray:
        """The common bytes, from the random fields in the clear and every party's own ones (dealer only)."""
        return np.empty(0, np.uint8)


@dataclass(frozen=True)
class Mask(Demand):
    """A uniform mask for one version of a value (`protocols.masked`)."""

    name: ClassVar[str] = "mask"
    count: int

    def random(self) -> list[Field]:
        """The mask."""
        return [Field(Group.RING, self.count)]


@dataclass(frozen=True)
class Product(Demand):
    """c = op(a, b) of two masks: Beaver's triple (CRYPTO 1991), in which a mask may serve several products."""

    name: ClassVar[str] = "product"
    op: BilinearOp
    x: MaskRef
    y: MaskRef

    def shape(self) -> torch.Size:
        """Shape of the product."""
        return self.op.result_shape(self.x.size, self.y.size)

    def derived(self) -> list[Field]:
        """c."""
        # Not numel(), which overflows.
        return [Field(Group.RING, math.prod(self.shape()))]

    def references(self) -> list[MaskRef | BitsRef]:
        """a and b."""
        return [self.x, self.y]

    def derive(self, a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
        """c from both masks in the clear (dealer only)."""
        c = self.op(self.x.view(a), self.y.view(b))
        return [c.contiguous().view(-1).numpy().view(np.uint64)]


def _top_group(shift: int) -> Group:
    # The top bit of r is needed times 2**(64 - shift): the low `shift` bits of its share are enough.
    return Group.RING32 if shift <= 32 else Group.RING


@dataclass(frozen=True)
class TruncationPair(Demand):
    """r with r >> bits (logical) and the top bit of r."""

    name: ClassVar[str] = "truncation"
    count: int
    bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 61:
            raise RandomnessError(f"truncation by {self.bits} bits: 1 to 61 are possible")

    def random(self) -> list[Field]:
        """r."""
        return [Field(Group.RING, self.count)]

    def derived(self) -> list[Field]:
        """r >> bits, and the top bit."""
        return [Field(Group.RING, self.count), Field(_top_group(self.bits), self.count)]

    def derive(self, r: np.ndarray) -> list[np.ndarray]:
        """Both from r in the clear (dealer only)."""
        return [r >> np.uint64(self.bits), (r >> np.uint64(63)).astype(Field(_top_group(self.bits), self.count).dtype)]


def _hidden_fields(count: int, shift: int) -> list[Field]:
    ring, small = Field(Group.RING, count), Field(_top_group(shift), count)
    return [ring, ring, small, small] if shift else [ring]


def _hide(rho: np.ndarray, r: np.ndarray, shift: int) -> list[np.ndarray]:
    """rho * r; or r >> shift, rho * (r >> shift), the top bit of r, and rho times it."""
    if not shift:
        return [rho * r]
    shifted, top = r >> np.uint64(shift), r >> np.uint64(63)
    small = Field(_top_group(shift), len(r)).dtype
    return [shifted, rho * shifted, top.astype(small), (rho & top).astype(small)]


class Output(IntEnum):
    """What a comparison is for: the bit alone, its product with the value compared, or with the truncated value."""

    bit = 0
    value = 1
    truncated = 2


@dataclass(frozen=True)
class SignKeys(Demand):
    """Keys for [x < 0] of two compute parties, who open x + r (`protocols.fss`).

    The sign is that of x >> shift on `bits` bits, of which a distributed comparison function compares all but the top.
    """

    name: ClassVar[str] = "sign"
    count: int
    bits: int
    shift: int
    output: int

    def __post_init__(self) -> None:
        if not (0 <= self.shift <= 61 and dcf.MIN_BITS < self.bits <= 64 - self.shift):
            raise RandomnessError(
                f"a comparison on {self.bits} bits after a shift by {self.shift}: "
                f"{dcf.MIN_BITS + 1} to {64 - self.shift} bits are possible"
            )
        if self.output not in tuple(Output) or (self.output == Output.truncated and not self.shift):
            raise RandomnessError(f"a comparison shifted by {self.shift} bits has no output {self.output}")

    def random(self) -> list[Field]:
        """The output mask rho (packed bits), and the mask r."""
        return [Field(Group.BITS, packed(self.count)), Field(Group.RING, self.count)]

    def own(self) -> list[Field]:
        """The party's root of each tree."""
        return [Field(Group.BITS, 16 * self.count)]

    def derived(self) -> list[Field]:
        """Shares of what `derive` lists."""
        fields = [Field(Group.RING, self.count)]
        if self.output != Output.bit:
            fields += _hidden_fields(self.count, self.shift if self.output == Output.truncated else 0)
        return [*fields, Field(Group.BITS, packed(self.count))]

    def _negated(self, r: np.ndarray) -> np.ndarray:
        """r' = -(r >> shift) modulo 2**bits."""
        negated = -(r >> np.uint64(self.shift))
        return negated if self.bits == 64 else negated & np.uint64(2**self.bits - 1)

    def derive(self, rho_bits: np.ndarray, r: np.ndarray) -> list[np.ndarray]:
        """rho, what `_hide` gives, and the top bit of r'."""
        rho = np.unpackbits(rho_bits, count=self.count).astype(np.uint64)
        fields = [rho]
        if self.output != Output.bit:
            fields += _hide(rho, r, self.shift if self.output == Output.truncated else 0)
        negated = self._negated(r) >> np.uint64(self.bits - 1)
        return [*fields, np.packbits(negated.astype(np.uint8))]

    def common_octets(self) -> int:
        """Corrections of the trees."""
        return self.count * dcf.correction_bytes(self.bits - 1)

    def common(self, clear: list[np.ndarray], own: list[list[np.ndarray]], key_id: bytes) -> np.ndarray:
        """Corrections of the trees for the low bits of r'."""
        if len(own) != 2:
            raise RandomnessError(f"comparison keys are for 2 compute parties, not {len(own)}; write protocol=beaver")
        alpha = self._negated(clear[1]) & np.uint64(2 ** (self.bits - 1) - 1)
        roots = np.stack([parts[0].reshape(self.count, 16) for parts in own])
        return dcf.generate(alpha, self.bits - 1, roots, key_id)


@dataclass(frozen=True)
class Selection(Demand):
    """For the product of an earlier comparison's bit with another value, perhaps truncated (`protocols.selection`)."""

    name: ClassVar[str] = "selection"
    count: int
    shift: int
    rho: BitsRef

    def __post_init__(self) -> None:
        if not 0 <= self.shift <= 61 or self.rho.count != self.count:
            raise RandomnessError(f"a selection of {self.count} values by {self.rho.count} bits, shift {self.shift}")

    def random(self) -> list[Field]:
        """The mask r."""
        return [Field(Group.RING, self.count)]

    def references(self) -> list[MaskRef | BitsRef]:
        """The comparison's output mask."""
        return [self.rho]

    def derived(self) -> list[Field]:
        """Shares of what `derive` lists."""
        return _hidden_fields(self.count, self.shift)

    def derive(self, r: np.ndarray, rho_bits: np.ndarray) -> list[np.ndarray]:
        """See `_hide`."""
        return _hide(np.unpackbits(rho_bits, count=self.count).astype(np.uint64), r, self.shift)


def and_planes() -> tuple[int, int, int]:
    """How many AND gates the prefix tree over `CHUNKS` chunks needs: left operands, first and second right operands."""
    pairs, left, second = CHUNKS // 2, 0, 0
    while pairs:
        left, second, pairs = left + pairs, second + pairs - 1, pairs // 2
    return left, left, second


def second_operands() -> list[int]:
    """Rows of the left operands that meet a second right operand: all but the lowest pair of each level."""
    rows, start, pairs = [], 0, CHUNKS // 2
    while pairs:
        rows += range(start + 1, start + pairs)
        start, pairs = start + pairs, pairs // 2
    return rows


@dataclass(frozen=True)
class ComparisonMask(Demand):
    """Everything that one comparison with zero needs for any number of parties (`protocols.tables`): see `derive`.

    Bit arrays are packed along the elements: a plane is `packed(count)` bytes.
    """

    name: ClassVar[str] = "comparison"
    count: int

    def random(self) -> list[Field]:
        """The output mask rho, the mask r, and the AND gates' operands (planes of all levels)."""
        plane, (a, b, b2) = packed(self.count), and_planes()
        return [
            Field(Group.BITS, plane),
            Field(Group.RING, self.count),
            Field(Group.BITS, a * plane),
            Field(Group.BITS, b * plane),
            Field(Group.BITS, b2 * plane),
        ]

    def derived(self) -> list[Field]:
        """rho and rho * r as ring elements, one-hot tables, top bit of r, AND products."""
        plane, (_, b, b2) = packed(self.count), and_planes()
        return [
            Field(Group.RING, self.count),
            Field(Group.RING, self.count),
            Field(Group.BITS, 2 * CHUNKS * self.count),
            Field(Group.BITS, plane),
            Field(Group.BITS, b * plane),
            Field(Group.BITS, b2 * plane),
        ]

    def derive(self, rho: np.ndarray, r: np.ndarray, a: np.ndarray, b: np.ndarray, b2: np.ndarray) -> list[np.ndarray]:
        """All derived fields in the clear (dealer only).

        Table k (uint16, element-wise) is one-hot in bits 4k to 4k + 3 of r; the uppermost chunk has bits 60 to 62.
        """
        tables = np.empty((CHUNKS, self.count), np.uint16)
        low = r & np.uint64(2**63 - 1)
        for k in range(CHUNKS):
            chunk = ((low >> np.uint64(4 * k)) & np.uint64(15)).astype(np.uint16)
            np.left_shift(np.uint16(1), chunk, out=tables[k])
        flag = np.unpackbits(rho, count=self.count).astype(np.uint64)
        left = a.reshape(and_planes()[0], packed(self.count))
        return [
            flag,
            flag * r,
            tables.view(np.uint8).reshape(-1),
            np.packbits((r >> np.uint64(63)).astype(np.uint8)),
            a & b,
            left[second_operands()].reshape(-1) & b2,
        ]


@dataclass(frozen=True)
class BinaryTriple(Demand):
    """a, b, a & b on 64-bit words, for CrypTen's binary circuits."""

    name: ClassVar[str] = "binary"
    count: int

    def random(self) -> list[Field]:
        """a and b."""
        return [Field(Group.BITS, 8 * self.count)] * 2

    def derived(self) -> list[Field]:
        """a & b."""
        return [Field(Group.BITS, 8 * self.count)]

    def derive(self, a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
        """a & b (dealer only)."""
        return [a & b]


@dataclass(frozen=True)
class SharedBit(Demand):
    """A random bit, shared both bitwise (packed) and modulo 2**64 (a daBit)."""

    name: ClassVar[str] = "bit"
    count: int

    def random(self) -> list[Field]:
        """The bits."""
        return [Field(Group.BITS, packed(self.count))]

    def derived(self) -> list[Field]:
        """The same bits as ring elements."""
        return [Field(Group.RING, self.count)]

    def derive(self, bits: np.ndarray) -> list[np.ndarray]:
        """The ring elements (dealer only)."""
        return [np.unpackbits(bits, count=self.count).astype(np.uint64)]


_ALL = (Mask, Product, TruncationPair, SignKeys, Selection, ComparisonMask, BinaryTriple, SharedBit)
KINDS = {kind.name: kind for kind in _ALL}
