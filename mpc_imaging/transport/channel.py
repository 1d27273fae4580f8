"""Frames to and from one peer over one TLS connection, without ever blocking.

`queue` and `expect` say what is to be sent and received; `push` and `pull` go on with it as far as the socket allows.
The mesh (or, while parties connect, the gathering) drives many channels from one loop.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections import deque
from collections.abc import Iterable, Sequence

from mpc_imaging.errors import PeerLostError, TransportError
from mpc_imaging.transport import frames, tls as records
from mpc_imaging.transport.frames import CAUSE_LIMIT, HEADER_SIZE, NO_SESSION, FrameError, Header, Kind
from mpc_imaging.transport.tls import CHUNK, Successor, TlsSocket

# How long the end of a session may take: to tell the peers the cause, and for them to close.
LINGER_S = 1.0
# How much one call of `push` or `pull` moves before the other direction, and the other peers, get their turn.
_BURST = 4 * CHUNK
# Payload parts up to this size are copied into one TLS record with their neighbours.
_SMALL = 1 << 14
# In the queue: here the sending direction moves to its next TLS connection.
_SWITCH = memoryview(b"")


class PeerAbortedError(PeerLostError):
    """A peer ended the session; ``cause`` is the first cause it knows of, as one line."""

    def __init__(self, message: str, cause: str) -> None:
        self.cause = cause
        super().__init__(message)


class PeerLeftError(PeerLostError):
    """A peer that had done its part left in good order, and something was expected of it all the same."""


class Channel:
    """One peer. ``session`` is written into every frame sent; every frame received must carry ``expected_session``.

    While the session is not agreed on, ``expected_session`` None takes any, and ``header`` tells which it was.
    """

    def __init__(self, tls: TlsSocket, me: str, peer: str, limit: int = frames.DEFAULT_LIMIT) -> None:
        self.me, self.peer, self.limit = me, peer, limit
        self.session = NO_SESSION
        self.expected_session: bytes | None = NO_SESSION
        self.send_step = 0
        self.receive_step = 0
        self.receiving = False
        self.push_blocked = False
        self.pull_blocked = False
        self.left = False
        self.active_at = time.monotonic()
        self.header: Header | None = None
        self.payload = bytearray()
        self._tls = tls
        self._queue: deque[memoryview] = deque()
        self._expected: tuple[Kind, int | None, int | None] = (Kind.HELLO, 0, None)
        self._cause: bytearray | None = None
        self._switching = False
        self._head = bytearray(HEADER_SIZE)
        self._await_header()

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._tls.fileno()

    @property
    def sending(self) -> bool:
        """A frame is queued or not yet wholly handed to the kernel."""
        return bool(self._queue) or self._tls.unsent

    @property
    def buffered(self) -> bool:
        """Bytes have arrived that poll does not know of any more."""
        return self._tls.buffered

    @property
    def watchable(self) -> bool:
        """Nothing of a next frame's payload is due: what arrives may be read for an ABORT."""
        return self.header is None and not self.left

    def events(self) -> int:
        """What to poll for: room to send, a frame that is due, or the end of the session."""
        wanted = select.POLLIN if self.receiving or self.watchable else 0
        return wanted | select.POLLOUT if self.sending else wanted

    def queue(self, kind: Kind, views: Sequence[memoryview] = ()) -> int:
        """Queue a frame whose payload is ``views``, unchanged until it is sent; returns the payload's size in bytes.

        Moves to a new TLS key first, where the present one has protected enough. Raises `TransportError` where no other
        is left and the frame would be too much for it.
        """
        size = sum(map(len, views))
        if self._tls.sent_octets >= records.KEY_OCTETS:
            self._renew(kind, size)
        parts: list[bytes | memoryview] = [frames.encode(kind, self.session, self.send_step, size)]
        self.send_step += 1
        for view in views:
            if len(view) > _SMALL:
                if parts:
                    self._queue.append(memoryview(b"".join(parts)))
                    parts = []
                self._queue.append(view)
            else:
                parts.append(view)
        if parts:
            self._queue.append(memoryview(b"".join(parts)))
        return size

    def _renew(self, kind: Kind, size: int) -> None:
        if self._switching:
            return
        if self._tls.spares:
            self._switching = True
            # A frame of its own is a record of its own: nothing may follow it under the old key.
            self._queue.append(memoryview(frames.encode(Kind.SWITCH, self.session, self.send_step, 0)))
            self._queue.append(_SWITCH)
            self.send_step += 1
        elif self._tls.sent_octets + size > records.LIMIT_OCTETS and kind not in (Kind.ABORT, Kind.BYE):
            raise TransportError(
                f"{self.me} stops at step {self.send_step}: the last TLS key made ready with {self.peer} has "
                f"protected {self._tls.sent_octets / 1e9:.0f} GB, near the limit of AES-GCM; divide the task into "
                "several sessions"
            )

    def push(self) -> None:
        """Send what can be sent. Raises `PeerLostError`."""
        moved = 0
        try:
            while self._queue and moved < _BURST:
                part = self._queue[0]
                if part is _SWITCH:
                    self._tls.switch_sending()
                    self._switching = False
                    self._queue.popleft()
                    continue
                taken = self._tls.send(part)
                if not taken:
                    break
                moved += taken
                if taken == len(part):
                    self._queue.popleft()
                else:
                    self._queue[0] = part[taken:]
            self.push_blocked = not self._tls.flush()
        except (OSError, EOFError) as error:
            self._last_words()
            raise self._lost(error, self.send_step - 1) from error
        if moved:
            self.active_at = time.monotonic()

    def expect(self, kind: Kind, size: int | None, limit: int | None) -> None:
        """Wait for a frame of ``kind``: of ``size`` bytes, or of any size up to ``limit``."""
        self._expected = (kind, size, limit)
        self.receiving = True

    def pull(self) -> None:
        """Read what has arrived of the expected frame; ``receiving`` turns False when ``payload`` is complete.

        Raises `FrameError`, or `PeerLostError` with its kinds `PeerAbortedError` and `PeerLeftError`.
        """
        if self.header is None:
            self.peek()
        if self.left:
            self.receiving = False
            raise self.gone()
        if self.header is None:
            return
        if self._target is None:
            kind, size, limit = self._expected
            frames.check(self.header, sender=self.peer, receiver=self.me, kind=kind, size=size, limit=limit)
            self._fill_next(bytearray(self.header.length))
        if self._fill():
            self.receiving = False

    def take(self) -> bytearray:
        """The complete payload; the channel is then ready for the next frame."""
        payload, self.payload = self.payload, bytearray()
        self._await_header()
        return payload

    def peek(self) -> None:
        """Read the next header if it has arrived, and act on ABORT, BYE and SWITCH. Raises like `pull`."""
        while not self.left and self.header is None and self._fill():
            self._look()

    def _look(self) -> None:
        if self._cause is not None:
            raise self._aborted(self._cause)
        header = frames.decode(
            self._head,
            sender=self.peer,
            receiver=self.me,
            session=self.expected_session,
            step=self.receive_step,
            limit=self.limit,
        )
        self.receive_step += 1
        if header.kind is Kind.ABORT:
            if header.length > CAUSE_LIMIT * 4:
                problem = f"a cause of {header.length} bytes"
                raise FrameError(self.peer, self.me, header.step, problem)
            self._cause = bytearray(header.length)
            self._fill_next(self._cause)
        elif header.kind is Kind.BYE or header.kind is Kind.SWITCH:
            if header.length:
                problem = f"{header.kind.name} with {header.length} trailing bytes"
                raise FrameError(self.peer, self.me, header.step, problem)
            if header.kind is Kind.BYE:
                self.left = True
                return
            if not self._tls.switch_receiving():
                problem = "SWITCH, but no TLS connection was made ready, or more came under the old key"
                raise FrameError(self.peer, self.me, header.step, problem)
            self._await_header()
        else:
            if self._tls.received_octets + header.length > records.LIMIT_OCTETS:
                problem = "more than one TLS key may protect; it should have moved to another key before"
                raise FrameError(self.peer, self.me, header.step, problem)
            self.header, self._target = header, None

    def gone(self) -> PeerLeftError:
        """The error for asking something of a peer that said BYE."""
        step = self.receive_step - 1
        return PeerLeftError(f"{self.peer} left the session at step {step}, and {self.me} still has to do with it")

    def peer_certificate(self) -> bytes:
        """The certificate (DER) with which the peer came."""
        return self._tls.peer_certificate()

    @property
    def dialed(self) -> bool:
        """Whether this party dialed, and so speaks first in TLS."""
        return not self._tls.server_side

    def successors(self, count: int) -> list[Successor]:
        """See `TlsSocket.successors`."""
        return self._tls.successors(count)

    def keep(self, successors: Sequence[Successor]) -> None:
        """See `TlsSocket.keep`."""
        self._tls.keep(successors)

    def discard(self) -> bool:
        """Throw away what arrives; True when the peer has closed its side."""
        return self._tls.discard()

    def finish_sending(self) -> None:
        """Tell the peer that no more comes."""
        with contextlib.suppress(OSError):
            self._tls.finish_sending()

    def close(self) -> None:
        """Close the connection and drop everything queued or half received."""
        self._queue.clear()
        self._tls.close()

    def _await_header(self) -> None:
        self.header = None
        self._target: memoryview | None = memoryview(self._head)
        self._filled = 0

    def _fill_next(self, buffer: bytearray) -> None:
        self.payload = buffer
        self._target, self._filled = memoryview(buffer), 0

    def _fill(self) -> bool:
        """Read into the target; True when it is full. Stops early after one burst."""
        target, moved = self._target, 0
        self.pull_blocked = False
        try:
            while self._filled < len(target) and moved < _BURST:
                size = self._tls.receive_into(target[self._filled :])
                if not size:
                    self.pull_blocked = True
                    break
                self._filled += size
                moved += size
        except (OSError, EOFError) as error:
            raise self._lost(error, self.receive_step - (self.header is not None)) from error
        if moved:
            self.active_at = time.monotonic()
        return self._filled == len(target)

    def _last_words(self) -> None:
        """A peer that aborts stops reading: look for its ABORT before calling a failed send the reason."""
        with contextlib.suppress(FrameError):
            self.peek()

    def _lost(self, error: Exception, step: int) -> PeerLostError:
        reason = "the connection ended" if isinstance(error, EOFError) else _reason(error)
        return PeerLostError(f"{self.me} lost {self.peer} at step {step}: {reason}")

    def _aborted(self, cause: bytearray) -> PeerAbortedError:
        text = frames.one_line(cause.decode("utf-8", "replace")) or "no cause given"
        return PeerAbortedError(
            f"{self.me} stops at step {self.receive_step - 1} because {self.peer} ended the session: {text}", text
        )


def part(channels: Iterable[Channel], kind: Kind, cause: str = "", grace_s: float | None = None) -> None:
    """Say ABORT or BYE on every channel that is not in the middle of a frame, and close them all within ``grace_s``.

    After an ABORT, wait in that time (by default `LINGER_S`) for the peers to close first: closing on unread bytes
    resets the connection, and a reset may overtake the cause.
    """
    channels = list(channels)
    views = [memoryview(frames.one_line(cause).encode())] if cause else []
    open_ones = [channel for channel in channels if not channel.sending and not channel.left]
    for channel in open_ones:
        channel.queue(kind, views)
    deadline = time.monotonic() + (LINGER_S if grace_s is None else grace_s)
    waiting = _until(open_ones, deadline, select.POLLOUT, _pushed)
    told = [channel for channel in open_ones if channel not in waiting]
    for channel in told:
        channel.finish_sending()
    if kind is Kind.ABORT:
        _until(told, deadline, select.POLLIN, Channel.discard)
    for channel in channels:
        channel.close()


def _until(channels, deadline: float, event: int, done) -> list[Channel]:
    """Call ``done`` on the channels, whenever ``event`` comes, until it is True; returns those that were not done."""
    poll = select.poll()
    waiting = {channel.fileno(): channel for channel in channels}
    for descriptor in waiting:
        poll.register(descriptor, event)
    while waiting:
        for descriptor in [descriptor for descriptor, channel in waiting.items() if done(channel)]:
            poll.unregister(descriptor)
            del waiting[descriptor]
        remaining_s = deadline - time.monotonic()
        if not waiting or remaining_s <= 0:
            break
        poll.poll(remaining_s * 1000)
    return list(waiting.values())


def _pushed(channel: Channel) -> bool:
    try:
        channel.push()
    except PeerLostError:
        return True
    return not channel.sending


def _reason(error: Exception) -> str:
    """What the system or OpenSSL says, without OpenSSL's source positions."""
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None)
    return str(reason or type(error).__name__).replace("_", " ").lower()
