"""Files of a one-time store: JSON with a digest, session files in encrypted blocks, writes that survive a crash.

A session file has a head that anybody may read, signed by the dealer, with the session's keys sealed to the party
(`sealing`); then blocks in AES-256-GCM, under a key that is among those, used for this file alone. So damage,
truncation, mix-ups and files that are not the dealer's are found before a byte is handed out. The digest of JSON finds
damage only: marks are the party's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mpc_imaging import strict_json
from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness.sealing import OVERHEAD, SIGNATURE, PartOpener, PartSealer

VERSION = 2  # 1, of version 0.1.0 of the package, was not sealed
KEY_BYTES = 32
BLOCK = 1 << 20  # bytes of payload under one tag: what a reader holds in memory before it hands out a byte
REDO = "run python -m mpc_imaging.preprocess again"

_MAGIC = b"MPCSTORE"
_BODY = struct.Struct("!8sH16s32sHQ16s")  # magic, version, store, plan, rank, number, key id
_LENGTH = struct.Struct("!Q")
_KEYS = 2 * KEY_BYTES + OVERHEAD  # the session's key and that of the blocks, sealed
_HEADER = _BODY.size + _LENGTH.size + _KEYS + SIGNATURE
_TAG, _NONCE = 16, 12
_JSON_LIMIT = 1 << 20


class StoreError(RandomnessError):
    """A one-time store that is missing, damaged, locked, used up, put back from a copy, or not the one to use."""


@contextlib.contextmanager
def os_errors(doing: str) -> Iterator[None]:
    """Turn an `OSError` into a `StoreError` that does not name the path: peers get to read it."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{doing} failed: {error.strerror or type(error).__name__}") from None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Write a private file. On return it survives a power cut; a crash before leaves the old content or the new one."""
    part = path.with_name(f"{path.name}.part")
    with open(os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with the format version and a digest, durably."""
    content = {"version": VERSION, **content}
    write_durably(path, (json.dumps({**content, "sha256": _seal(content)}, indent=2) + "\n").encode())


def read_sealed(path: Path, owner: str, absent: str) -> dict[str, Any]:
    """What `write_sealed` wrote. Raises `StoreError`; `absent`: what it says where there is no such file."""
    name = f"{path.name} in {owner}'s store"
    with os_errors(f"reading {name}"):
        try:
            with path.open("rb") as file:
                raw = file.read(_JSON_LIMIT)
        except FileNotFoundError:
            raise StoreError(absent) from None
    try:
        content = strict_json.mapping(strict_json.loads(raw))
        version, seal = content.pop("version"), content.pop("sha256")
    except (strict_json.JsonError, KeyError):
        raise StoreError(f"{name} is damaged; {REDO}") from None
    if isinstance(version, int) and version != VERSION:
        raise other_version(name, version)
    if seal != _seal({"version": version, **content}):
        raise StoreError(f"{name} is damaged; {REDO}")
    return content


def other_version(name: str, version: int) -> StoreError:
    """The error for a file of another format."""
    if version == 1:
        why = (
            "was written by version 0.1.0 of mpc_imaging, which did not seal a part to its party, so others may know it"
        )
        return StoreError(f"{name} {why}; {REDO}, and delete the old store")
    return StoreError(f"{name} has format version {version}, this package reads {VERSION}; {REDO}")


def session_path(folder: Path, number: int) -> Path:
    """The file of one session in a party's folder."""
    return folder / "sessions" / f"{number:06d}.bin"


def file_octets(payload: int) -> int:
    """The size of a session file with so many bytes of messages."""
    return _HEADER + payload + -(-payload // BLOCK) * _TAG


@dataclass(frozen=True)
class Header:
    """What a session file belongs to, and the bytes of all its messages: the public part of its head."""

    store_id: bytes
    plan: bytes
    rank: int
    number: int
    key_id: bytes
    payload: int = 0

    def body(self) -> bytes:
        """All but the length, which is known last: what the blocks are bound to."""
        return _BODY.pack(_MAGIC, VERSION, self.store_id, self.plan, self.rank, self.number, self.key_id)

    def pack(self, sealer: PartSealer, keys: bytes) -> bytes:
        """The head: this, the keys sealed, and the dealer's signature of both."""
        head = self.body() + _LENGTH.pack(self.payload)
        head += sealer.seal("keys of a stored session", head, keys)
        return head + sealer.sign("stored session", head)

    @classmethod
    def unpack(cls, raw: bytes, name: str, opener: PartOpener) -> tuple[Header, bytes]:
        """The header in a head, and the keys. Raises `StoreError` for another format, damage, and another's work."""
        if len(raw) != _HEADER or not raw.startswith(_MAGIC):
            raise StoreError(f"{name} is damaged or no session file; run again to take the next session")
        version = int.from_bytes(raw[len(_MAGIC) : len(_MAGIC) + 2], "big")
        if version != VERSION:
            raise other_version(name, version)
        head, public = raw[:-SIGNATURE], raw[: _BODY.size + _LENGTH.size]
        keys = None
        if opener.signed("stored session", head, raw[-SIGNATURE:]):
            keys = opener.unseal("keys of a stored session", public, head[len(public) :])
        if keys is None or len(keys) != 2 * KEY_BYTES:
            what = f"is damaged, or not what {opener.dealer} wrote for this party"
            raise StoreError(f"{name} {what}; run again to take the next session")
        return cls(*_BODY.unpack_from(raw)[2:], *_LENGTH.unpack_from(raw, _BODY.size)), keys


class _Blocks:
    """Encrypts or decrypts the blocks of one file, in order. The key is of this file alone, so numbers are nonces."""

    def __init__(self, key: bytes, header: Header) -> None:
        self._cipher, self._body = AESGCM(key), header.body()
        self.done = 0

    def encrypt(self, data: memoryview) -> bytes:
        self.done += 1
        return self._cipher.encrypt(self._nonce(), data, self._body)

    def decrypt(self, data: memoryview) -> bytes:
        self.done += 1
        return self._cipher.decrypt(self._nonce(), data, self._body)

    def _nonce(self) -> bytes:
        return (self.done - 1).to_bytes(_NONCE, "big")


class SessionFile:
    """A session file in the making, one block in memory. It gets its name when `commit` has made it durable.

    key: of the session, which is sealed.
    """

    def __init__(self, folder: Path, header: Header, sealer: PartSealer, key: bytes) -> None:
        self._header, self._sealer = header, sealer
        blocks = secrets.token_bytes(KEY_BYTES)
        self._keys, self._blocks = key + blocks, _Blocks(blocks, header)
        self._path = session_path(folder, header.number)
        self._part = self._path.with_suffix(".part")
        # Exclusive, so that two workers never write parts of one session: its parties would hold keys that do not fit
        # together. Whoever has this name and finds no complete file is alone.
        descriptor = os.open(self._part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        self._file = open(descriptor, "wb", buffering=0)  # noqa: SIM115
        self._committed = False
        if self._path.exists():
            self.discard()
            raise StoreError(f"session {header.number} was written before")
        self._block = memoryview(bytearray(BLOCK))
        self._filled = 0
        self._put(bytes(_HEADER))

    def _put(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def _end_block(self) -> None:
        self._put(self._blocks.encrypt(self._block[: self._filled]))
        self._filled = 0

    def write(self, buffers: Iterable[Any]) -> None:
        """Append contiguous buffers, in order."""
        for buffer in buffers:
            view = memoryview(buffer)
            if not view.nbytes:
                continue  # memoryview.cast refuses arrays with a zero in their shape
            view = view.cast("B")
            self._header = replace(self._header, payload=self._header.payload + len(view))
            while view:
                taken = view[: BLOCK - self._filled]
                self._block[self._filled : self._filled + len(taken)] = taken
                self._filled += len(taken)
                view = view[len(taken) :]
                if self._filled == BLOCK:
                    self._end_block()

    def commit(self) -> None:
        """Complete the file, make it durable and give it its name."""
        if self._filled:
            self._end_block()
        self._file.seek(0)
        self._put(self._header.pack(self._sealer, self._keys))
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._part, self._path)
        self._committed = True

    def discard(self) -> None:
        """Remove the file."""
        self._file.close()
        (self._path if self._committed else self._part).unlink(missing_ok=True)


class SessionReader:
    """Messages of a session file in order; no byte is handed out before its block was verified.

    ``name`` is how errors call the file. Attributes: ``header`` and ``key`` (the session's). Raises `StoreError` for a
    file that is not whole, or not the dealer's for this party.
    """

    def __init__(self, file: BinaryIO, name: str, opener: PartOpener) -> None:
        self._file, self._name = file, name
        with os_errors(f"reading {name}"):
            self.header, keys = Header.unpack(file.read(_HEADER), name, opener)
            size = os.fstat(file.fileno()).st_size
        expected = file_octets(self.header.payload)
        if size != expected:
            raise StoreError(f"{name} has {size} bytes instead of {expected}; run again to take the next session")
        self.key, self._blocks = keys[:KEY_BYTES], _Blocks(keys[KEY_BYTES:], self.header)
        self._buffer = memoryview(bytearray(min(BLOCK, self.header.payload) + _TAG))
        self._rest = memoryview(b"")
        self.left = self.header.payload

    def read(self, size: int) -> bytearray:
        """The next `size` bytes. After a `StoreError` there are no more."""
        if self._file.closed:
            raise StoreError(f"{self._name} was closed")
        if size > self.left:
            self.close()
            raise StoreError(f"{self._name} holds less than the plan asks for; {REDO}")
        message = bytearray(size)
        todo = memoryview(message)
        while todo:
            if not self._rest:
                self._next_block()
            taken = self._rest[: len(todo)]
            todo[: len(taken)] = taken
            todo, self._rest = todo[len(taken) :], self._rest[len(taken) :]
        self.left -= size
        return message

    def _next_block(self) -> None:
        number = self._blocks.done
        data = self._buffer[: min(BLOCK, self.header.payload - number * BLOCK) + _TAG]
        with os_errors(f"reading {self._name}"):
            whole = self._file.readinto(data) == len(data)
        try:
            if not whole:
                raise InvalidTag
            self._rest = memoryview(self._blocks.decrypt(data))
        except InvalidTag:
            self.close()
            message = f"{self._name} is damaged in block {number}; run again to take the next session"
            raise StoreError(message) from None

    def close(self) -> None:
        """Close the file; nothing more can be read."""
        self._file.close()
