"""What hands out correlated randomness to a compute party, and a simulated dealer for tests."""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness import correlations
from mpc_imaging.randomness.correlations import Dealt
from mpc_imaging.randomness.demands import Demand
from mpc_imaging.randomness.plan import Plan
from mpc_imaging.randomness.streams import NumberedStreams

KEY_ID_BYTES = 16


class Provider(Protocol):
    """Hands out one-time correlated randomness, in the order of the demands."""

    def get(self, demand: Demand) -> Dealt:
        """This party's part of the demand, which is then used up."""


class DemandLog:
    """All demands so far and their hash: the parties and the dealer compare it before anything is revealed."""

    def __init__(self) -> None:
        self.count = 0
        self._pending: list[Demand] = []
        self._hash = hashlib.sha256()

    def add(self, demand: Demand) -> int:
        """One more demand; returns its number."""
        self._pending.append(demand)
        self.count += 1
        return self.count - 1

    def summary(self) -> dict[str, int | str]:
        """Number and hash of the demands so far."""
        # Hashed here, not at each demand, which happens between two rounds of a protocol.
        for demand in self._pending:
            self._hash.update(json.dumps(correlations.to_json(demand)).encode() + b"\n")
        self._pending.clear()
        return {"demands": self.count, "digest": self._hash.hexdigest()}


class PartyProvider:
    """One compute party's side of any dealer: a subclass says where the dealer's messages come from."""

    def __init__(self, key: bytes, rank: int, parties: int, key_id: bytes) -> None:
        self.rank, self.parties = rank, parties
        self.log = DemandLog()
        self.waited_s = 0.0
        self._streams, self._key_id = NumberedStreams(key), key_id

    def get(self, demand: Demand) -> Dealt:
        """See `Provider`."""
        index = self.log.add(demand)
        size = correlations.message_octets(demand, index, self.rank, self.parties)
        return self._draw(demand, index, self._message(demand, index, size))

    def _draw(self, demand: Demand, index: int, message: bytearray) -> Dealt:
        return correlations.draw(demand, index, self._streams, self.rank, self.parties, self._key_id, message)

    def _message(self, demand: Demand, index: int, size: int) -> bytearray:
        """The dealer's message for demand number `index`, of `size` bytes, perhaps none."""
        raise NotImplementedError


class PlannedProvider(PartyProvider):
    """Hands out what a plan lists, from messages that ``read(size)`` brings in the plan's order.

    Raises `RandomnessError` for a demand that is not the plan's next.
    """

    def __init__(self, key: bytes, rank: int, plan: Plan, key_id: bytes, read: Callable[[int], bytearray]) -> None:
        super().__init__(key, rank, plan.parties, key_id)
        self._plan, self._read = iter(plan), read
        self._ahead: deque[tuple[Demand, Dealt]] = deque()

    def get(self, demand: Demand) -> Dealt:
        """See `Provider`."""
        index = self.log.add(demand)
        if not self._ahead:
            self._take()
        planned, dealt = self._ahead.popleft() if self._ahead else (None, None)
        if planned != demand:
            wanted = "nothing more" if planned is None else planned.name
            raise RandomnessError(f"demand {index} is {demand.name}, but the plan has {wanted} here")
        return dealt

    def prefetch(self, limit: int) -> None:
        """Take what comes next and draw this party's shares, until ``limit`` bytes are held or the plan ends.

        All parties hold the same sizes, and so stop at the same demand if their limits are the same. Else one that took
        less would wait for the others in its first round, they for the dealer, and the dealer for that one to take what
        comes before.
        """
        held = 0
        while held < limit and (size := self._take()) is not None:
            held += size

    def _take(self) -> int | None:
        """Take the message of the plan's next demand and draw the shares; what is then held, or None at the end."""
        index, demand = next(self._plan, (0, None))
        if demand is None:
            return None
        size = correlations.message_octets(demand, index, self.rank, self.parties)
        start = time.perf_counter()
        message = self._read(size) if size else bytearray()
        dealt = self._draw(demand, index, message)
        self.waited_s += time.perf_counter() - start
        self._ahead.append((demand, dealt))
        return sum(part.nbytes for part in (*dealt.shares, *dealt.own, dealt.common))

    def discard(self) -> int:
        """Take what is left of the plan, and throw it away: the task ends before it. Returns how many demands."""
        left = len(self._ahead)
        self._ahead.clear()
        for index, demand in self._plan:
            size = correlations.message_octets(demand, index, self.rank, self.parties)
            if size:
                self._read(size)
            left += 1
        return left

    def finish(self) -> None:
        """Check that the plan is used up. Raises `RandomnessError` if it has more."""
        if self._ahead or self._take() is not None:
            raise RandomnessError(f"the task ended after {self.log.count} demands, before its plan")


class SimulatedProvider(PartyProvider):
    """Plays all parties and the dealer from keys that all know: for tests and measurements on one machine only."""

    def __init__(self, rank: int, parties: int, keys: Sequence[bytes]) -> None:
        if len(keys) != parties:
            raise RandomnessError(f"a simulated dealer for {parties} parties needs {parties} keys, not {len(keys)}")
        super().__init__(keys[rank], rank, parties, hashlib.sha256(b"".join(keys)).digest()[:KEY_ID_BYTES])
        self._all = [NumberedStreams(key) for key in keys]

    def _message(self, demand: Demand, index: int, size: int) -> bytearray:
        if not size:
            return bytearray()
        return bytearray().join(correlations.deal(demand, index, self._all, self._key_id)[self.rank])
