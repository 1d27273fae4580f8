"""What a protocol step needs: a channel to the other compute parties, correlated randomness, and how to compare."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from mpc_imaging.protocols.masked import Masks
from mpc_imaging.protocols.ranges import RangeCheck
from mpc_imaging.protocols.sign import Comparison
from mpc_imaging.protocols.tables import TableComparison
from mpc_imaging.randomness.provider import Provider


class Channel(Protocol):
    """Opens masked values: every party learns the sum (ring) or exclusive-or (bits) of all shares, in one round."""

    rank: int
    parties: int

    def open_ring(self, shares: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """int64 tensors of any shapes, opened together."""

    def open_bits(self, shares: np.ndarray) -> np.ndarray:
        """Packed bits (uint8), opened."""

    def swap(self, message: bytes) -> list[bytes]:
        """Every party's message, by rank; all have the same length. One round."""

    def name_of(self, rank: int) -> str:
        """What to call the party of a rank in an error."""


@dataclass(frozen=True)
class Context:
    """One party's side of the protocols.

    comparison: the family that compares: `tables.TableComparison` for any number of parties, `fss.KeyComparison` for
    two. masks: the values that are masked already, for products that they enter again. check: watches the range of
    values, if anything does.
    """

    channel: Channel
    provider: Provider
    comparison: Comparison = field(default_factory=TableComparison)
    masks: Masks = field(default_factory=Masks)
    check: RangeCheck | None = None

    @property
    def first(self) -> bool:
        """Whether this party adds public constants to its share."""
        return self.channel.rank == 0


class ThreadChannel:
    """Compute parties as threads of one process: for tests of the mathematics."""

    def __init__(self, rank: int, parties: int, board: list, barrier: threading.Barrier) -> None:
        self.rank, self.parties = rank, parties
        self._board, self._barrier = board, barrier
        self.rounds = 0

    @classmethod
    def group(cls, parties: int) -> list[ThreadChannel]:
        """Connected channels, one for each party."""
        board, barrier = [None] * parties, threading.Barrier(parties, timeout=60)
        return [cls(rank, parties, board, barrier) for rank in range(parties)]

    def _all(self, share: object) -> list:
        self.rounds += 1
        self._board[self.rank] = share
        self._barrier.wait()
        shares = list(self._board)
        self._barrier.wait()
        return shares

    def open_ring(self, shares: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """See `Channel`."""
        return [sum(parts[1:], parts[0]) for parts in zip(*self._all(list(shares)), strict=True)]

    def open_bits(self, shares: np.ndarray) -> np.ndarray:
        """See `Channel`."""
        return np.bitwise_xor.reduce(self._all(shares), axis=0)

    def swap(self, message: bytes) -> list[bytes]:
        """See `Channel`."""
        return self._all(message)

    def name_of(self, rank: int) -> str:
        """See `Channel`."""
        return f"party {rank}"
