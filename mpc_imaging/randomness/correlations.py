"""How the dealer and the compute parties make the shares of a demand, and demands as JSON.

The demands of a session are numbered. Demand i draws from stream i of each party's key, so that the dealer can work on
demands in any order and on several at once, and find a mask again that a later product needs, without keeping it. The
correction of demand i goes to the party of rank i modulo their number; common bytes go to all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mpc_imaging import strict_json
from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness.demands import KINDS, Demand, Product, Selection
from mpc_imaging.randomness.fields import BitsRef, Field, MaskRef
from mpc_imaging.randomness.ring import BilinearOp
from mpc_imaging.randomness.streams import NumberedStreams

# A request names sizes; the dealer refuses those that no sane layer asks for before it takes the memory.
MAX_ELEMENTS = 1 << 29


@dataclass(frozen=True, repr=False)
class Dealt:
    """One party's part of demand number `index`: its shares of the random and then the derived fields, own and common.

    key_id: public bytes of this demand alone, for comparison keys.
    """

    index: int
    shares: list[np.ndarray]
    own: list[np.ndarray]
    common: np.ndarray
    key_id: bytes

    def __repr__(self) -> str:
        return f"Dealt(index={self.index}, shares hidden)"


def holder(index: int, parties: int) -> int:
    """The rank that gets the correction of demand number `index`: each in turn, which balances what they receive."""
    return index % parties


def correction_octets(demand: Demand) -> int:
    """Bytes of a correction."""
    return sum(field.octets for field in demand.derived())


def message_octets(demand: Demand, index: int, rank: int, parties: int) -> int:
    """Bytes that the dealer delivers to `rank` for demand number `index`."""
    correction = correction_octets(demand) if rank == holder(index, parties) else 0
    return demand.common_octets() + correction


def _key_id(key_id: bytes, index: int) -> bytes:
    return key_id + index.to_bytes(8, "little")


def draw(
    demand: Demand,
    index: int,
    mine: NumberedStreams,
    rank: int,
    parties: int,
    key_id: bytes,
    message: bytearray,
) -> Dealt:
    """A compute party's part, from its key and the dealer's message of `message_octets` bytes."""
    stream = mine.number(index)
    shares = [field.draw(stream) for field in demand.random()]
    own = [field.draw(stream) for field in demand.own()]
    start = demand.common_octets()
    common = np.frombuffer(message, np.uint8, start)
    for field in demand.derived():
        if rank == holder(index, parties):
            shares.append(np.frombuffer(message, field.dtype, field.size, start))
            start += field.octets
        else:
            shares.append(field.draw(stream))
    return Dealt(index, shares, own, common, _key_id(key_id, index))


def deal(demand: Demand, index: int, streams: Sequence[NumberedStreams], key_id: bytes) -> list[list[memoryview]]:
    """The message for each rank, as buffers to send in order (dealer only).

    `streams[i]` is made from the key that the dealer shares with the compute party of rank i alone.
    """
    opened = [party.number(index) for party in streams]
    clear = _sums(demand.random(), [[field.draw(stream) for field in demand.random()] for stream in opened])
    own = [[field.draw(stream) for field in demand.own()] for stream in opened]
    masks = [_clear(ref, streams) for ref in demand.references()]
    values = demand.derive(*clear, *masks)
    fields = demand.derived()
    last = holder(index, len(streams))
    others = [[field.draw(stream) for field in fields] for rank, stream in enumerate(opened) if rank != last and fields]
    for part in others:
        values = [field.sub(a, b) for field, a, b in zip(fields, values, part, strict=True)]
    common = demand.common(clear, own, _key_id(key_id, index)) if demand.common_octets() else None
    messages: list[list[np.ndarray]] = [[] if common is None else [common] for _ in streams]
    messages[last] += values
    return [[memoryview(np.ascontiguousarray(a)).cast("B") for a in parts if a.size] for parts in messages]


def _sums(fields: list[Field], parts: list[list[np.ndarray]]) -> list[np.ndarray]:
    total = parts[0]
    for part in parts[1:]:
        total = [field.add(a, b) for field, a, b in zip(fields, total, part, strict=True)]
    return total


def _clear(ref: MaskRef | BitsRef, streams: Sequence[NumberedStreams]) -> np.ndarray:
    return _sums([ref.field], [[ref.field.draw(party.number(ref.index))] for party in streams])[0]


def relocated(demand: Demand, old_start: int, new_start: int) -> Demand:
    """The same demand in a repetition of a segment that began at `old_start` and now begins at `new_start`.

    References into the segment move with it; those to what came before it stay.
    """
    return redirected(demand, lambda index: index - old_start + new_start if index >= old_start else index)


def redirected(demand: Demand, where: Callable[[int], int]) -> Demand:
    """The same demand, referring to what `where` says in place of each number."""
    if not demand.references():
        return demand
    refs = {name: value for name, value in vars(demand).items() if isinstance(value, MaskRef | BitsRef)}
    return replace(demand, **{name: ref._replace(index=where(ref.index)) for name, ref in refs.items()})


# Demands as plain lists


def to_json(demand: Demand) -> list[Any]:
    """A demand as plain lists."""
    if isinstance(demand, Product):
        refs = [[ref.index, ref.count, list(ref.size), list(ref.stride), ref.offset] for ref in (demand.x, demand.y)]
        params = [[name, list(value) if isinstance(value, tuple) else value] for name, value in demand.op.params]
        return [demand.name, demand.op.name, params, *refs]
    return [demand.name, *(list(v) if isinstance(v, BitsRef) else int(v) for v in vars(demand).values())]


def _integers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(v) is int and 0 <= v <= MAX_ELEMENTS for v in values):
        raise RandomnessError("a demand lists sizes as whole numbers")
    return tuple(values)


def _mask_ref(data: Any) -> MaskRef:
    index, count, size, stride, offset = data
    if type(index) is not int or index < 0:
        raise RandomnessError("a demand numbers masks from 0")
    ref = MaskRef(index, *_integers([count]), _integers(size), _integers(stride), *_integers([offset]))
    last = ref.offset + sum((n - 1) * step for n, step in zip(ref.size, ref.stride, strict=True))
    if 0 not in ref.size and last >= ref.count:
        raise RandomnessError(f"a demand reaches element {last} of a mask of {ref.count}")
    return ref


def _bits_ref(data: Any) -> BitsRef:
    index, count = data
    if type(index) is not int or index < 0:
        raise RandomnessError("a demand numbers comparisons from 0")
    return BitsRef(index, *_integers([count]))


def _check_work(demand: Product) -> None:
    """Refuse what needs more memory than its operands: sliding windows, zero strides, operands repeated in a batch."""
    # In Python's own integers: sizes that a peer chose could overflow numpy's.
    params = {name: (value,) if isinstance(value, int) else value for name, value in demand.op.params}
    if min((v for name in ("stride", "dilation", "groups", "kernel") for v in params.get(name, ())), default=1) < 1:
        raise RandomnessError("a demand has a stride, dilation, kernel or number of groups below 1")
    x, y = demand.x.size, demand.y.size
    if demand.op.name == "matmul":
        work = math.prod(demand.shape()[:-2]) * max(math.prod(x[-2:]), math.prod(y[-2:]))
    elif demand.op.name.startswith("conv"):
        kernel = params.get("kernel", y[2:])
        margin = 2 * max(params.get("padding", (0,))) + max(params.get("output_padding", (0,)))
        # A transposed convolution pads its input by the kernel's reach, and spreads it by the stride.
        reach = max(params.get("dilation", (1,))) if demand.op.name.startswith("conv_transpose") else 0
        padded = [size + margin + reach * (k - 1) for size, k in zip(x[2:], kernel, strict=True)]
        work = math.prod(x[:2]) * math.prod(padded) * math.prod(kernel) * math.prod(params.get("stride", ()))
    else:
        return
    if work > 8 * MAX_ELEMENTS:
        raise RandomnessError(f"a demand for a product over {work:,} elements at once; use a smaller batch_size")


def from_json(data: Any) -> Demand:
    """The demand that a peer described; anything else raises `RandomnessError`."""
    try:
        name, *rest = data
        if name == Product.name:
            op, params, x, y = rest
            plain = tuple((str(k), _integers(v) if isinstance(v, list) else _integers([v])[0]) for k, v in params)
            demand: Demand = Product(BilinearOp(strict_json.text(op), plain), _mask_ref(x), _mask_ref(y))
            _check_work(demand)
        elif name == Selection.name:
            count, shift, rho = rest
            demand = Selection(*_integers([count, shift]), _bits_ref(rho))
        else:
            demand = KINDS[name](*_integers(rest))
        sizes = [field.size for field in (*demand.random(), *demand.own(), *demand.derived())]
        for ref in demand.references():
            sizes += [ref.count, math.prod(ref.size) if isinstance(ref, MaskRef) else 0]
        sizes.append(demand.common_octets() // 8)
    except RandomnessError:
        raise
    except Exception as error:
        raise RandomnessError(f"not a demand for correlated randomness ({type(error).__name__})") from None
    if max(sizes) > MAX_ELEMENTS:
        raise RandomnessError(
            f"a demand for {max(sizes):,} elements exceeds {MAX_ELEMENTS:,}; use a smaller batch_size"
        )
    return demand
