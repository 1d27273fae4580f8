"""The plan of a session: every demand for correlated randomness that it will make, in order, known before it begins.

A plan is recorded by running the same code on zero shares (`tasks.rehearsal`). What a task repeats, such as a batch or
an epoch, is a *segment*: it is listed once and called many times. A segment may call segments that were recorded before
it; the last one is the whole session. All parties and the dealer compare the `digest` of their plans.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness.correlations import from_json, message_octets, relocated, to_json
from mpc_imaging.randomness.dcf_tree import LEAF_BITS
from mpc_imaging.randomness.demands import (
    ComparisonMask,
    Demand,
    Output,
    Product,
    Selection,
    SignKeys,
    TruncationPair,
)
from mpc_imaging.randomness.ring import BilinearOp
from mpc_imaging.strict_json import entries

# What a plan that a peer or a file describes may have: the work of reading it is bounded by the first two, and no
# session lasts longer than the third.
MAX_SEGMENTS = 10_000
MAX_ITEMS = 1_000_000
MAX_DEMANDS = 10**9
MAX_DEPTH = 8
MAX_PARTIES = 64


class Call(NamedTuple):
    """Another segment, `times` times."""

    segment: int
    times: int


@dataclass(frozen=True)
class Segment:
    """What a part of a session demands. `start`: number of its first demand where it was recorded.

    References to demands from `start` on move with the segment; those to earlier ones stay.
    """

    start: int
    items: tuple[Demand | Call, ...]


class Tally(NamedTuple):
    """What demands cost one compute party and are for.

    `octets` in `messages`: what the dealer delivers. `levels`: of the comparisons' trees together. `macs`: those of
    products in the clear; a party computes two such products.
    """

    octets: int = 0
    messages: int = 0
    comparisons: int = 0
    levels: int = 0
    truncations: int = 0
    macs: int = 0

    def plus(self, other: Tally, times: int = 1) -> Tally:
        """This and `times` the other."""
        return Tally(*(a + times * b for a, b in zip(self, other, strict=True)))


def macs(op: BilinearOp, x: tuple[int, ...], y: tuple[int, ...]) -> int:
    """Multiply-accumulates of `op` in the clear, on operands of these shapes; padding counts as data."""
    if op.name == "matmul":
        return math.prod(op.result_shape(x, y)) * x[-1]
    if op.name in ("conv1d", "conv2d"):
        return math.prod(op.result_shape(x, y)) * math.prod(y[1:])
    if op.name in ("conv_transpose1d", "conv_transpose2d"):
        return math.prod(x) * math.prod(y[1:])
    if op.name == "conv2d_weight":  # each entry of the kernel's gradient meets every position of every image
        return math.prod(op.result_shape(x, y)) * y[0] * math.prod(y[2:])
    return math.prod(op.result_shape(x, y))


def tally(demand: Demand, index: int, rank: int, parties: int) -> Tally:
    """What one demand costs the party of this rank, and is for."""
    octets = message_octets(demand, index, rank, parties)
    cost = Tally(octets, int(octets > 0))
    if isinstance(demand, SignKeys):
        levels = demand.count * max(0, demand.bits - 1 - LEAF_BITS)
        truncations = demand.count if demand.output == Output.truncated else 0
        return cost._replace(comparisons=demand.count, levels=levels, truncations=truncations)
    if isinstance(demand, ComparisonMask):
        return cost._replace(comparisons=demand.count)
    if isinstance(demand, TruncationPair) or (isinstance(demand, Selection) and demand.shift):
        return cost._replace(truncations=demand.count)
    if isinstance(demand, Product):
        return cost._replace(macs=macs(demand.op, demand.x.size, demand.y.size))
    return cost


# For each segment a label of each item, in order; calls have none.
Labels = Sequence[Sequence[Hashable]]


@dataclass(frozen=True)
class Plan:
    """All demands of a session of `parties` compute parties. Iterating gives (number, demand), in order."""

    parties: int
    segments: tuple[Segment, ...]

    @cached_property
    def _counts(self) -> list[int]:
        counts: list[int] = []
        for segment in self.segments:
            counts.append(sum(counts[i.segment] * i.times if isinstance(i, Call) else 1 for i in segment.items))
        return counts

    @property
    def count(self) -> int:
        """Number of demands."""
        return self._counts[-1]

    def __iter__(self) -> Iterator[tuple[int, Demand]]:
        """Every demand with its number. Raises `RandomnessError` for one that refers to a later one."""
        for index, demand in enumerate(self._expanded(self.segments[-1])):
            if any(ref.index >= index for ref in demand.references()):
                raise RandomnessError(f"demand {index} of the plan refers to one that comes later")
            yield index, demand

    def _expanded(self, segment: Segment) -> Iterator[Demand]:
        """The demands of a segment where it was recorded."""
        position = segment.start
        for item in segment.items:
            if not isinstance(item, Call):
                yield item
                position += 1
                continue
            called = self.segments[item.segment]
            for _ in range(item.times):
                for demand in self._expanded(called):
                    yield relocated(demand, called.start, position)
                position += self._counts[item.segment]

    def octets(self, rank: int) -> int:
        """Bytes that the dealer delivers to the compute party of this rank, in all, without headers of frames."""
        return self.tally(rank).octets

    def tally(self, rank: int) -> Tally:
        """Everything together, for the compute party of this rank."""
        return self.tallies(rank, [[None] * len(segment.items) for segment in self.segments]).get(None, Tally())

    def tallies(self, rank: int, labels: Labels) -> dict[Hashable, Tally]:
        """The demands of each label together, for the compute party of this rank."""
        # Who gets a correction depends on the demand's number modulo the parties: a total for each remainder of the
        # segment's first number.
        table: list[list[dict[Hashable, Tally]]] = []
        for segment, names in zip(self.segments, labels, strict=True):
            table.append([self._totals(segment, names, start, rank, table) for start in range(self.parties)])
        return table[-1][0]

    def _totals(
        self,
        segment: Segment,
        labels: Sequence[Hashable],
        start: int,
        rank: int,
        table: list[list[dict[Hashable, Tally]]],
    ) -> dict[Hashable, Tally]:
        totals: dict[Hashable, Tally] = {}
        position, parties = start, self.parties
        for item, label in zip(segment.items, labels, strict=True):
            if not isinstance(item, Call):
                totals[label] = totals.get(label, Tally()).plus(tally(item, position % parties, rank, parties))
                position += 1
                continue
            length = self._counts[item.segment]
            # After so many calls the remainders of their first numbers repeat.
            for turn in range(min(item.times, parties)):
                turns = (item.times - turn + parties - 1) // parties
                for name, total in table[item.segment][(position + turn * length) % parties].items():
                    totals[name] = totals.get(name, Tally()).plus(total, turns)
            position += item.times * length
        return totals

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the plan with the number of parties: equal plans have equal digests."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The plan as plain dicts and lists: a call is [segment, times], a demand as `correlations.to_json` has it."""
        return {
            "parties": self.parties,
            "segments": [
                [s.start, [list(item) if isinstance(item, Call) else to_json(item) for item in s.items]]
                for s in self.segments
            ],
        }

    @classmethod
    def from_json(cls, data: Any) -> Plan:
        """The plan that a peer or a file describes; anything else raises `RandomnessError`."""
        try:
            found = entries(data, ["parties", "segments"])
            parties, listed = found["parties"], found["segments"]
            sizes = [len(items) for _, items in listed]
        except (TypeError, KeyError, ValueError):
            raise RandomnessError("not a plan; write one with python -m mpc_imaging.plan … --write FILE") from None
        if type(parties) is not int or not 1 <= parties <= MAX_PARTIES:
            raise RandomnessError(f"a plan is for 1 to {MAX_PARTIES} compute parties")
        if not 1 <= len(sizes) <= MAX_SEGMENTS or sum(sizes) > MAX_ITEMS:
            raise RandomnessError(
                f"a plan of {len(sizes)} segments with {sum(sizes)} entries; at most {MAX_SEGMENTS} with {MAX_ITEMS} "
                "are read"
            )
        reader = _Reader()
        return cls(parties, tuple(reader.segment(start, items) for start, items in listed))


class _Reader:
    """Reads segments one by one; each may call those before it."""

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._depths: list[int] = []

    def segment(self, start: Any, items: Any) -> Segment:
        if type(start) is not int or not 0 <= start <= MAX_DEMANDS or not isinstance(items, list):
            raise RandomnessError("a segment of a plan is a number and a list")
        read = tuple(self._item(item) for item in items)
        calls = [item for item in read if isinstance(item, Call)]
        count = len(read) - len(calls) + sum(self._counts[call.segment] * call.times for call in calls)
        depth = 1 + max((self._depths[call.segment] for call in calls), default=0)
        if count > MAX_DEMANDS or depth > MAX_DEPTH:
            raise RandomnessError(
                f"a plan of {count:,} demands, {depth} calls deep; at most {MAX_DEMANDS:,}, {MAX_DEPTH} deep, are read"
            )
        self._counts.append(count)
        self._depths.append(depth)
        return Segment(start, read)

    def _item(self, item: Any) -> Demand | Call:
        if not isinstance(item, list) or not item:
            raise RandomnessError("an entry of a plan is a list")
        if isinstance(item[0], str):
            return from_json(item)
        known = len(item) == 2 and all(type(value) is int for value in item) and 0 <= item[0] < len(self._counts)
        # Endlessly many calls of nothing would count as nothing.
        if not known or item[1] < 1 or not self._counts[item[0]]:
            raise RandomnessError("a segment of a plan calls one before it that demands something, at least once")
        return Call(*item)
