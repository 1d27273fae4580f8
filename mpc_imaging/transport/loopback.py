"""A mesh with nobody at the other ends: what is sent is counted and dropped, and zeros arrive.

Rehearsals run on it: a protocol whose course depends on public sizes alone takes the same course, so the counters tell
what it would send, without a peer. Nothing that matters may be computed with it: every opened value is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mpc_imaging.errors import TransportError
from mpc_imaging.transport.frames import Buffer, Kind, byte_views
from mpc_imaging.transport.traffic import Traffic, TrafficSnapshot


class LoopbackTraffic(Traffic):
    """Counters that also take what was counted before, once more."""

    def add(self, past: TrafficSnapshot) -> None:
        """Count the traffic of ``past`` again."""
        for (peer, kind), counters in past.cells.items():
            self._cell(peer, kind).add(counters)
        for kind, rounds in past.rounds_by_kind.items():
            self._now.rounds_by_kind[kind] = self._now.rounds_by_kind.get(kind, 0) + rounds


class LoopbackMesh:
    """The part of `Mesh` that is used after the handshake; ``traffic`` counts frames, bytes and rounds as there."""

    def __init__(self, me: str, peers: Sequence[str], session_id: bytes) -> None:
        self.me = me
        self.peers = tuple(peers)
        self.session_id = session_id
        self.traffic = LoopbackTraffic()
        self._ended: str | None = None

    def send(self, peer: str, kind: Kind, payload: Buffer | Sequence[Buffer], wait_s: float | None = None) -> None:
        """Count one frame. Raises `TransportError` after the end."""
        self._check(peer)
        self.traffic.sent(peer, kind, sum(view.nbytes for view in byte_views(payload)))

    def receive(
        self, peer: str, kind: Kind, size: int | None = None, limit: int | None = None, wait_s: float | None = None
    ) -> bytearray:
        """A frame of ``size`` zeros; an empty one where only a limit is known. Raises as `send`."""
        self._check(peer)
        self.traffic.received(peer, kind, size or 0)
        return bytearray(size or 0)

    def exchange(
        self, kind: Kind, outgoing: Mapping[str, Sequence[Buffer]], incoming: Mapping[str, int]
    ) -> dict[str, bytearray]:
        """One round. Raises as `send`."""
        for peer, payload in outgoing.items():
            self.send(peer, kind, payload)
        received = {peer: self.receive(peer, kind, size) for peer, size in incoming.items()}
        self.traffic.round(kind, {*outgoing, *incoming})
        return received

    def send_json(self, peer: str, obj: Any) -> None:
        """Count a CONTROL frame with ``obj`` as JSON."""
        self.send(peer, Kind.CONTROL, json.dumps(obj, allow_nan=False, separators=(",", ":")).encode())

    def receive_json(self, peer: str, wait_s: float | None = None) -> None:
        """Nobody says anything: None, which is JSON too."""
        self._check(peer)
        self.traffic.received(peer, Kind.CONTROL, len("null"))

    def abort(self, cause: str) -> None:
        """End with an error; later calls raise."""
        self._ended = self._ended or cause

    def close(self) -> None:
        """End in good order; later calls raise."""
        self._ended = self._ended or "it was closed"

    def _check(self, peer: str) -> None:
        if self._ended is not None:
            raise TransportError(f"the session of {self.me} has ended: {self._ended}")
        if peer not in self.peers:
            raise ValueError(f"{self.me} has no link to {peer!r}, only to {', '.join(self.peers) or 'nobody'}")
