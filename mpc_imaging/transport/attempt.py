"""One connection on its way to becoming a link to a peer: TCP, TLS, the peer's name, and the first HELLO each way."""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from mpc_imaging.transport.channel import Channel
from mpc_imaging.transport.frames import Kind
from mpc_imaging.transport.tls import TlsSocket

FIRST_RETRY_S = 0.05
LAST_RETRY_S = 0.5


@dataclass(frozen=True)
class Peer:
    """A party to dial and where it listens."""

    name: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.name} at {self.host}:{self.port}"


@dataclass(eq=False)
class Dial:
    """What is known of a peer that this party dials: when to try (again), and what went wrong last."""

    peer: Peer
    next_at: float = 0.0
    pause_s: float = FIRST_RETRY_S
    tries: int = 0
    problem: str = "not tried yet"
    refused: bool = False

    def start(self, deadline: float) -> Attempt:
        """Start a connection, to each address of the host in turn. Raises OSError."""
        found = socket.getaddrinfo(self.peer.host, self.peer.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[self.tries % len(found)]
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        code = sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            raise OSError(code, os.strerror(code))
        return Attempt(sock, f"the connection to {self.peer}", deadline, self)

    def postpone(self, now: float, problem: str, refused: bool = False) -> None:
        """Try again a little later. A peer that was there but ``refused`` says more than one that is not there now."""
        if refused or not self.refused:
            self.problem, self.refused = problem, refused
        self.tries += 1
        self.next_at = now + self.pause_s
        self.pause_s = min(2 * self.pause_s, LAST_RETRY_S)


@dataclass(eq=False)
class Attempt:
    """A connection, dialed (``dial``) or accepted (None); ``channel`` once the certificate has told the peer's name."""

    sock: socket.socket
    where: str
    deadline: float
    dial: Dial | None
    tls: TlsSocket | None = None
    channel: Channel | None = None

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self.sock.fileno()

    def events(self) -> int:
        """What to poll for."""
        if self.channel is not None:
            return self.channel.events()
        if self.tls is None:
            return select.POLLOUT
        return select.POLLIN | (select.POLLOUT if self.tls.unsent else 0)

    def advance(self, me: str, context: ssl.SSLContext, identify: Callable[[Attempt], str]) -> bool:
        """Go on as far as the socket allows; True when both HELLOs are through.

        ``identify`` returns the peer's name or raises. Raises OSError, EOFError, and what `Channel.pull` raises.
        """
        if self.tls is None and not self._connected(context):
            return False
        if self.channel is None:
            if not self.tls.handshake():
                return False
            self.channel = Channel(self.tls, me, identify(self))
            self.channel.queue(Kind.HELLO)
            self.channel.expect(Kind.HELLO, 0, None)
        channel = self.channel
        channel.push()
        if channel.receiving:
            channel.pull()
        if channel.receiving or channel.sending:
            return False
        channel.take()
        return True

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()

    def _connected(self, context: ssl.SSLContext) -> bool:
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        try:
            itself = self.sock.getpeername() == self.sock.getsockname()
        except OSError:
            return False  # still connecting
        if itself:  # TCP connects a socket to itself when the port dialed happens to become its own
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        self.tls = TlsSocket(self.sock, context, server_side=False)
        return True
