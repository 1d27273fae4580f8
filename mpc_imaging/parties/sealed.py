"""Sealed share files: a party's shares on disk, of use only with its operator's key.

A file is a head, which anybody may read, and its content in AES-256-GCM (NIST SP 800-38D), which also proves the head:

    magic, version, length of the header, length of the content, nonce, check of the key
    header: JSON that says what the shares are and whose
    content: safetensors, encrypted; the tag

Every file has a key of its own, by HKDF from the operator's key, the nonce, and what the header says of kind, session,
party and step: even if a nonce came twice, no keystream would.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from mpc_imaging import strict_json
from mpc_imaging.errors import ConfigError, DataError
from mpc_imaging.local_files import MAKE_KEY, read_key
from mpc_imaging.randomness.store_files import StoreError, os_errors, write_durably
from mpc_imaging.randomness.streams import KEY_BYTES, derive_key, fresh_key
from mpc_imaging.settings import Settings

VERSION = 1
KEY_FILE = "share.key"
KEY_VARIABLE = "MPC_IMAGING_SHARE_KEY"
HEADER_LIMIT = 1 << 16  # bytes of JSON
CONTENT_LIMIT = (1 << 36) - 32  # bytes under one nonce, SP 800-38D, section 5.2.1.1

MAX_STEP = 1 << 48

_MAGIC = b"MPCSHARE"
_NONCE, _CHECK, _TAG = 12, 16, 16
_HEAD = struct.Struct(f"!8sHIQ{_NONCE}s{_CHECK}s")
_BOUND = ("kind", "session", "party", "step")


@dataclass(frozen=True)
class Sealed:
    """What a sealed file holds: shares (int64, by name), its public header, and private notes (JSON)."""

    header: dict[str, Any]
    tensors: dict[str, torch.Tensor] = field(repr=False)
    notes: Any = field(repr=False, default=None)


class _Head(NamedTuple):
    """The part that is readable without the key; ``raw``: its bytes, which the tag covers too."""

    header: dict[str, Any]
    nonce: bytes
    check: bytes
    octets: int
    raw: bytes


def seal(
    path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any], key: bytes, notes: Any = None
) -> None:
    """Write shares, readable with ``key`` alone; on return the file survives a power cut, and it is never half there.

    tensors: int64, any shapes, by name. header: public (JSON), with at least ``kind``, ``session``, ``party`` and
    ``step``. notes: JSON that is encrypted with the shares.
    Raises `DataError` for what is too large, or cannot be written.
    """
    from safetensors.torch import save

    text = json.dumps(dict(header), sort_keys=True, allow_nan=False).encode()
    content = save({name: x.contiguous() for name, x in tensors.items()}, {"notes": json.dumps(notes)})
    if len(text) > HEADER_LIMIT or len(content) > CONTENT_LIMIT:
        raise DataError([f"{path.name}: {len(text)} and {len(content)} bytes are too many for one sealed file"])
    nonce = os.urandom(_NONCE)
    head = _HEAD.pack(_MAGIC, VERSION, len(text), len(content), nonce, _key_check(key, nonce)) + text
    cipher = Cipher(algorithms.AES256(_file_key(key, nonce, header)), modes.GCM(nonce)).encryptor()
    cipher.authenticate_additional_data(head)
    encrypted = cipher.update(content) + cipher.finalize()
    try:
        with os_errors(f"writing {path.name}"):
            write_durably(path, b"".join((head, encrypted, cipher.tag)))
    except StoreError as error:
        raise DataError([f"{error}; make room, or choose another run folder"]) from None


def unseal(path: Path, key: bytes, name: str | None = None) -> Sealed:
    """What `seal` wrote, all of it checked. name: of the file in messages, if not its own.

    Raises `DataError` for a file that is missing or damaged, of another version, sealed with another key, or that is
    no sealed file.
    """
    name = name or path.name
    with _reading(path, name) as file:
        head = _read_head(file, name)
        encrypted, tag = file.read(head.octets), file.read(_TAG)
    if _key_check(key, head.nonce) != head.check:
        what = f"was sealed with another key, or its head is damaged; set checkpoint.key_file or {KEY_VARIABLE} as then"
        raise DataError([f"{name} {what}"])
    mode = modes.GCM(head.nonce, tag)
    cipher = Cipher(algorithms.AES256(_file_key(key, head.nonce, head.header)), mode).decryptor()
    cipher.authenticate_additional_data(head.raw)
    try:
        content = cipher.update(encrypted) + cipher.finalize()
    except InvalidTag:
        raise _damaged(name) from None
    return Sealed(head.header, *_parsed(content, name))


def read_header(path: Path, name: str | None = None) -> dict[str, Any]:
    """The header of a sealed file, without its key: nothing proves it before `unseal`, which raises the same errors."""
    name = name or path.name
    with _reading(path, name) as file:
        return _read_head(file, name).header


@contextlib.contextmanager
def _reading(path: Path, name: str) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise DataError([f"{name} is missing; give the run folder of the training run that wrote it"]) from None
    except OSError as error:
        raise DataError([f"{name} cannot be read: {error.strerror or type(error).__name__}"]) from None


def _read_head(file: BinaryIO, name: str) -> _Head:
    raw = file.read(_HEAD.size)
    if raw[: len(_MAGIC)] != _MAGIC:
        raise DataError([f"{name} is no sealed share file; give the run folder of a training run"])
    if len(raw) < _HEAD.size:
        raise _damaged(name)
    _, version, length, octets, nonce, check = _HEAD.unpack(raw)
    if version != VERSION:
        what = f"has format version {version}, and this package reads {VERSION}; read it with the package that wrote it"
        raise DataError([f"{name} {what}"])
    # Not a byte less or more: what is appended belongs to nothing.
    expected = _HEAD.size + length + octets + _TAG
    if length > HEADER_LIMIT or octets > CONTENT_LIMIT or os.fstat(file.fileno()).st_size != expected:
        raise _damaged(name)
    text = file.read(length)
    try:
        header = strict_json.mapping(strict_json.loads(text))
        for entry in _BOUND[:3]:
            strict_json.text(header[entry])
        strict_json.whole(header["step"], 0, MAX_STEP)
    except (strict_json.JsonError, KeyError):
        raise _damaged(name) from None
    return _Head(header, nonce, check, octets, raw + text)


def _parsed(content: bytes, name: str) -> tuple[dict[str, torch.Tensor], Any]:
    """Tensors and notes of a content that is known to be what was written."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
        (length,) = struct.unpack_from("<Q", content)
        metadata = strict_json.loads(content[8 : 8 + length])["__metadata__"]
        notes = strict_json.loads(metadata["notes"])
    except (SafetensorError, ValueError, KeyError, TypeError, struct.error):
        raise _damaged(name) from None
    if not all(tensor.dtype is torch.int64 for tensor in tensors.values()):
        raise _damaged(name)
    return tensors, notes


def _damaged(name: str) -> DataError:
    return DataError([f"{name} is damaged; use another copy or an earlier one, or train again"])


def _key_check(key: bytes, nonce: bytes) -> bytes:
    return derive_key(key, nonce, "sealed shares: which key")[:_CHECK]


def _file_key(key: bytes, nonce: bytes, header: Mapping[str, Any]) -> bytes:
    return derive_key(key, nonce, json.dumps(["sealed shares", *(header[entry] for entry in _BOUND)]))


def share_key(settings: Settings, folder: Path) -> bytes:
    """The key to read a party's sealed files in ``folder``, its part of a run folder (parties/<name>).

    It is in ``checkpoint.key_file``, else in the environment, else beside the files, in ``share.key``.
    Raises `ConfigError` if there is none, or one that is too short or not private.
    """
    key = _own_key(settings)
    if key is None and (folder / KEY_FILE).exists():
        return read_key(folder / KEY_FILE, KEY_FILE)
    return _required(key)


def sealing_key(settings: Settings, folder: Path, one_machine: bool) -> bytes:
    """The key to write a party's sealed files in ``folder`` with, as in `share_key`.

    Only where the launcher runs all parties on ``one_machine``, which sees all shares anyway, it may be ``share.key``
    beside the files, made on first use. Raises `ConfigError` as `share_key`.
    """
    key = _own_key(settings)
    if key is not None or not one_machine:
        return _required(key)
    if not (folder / KEY_FILE).exists():
        with os_errors(f"writing {KEY_FILE}"):
            write_durably(folder / KEY_FILE, fresh_key())
    return read_key(folder / KEY_FILE, KEY_FILE)


def _own_key(settings: Settings) -> bytes | None:
    """The key that the operator gave."""
    if settings.checkpoint.key_file is not None:
        return read_key(Path(settings.checkpoint.key_file).expanduser(), "checkpoint.key_file")
    if text := os.environ.get(KEY_VARIABLE):
        with contextlib.suppress(ValueError):
            if len(key := bytes.fromhex(text)) == KEY_BYTES:
                return key
        raise ConfigError([f"{KEY_VARIABLE} holds no key; write {2 * KEY_BYTES} hex digits, as openssl rand -hex 32"])
    return None


def _required(key: bytes | None) -> bytes:
    if key is not None:
        return key
    what = f"shares are kept encrypted, and need a key; {MAKE_KEY}, and name FILE here"
    raise ConfigError([f"checkpoint.key_file: {what}"])
