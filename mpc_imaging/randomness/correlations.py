"""Correlated randomness: what a protocol step demands from the dealer, and how both sides make it.

Every demand lists *random* fields, which each compute party draws from the keystream it shares with the dealer alone,
and *derived* fields, which follow from the sums (RING) or exclusive-ors (BITS) of the random ones. Of a derived field
all parties but one draw their share too; only that one, the holder, receives a correction from the dealer. A demand
serves one use, ever.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness.ring import BilinearOp
from mpc_imaging.randomness.streams import Stream

# A request names sizes; the dealer refuses those that no sane layer asks for before it takes the memory.
MAX_ELEMENTS = 1 << 29

CHUNKS = 16  # of 4 bits each: the low 63 bits of a ring element


class Group(Enum):
    """How shares add up: modulo 2**64 (uint64 elements) or bitwise (uint8, eight packed bits)."""

    RING = "ring"
    BITS = "bits"


class Field(NamedTuple):
    """One array of shares: `size` uint64 elements (RING) or bytes (BITS)."""

    group: Group
    size: int

    def draw(self, stream: Stream) -> np.ndarray:
        """A party's uniform share."""
        return stream.words(self.size) if self.group is Group.RING else stream.octets(self.size)

    def add(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The sum in this field's group."""
        return a + b if self.group is Group.RING else a ^ b

    def sub(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The difference in this field's group."""
        return a - b if self.group is Group.RING else a ^ b

    @property
    def octets(self) -> int:
        """Bytes of one share."""
        return 8 * self.size if self.group is Group.RING else self.size


def _ring(array: np.ndarray, shape: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(array.view(np.int64)).view(tuple(shape))


def _words(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(-1).numpy().view(np.uint64)


def packed(count: int) -> int:
    """Bytes that hold `count` packed bits."""
    return (count + 7) // 8


@dataclass(frozen=True)
class BilinearTriple:
    """Beaver's triple a, b, c = op(a, b) (CRYPTO 1991), for any bilinear operation."""

    name: ClassVar[str] = "bilinear"
    op: BilinearOp
    x_shape: tuple[int, ...]
    y_shape: tuple[int, ...]

    def random(self) -> list[Field]:
        """a and b."""
        return [
            Field(Group.RING, torch.Size(self.x_shape).numel()),
            Field(Group.RING, torch.Size(self.y_shape).numel()),
        ]

    def derived(self) -> list[Field]:
        """c."""
        return [Field(Group.RING, self.op.result_shape(self.x_shape, self.y_shape).numel())]

    def derive(self, a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
        """c from a and b in the clear (dealer only)."""
        return [_words(self.op(_ring(a, self.x_shape), _ring(b, self.y_shape)))]


@dataclass(frozen=True)
class SquarePair:
    """r and r * r."""

    name: ClassVar[str] = "square"
    count: int

    def random(self) -> list[Field]:
        """r."""
        return [Field(Group.RING, self.count)]

    def derived(self) -> list[Field]:
        """The square."""
        return [Field(Group.RING, self.count)]

    def derive(self, r: np.ndarray) -> list[np.ndarray]:
        """r * r (dealer only)."""
        return [r * r]


@dataclass(frozen=True)
class TruncationPair:
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
        """r >> bits, and the top bit as a ring element."""
        return [Field(Group.RING, self.count)] * 2

    def derive(self, r: np.ndarray) -> list[np.ndarray]:
        """Both from r in the clear (dealer only)."""
        return [r >> np.uint64(self.bits), r >> np.uint64(63)]


def and_planes() -> tuple[int, int, int]:
    """How many AND gates the prefix tree over `CHUNKS` chunks needs: left operands, first and second right operands."""
    pairs, left, second = CHUNKS // 2, 0, 0
    while pairs:
        left, second, pairs = left + pairs, second + pairs - 1, pairs // 2
    return left, left, second


@dataclass(frozen=True)
class ComparisonMask:
    """Everything that one comparison with zero needs (`protocols.compare`): see `derive`.

    Bit arrays are packed along the elements: a plane is `packed(count)` bytes.
    """

    name: ClassVar[str] = "comparison"
    count: int

    def random(self) -> list[Field]:
        """The mask r, the AND gates' operands (planes of all levels), and the output mask rho."""
        plane, (a, b, b2) = packed(self.count), and_planes()
        return [
            Field(Group.RING, self.count),
            Field(Group.BITS, a * plane),
            Field(Group.BITS, b * plane),
            Field(Group.BITS, b2 * plane),
            Field(Group.BITS, plane),
        ]

    def derived(self) -> list[Field]:
        """One-hot tables, top bit of r, AND products, then rho and rho * r as ring elements."""
        plane, (_, b, b2) = packed(self.count), and_planes()
        return [
            Field(Group.BITS, 2 * CHUNKS * self.count),
            Field(Group.BITS, plane),
            Field(Group.BITS, b * plane),
            Field(Group.BITS, b2 * plane),
            Field(Group.RING, self.count),
            Field(Group.RING, self.count),
        ]

    def derive(self, r: np.ndarray, a: np.ndarray, b: np.ndarray, b2: np.ndarray, rho: np.ndarray) -> list[np.ndarray]:
        """All derived fields in the clear (dealer only).

        Table k (uint16, element-wise) is one-hot in bits 4k to 4k + 3 of r; the uppermost chunk has bits 60 to 62.
        """
        tables = np.empty((CHUNKS, self.count), np.uint16)
        low = r & np.uint64(2**63 - 1)
        for k in range(CHUNKS):
            chunk = ((low >> np.uint64(4 * k)) & np.uint64(15)).astype(np.uint16)
            np.left_shift(np.uint16(1), chunk, out=tables[k])
        top = np.packbits((r >> np.uint64(63)).astype(np.uint8))
        flag = np.unpackbits(rho, count=self.count).astype(np.uint64)
        left = a.reshape(and_planes()[0], packed(self.count))
        return [
            tables.view(np.uint8).reshape(-1),
            top,
            a & b,
            left[second_operands()].reshape(-1) & b2,
            flag,
            flag * r,
        ]


def second_operands() -> list[int]:
    """Rows of the left operands that meet a second right operand: all but the lowest pair of each level."""
    rows, start, pairs = [], 0, CHUNKS // 2
    while pairs:
        rows += range(start + 1, start + pairs)
        start, pairs = start + pairs, pairs // 2
    return rows


@dataclass(frozen=True)
class BinaryTriple:
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
class SharedBit:
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


Demand = BilinearTriple | SquarePair | TruncationPair | ComparisonMask | BinaryTriple | SharedBit

_KINDS = {
    kind.name: kind for kind in (BilinearTriple, SquarePair, TruncationPair, ComparisonMask, BinaryTriple, SharedBit)
}


def to_json(demand: Demand) -> list[Any]:
    """A demand as plain lists."""
    if isinstance(demand, BilinearTriple):
        return [
            demand.name,
            demand.op.name,
            [[k, v] for k, v in demand.op.params],
            list(demand.x_shape),
            list(demand.y_shape),
        ]
    if isinstance(demand, TruncationPair):
        return [demand.name, demand.count, demand.bits]
    return [demand.name, demand.count]


def _integers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(isinstance(v, int) and 0 <= v <= MAX_ELEMENTS for v in values):
        raise RandomnessError("a demand lists sizes as whole numbers")
    return tuple(values)


def _check_patches(demand: BilinearTriple) -> None:
    """Refuse what a convolution would need more memory for than its operands: sliding windows, zero strides."""
    # In Python's own integers: sizes that a peer chose could overflow numpy's.
    params = {name: (value,) if isinstance(value, int) else value for name, value in demand.op.params}
    if min((v for name in ("stride", "dilation", "groups", "kernel") for v in params.get(name, ())), default=1) < 1:
        raise RandomnessError("a demand has a stride, dilation, kernel or number of groups below 1")
    if demand.op.name.startswith("conv"):
        kernel = params.get("kernel", demand.y_shape[2:])
        padded = [size + 2 * max(params.get("padding", (0,))) for size in demand.x_shape[2:]]
        patches = math.prod(demand.x_shape[:2]) * math.prod(padded) * math.prod(kernel)
        # A transposed convolution spreads its input by the stride.
        if patches * math.prod(params.get("stride", ())) > 8 * MAX_ELEMENTS:
            raise RandomnessError(
                f"a demand for a convolution over {patches:,} patch elements; use a smaller batch_size"
            )


def from_json(data: Any) -> Demand:
    """The demand that a peer described; anything else raises `RandomnessError`."""
    try:
        name, *rest = data
        if name == BilinearTriple.name:
            op, params, x_shape, y_shape = rest
            plain = tuple((str(k), _integers(v) if isinstance(v, list) else int(v)) for k, v in params)
            demand: Demand = BilinearTriple(BilinearOp(op, plain), _integers(x_shape), _integers(y_shape))
            _check_patches(demand)
        else:
            demand = _KINDS[name](*_integers(rest))
        sizes = [field.size for field in (*demand.random(), *demand.derived())]
    except RandomnessError:
        raise
    except Exception as error:
        raise RandomnessError(f"not a demand for correlated randomness ({type(error).__name__})") from None
    if max(sizes) > MAX_ELEMENTS:
        raise RandomnessError(
            f"a demand for {max(sizes):,} elements exceeds {MAX_ELEMENTS:,}; use a smaller batch_size"
        )
    return demand


def draw(demand: Demand, stream: Stream, correction: list[np.ndarray] | None, holder: bool) -> list[np.ndarray]:
    """A compute party's shares of all fields, random ones first. The holder passes the dealer's correction.

    The stream moves by the same amount whether a party is holder or not: every party has its own.
    """
    random = [field.draw(stream) for field in demand.random()]
    derived = correction if holder else [field.draw(stream) for field in demand.derived()]
    return random + derived


def correct(demand: Demand, streams: Sequence[Stream], holder: int) -> list[np.ndarray]:
    """The correction for the holder (dealer only): derived fields less the other parties' shares."""
    sums: list[np.ndarray] | None = None
    others: list[np.ndarray] | None = None
    for rank, stream in enumerate(streams):
        random = [field.draw(stream) for field in demand.random()]
        sums = random if sums is None else [f.add(a, b) for f, a, b in zip(demand.random(), sums, random, strict=True)]
        if rank != holder:
            derived = [field.draw(stream) for field in demand.derived()]
            others = (
                derived
                if others is None
                else [f.add(a, b) for f, a, b in zip(demand.derived(), others, derived, strict=True)]
            )
    values = demand.derive(*sums)
    if others is None:
        return values
    return [f.sub(a, b) for f, a, b in zip(demand.derived(), values, others, strict=True)]


def pack(correction: Sequence[np.ndarray]) -> list[memoryview]:
    """The correction as buffers to send, in order."""
    return [memoryview(np.ascontiguousarray(array)).cast("B") for array in correction if array.size]


def correction_octets(demand: Demand) -> int:
    """Bytes of a correction."""
    return sum(field.octets for field in demand.derived())


def unpack(demand: Demand, payload: bytearray) -> list[np.ndarray]:
    """The correction's arrays, as views of the received bytes."""
    arrays, start = [], 0
    for field in demand.derived():
        part = np.frombuffer(payload, np.uint8, field.octets, start)
        # Bit fields before a ring field may leave it unaligned; numpy then works on a copy.
        arrays.append(part.copy().view(np.uint64) if field.group is Group.RING else part)
        start += field.octets
    return arrays
