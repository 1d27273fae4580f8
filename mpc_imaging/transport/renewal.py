"""Further TLS connections of a link, made ready ahead of their use: one key must not protect any number of bytes.

Python's ssl has no key update of TLS 1.3. What it has is handshakes in memory. So the two ends of a link run as many
handshakes as the session will need, all at once, in frames of the connection that they have: nobody who does not hold
that one's keys can take part, nothing of another session or from earlier can be put in, and both certificates are
checked again, by OpenSSL and against the first connection's. When a key is worn (`tls.KEY_OCTETS`), the sender says
SWITCH and goes on under the next connection's, on the same socket. That needs no answer: no party ever waits for it.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mpc_imaging.errors import ConfigError
from mpc_imaging.transport import tls
from mpc_imaging.transport.frames import FrameError, Kind

if TYPE_CHECKING:
    from mpc_imaging.transport.channel import Channel
    from mpc_imaging.transport.mesh import Mesh
    from mpc_imaging.transport.tls import Successor

MAX_SPARES = 1024  # of a link, at 30 KB and a millisecond each: 280 TB in each direction
FLIGHT_LIMIT = 1 << 14  # bytes that one side of a handshake sends at once: a certificate and a little more
_LENGTH = 2  # bytes before each of them


def spares(octets: int) -> int:
    """How many successors a link needs for so many octets, and a quarter more, in its busier direction."""
    return octets * 5 // 4 // tls.KEY_OCTETS


def check_spares(octets: Mapping[str, int]) -> None:
    """Raise `ConfigError` if a link, by the name of its peer, is to carry more than so many keys may protect."""
    most = (MAX_SPARES + 1) * tls.KEY_OCTETS * 4 // 5
    problems = [
        f"the link with {peer} would carry {amount / 1e12:,.1f} TB one way, and its TLS keys may protect "
        f"{most / 1e12:,.0f} TB in one session; divide the task into several sessions"
        for peer, amount in octets.items()
        if spares(amount) > MAX_SPARES
    ]
    if problems:
        raise ConfigError(problems)


def make_ready(mesh: Mesh, channel: Channel, count: int) -> None:
    """Run ``count`` handshakes with a peer that does so too, and keep the connections. Raises `FrameError`."""
    if not count:
        return
    if count > MAX_SPARES:
        raise _refused(channel, f"{count} further TLS connections wanted, at most {MAX_SPARES} are made")
    made = channel.successors(count)
    if channel.dialed:
        _say(mesh, channel, _advance(channel, made, [b""] * count))
        _say(mesh, channel, _advance(channel, made, _hear(mesh, channel, count)))
    else:
        _say(mesh, channel, _advance(channel, made, _hear(mesh, channel, count)))
        _advance(channel, made, _hear(mesh, channel, count))
    certificate = channel.peer_certificate()
    for successor in made:
        if not successor.complete or successor.ssl.getpeercert(binary_form=True) != certificate:
            raise _refused(channel, "the certificate of a further TLS connection is not the one of the first")
    channel.keep(made)


def _advance(channel: Channel, made: Sequence[Successor], flights: Sequence[bytes]) -> list[bytes]:
    try:
        return [successor.handshake(flight) for successor, flight in zip(made, flights, strict=True)]
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", None) or error.reason or type(error).__name__
        text = str(reason).replace("_", " ").lower()
        raise _refused(channel, f"the handshake of a further TLS connection failed: {text}") from error


def _say(mesh: Mesh, channel: Channel, flights: Sequence[bytes]) -> None:
    mesh.send(channel.peer, Kind.HANDSHAKE, b"".join(len(f).to_bytes(_LENGTH, "big") + f for f in flights))


def _hear(mesh: Mesh, channel: Channel, count: int) -> list[bytes]:
    """One flight of each handshake."""
    data = bytes(mesh.receive(channel.peer, Kind.HANDSHAKE, limit=count * (_LENGTH + FLIGHT_LIMIT)))
    flights, at = [], 0
    for _ in range(count):
        start = at + _LENGTH
        at = start + int.from_bytes(data[at:start], "big")
        flights.append(data[start:at])
    if at != len(data) or not all(flights):
        raise _refused(channel, f"no flights of {count} TLS handshakes")
    return flights


def _refused(channel: Channel, problem: str) -> FrameError:
    return FrameError(channel.peer, channel.me, channel.receive_step - 1, problem)
