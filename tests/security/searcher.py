"""Finds planted texts, in any common encoding, in whatever a run wrote and sent.

A canary is searched as a whole and word by word, as text (UTF-8 to UTF-32, escaped for JSON, URLs, HTML and Python),
as base64, base32 and hex at every alignment, reversed, rotated, in either case, and as an unkeyed hash; dates and UIDs
also in their other notations. Containers (zip, gzip, zlib, PNG, base64) are opened and searched as well.

All patterns are at least eight octets long: fewer would turn up in megabytes of random shares by themselves.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import contextlib
import dataclasses
import hashlib
import html
import io
import json
import quopri
import re
import unicodedata
import urllib.parse
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

SHORTEST = 8
_DEPTH = 4
_MOST = 1 << 26  # octets that a container may unpack to
_CHUNK = 1 << 10
_HASHES = ("md5", "sha1", "sha256", "sha512", "sha3_256", "blake2b", "blake2s")
_UNICODE = ("utf-8", "latin-1", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
_DATES = ("%Y%m%d", "%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%d%m%Y",
          "%m%d%Y", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y")  # fmt: skip
_BITS = 22
_MULTIPLIERS = tuple(np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93], dtype=np.uint64))


@dataclass(frozen=True)
class Canary:
    """A text that must turn up nowhere; ``where`` says where it was planted. ``kind``: text, date, time or uid."""

    where: str
    text: str
    kind: str = "text"
    owner: str = ""


@dataclass(frozen=True)
class Pattern:
    """What is looked for. ``fold``: in either case of ASCII letters; ``alone``: no letter or digit beside it."""

    octets: bytes
    canary: Canary
    encoding: str
    fold: bool = True
    alone: bool = False


def patterns(canaries: Iterable[Canary]) -> list[Pattern]:
    """Everything that gives a canary away."""
    found: dict[tuple[bytes, bool], Pattern] = {}
    for canary in canaries:
        for pattern in _of(canary):
            octets = pattern.octets.lower() if pattern.fold else pattern.octets
            if len(octets) >= SHORTEST:
                found.setdefault((octets, pattern.fold), dataclasses.replace(pattern, octets=octets))
    return list(found.values())


def _of(canary: Canary) -> Iterator[Pattern]:
    for text in _notations(canary):
        digits = text.isdigit()
        for name, octets in _texts(text):
            yield Pattern(octets, canary, name, True, digits and name in ("utf-8", "reversed"))
        for coding in ("utf-8", "latin-1", "utf-16-le"):
            octets = _encoded(text, coding)
            if octets:
                yield from _armoured(octets, canary, coding)
        for octets in {*(variant.encode() for variant in _cased(text)), _encoded(text, "latin-1")} - {b""}:
            yield from _hashed(octets, canary)
    if canary.kind == "uid" and canary.text.startswith("2.25."):
        number = uuid.UUID(int=int(canary.text[5:]))
        for name, octets in (("UUID", number.bytes), ("UUID, little-endian", number.bytes[::-1])):
            yield Pattern(octets, canary, name, fold=False)
            yield from _armoured(octets, canary, name)
        yield Pattern(str(number).encode(), canary, "UUID")


def _notations(canary: Canary) -> list[str]:
    """The ways to write what was planted, and its words."""
    text = canary.text
    if canary.kind == "date":
        day = datetime.strptime(text[:8], "%Y%m%d").replace(tzinfo=UTC)
        epoch = int(day.timestamp())
        return list(dict.fromkeys([text, *map(day.strftime, _DATES), *map(str, (epoch, epoch * 1000))]))
    if canary.kind == "time":
        return [text, f"{text[:2]}:{text[2:4]}:{text[4:]}", text.replace(".", "")]
    if canary.kind == "uid":
        return [text, *([text[5:]] if text.startswith("2.25.") else [])]
    words = [word for word in re.split(r"\W+|_", text) if len(word.encode()) >= SHORTEST]
    return list(dict.fromkeys(spelt for part in (text, *words) for spelt in _spellings(part)))


def _spellings(text: str) -> Iterator[str]:
    yield text
    for form in ("NFC", "NFD"):
        yield unicodedata.normalize(form, text)
    yield "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
    for letter, instead in {"ä": "ae", "ö": "oe", "ü": "ue"}.items():
        text = text.replace(letter, instead).replace(letter.upper(), instead.capitalize())
    yield text


def _cased(text: str) -> list[str]:
    return list(dict.fromkeys((text, text.lower(), text.upper(), text.casefold())))


def _encoded(text: str, coding: str) -> bytes:
    try:
        return text.encode(coding)
    except UnicodeEncodeError:
        return b""


def _texts(text: str) -> Iterator[tuple[str, bytes]]:
    for variant in _cased(text):
        for coding in _UNICODE:
            yield coding, _encoded(variant, coding)
    octets = text.encode()
    yield "reversed", text[::-1].encode()
    yield "reversed octets", octets[::-1]
    yield "ROT13", codecs.encode(text, "rot13").encode()
    yield "JSON", json.dumps(text)[1:-1].encode()
    yield "JSON in JSON", json.dumps(json.dumps(text)[1:-1])[1:-1].encode()
    yield "Python", text.encode("unicode_escape")
    yield "Python octets", repr(octets)[2:-1].encode()
    yield "URL", urllib.parse.quote(text, safe="").encode()
    yield "URL, a path", urllib.parse.quote(text).encode()
    yield "URL, a form", urllib.parse.quote_plus(text).encode()
    yield "URL, every octet", "".join(f"%{octet:02x}" for octet in octets).encode()
    yield "HTML", html.escape(text).encode("ascii", "xmlcharrefreplace")
    yield "HTML, every character", "".join(f"&#{ord(c)};" for c in text).encode()
    yield "HTML, hexadecimal", "".join(f"&#x{ord(c):x};" for c in text).encode()
    yield "HTML, accents alone", "".join(c if c.isascii() else f"&#x{ord(c):x};" for c in text).encode()
    yield "quoted-printable", quopri.encodestring(octets)


def _armoured(octets: bytes, canary: Canary, coding: str) -> Iterator[Pattern]:
    """Octets as other programs wrap them in text."""
    yield Pattern(octets.hex().encode(), canary, f"hex of {coding}")
    for separator in (" ", ":"):
        yield Pattern(octets.hex(separator).encode(), canary, f"hex of {coding}, spaced")
    for name, encode, size, bits in (("base64", base64.b64encode, 3, 6), ("base32", base64.b32encode, 5, 5)):
        for before in range(size):
            # Without the characters that depend on what stands before and behind.
            whole = encode(b"\0" * before + octets).rstrip(b"=")
            first, last = -(-8 * before // bits), 8 * (before + len(octets)) // bits
            part = whole[first:last]
            yield Pattern(part, canary, f"{name} of {coding}", fold=name == "base32")
            if name == "base64":
                yield Pattern(part.translate(bytes.maketrans(b"+/", b"-_")), canary, f"{name} of {coding}", fold=False)


def _hashed(octets: bytes, canary: Canary) -> Iterator[Pattern]:
    """Unkeyed hashes, also cut short: anybody can try names against them."""
    for name in _HASHES:
        digest = hashlib.new(name, octets).digest()
        yield Pattern(digest[:8], canary, name, fold=False)
        yield Pattern(digest.hex()[:12].encode(), canary, f"{name} in hex")
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield Pattern(encode(digest)[:10], canary, f"{name} in base64", fold=False)
    for name, value in (("CRC-32", binascii.crc32(octets)), ("Adler-32", zlib.adler32(octets))):
        yield Pattern(f"{value:08x}".encode(), canary, name, alone=True)
        yield Pattern(str(value).encode(), canary, name, alone=True)


class Searcher:
    """Looks for many patterns at once: by their first eight octets, at every place."""

    def __init__(self, wanted: Iterable[Pattern]) -> None:
        self._tables = []
        wanted = list(wanted)
        for fold in (False, True):
            by_head: dict[int, list[Pattern]] = {}
            for pattern in wanted:
                if pattern.fold == fold:
                    by_head.setdefault(int.from_bytes(pattern.octets[:8], "little"), []).append(pattern)
            heads = np.array(sorted(by_head), dtype=np.uint64)
            maybe = np.zeros((len(_MULTIPLIERS), 1 << _BITS), dtype=bool)  # a Bloom filter
            for flags, multiplier in zip(maybe, _MULTIPLIERS, strict=True):
                flags[_slot(heads, multiplier)] = True
            self._tables.append((fold, by_head, maybe))

    def find(self, data: bytes) -> list[Pattern]:
        """The patterns in ``data``, and in what it contains."""
        return list(dict.fromkeys(hit for part in unpacked(data) for hit in self._find(part)))

    def names(self, data: bytes) -> set[str]:
        """Where the canaries in ``data`` were planted."""
        return {hit.canary.where for hit in self.find(data)}

    def _find(self, data: bytes) -> Iterator[Pattern]:
        for fold, by_head, maybe in self._tables:
            where = data.lower() if fold else data
            for shift in range(8):
                count = (len(where) - shift) // 8
                if count <= 0:
                    continue
                windows = np.frombuffer(where, dtype="<u8", count=count, offset=shift)
                likely = np.arange(count)
                for flags, multiplier in zip(maybe, _MULTIPLIERS, strict=True):
                    likely = likely[flags[_slot(windows[likely], multiplier)]]
                for index in likely.tolist():
                    start = shift + 8 * index
                    for pattern in by_head.get(int(windows[index]), ()):
                        if where.startswith(pattern.octets, start) and not (
                            pattern.alone and _has_neighbours(where, start, len(pattern.octets))
                        ):
                            yield pattern


def _slot(windows: np.ndarray, multiplier: np.uint64) -> np.ndarray:
    return (windows * multiplier) >> np.uint64(64 - _BITS)


def _has_neighbours(data: bytes, start: int, size: int) -> bool:
    """Whether the octets are a part of a longer word or number; "8" before a zero may begin the next DICOM tag."""
    after = data[start + size : start + size + 2]
    return data[max(start - 1, 0) : start].isalnum() or (after[:1].isalnum() and after[1:] != b"\0")


def unpacked(data: bytes, depth: int = _DEPTH) -> Iterator[bytes]:
    """``data``, and everything that is packed inside of it."""
    yield data
    if depth:
        for part in _contents(data):
            yield from unpacked(part, depth - 1)


def _contents(data: bytes) -> Iterator[bytes]:
    if b"PK\x03\x04" in data:
        yield from _zip_members(data)
    for magic in re.finditer(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]", data):
        if part := _inflated(data, magic.start(), 47):  # zlib or gzip, as the head says
            yield part
    if part := _inflated(data, 0, -15):
        yield part
    for run in re.finditer(rb"[A-Za-z0-9+/\r\n]{64,}={0,2}|[A-Za-z0-9_-]{64,}={0,2}", data):
        text = run.group().translate(bytes.maketrans(b"-_", b"+/"), b"\r\n=")
        yield base64.b64decode(text[: len(text) // 4 * 4])


def _zip_members(data: bytes) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():
                yield member.filename.encode()
                yield archive.read(member)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error, EOFError):
        return


def _inflated(data: bytes, start: int, mode: int) -> bytes:
    """What deflate makes of ``data``; nothing, or little, where that is no such stream."""
    stream, parts, size = zlib.decompressobj(mode), [], 0
    with contextlib.suppress(zlib.error):
        while start < len(data) and size < _MOST and not stream.eof:
            parts.append(stream.decompress(data[start : start + _CHUNK]))
            start, size = start + _CHUNK, size + len(parts[-1])
    return b"".join(parts)
