"""Codestreams of JPEG and JPEG-LS without what no decoder needs: comments, application data, bytes behind the end.

What stays is on a list: the segments that a decoder must have, each of exactly the length that its content has. Nothing
is decoded or encoded anew, so that the pixels are the same, also of lossy frames. Three application segments change
how colours are decoded; they are written anew with nothing but that. Sources: ISO/IEC 10918-1 annex B and 10918-6,
ISO/IEC 14495-1 annex C; "mrfx" is how HP's encoder, and CharLS, name a colour transform.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from struct import unpack_from

from mpc_imaging.data.refusals import ImageError, Reason

SOI, EOI, SOS = 0xD8, 0xD9, 0xDA
SIZES = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})  # markers of JPEG and JPEG-LS that state the size
_BARE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without a length
_JPEG_LS_START, _LSE = 0xF7, 0xF8
_DROPPED = frozenset((*range(0xE0, 0xF0), 0xFE))  # application segments and comments
_MAX_CONDITIONING = 8  # tables of arithmetic coding: four of each kind
# In coded data 0xFF is followed by 0x00 or a restart marker, of JPEG-LS by a byte below 0x80. Other markers end it.
_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
_JPEG_LS_MARKER = re.compile(rb"\xff+[\x80-\xcf\xd8-\xfe]")

# What no decoder reads of coded data can only be behind the last pixel, or the last one before a restart marker. Coded
# data are like random bytes, of which 12 look like this in one of ten million places, or repeat a few.
_TEXT_AT_END = re.compile(rb"[A-Za-z0-9 ^,.=_-]{12}\0*(?=\xff+[\xd0-\xd7]|\Z)")
_VARIED = 6

Segment = tuple[int, int, int]  # its marker, and where its content begins and ends


def segments(frame: bytes) -> Iterator[Segment]:
    """Walk a codestream from its first marker to its last; of a scan comes the header, then (-1, begin, end) of data.

    Raises:
        ImageError: damaged (no codestream), or truncated (it has no end marker).
    """
    if frame[:2] != b"\xff\xd8":
        raise ImageError(Reason.damaged)
    position, data_end = 2, _MARKER
    while position + 2 <= len(frame):
        if frame[position] != 0xFF:
            raise ImageError(Reason.damaged)
        marker = frame[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == EOI:
            yield marker, position + 2, position + 2
            return
        if marker in _BARE:
            position += 2
            continue
        if marker < 0xC0 or marker == SOI or position + 4 > len(frame):
            raise ImageError(Reason.damaged)
        begin, end = position + 4, position + 2 + unpack_from(">H", frame, position + 2)[0]
        if end < begin:
            raise ImageError(Reason.damaged)
        if end > len(frame):
            raise ImageError(Reason.truncated)
        yield marker, begin, end
        if marker == _JPEG_LS_START:
            data_end = _JPEG_LS_MARKER
        if marker == SOS:
            found = data_end.search(frame, end)
            if found is None:
                raise ImageError(Reason.truncated)
            yield -1, end, found.start()
            end = found.end() - 2
        position = end
    raise ImageError(Reason.truncated)


def stripped(frame: bytes) -> bytes:
    """Return the codestream with the segments that decoders need and no others, which ends with its end marker.

    Raises:
        ImageError: as `segments`, or hidden: a segment is longer than its content, or is of no known kind, or coded
            data end in text.
    """
    out, kept, scanned = bytearray(b"\xff\xd8"), set(), False
    for marker, begin, end in segments(frame):
        if marker == -1:
            if ends_in_text(frame[begin:end]):
                raise ImageError(Reason.hidden)
            out += frame[begin:end]
            continue
        if marker == EOI:
            out += b"\xff\xd9"
            return bytes(out)
        content = frame[begin:end]
        if marker in _DROPPED:
            content = b"" if scanned and marker != 0xEE else _application(marker, content)
            if not content or (marker, content) in kept:
                continue
            kept.add((marker, content))
        elif not _exact(marker, content):
            raise ImageError(Reason.hidden)
        scanned = scanned or marker == SOS
        out += bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2) + content
    raise ImageError(Reason.truncated)


def ends_in_text(data: bytes) -> bool:
    """Whether coded data go on in letters where they should have ended. They are not decoded: short words pass."""
    return any(len(set(found[0])) > _VARIED for found in _TEXT_AT_END.finditer(data))


def _application(marker: int, content: bytes) -> bytes:
    """Write anew what an application segment says of colours; nothing if it says nothing of them."""
    if marker == 0xE0 and content.startswith(b"JFIF\0"):  # colours are YCbCr; no density, no thumbnail
        return b"JFIF\0\1\2\0\0\1\0\1\0\0"
    if marker == 0xEE and content.startswith(b"Adobe") and len(content) >= 12:
        if content[11] > 2:
            raise ImageError(Reason.hidden)
        return (
            b"Adobe"
            + (content[5:7] if content[5:7] in (b"\0\x64", b"\0\x65") else b"\0\x64")
            + bytes(4)
            + content[11:12]
        )
    if marker == 0xE8 and content.startswith(b"mrfx") and len(content) == 5:
        if content[4] > 3:
            raise ImageError(Reason.hidden)
        return content
    return b""


def _exact(marker: int, content: bytes) -> bool:
    """Whether a segment that decoders need has the length that its content has, and no byte more."""
    size = len(content)
    if marker in SIZES:
        return size >= 6 and size == 6 + 3 * content[5]
    if marker == SOS:
        return size >= 4 and size == 4 + 2 * content[0]
    if marker == 0xC4:
        return _tables(content, lambda at: 17 + sum(content[at + 1 : at + 17]))
    if marker == 0xDB:
        return _tables(content, lambda at: 1 + 64 * (1 + (content[at] >> 4)))
    if marker == 0xCC:
        return size % 2 == 0 and size <= 2 * _MAX_CONDITIONING
    if marker == 0xDD:
        return 2 <= size <= 4
    if marker == 0xDC:
        return size == 2
    return marker == _LSE and size == 11 and content[0] == 1  # coding parameters of JPEG-LS


def _tables(content: bytes, length: Callable[[int], int]) -> bool:
    """Whether tables, each of the length that its own beginning says, fill a segment."""
    position = 0
    while position < len(content):
        position += length(position)
    return position == len(content) > 0
