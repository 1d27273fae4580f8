"""The leak test can fail: whatever way a canary is written, the search finds it."""

import base64
import codecs
import gzip
import hashlib
import html
import io
import json
import os
import sqlite3
import struct
import urllib.parse
import uuid
import zipfile
import zlib

import numpy as np
import pytest
from safetensors.numpy import save

from tests.security.searcher import Canary, Searcher, patterns

NAME = "Kölbäsowitz^Rünefaldo"
WORD = "Kölbäsowitz"
PLAIN = "koelbaesowitz"
UID = f"2.25.{uuid.UUID('b0a1f3c2-5d4e-4f60-8a9b-0c1d2e3f4a5b').int}"
CANARIES = [
    Canary("name", NAME), Canary("born", "19410827", "date"), Canary("at", "134711.482915", "time"),
    Canary("study", UID, "uid"), Canary("series", "1.2.826.0.1.3680043.8.498.1234567", "uid"),
]  # fmt: skip
NOISE = os.urandom(1001)


@pytest.fixture(scope="module")
def searcher():
    return Searcher(patterns(CANARIES))


def png(*chunks):
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def database(text):
    connection = sqlite3.connect(":memory:")
    connection.execute("create table t (a text)")
    connection.execute("insert into t values (?)", (text,))
    connection.commit()
    return connection.serialize()


def zipped(name, content=b""):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def deflated(data):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


UTF8 = NAME.encode()
PICTURE = png((b"IHDR", b"\0" * 13), (b"zTXt", b"Comment\0\0" + zlib.compress(UTF8)))
NUMBER = uuid.UUID(int=int(UID[5:]))
WRITTEN = {
    **{coding: ("name", NAME.encode(coding)) for coding in ("utf-8", "latin-1", "cp1252", "utf-16-le", "utf-16-be")},
    **{coding: ("name", NAME.encode(coding)) for coding in ("utf-16", "utf-32", "utf-32-le", "utf-32-be")},
    "one word": ("name", WORD.encode()),
    "upper": ("name", NAME.upper().encode()),
    "lower": ("name", NAME.lower().encode()),
    "decomposed": ("name", "Ko\u0308lba\u0308sowitz".encode()),
    "without accents": ("name", b"Kolbasowitz"),
    "transliterated": ("name", PLAIN.encode()),
    "JSON": ("name", json.dumps(NAME).encode()),
    "JSON in JSON": ("name", json.dumps(json.dumps({"a": WORD})).encode()),
    "repr": ("name", ascii(NAME).encode()),
    "repr of octets": ("name", repr(UTF8).encode()),
    "URL": ("name", urllib.parse.quote(NAME).encode()),
    "HTML": ("name", html.escape(NAME).encode("ascii", "xmlcharrefreplace")),
    "HTML, hexadecimal": ("name", "".join(f"&#x{ord(c):X};" for c in NAME).encode()),
    "ROT13": ("name", codecs.encode(WORD, "rot13").encode()),
    "reversed": ("name", WORD[::-1].encode()),
    "reversed octets": ("name", UTF8[::-1]),
    "hex": ("name", UTF8.hex().encode()),
    "HEX": ("name", UTF8.hex().upper().encode()),
    "hex of UTF-16": ("name", NAME.encode("utf-16-le").hex().encode()),
    "hex, spaced": ("name", UTF8.hex(" ").encode()),
    **{f"base64 after {k}": ("name", base64.b64encode(b"x" * k + UTF8 + b"yz")) for k in range(3)},
    **{f"urlsafe base64 after {k}": ("name", base64.urlsafe_b64encode(b"x" * k + UTF8 + b"yz")) for k in range(3)},
    **{f"base32 after {k}": ("name", base64.b32encode(b"x" * k + UTF8 + b"yz")) for k in range(5)},
    "base64 of latin-1": ("name", base64.b64encode(b"ab" + WORD.encode("latin-1"))),
    **{f"{name}, raw": ("name", hashlib.new(name, UTF8).digest()) for name in ("md5", "sha1", "sha256", "blake2b")},
    **{f"{name}, hex": ("name", hashlib.new(name, UTF8).hexdigest().encode()) for name in ("sha512", "sha3_256")},
    "hash of a word in lower case": ("name", hashlib.sha256(WORD.lower().encode()).hexdigest()[:16].encode()),
    "hash in base64": ("name", base64.b64encode(hashlib.sha256(UTF8).digest())),
    "CRC-32": ("name", f"id={zlib.crc32(UTF8):08x};".encode()),
    "Adler-32 as a number": ("name", f" {zlib.adler32(UTF8)} ".encode()),
    **{f"date {text}": ("born", text.encode()) for text in ("1941-08-27", "27.08.1941", "08/27/1941", "27 Aug 1941")},
    "date": ("born", b"born 19410827."),
    "date since 1970": ("born", b"-894585600"),
    "time": ("at", b"13:47:11.482915"),
    "UID": ("study", UID.encode()),
    "UID as octets": ("study", NUMBER.bytes),
    "UID as octets, little-endian": ("study", NUMBER.int.to_bytes(16, "little")),
    "UID as UUID": ("study", str(NUMBER).encode()),
    "UID as hex": ("study", NUMBER.hex.encode()),
    "UID in base64": ("study", base64.b64encode(b"x" + NUMBER.bytes)),
    "hash of a UID": ("series", hashlib.sha1(b"1.2.826.0.1.3680043.8.498.1234567").hexdigest().encode()),
    "zip": ("name", zipped("a.txt", UTF8 * 3)),
    "name in a zip": ("name", zipped(f"{NAME}.txt")),
    "npz": ("name", npz(a=np.array([NAME]))),
    "gzip": ("name", gzip.compress(UTF8)),
    "zlib": ("name", zlib.compress(UTF8)),
    "deflate": ("born", deflated(b"on 1941-08-27")),
    "PNG text": ("name", png((b"tEXt", b"Author\0" + NAME.encode("latin-1")))),
    "PNG compressed text": ("name", PICTURE),
    "image in HTML": ("name", b'<img src="data:image/png;base64,' + base64.b64encode(PICTURE + NOISE) + b'">'),
    "safetensors": ("name", save({"a": np.zeros(2)}, {"patient": NAME})),
    "SQLite": ("name", database(NAME)),
}  # fmt: skip


@pytest.mark.parametrize("way", WRITTEN)
def test_each_encoding_is_found(searcher, way):
    where, data = WRITTEN[way]
    packed = way == "deflate"  # which has no mark to find it by: only a whole file is tried
    for before in range(8) if not packed else (0,):
        found = searcher.names(data if packed else NOISE[:before] + b" " + data + b" " + NOISE)
        assert where in found, before


def test_what_is_no_canary_is_not_found(searcher):
    assert searcher.find(os.urandom(3_000_000)) == []
    text = "hospital_a-test-00012 19991231 2026-11-24T10:31:07.112233 2.25.1 Rune Wit Kolb 1.2.840.10008.1.2.1"
    assert searcher.find(text.encode() * 100) == []
    assert searcher.find(b"0.1941082712") == [], "digits of a longer number are no date"
