"""Records a plan: a provider that hands out zeros and remembers what was asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpc_imaging.randomness import correlations
from mpc_imaging.randomness.correlations import Dealt
from mpc_imaging.randomness.demands import Demand
from mpc_imaging.randomness.plan import Call, Labels, Plan, Segment
from mpc_imaging.randomness.provider import KEY_ID_BYTES


class _ZeroStream:
    """In the place of every keystream. np.zeros takes no memory until somebody writes."""

    def number(self, number: int) -> _ZeroStream:
        return self

    def octets(self, count: int) -> np.ndarray:
        return np.zeros(count, np.uint8)


@dataclass
class _Open:
    """A segment that is being recorded."""

    start: int
    items: list[Demand | Call] = field(default_factory=list)
    labels: list[Hashable] = field(default_factory=list)

    def add(self, item: Demand | Call, label: Hashable) -> None:
        last = self.items[-1] if self.items else None
        if isinstance(item, Call) and isinstance(last, Call) and last.segment == item.segment:
            self.items[-1] = Call(last.segment, last.times + item.times)
        else:
            self.items.append(item)
            self.labels.append(label)


@dataclass
class _Recorded:
    """A segment, a label of each item, how many demands it makes, and where it was really run for the last time."""

    segment: Segment
    labels: tuple[Hashable, ...]
    count: int
    last_start: int


class RecordingProvider:
    """A `Provider` for a rehearsal: shares of zero, of the sizes that a dealer's would have.

    ``label``, which may be set at any time, says what the following demands are for (see `Plan.tallies`).
    """

    def __init__(self, rank: int, parties: int) -> None:
        self.rank, self.parties = rank, parties
        self.waited_s = 0.0
        self.label: Hashable = None
        self.restart()

    def restart(self) -> None:
        """Forget all demands: what follows is a plan of its own. Call it outside of every segment."""
        self.count = 0
        self._recorded: list[_Recorded] = []
        self._by_key: dict[Hashable, list[int]] = defaultdict(list)
        self._open = [_Open(0)]
        self._moved: dict[tuple[int, int], int] = {}

    def get(self, demand: Demand) -> Dealt:
        """Zeros, on which the caller may write."""
        index, self.count = self.count, self.count + 1
        self._open[-1].add(correlations.redirected(demand, self._where), self.label)
        streams: Any = _ZeroStream()
        message = bytearray(correlations.message_octets(demand, index, self.rank, self.parties))
        return correlations.draw(demand, index, streams, self.rank, self.parties, bytes(KEY_ID_BYTES), message)

    def begin(self) -> None:
        """What follows, until `end`, is a segment."""
        self._open.append(_Open(self.count))

    def end(self, key: Hashable) -> int | None:
        """Close the segment; returns its number, or None if it demanded nothing.

        One that demands the same as an earlier one with this key has that one's number.
        """
        done = self._open.pop()
        if not done.items:
            return None
        segment = Segment(done.start, tuple(done.items))
        number = next((n for n in self._by_key[key] if self._same(self._recorded[n].segment, segment)), None)
        if number is None:
            number = len(self._recorded)
            self._by_key[key].append(number)
            self._recorded.append(_Recorded(segment, tuple(done.labels), self.count - done.start, done.start))
        self._recorded[number].last_start = done.start
        self._open[-1].add(Call(number, 1), None)
        return number

    def repeat(self, number: int | None) -> None:
        """Once more what segment `number` demands, without running it."""
        if number is None:
            return
        past = self._recorded[number]
        # What its last run left behind (masks, signs) is, in a session that runs it again, what the new run leaves.
        self._moved[past.last_start, past.last_start + past.count] = self.count - past.last_start
        self._open[-1].add(Call(number, 1), None)
        self.count += past.count

    def _where(self, index: int) -> int:
        """The number, in the session that is planned, of what got number `index` here."""
        # In the order of the repetitions: a segment may have moved with one that it was a part of.
        for (start, stop), shift in self._moved.items():
            if start <= index < stop:
                index += shift
        return index

    def plan(self) -> tuple[Plan, Labels]:
        """All demands so far, and their labels. Call it outside of every segment."""
        (root,) = self._open
        last = _Recorded(Segment(0, tuple(root.items)), tuple(root.labels), self.count, 0)
        recorded = [*self._recorded, last]
        # Of segments that differ only in how their parts are listed, one was kept: the others' parts nobody calls.
        needed = {len(recorded) - 1}
        for number in reversed(range(len(recorded))):
            if number in needed:
                needed.update(item.segment for item in recorded[number].segment.items if isinstance(item, Call))
        place = {old: new for new, old in enumerate(sorted(needed))}
        plan = Plan(self.parties, tuple(_renumbered(recorded[old].segment, place) for old in place))
        return plan, [recorded[old].labels for old in place]

    def _same(self, a: Segment, b: Segment, outer: Callable[[int], int] = int) -> bool:
        """Whether `b` demands what `a` would, had it been recorded where `b` was; `outer` moves what is before `a`."""

        def moved(index: int) -> int:
            return index - a.start + b.start if index >= a.start else outer(index)

        def alike(one: Demand | Call, other: Demand | Call) -> bool:
            if isinstance(one, Call) and isinstance(other, Call):
                called = (self._recorded[call.segment].segment for call in (one, other))
                return one.times == other.times and self._same(*called, moved)
            return not isinstance(one, Call) and correlations.redirected(one, moved) == other

        return len(a.items) == len(b.items) and all(map(alike, a.items, b.items))


def _renumbered(segment: Segment, place: dict[int, int]) -> Segment:
    items = (Call(place[i.segment], i.times) if isinstance(i, Call) else i for i in segment.items)
    return Segment(segment.start, tuple(items))
