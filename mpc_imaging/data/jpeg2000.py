"""Codestreams of JPEG 2000 without what no decoder needs: comments, boxes around them, lists of lengths, surplus bytes.

As in `codestreams`, nothing is encoded anew: the packets of each tile stay as they are. Lists of the lengths of tile
parts are written anew where a file had one, since HTJ2K with RPCL must have one (PS3.5 A.4.9). Sources: ISO/IEC 15444-1
annexes A and I, ISO/IEC 15444-15 annex A.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import pack, unpack_from

from mpc_imaging.data import codestreams
from mpc_imaging.data.refusals import ImageError, Reason

START = b"\xff\x4f\xff\x51"
_END = b"\xff\xd9"
_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"
_SOT, _SOD = 0x90, 0x93
_SIZ, _COD, _COC, _QCD, _QCC, _RGN, _POC, _PPM, _PPT, _CAP, _CPF = (
    0x51, 0x52, 0x53, 0x5C, 0x5D, 0x5E, 0x5F, 0x60, 0x61, 0x50, 0x59,
)  # fmt: skip
_TLM = 0x55
_DROPPED = frozenset((0x64, 0x63, 0x57, 0x58, _TLM))  # comment, registration, lengths of packets and tile parts
_MAIN = frozenset((_SIZ, _COD, _COC, _QCD, _QCC, _RGN, _POC, _PPM, _CAP, _CPF))
_TILE = frozenset((_COD, _COC, _QCD, _QCC, _RGN, _POC, _PPT))
_TILE_PART = 12  # bytes of its marker and of what follows it
_COLOURS = (b"pclr", b"cmap", b"cdef")  # boxes with a palette or an order of their own
_LENGTHS = 10_000  # tile parts that one list has room for


@dataclass
class _Header:
    """The marker segments of the main header or of one of a tile part, marker and content."""

    parts: list[tuple[int, bytes]] = field(default_factory=list)
    end: int = 0  # of the header: where the next part begins


def end(frame: bytes) -> int:
    """Return where a codestream ends, behind its end marker.

    Raises:
        ImageError: damaged, or truncated: it has no end marker.
    """
    code = _codestream(frame)
    position = _header(code, 2, _SOT).end
    for _, _, stop in _tile_parts(code, position):
        position = stop
    if code[position : position + 2] != _END:
        raise ImageError(Reason.truncated)
    return position + 2


def stripped(frame: bytes) -> bytes:
    """Return the bare codestream with the segments that decoders need and no others.

    Raises:
        ImageError: damaged, truncated, or hidden: a segment is longer than its content, or of no known kind, or the box
            around the codestream says more of its colours than the DICOM header.
    """
    code = _codestream(frame)
    main = _header(code, 2, _SOT)
    if not main.parts or main.parts[0][0] != _SIZ:
        raise ImageError(Reason.damaged)
    samples = unpack_from(">H", main.parts[0][1], 34)[0] if len(main.parts[0][1]) >= 36 else 0
    levels = _levels(main.parts, samples)
    tiles, last = [], main.end
    for start, header, last in _tile_parts(code, main.end):
        kept = _kept(header.parts, _TILE, samples, max(levels, _levels(header.parts, samples)))
        if codestreams.ends_in_text(code[header.end : last]):
            raise ImageError(Reason.hidden)
        tiles.append((start, kept, code[header.end : last]))
    if code[last : last + 2] != _END and code[last:].strip(b"\0"):
        raise ImageError(Reason.hidden)
    head = _kept(main.parts, _MAIN, samples, levels)
    if any(marker == _TLM for marker, _ in main.parts):
        head += _lengths(tiles)
    body = b"".join(_tile_part(*tile) for tile in tiles)
    return b"\xff\x4f" + head + body + _END


def _codestream(frame: bytes) -> bytes:
    """Take the codestream out of the boxes of a JP2 file, if it is in one."""
    if not frame.startswith(_SIGNATURE):
        if not frame.startswith(START):
            raise ImageError(Reason.damaged)
        return frame
    found = b""
    for kind, content in _boxes(frame):
        if kind == b"jp2h" and any(inner in _COLOURS for inner, _ in _boxes(content)):
            raise ImageError(Reason.hidden)
        if kind == b"jp2c" and not found:
            found = content
    if not found.startswith(START):
        raise ImageError(Reason.damaged)
    return found


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of each box. A length of 0 is to the end, one of 1 stands in the 8 bytes that follow."""
    position = 0
    while position + 8 <= len(content):
        length, kind = unpack_from(">L4s", content, position)
        head = 8
        if length == 1 and position + 16 <= len(content):
            (length,), head = unpack_from(">Q", content, position + 8), 16
        stop = len(content) if length == 0 else position + length
        if stop < position + head:
            raise ImageError(Reason.damaged)
        yield kind, content[position + head : stop]
        position = stop


def _header(code: bytes, position: int, last: int) -> _Header:
    """Read marker segments up to the marker ``last``, before which `_Header.end` is, or behind it for SOD."""
    found = _Header()
    while position + 4 <= len(code):
        if code[position] != 0xFF:
            raise ImageError(Reason.damaged)
        marker = code[position + 1]
        if marker == last:
            found.end = position + 2 if last == _SOD else position
            return found
        length = unpack_from(">H", code, position + 2)[0]
        if length < 2 or not 0x50 <= marker < 0x90:
            raise ImageError(Reason.damaged)
        if position + 2 + length > len(code):
            raise ImageError(Reason.truncated)
        found.parts.append((marker, code[position + 4 : position + 2 + length]))
        position += 2 + length
    raise ImageError(Reason.truncated)


def _tile_parts(code: bytes, position: int) -> Iterator[tuple[bytes, _Header, int]]:
    """Yield of each tile part what its marker says, its header, and where it ends.

    A length of 0 is for the last one, which ends before the end marker: no packet has that marker inside of it.
    """
    while code[position : position + 2] == b"\xff\x90":
        if position + _TILE_PART > len(code):
            raise ImageError(Reason.truncated)
        head = code[position + 2 : position + _TILE_PART]
        size, length = unpack_from(">H2xL", head)
        if size != 10:
            raise ImageError(Reason.damaged)
        header = _header(code, position + _TILE_PART, _SOD)
        stop = position + length if length else code.find(_END, header.end)
        if stop < 0 or stop > len(code):
            raise ImageError(Reason.truncated)
        if stop < header.end:
            raise ImageError(Reason.damaged)
        yield head, header, stop
        position = stop


def _tile_part(head: bytes, header: bytes, packets: bytes) -> bytes:
    length = _TILE_PART + len(header) + 2 + len(packets)
    return b"\xff\x90" + head[:4] + pack(">L", length) + head[8:] + header + b"\xff\x93" + packets


def _lengths(tiles: list[tuple[bytes, bytes, bytes]]) -> bytes:
    """The lists of the lengths of all tile parts (TLM), with two bytes for a tile and four for a length."""
    out = b""
    for index, first in enumerate(range(0, len(tiles), _LENGTHS)):
        rows = b"".join(
            head[2:4] + pack(">L", _TILE_PART + len(header) + 2 + len(packets))
            for head, header, packets in tiles[first : first + _LENGTHS]
        )
        out += b"\xff\x55" + pack(">HBB", len(rows) + 4, index, 0x60) + rows
    return out


def _wide(samples: int) -> int:
    """How many bytes name a component."""
    return 2 if samples > 256 else 1


def _levels(parts: list[tuple[int, bytes]], samples: int) -> int:
    """The most levels of decomposition that a header speaks of."""
    at = {_COD: 5, _COC: _wide(samples) + 1}
    return max((content[at[marker]] for marker, content in parts if len(content) > at.get(marker, 2**16)), default=0)


def _kept(parts: list[tuple[int, bytes]], known: frozenset[int], samples: int, levels: int) -> bytes:
    """The segments of a header that decoders need. Raises ImageError (hidden) for those of no known kind or length."""
    out = b""
    for marker, content in parts:
        if marker in _DROPPED:
            continue
        if marker not in known or not _exact(marker, content, samples, levels):
            raise ImageError(Reason.hidden)
        out += bytes((0xFF, marker)) + pack(">H", len(content) + 2) + content
    return out


def _exact(marker: int, content: bytes, samples: int, levels: int) -> bool:
    """Whether a segment has the length that its content has."""
    size, wide = len(content), _wide(samples)
    if marker == _SIZ:
        return size == 36 + 3 * samples
    if marker in (_COD, _COC):
        style, first = (0, 5) if marker == _COD else (wide, wide + 1)
        return size > first and size == first + 5 + (content[first] + 1 if content[style] & 1 else 0)
    if marker in (_QCD, _QCC):
        return _exact_steps(content[0 if marker == _QCD else wide :], levels)
    if marker == _RGN:
        return size == wide + 2
    if marker == _POC:
        return size > 0 and size % (5 + 2 * wide) == 0
    if marker == _CAP:
        return size >= 4 and size == 4 + 2 * int.from_bytes(content[:4]).bit_count()
    if marker == _CPF:
        return size in (2, 4, 6, 8)
    return marker in (_PPM, _PPT)


def _exact_steps(content: bytes, levels: int) -> bool:
    """Whether there is a step of quantization for the lowest band and three for each level, or one for all of them."""
    kind, steps = content[0] & 31 if content else 3, len(content) - 1
    if kind == 1:
        return steps == 2
    size = {0: 1, 2: 2}.get(kind)
    return size is not None and steps % (3 * size) == size and steps <= size * (3 * levels + 1)
