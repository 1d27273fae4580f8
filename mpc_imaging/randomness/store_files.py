"""Files of a one-time store: sealed JSON, session files in blocks that carry digests, writes that survive a crash.

The digests find truncation, damage and mix-ups of files. They are no protection from whoever can write into the folder:
it holds that party's keys.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from mpc_imaging import strict_json
from mpc_imaging.errors import RandomnessError

VERSION = 1
BLOCK = 1 << 20  # bytes of payload under one digest: what a reader holds in memory before it hands out a byte
REDO = "run python -m mpc_imaging.preprocess again"

_MAGIC = b"MPCSTORE"
_BODY = struct.Struct("!8sH16s32sHQ16s32s")  # magic, version, store, plan, rank, number, key id, key
_LENGTH = struct.Struct("!Q")
_DIGEST = hashlib.sha256().digest_size
_HEADER = _BODY.size + _LENGTH.size + _DIGEST
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
        raise StoreError(f"{name} has format version {version}, this package reads {VERSION}; {REDO}")
    if seal != _seal({"version": version, **content}):
        raise StoreError(f"{name} is damaged; {REDO}")
    return content


def session_path(folder: Path, number: int) -> Path:
    """The file of one session in a party's folder."""
    return folder / "sessions" / f"{number:06d}.bin"


@dataclass(frozen=True)
class Header:
    """The first bytes of a session file: what it belongs to, its keys, and the bytes of all its messages."""

    store_id: bytes
    plan: bytes
    rank: int
    number: int
    key_id: bytes
    key: bytes = field(repr=False)
    payload: int = 0

    def _body(self) -> bytes:
        return _BODY.pack(_MAGIC, VERSION, self.store_id, self.plan, self.rank, self.number, self.key_id, self.key)

    def pack(self) -> bytes:
        """The header with its digest."""
        head = self._body() + _LENGTH.pack(self.payload)
        return head + hashlib.sha256(head).digest()

    def block_digest(self, index: int, data: memoryview) -> bytes:
        """Digest of one block, that fits at no other place and in no other file."""
        digest = hashlib.sha256(self._body() + _LENGTH.pack(index))
        digest.update(data)
        return digest.digest()

    def file_octets(self) -> int:
        """The size of the whole file."""
        return _HEADER + self.payload + -(-self.payload // BLOCK) * _DIGEST

    @classmethod
    def unpack(cls, raw: bytes, name: str) -> Header:
        """The header in `raw`. Raises `StoreError` for another format and for damage."""
        if len(raw) != _HEADER or not raw.startswith(_MAGIC):
            raise StoreError(f"{name} is damaged or no session file; run again to take the next session")
        version = int.from_bytes(raw[len(_MAGIC) : len(_MAGIC) + 2], "big")
        if version != VERSION:
            raise StoreError(f"{name} has format version {version}, this package reads {VERSION}; {REDO}")
        if hashlib.sha256(raw[:-_DIGEST]).digest() != raw[-_DIGEST:]:
            raise StoreError(f"{name} is damaged; run again to take the next session")
        _, _, store_id, plan, rank, number, key_id, key = _BODY.unpack_from(raw)
        return cls(store_id, plan, rank, number, key_id, key, *_LENGTH.unpack_from(raw, _BODY.size))


class SessionFile:
    """A session file in the making, one block in memory. It gets its name when `commit` has made it durable."""

    def __init__(self, folder: Path, header: Header) -> None:
        self._header = header
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
        self._filled = self._blocks = 0
        self._put(bytes(_HEADER))

    def _put(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def _end_block(self) -> None:
        data = self._block[: self._filled]
        self._put(data)
        self._put(self._header.block_digest(self._blocks, data))
        self._blocks, self._filled = self._blocks + 1, 0

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
        self._put(self._header.pack())
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

    ``name`` is how errors call the file. Attribute: ``header``. Raises `StoreError` for a file that is not whole.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        with os_errors(f"reading {name}"):
            self.header = Header.unpack(file.read(_HEADER), name)
            size = os.fstat(file.fileno()).st_size
        if size != self.header.file_octets():
            raise StoreError(
                f"{name} has {size} bytes instead of {self.header.file_octets()}; run again to take the next session"
            )
        self._buffer = memoryview(bytearray(min(BLOCK, self.header.payload)))
        self._rest = self._buffer[:0]
        self._blocks = 0
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
        data = self._buffer[: min(BLOCK, self.header.payload - self._blocks * BLOCK)]
        with os_errors(f"reading {self._name}"):
            whole = self._file.readinto(data) == len(data)
            digest = self._file.read(_DIGEST)
        if not whole or digest != self.header.block_digest(self._blocks, data):
            self.close()
            raise StoreError(f"{self._name} is damaged in block {self._blocks}; run again to take the next session")
        self._blocks += 1
        self._rest = data

    def close(self) -> None:
        """Close the file; nothing more can be read."""
        self._file.close()
