"""What hands out correlated randomness to a compute party, and a simulated dealer for tests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness import correlations
from mpc_imaging.randomness.correlations import Demand
from mpc_imaging.randomness.streams import Stream


class Provider(Protocol):
    """Hands out one-time correlated randomness, in the order of the demands."""

    def get(self, demand: Demand) -> list[np.ndarray]:
        """This party's shares: the demand's random fields, then its derived ones."""


class DemandLog:
    """Running hash of all demands: the parties and the dealer compare it at the end of a session."""

    def __init__(self) -> None:
        self.count = 0
        self._hash = hashlib.sha256()

    def add(self, demand: Demand) -> None:
        """One more demand."""
        self.count += 1
        self._hash.update(json.dumps(correlations.to_json(demand)).encode() + b"\n")

    def summary(self) -> dict[str, int | str]:
        """Number and hash of the demands so far."""
        return {"demands": self.count, "digest": self._hash.hexdigest()}


class SimulatedProvider:
    """Plays all parties and the dealer from keys that all know: for tests and measurements on one machine only."""

    def __init__(self, rank: int, parties: int, keys: Sequence[bytes]) -> None:
        if len(keys) != parties:
            raise RandomnessError(f"a simulated dealer for {parties} parties needs {parties} keys, not {len(keys)}")
        self._rank, self._holder = rank, parties - 1
        self._mine = Stream(keys[rank])
        self._all = [Stream(key) for key in keys] if rank == self._holder else []
        self.log = DemandLog()
        self.waited_s = 0.0

    def get(self, demand: Demand) -> list[np.ndarray]:
        """This party's shares."""
        self.log.add(demand)
        holder = self._rank == self._holder
        correction = correlations.correct(demand, self._all, self._holder) if holder else None
        return correlations.draw(demand, self._mine, correction, holder)
