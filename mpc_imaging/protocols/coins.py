"""Public coins that nobody chose: every compute party commits to its part of them before any part is opened.

The coins of a toss are those of a keystream, whose key is a hash of what all parties contribute. A contribution is
fixed before the values that the coins will judge, since a party commits to the next one as it opens the last; and it is
hidden until then. So the coins are uniform and independent of the values if at least one party is honest.

The rank is part of what is hashed: otherwise a party could send another's commitment, and its opening, as its own. With
each opening goes a hash of all commitments: a party that promised one thing here and another there is noticed. Whoever
opens last can still end the session on seeing coins that it dislikes.
Source: Blum, "Coin flipping by telephone", 1983.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mpc_imaging.errors import SessionError
from mpc_imaging.randomness.streams import Stream

if TYPE_CHECKING:
    from mpc_imaging.protocols.context import Channel

VALUE_BYTES = 32
BLIND_BYTES = 32
COMMITMENT_BYTES = hashlib.sha256().digest_size
_LABEL = b"mpc_imaging coins 1"
# Where parts of a message end: value and blind, a hash of all commitments, and then the next commitment.
_OPENING = VALUE_BYTES + BLIND_BYTES
_SEEN = _OPENING + COMMITMENT_BYTES


class Coins(Protocol):
    """Where public coins come from."""

    def toss(self, channel: Channel) -> Stream:
        """Return a keystream that all parties know now, and that nobody knew before this call."""


def commitment(session: bytes, number: int, rank: int, opening: bytes) -> bytes:
    """Return the hash that binds a party of this rank to its opening (value and blind) in toss ``number``."""
    head = len(session).to_bytes(4, "big") + session + number.to_bytes(8, "big") + rank.to_bytes(4, "big")
    return hashlib.sha256(_LABEL + b" commitment" + head + opening).digest()


def _key(session: bytes, number: int, openings: list[bytes]) -> bytes:
    head = len(session).to_bytes(4, "big") + session + number.to_bytes(8, "big")
    return hashlib.sha256(_LABEL + b" key" + head + b"".join(openings)).digest()


@dataclass
class TossedCoins:
    """Coins that the parties toss together; one round a toss, and one more for the first commitments (`begin`).

    session: what names this session, the same at all parties.
    """

    session: bytes

    def __post_init__(self) -> None:
        self._number = 0
        self._mine = b""
        self._commitments: list[bytes] = []

    def __repr__(self) -> str:
        return "TossedCoins(own part hidden)"

    def begin(self, channel: Channel) -> None:
        """Commit to the first toss: one round. `toss` does it where nobody did."""
        self._commitments = channel.swap(self._commit(channel.rank))

    def toss(self, channel: Channel) -> Stream:
        """See `Coins`. Raises `SessionError`, which names the party, if one opens what it did not commit to."""
        if not self._commitments:
            self.begin(channel)
        number, mine, promised = self._number, self._mine, self._commitments
        self._number += 1
        seen = hashlib.sha256(_LABEL + b" seen" + b"".join(promised)).digest()
        messages = channel.swap(mine + seen + self._commit(channel.rank))
        openings = [message[:_OPENING] for message in messages]
        for rank, opening in enumerate(openings):
            if not self._matches(commitment(self.session, number, rank, opening), promised[rank]):
                name = channel.name_of(rank)
                raise SessionError(f"range check {number + 1}: {name} opened other coins than it had committed to")
            if not self._matches(messages[rank][_OPENING:_SEEN], seen):
                name = channel.name_of(rank)
                raise SessionError(f"range check {number + 1}: {name} was promised other coins than this party")
        self._commitments = [message[_SEEN:] for message in messages]
        return Stream(_key(self.session, number, openings))

    def _commit(self, rank: int) -> bytes:
        self._mine = secrets.token_bytes(VALUE_BYTES + BLIND_BYTES)
        return commitment(self.session, self._number, rank, self._mine)

    def _matches(self, found: bytes, promised: bytes) -> bool:
        return secrets.compare_digest(found, promised)


class UncheckedCoins(TossedCoins):
    """The same messages with nobody at the other ends, where zeros arrive: for dry runs."""

    def _matches(self, found: bytes, promised: bytes) -> bool:
        return True
