"""The mesh: one party's links to the peers it talks to, as every layer above sees them.

    with Mesh.connect(me=..., order=..., links=..., ...) as mesh:
        parts = mesh.exchange(Kind.OPENING, {"hospital_b": [share]}, {"hospital_b": share.nbytes})

A mesh belongs to one thread. Whatever goes wrong with one peer ends the session with all of them: the others are told
the cause, the connections are closed, and every later call raises. A payload is handed out whole or not at all.
"""

from __future__ import annotations

import json
import logging
import math
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from mpc_imaging import strict_json
from mpc_imaging.errors import ConfigError, MPCImagingError, PeerLostError, TransportError
from mpc_imaging.transport import renewal
from mpc_imaging.transport.certificates import CertificateError, Credentials
from mpc_imaging.transport.channel import Channel, PeerAbortedError, PeerLeftError, part
from mpc_imaging.transport.connect import Gathering
from mpc_imaging.transport.frames import CONTROL_LIMIT, Buffer, FrameError, Kind, byte_views, one_line
from mpc_imaging.transport.traffic import Traffic

# Direction ("sent" or "received"), peer, kind, payload.
Observer = Callable[[str, str, Kind, bytes], None]

log = logging.getLogger("mpc_imaging.transport")


class Mesh:
    """Links to ``peers``, in session ``session_id``; `connect` makes one.

    ``traffic`` counts every frame below; ``observers`` are called with each of them (and cost a copy of each payload).
    """

    def __init__(self, me: str, channels: Mapping[str, Channel], session_id: bytes, timeout_s: float) -> None:
        self.me = me
        self.peers = tuple(channels)
        self.session_id = session_id
        self.timeout_s = timeout_s
        self.traffic = Traffic()
        self.observers: list[Observer] = []
        self._channels = dict(channels)
        self._poll = select.poll()
        self._polled: dict[int, int] = {}
        self._by_descriptor = {channel.fileno(): channel for channel in channels.values()}
        self._ended: str | None = None

    @classmethod
    def connect(
        cls,
        me: str,
        order: Sequence[str],
        links: Sequence[str],
        addresses: Mapping[str, tuple[str, int]],
        credentials: Credentials,
        listener: socket.socket | None,
        connect_timeout_s: float,
        timeout_s: float,
        leader: str,
    ) -> Mesh:
        """Meet the peers in ``links`` and agree on a session.

        ``order``: all parties, the same everywhere; of a pair the earlier listens (on ``listener``, or at its own
        address) and the later dials. ``leader``: the party, linked to all others, that draws the session id.
        ``timeout_s``: how long a peer may make no progress when its turn has come. The listener is closed in the end.

        Raises `PeerLostError` naming all missing peers, `CertificateError`, `FrameError`, or `ConfigError`.
        """
        _check_topology(me, order, links, addresses, leader)
        if credentials.name != me:
            raise CertificateError(f"{credentials.folder}: the certificate is for {credentials.name}, not {me}")
        gathering = Gathering(me, order, links, addresses, credentials, listener, connect_timeout_s, leader)
        channels, session_id = gathering.run()
        log.info("%s: session %s with %s", me, session_id.hex()[:8], ", ".join(channels) or "nobody")
        return cls(me, channels, session_id, timeout_s)

    def send(self, peer: str, kind: Kind, payload: Buffer | Sequence[Buffer], wait_s: float | None = None) -> None:
        """Send one frame of ``payload``, a buffer or a list or tuple of them. Returns when the kernel has it.

        ``wait_s`` replaces the mesh's timeout where the peer may rightly be busy with others first, as in `receive`.
        For both directions at once use `exchange`: two parties that send each other large payloads would both wait.
        """
        channel, views = self._channel(peer), byte_views(payload)
        if channel.left:
            raise channel.gone()
        try:
            self._queue(channel, kind, views)
            self._drive(kind, [channel], [], self.timeout_s if wait_s is None else wait_s)
        except BaseException as error:
            self._fail(error)
            raise

    def receive(
        self,
        peer: str,
        kind: Kind,
        size: int | None = None,
        limit: int | None = None,
        wait_s: float | None = None,
    ) -> bytearray:
        """The payload of the next frame, which must be of ``kind``: of ``size`` bytes, or of any size up to ``limit``.

        ``wait_s`` replaces the mesh's timeout where a peer may rightly be silent for longer (it trains in plaintext,
        say); ``math.inf`` waits as long as the peer and the session live. Raises `PeerLeftError`, without ending the
        session, when the peer has said BYE instead.
        """
        channel = self._channel(peer)
        try:
            channel.expect(kind, size, limit)
            self._drive(kind, [], [channel], self.timeout_s if wait_s is None else wait_s)
            return self._take(channel, kind)
        except PeerLeftError:
            raise
        except BaseException as error:
            self._fail(error)
            raise

    def exchange(
        self, kind: Kind, outgoing: Mapping[str, Sequence[Buffer]], incoming: Mapping[str, int]
    ) -> dict[str, bytearray]:
        """One round: send to every peer in ``outgoing`` and read ``incoming[peer]`` bytes from each peer, all at once.

        Payloads may be of any size. Returns the payloads in the order of ``incoming``.
        """
        sending = [(self._channel(peer), byte_views(payload)) for peer, payload in outgoing.items()]
        receiving = [self._channel(peer) for peer in incoming]
        try:
            for channel, views in sending:
                if channel.left:
                    raise channel.gone()
                self._queue(channel, kind, views)
            for channel in receiving:
                channel.expect(kind, incoming[channel.peer], None)
            self._drive(kind, [channel for channel, _ in sending], receiving, self.timeout_s)
            self.traffic.round(kind, {*outgoing, *incoming})
            return {channel.peer: self._take(channel, kind) for channel in receiving}
        except BaseException as error:
            self._fail(error)
            raise

    def send_json(self, peer: str, obj: Any) -> None:
        """Send a CONTROL frame with ``obj`` as JSON (at most 1 MiB; no NaN or Infinity)."""
        payload = json.dumps(obj, allow_nan=False, separators=(",", ":")).encode()
        if len(payload) > CONTROL_LIMIT:
            raise ValueError(f"a control message of {len(payload)} bytes: at most {CONTROL_LIMIT} are allowed")
        self.send(peer, Kind.CONTROL, payload)

    def receive_json(self, peer: str, wait_s: float | None = None) -> Any:
        """The object in the next CONTROL frame. Raises `FrameError` if it is not what `strict_json` reads."""
        payload = self.receive(peer, Kind.CONTROL, limit=CONTROL_LIMIT, wait_s=wait_s)
        try:
            return strict_json.loads(payload)
        except strict_json.JsonError as error:
            refusal = FrameError(
                peer, self.me, self._channels[peer].receive_step - 1, f"CONTROL cannot be read ({error})"
            )
            self._fail(refusal)
            raise refusal from error

    def prepare(self, wanted: Mapping[str, int | None]) -> None:
        """Make TLS connections ready to which the links to these peers move later, as one key after the other wears.

        wanted: how many, by peer; None where the peer says it. Both call this, at the same place of the protocol, and
        one of them says how many; the other may come late. Raises `FrameError` for a handshake that fails, and for more
        than `renewal.MAX_SPARES`; `PeerLostError` as `receive`.
        """
        for peer, count in wanted.items():
            if count is not None:
                self.send(peer, Kind.HANDSHAKE, count.to_bytes(4, "big"))
        # All parties in the same order, so that nobody waits in a ring.
        for peer in self.peers:
            if peer not in wanted:
                continue
            count = wanted[peer]
            if count is None:
                count = int.from_bytes(self.receive(peer, Kind.HANDSHAKE, 4, wait_s=math.inf), "big")
            try:
                renewal.make_ready(self, self._channel(peer), count)
            except BaseException as error:
                self._fail(error)
                raise

    def abort(self, cause: str) -> None:
        """End the session with an error: tell every peer that still listens, for about a second, and close."""
        self._end(Kind.ABORT, f"{self.me}: {one_line(cause)}")

    def close(self) -> None:
        """Leave in good order: everything sent so far arrives. Does nothing if the session has ended."""
        self._end(Kind.BYE, "", self.timeout_s)

    def __enter__(self) -> Mesh:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self.abort(_public(error))

    # Inside

    def _channel(self, peer: str) -> Channel:
        if self._ended is not None:
            raise TransportError(f"the session of {self.me} has ended: {self._ended}")
        channel = self._channels.get(peer)
        if channel is None:
            raise ValueError(f"{self.me} has no link to {peer!r}, only to {', '.join(self.peers) or 'nobody'}")
        return channel

    def _queue(self, channel: Channel, kind: Kind, views: list[memoryview]) -> None:
        size = channel.queue(kind, views)
        self.traffic.sent(channel.peer, kind, size)
        for observer in self.observers:
            observer("sent", channel.peer, kind, b"".join(views))

    def _take(self, channel: Channel, kind: Kind) -> bytearray:
        payload = channel.take()
        self.traffic.received(channel.peer, kind, len(payload))
        for observer in self.observers:
            observer("received", channel.peer, kind, bytes(payload))
        return payload

    def _drive(self, kind: Kind, sending: list[Channel], receiving: list[Channel], wait_s: float) -> None:
        """Push and pull until all frames are through."""
        now = time.monotonic()
        for channel in sending:
            channel.active_at, channel.push_blocked = now, False
        for channel in receiving:
            # A try to read too early costs more than the poll that is due anyway.
            channel.active_at, channel.pull_blocked = now, not channel.buffered
        while True:
            blocked = True
            for channel in sending:
                if not channel.push_blocked:
                    channel.push()
                    blocked &= channel.push_blocked
            for channel in receiving:
                if not channel.pull_blocked:
                    channel.pull()
                    blocked &= channel.pull_blocked
            sending = [channel for channel in sending if channel.sending]
            receiving = [channel for channel in receiving if channel.receiving]
            if not sending and not receiving:
                return
            if blocked:
                self._wait(kind, [*sending, *receiving], wait_s)

    def _wait(self, kind: Kind, pending: list[Channel], wait_s: float) -> None:
        """Sleep until a pending channel can go on.

        Meanwhile notice an ABORT or the death of any peer of which no frame, sent early, is waiting to be asked for.
        """
        for descriptor, channel in self._by_descriptor.items():
            self._register(descriptor, channel.events())
        started = time.monotonic()
        remaining_s = min([channel.active_at for channel in pending]) + wait_s - started
        if remaining_s <= 0:
            silent = [channel for channel in pending if channel.active_at + wait_s <= started]
            raise PeerLostError(self._silence(silent, wait_s))
        ready = self._poll.poll(None if remaining_s == math.inf else remaining_s * 1000 + 1)
        peers = {channel.peer for channel in pending}
        self.traffic.waited(kind, peers, time.monotonic() - started)
        for descriptor, events in ready:
            channel = self._by_descriptor[descriptor]
            if events != select.POLLIN:
                channel.push_blocked = False
            if events != select.POLLOUT:
                channel.pull_blocked = False
                if not channel.receiving:
                    channel.peek()

    def _register(self, descriptor: int, events: int) -> None:
        # Not polled at all without events: poll reports a hang-up even then, and would never sleep again.
        if self._polled.get(descriptor, 0) == events:
            return
        if events:
            self._poll.register(descriptor, events)
        else:
            self._poll.unregister(descriptor)
        self._polled[descriptor] = events

    def _silence(self, silent: list[Channel], wait_s: float) -> str:
        states = []
        for channel in dict.fromkeys(silent):
            if channel.receiving:
                states.append(f"{channel.peer} (step {channel.receive_step}: nothing came)")
            else:
                states.append(f"{channel.peer} (step {channel.send_step - 1}: it takes nothing)")
        return f"{self.me} waited {wait_s:g} s in vain for {', '.join(states)}"

    def _fail(self, error: BaseException) -> None:
        # A cause that came from a peer is passed on as it is, so that every party names the same one.
        cause = error.cause if isinstance(error, PeerAbortedError) else f"{self.me}: {_public(error)}"
        self._end(Kind.ABORT, cause)

    def _end(self, kind: Kind, cause: str, grace_s: float | None = None) -> None:
        if self._ended is None:
            self._ended = cause or "it was closed"
            part(self._channels.values(), kind, cause, grace_s)


def _public(error: BaseException) -> str:
    """What peers may know of an error: the package's own messages carry no data, those of others might."""
    return str(error) if isinstance(error, MPCImagingError) else type(error).__name__


def _check_topology(
    me: str, order: Sequence[str], links: Sequence[str], addresses: Mapping[str, tuple[str, int]], leader: str
) -> None:
    problems = []
    if len(set(order)) != len(order):
        problems.append("a party appears twice in the order")
    problems += [f"{name} is not in the order of the parties" for name in [me, *links] if name not in order]
    problems += [f"{name} has no address" for name in [me, *links] if name not in addresses]
    if me in links or len(set(links)) != len(links):
        problems.append(f"the links of {me} must be other parties, each once")
    if leader != me and leader not in links:
        problems.append(f"{me} has no link to the leader {leader}: choose a leader that is linked to every party")
    if problems:
        raise ConfigError(problems)
