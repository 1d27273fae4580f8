"""How the parties of a session find each other: dial, accept, check certificates, and agree on a session id.

Of a pair, the party that comes earlier in the public order listens and the later one dials. One loop drives every
connection at once and never blocks on one of them, so a connection that stalls costs nobody else any time.

1. TLS 1.3; both check the other's certificate against the consortium's authority, and its name against the topology.
2. Both send an empty HELLO. Having it, the dialer knows that it was not refused (a TLS 1.3 client learns that late).
3. The leader, once it has all its links, draws the session id and sends it in a second HELLO. The others pass it on
   over their other links, compare, and confirm it to the leader last, when all their links agree.
"""

from __future__ import annotations

import logging
import secrets
import select
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mpc_imaging.errors import PeerLostError, TransportError
from mpc_imaging.transport.attempt import Attempt, Dial, Peer
from mpc_imaging.transport.certificates import Credentials, certificate_name
from mpc_imaging.transport.channel import Channel, PeerAbortedError, part
from mpc_imaging.transport.frames import NO_SESSION, SESSION_SIZE, FrameError, Kind, one_line
from mpc_imaging.transport.tls import TlsSocket

HANDSHAKE_TIMEOUT_S = 5.0
_MAX_STRANGERS = 64

log = logging.getLogger("mpc_imaging.transport")


class RefusedError(TransportError):
    """A connection that is not the one waited for; the text says why."""


@dataclass
class Gathering:
    """One party's part in bringing the session together; `run` does it, and owns ``listener`` from then on."""

    me: str
    order: Sequence[str]
    links: Sequence[str]
    addresses: Mapping[str, tuple[str, int]]
    credentials: Credentials
    listener: socket.socket | None
    connect_timeout_s: float
    leader: str
    established: dict[str, Channel] = field(default_factory=dict)
    session: bytes | None = None

    def __post_init__(self) -> None:
        place = {name: index for index, name in enumerate(self.order)}
        earlier = [name for name in self.links if place[name] < place[self.me]]
        self._callers = {name for name in self.links if place[name] > place[self.me]}
        self._dials = {name: Dial(Peer(name, *self.addresses[name])) for name in earlier}
        self._contexts = {side: self.credentials.context(server_side=side) for side in (False, True)}
        self._attempts: list[Attempt] = []
        self._ids: dict[str, bytes] = {}
        self._told: set[str] = set()
        self._logged: set[tuple[str, str]] = set()

    def run(self) -> tuple[dict[str, Channel], bytes]:
        """All channels, in the order of ``links``, and the session id.

        Raises `PeerLostError` that names every missing peer, or `FrameError`; those that are there are told the cause.
        """
        self._deadline = time.monotonic() + self.connect_timeout_s
        try:
            self._listen()
            while not self._step():
                self._poll()
        except BaseException as error:
            cause = str(error) if isinstance(error, TransportError) else f"{self.me}: {type(error).__name__}"
            part(self.established.values(), Kind.ABORT, getattr(error, "cause", cause))
            raise
        finally:
            for attempt in self._attempts:
                attempt.close()
            if self.listener is not None:
                self.listener.close()
        return {name: self.established[name] for name in self.links}, self.session

    def _step(self) -> bool:
        """Do what can be done now; True when all agree on the session."""
        self._dial()
        self._accept()
        for attempt in list(self._attempts):
            self._advance(attempt)
        for name, channel in list(self.established.items()):
            self._follow(name, channel)
        self._agree()
        agreed = self.session is not None and all(name in self._ids and name in self._told for name in self.links)
        if agreed and not any(channel.sending for channel in self.established.values()):
            return True
        if time.monotonic() >= self._deadline:
            raise PeerLostError(self._what_is_missing())
        return False

    def _poll(self) -> None:
        poll = select.poll()
        for attempt in self._attempts:
            poll.register(attempt, attempt.events())
        for channel in self.established.values():
            # Frames of the session itself stay where they are until the mesh asks for them.
            events = (select.POLLIN if channel.receiving else 0) | (select.POLLOUT if channel.sending else 0)
            if events:
                poll.register(channel, events)
        if self._may_accept():
            poll.register(self.listener, select.POLLIN)
        times = [self._deadline, *(attempt.deadline for attempt in self._attempts)]
        times += [dial.next_at for dial in self._due_dials()]
        poll.poll(max(0.0, min(times) - time.monotonic()) * 1000 + 1)

    # Connections

    def _listen(self) -> None:
        if self.listener is None and self._callers:
            host, port = self.addresses[self.me]
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                self.listener = socket.create_server((host, port), family=family)
            except OSError as error:
                problem = f"{self.me} cannot listen on {host}:{port}: {error.strerror or error}"
                raise TransportError(f"{problem}; give it a free port of this machine in the topology") from error
        if self.listener is not None:
            self.listener.setblocking(False)
            self.listener.listen()

    def _due_dials(self) -> list[Dial]:
        busy = [attempt.dial for attempt in self._attempts]
        return [dial for name, dial in self._dials.items() if name not in self.established and dial not in busy]

    def _dial(self) -> None:
        for dial in self._due_dials():
            now = time.monotonic()
            if now >= dial.next_at:
                try:
                    self._attempts.append(dial.start(now + HANDSHAKE_TIMEOUT_S))
                except OSError as error:
                    dial.postpone(now, error.strerror or str(error))

    def _may_accept(self) -> bool:
        strangers = sum(attempt.dial is None for attempt in self._attempts)
        return self.listener is not None and strangers < _MAX_STRANGERS

    def _accept(self) -> None:
        while self._may_accept():
            try:
                sock, address = self.listener.accept()
            except OSError:  # nobody is there, or is not there any more
                return
            tls = TlsSocket(sock, self._contexts[True], server_side=True)
            deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S
            self._attempts.append(Attempt(sock, f"a connection from {address[0]}", deadline, None, tls))

    def _advance(self, attempt: Attempt) -> None:
        try:
            if attempt.advance(self.me, self._contexts[False], self._identify):
                self._attempts.remove(attempt)
                attempt.channel.expected_session = None
                attempt.channel.expect(Kind.HELLO, 0, None)
                self.established[attempt.channel.peer] = attempt.channel
            elif time.monotonic() >= attempt.deadline:
                self._drop(attempt, f"it did not answer within {HANDSHAKE_TIMEOUT_S:g} s")
        except ssl.SSLError as error:
            self._drop(attempt, _tls_problem(error))
        except EOFError:
            self._drop(attempt, "it closed the connection during the handshake", quiet=True)
        except OSError as error:
            self._drop(attempt, error.strerror or str(error), quiet=True)
        except PeerLostError as error:
            refused = isinstance(error.__cause__, ssl.SSLError)
            detail = _tls_problem(error.__cause__) if refused else "its log says why"
            self._drop(attempt, f"it refused {self.me}; {detail}")
        except TransportError as error:
            self._drop(attempt, str(error))

    def _identify(self, attempt: Attempt) -> str:
        """The peer's name, which must be exactly the one expected. Raises `RefusedError`."""
        name = certificate_name(attempt.tls.peer_certificate())
        shown = one_line(name, 80)
        if attempt.dial is not None:
            if name != attempt.dial.peer.name:
                raise RefusedError(f"the certificate there is for {shown}, not {attempt.dial.peer.name}")
            return name
        if name not in self._callers:
            raise RefusedError(f"its certificate is for {shown}, which is no party that connects to {self.me}")
        if name in self.established or any(other.channel and other.channel.peer == name for other in self._attempts):
            raise RefusedError(f"a second connection of {name}")
        return name

    def _drop(self, attempt: Attempt, problem: str, quiet: bool = False) -> None:
        """Close an attempt. Each problem is logged once, and not at all if a peer that starts late explains it."""
        self._attempts.remove(attempt)
        attempt.close()
        if attempt.dial is not None:
            attempt.dial.postpone(time.monotonic(), problem, refused=not quiet)
        if not quiet and (attempt.where, problem) not in self._logged:
            self._logged.add((attempt.where, problem))
            log.warning("%s closed %s: %s", self.me, attempt.where, problem)

    # Session

    def _follow(self, name: str, channel: Channel) -> None:
        """Go on with an established peer, up to its second HELLO."""
        try:
            if channel.sending:
                channel.push()
            if channel.receiving:
                channel.pull()
        except PeerAbortedError:
            raise
        except PeerLostError as error:
            if self.session is not None:
                raise
            log.warning("%s; waiting for it to come back", error)
            del self.established[name]
            channel.close()
            if name in self._dials:
                self._dials[name].postpone(time.monotonic(), "it was there, and left")
            return
        if not channel.receiving and name not in self._ids:
            self._ids[name] = channel.expected_session = channel.header.session
            channel.take()

    def _agree(self) -> None:
        if self.session is None:
            if self.me != self.leader:
                self.session = self._ids.get(self.leader)
            elif len(self.established) == len(self.links):
                self.session = secrets.token_bytes(SESSION_SIZE)
        if self.session is None:
            return
        for name, its_id in self._ids.items():
            if its_id != self.session or its_id == NO_SESSION:
                raise FrameError(name, self.me, 1, "it belongs to another session")
        others = [name for name in self.links if name != self.leader]
        for name in others:
            self._tell(name)
        if self.me != self.leader and all(name in self._ids and name in self._told for name in others):
            self._tell(self.leader)

    def _tell(self, name: str) -> None:
        channel = self.established.get(name)
        if channel is not None and name not in self._told:
            self._told.add(name)
            channel.session = self.session
            channel.queue(Kind.HELLO)

    def _what_is_missing(self) -> str:
        missing = []
        for name in self.links:
            if name in self.established:
                continue
            dial = self._dials.get(name)
            missing.append(f"{dial.peer} ({dial.problem})" if dial else f"{name} (it never connected to {self.me})")
        if missing:
            return f"{self.me} could not connect within {self.connect_timeout_s:g} s; missing: {', '.join(missing)}"
        waiting = ", ".join(name for name in self.links if name not in self._ids)
        return f"{self.me} waited {self.connect_timeout_s:g} s for {waiting}: connected, but still waiting for others"


def _tls_problem(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate does not pass this party's ca.crt: {error.verify_message}"
    return f"TLS: {str(error.reason or type(error).__name__).replace('_', ' ').lower()}"
