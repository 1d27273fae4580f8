"""The frame: what travels between two parties, and every check that a header must pass.

A frame is a fixed header and a payload. The header names the session, so that a frame of another session is refused,
and a step counter of its direction, so that a frame that is missing, repeated or out of order is refused. (TLS protects
each byte on the wire; the frame protects the order of the protocol that runs over it.)

    version (1 B) | kind (1 B) | session id (16 B) | step (8 B) | payload length (8 B)      big-endian, 34 bytes
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from mpc_imaging.errors import TransportError

VERSION = 1
SESSION_SIZE = 16
NO_SESSION = bytes(SESSION_SIZE)
DEFAULT_LIMIT = 1 << 32
CONTROL_LIMIT = 1 << 20
CAUSE_LIMIT = 1 << 10

_HEADER = struct.Struct(f"!BB{SESSION_SIZE}sQQ")
HEADER_SIZE = _HEADER.size

# Anything with the buffer protocol: bytes, bytearray, memoryview, a contiguous numpy array. (Python 3.12 has a type.)
Buffer = Any


class Kind(IntEnum):
    """What a frame carries."""

    HELLO = 1  # empty; its header carries the session id
    CONTROL = 2  # JSON
    SHARE = 3  # shares of an input
    OPENING = 4  # masked openings between compute parties
    REVEAL = 5  # shares of an output
    REQUEST = 6  # to the dealer
    CORRECTION = 7  # from the dealer
    ABORT = 8  # one line: why the session ends
    BYE = 9  # empty: the sender has done its part
    BLINDED = 10  # elements of two owners' private set intersection
    HANDSHAKE = 11  # TLS handshakes of connections that are made ready ahead of their use
    SWITCH = 12  # empty: what follows from the sender comes under the next of them


_KINDS = {int(kind): kind for kind in Kind}


class FrameError(TransportError):
    """A frame that breaks the protocol; ``sender``, ``receiver`` and ``step`` say where."""

    def __init__(self, sender: str, receiver: str, step: int, problem: str) -> None:
        self.sender, self.receiver, self.step = sender, receiver, step
        super().__init__(f"frame from {sender} to {receiver}, step {step}: {problem}")


class Header(NamedTuple):
    """A header that passed the checks of `decode`."""

    kind: Kind
    session: bytes
    step: int
    length: int


def encode(kind: Kind, session: bytes, step: int, length: int) -> bytes:
    """The 34 header bytes."""
    return _HEADER.pack(VERSION, kind, session, step, length)


def decode(
    data: Buffer, *, sender: str, receiver: str, session: bytes | None, step: int, limit: int = DEFAULT_LIMIT
) -> Header:
    """Parse and check a header: version, kind, session (None: any), step, and a length of at most ``limit`` bytes.

    Raises `FrameError`.
    """

    def refuse(problem: str) -> FrameError:
        return FrameError(sender, receiver, step, problem)

    if len(data) != HEADER_SIZE:
        raise refuse(f"a header has {HEADER_SIZE} bytes, not {len(data)}")
    version, code, its_session, its_step, length = _HEADER.unpack(data)
    if version != VERSION:
        raise refuse(f"version {version} instead of {VERSION}: install the same mpc_imaging on both machines")
    kind = _KINDS.get(code)
    if kind is None:
        raise refuse(f"unknown kind {code}")
    if session is not None and its_session != session:
        raise refuse("it belongs to another session")
    if its_step != step:
        problem = "it was sent before (a replay)" if its_step < step else "frames before it are missing"
        raise refuse(f"it carries step {its_step}: {problem}")
    if length > limit:
        raise refuse(f"{length} bytes announced, at most {limit} allowed")
    return Header(kind, its_session, its_step, length)


def check(header: Header, *, sender: str, receiver: str, kind: Kind, size: int | None, limit: int | None) -> None:
    """Compare a header with what the receiver waits for. Raises `FrameError`."""
    if header.kind is not kind:
        raise FrameError(sender, receiver, header.step, f"{header.kind.name} came where {kind.name} was due")
    if size is not None and header.length != size:
        excess = header.length - size
        detail = f"{excess} trailing" if excess > 0 else f"{-excess} missing"
        problem = f"{kind.name} of {header.length} bytes where {size} were due ({detail})"
        raise FrameError(sender, receiver, header.step, problem)
    if limit is not None and header.length > limit:
        raise FrameError(sender, receiver, header.step, f"{header.length} bytes announced, at most {limit} allowed")


def byte_views(payload: Buffer | Sequence[Buffer]) -> list[memoryview]:
    """Views on the bytes of one buffer, or of each in a list or tuple; nothing is copied, empty ones are left out."""
    buffers = payload if isinstance(payload, list | tuple) else (payload,)
    views = [memoryview(buffer) for buffer in buffers]
    return [view.cast("B") for view in views if view.nbytes]


def one_line(text: str, limit: int = CAUSE_LIMIT) -> str:
    """Printable text on one line, so that no peer can write to this party's terminal or forge a line of its log."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(printable.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
