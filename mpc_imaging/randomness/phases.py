"""The plans of a session that may end early: its length is not known before, but each of its phases is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from mpc_imaging.randomness.plan import Plan, Tally
from mpc_imaging.randomness.provider import KEY_ID_BYTES
from mpc_imaging.randomness.streams import derive_key


@dataclass(frozen=True)
class Phases:
    """A plan for each phase, in order, if none is left out; the last one is for the end, and never left out.

    References of a plan are numbers of demands in it: nothing that was masked in one phase is known in the next.
    """

    plans: tuple[Plan, ...]

    @property
    def parties(self) -> int:
        """Number of compute parties."""
        return self.plans[0].parties

    @property
    def count(self) -> int:
        """Number of demands, of all phases."""
        return sum(plan.count for plan in self.plans)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the plans' digests."""
        return digest(self.plans)

    def tally(self, rank: int) -> Tally:
        """What all phases cost the compute party of this rank (see `Plan.tally`)."""
        total = Tally()
        for plan in self.plans:
            total = total.plus(plan.tally(rank))
        return total

    def octets(self, rank: int) -> int:
        """Bytes that the dealer delivers to the compute party of this rank in all phases."""
        return self.tally(rank).octets


def digest(plans: Sequence[Plan]) -> str:
    """SHA-256 (hex) of the digests of plans that were used one after another."""
    return hashlib.sha256("".join(plan.digest for plan in plans).encode()).hexdigest()


def purpose(number: int) -> str:
    """What the key is for that a compute party and the dealer share in phase ``number``, from 0."""
    return f"correlations {number}"


def key_id(session_id: bytes, number: int) -> bytes:
    """The public id of the keys of a phase: comparisons of two phases never share a cipher (DESIGN section 5)."""
    return derive_key(session_id, b"", f"phase {number}")[:KEY_ID_BYTES]
