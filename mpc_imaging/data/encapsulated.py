"""Find the frames of compressed pixel data (PS3.5 A.4), and check each against the header before it is decoded.

Nothing that the file says about itself is believed: items must lie in the file, offset tables must point at items, and
a codestream must have the header's rows, columns and samples, since decoders take memory for what it claims.
"""

from __future__ import annotations

from struct import unpack, unpack_from

from pydicom.uid import JPEG2000TransferSyntaxes, RLELossless

from mpc_imaging.data import codestreams, jpeg2000
from mpc_imaging.data.claims import Shape
from mpc_imaging.data.header import PixelElement
from mpc_imaging.data.limits import MAX_ENCODED_BYTES, MAX_FRAGMENTS, Bounded
from mpc_imaging.data.refusals import ImageError, Reason

Piece = tuple[int, int]  # offset in the file and length, in bytes

_ITEM, _END = 0xFFFEE000, 0xFFFEE0DD
_EOI = b"\xff\xd9"  # ends every JPEG, JPEG-LS and JPEG 2000 codestream
_STARTS = (b"\xff\xd8\xff", jpeg2000.START[:3])  # begin a codestream, and are nowhere inside of one
_TAIL = 10  # bytes at the end of a piece in which the end marker of a frame lies, with what pads it
_RLE_ROOM = 2**16  # bytes of padding that a frame may have; the code itself adds 1 byte to 128 at worst
_MAX_TILES = 2**16 - 1  # of JPEG 2000 (ISO/IEC 15444-1, table A.6)


def frames(
    stream: Bounded, pixels: PixelElement, count: int, extended: tuple[bytes, bytes] | None
) -> list[list[Piece]]:
    """Return the pieces of each of ``count`` frames. ``extended``: the extended offset table and its lengths.

    Raises:
        ImageError: the items do not fit the file, are too many, or are fewer than the frames.
    """
    table, pieces = _items(stream, pixels)
    if not pieces:
        raise ImageError(Reason.truncated)
    starts = [offset - pieces[0][0] for offset, _ in pieces]  # as offset tables count: from the first piece
    if extended and (found := _by_extended_table(extended, pieces, starts, count)):
        return found
    if len(table) == count and table == sorted(set(table)) and table[0] == 0 and set(table) <= set(starts):
        where = {offset: k for k, offset in enumerate(starts)}
        cuts = [where[offset] for offset in table]
        return [pieces[a:b] for a, b in zip(cuts, [*cuts[1:], len(pieces)], strict=True)]
    if len(pieces) == count:
        return [[piece] for piece in pieces]
    if count == 1:
        return [pieces]
    if len(pieces) < count:
        raise ImageError(Reason.truncated)
    starts = [index for index, (offset, _) in enumerate(pieces) if _at(stream, offset, 3) in _STARTS]
    if len(starts) == count and starts[0] == 0:
        return [pieces[a:b] for a, b in zip(starts, [*starts[1:], len(pieces)], strict=True)]
    return _by_end_marker(stream, pieces, count)


def read_frame(stream: Bounded, pieces: list[Piece]) -> bytes:
    """Join the pieces of one frame."""
    if sum(length for _, length in pieces) > MAX_ENCODED_BYTES:
        raise ImageError(Reason.too_large)
    return b"".join(_at(stream, offset, length) for offset, length in pieces)


def check_codestream(frame: bytes, syntax: str, shape: Shape) -> None:
    """Compare what a compressed frame says of itself with the header.

    Raises:
        ImageError: truncated (no end marker), or damaged (other rows, columns or samples, or more bits).
    """
    if syntax == RLELossless:
        _check_rle(frame, shape)
        return
    j2k = syntax in JPEG2000TransferSyntaxes
    if _EOI not in frame.rstrip(b"\0")[-_TAIL:] and not _ends(frame, j2k):
        raise ImageError(Reason.truncated)
    size_of = _j2k_size if j2k else _jpeg_size
    rows, columns, samples, bits = size_of(frame)
    if (rows, columns, samples) != (shape.rows, shape.columns, shape.samples) or bits > shape.bits_allocated:
        raise ImageError(Reason.damaged)


def rle_segments(frame: bytes) -> list[bytes]:
    """Cut a frame that `check_codestream` has passed into its segments."""
    count, *offsets = unpack("<16L", frame[:64])
    bounds = [*offsets[:count], len(frame)]
    return [frame[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]


def _ends(frame: bytes, j2k: bool) -> bool:
    """Whether a codestream comes to its end marker, whatever follows it."""
    try:
        if j2k:
            jpeg2000.end(frame)
        else:
            for _ in codestreams.segments(frame):
                pass
    except ImageError:
        return False
    return True


def _at(stream: Bounded, offset: int, length: int) -> bytes:
    stream.seek(offset)
    return stream.read(length)


def _items(stream: Bounded, pixels: PixelElement) -> tuple[list[int], list[Piece]]:
    """Walk the items: the basic offset table, and the pieces behind it."""
    found: list[Piece] = []
    position = pixels.offset
    while len(head := _at(stream, position, 8)) == 8:
        group, element, length = unpack("<HHL", head)
        if group << 16 | element == _END:
            break
        if group << 16 | element != _ITEM:
            raise ImageError(Reason.damaged)
        if position + 8 + length > stream.size:
            raise ImageError(Reason.truncated)
        found.append((position + 8, length))
        position += 8 + length
        if len(found) > MAX_FRAGMENTS:
            raise ImageError(Reason.too_large)
    if not found:
        raise ImageError(Reason.truncated)
    (offset, length), *pieces = found
    if length > 4 * MAX_FRAGMENTS:
        raise ImageError(Reason.too_large)
    return list(unpack(f"<{length // 4}L", _at(stream, offset, length // 4 * 4))), pieces


def _by_extended_table(
    extended: tuple[bytes, bytes], pieces: list[Piece], starts: list[int], count: int
) -> list[list[Piece]] | None:
    """PS3.3 C.7.6.3.1.8: one piece for each frame. None where the table does not fit: it is optional."""
    offsets, lengths = extended
    if len(offsets) != 8 * count or len(lengths) != 8 * count:
        return None
    where = {offset: piece for offset, piece in zip(starts, pieces, strict=True)}
    chosen = []
    for offset, length in zip(unpack(f"<{count}Q", offsets), unpack(f"<{count}Q", lengths), strict=True):
        start, room = where.get(offset, (0, -1))
        if length > room:
            return None
        chosen.append([(start, length)])
    return chosen


def _by_end_marker(stream: Bounded, pieces: list[Piece], count: int) -> list[list[Piece]]:
    """Several pieces for a frame and no table: a frame ends with the piece that has the end marker."""
    found: list[list[Piece]] = [[]]
    for offset, length in pieces:
        found[-1].append((offset, length))
        tail = min(length, _TAIL)
        if _EOI in _at(stream, offset + length - tail, tail):
            found.append([])
    found = [frame for frame in found if frame]
    if len(found) < count:
        raise ImageError(Reason.truncated)
    return found[:count]


def _j2k_size(frame: bytes) -> tuple[int, int, int, int]:
    """Rows, columns, components and bits of a JPEG 2000 codestream (SIZ, ISO/IEC 15444-1 A.5.1), also inside JP2."""
    start = frame.find(jpeg2000.START, 0, 4096)
    if start < 0 or len(frame) < start + 43:
        raise ImageError(Reason.damaged)
    x, y, left, top, tile_x, tile_y, tile_left, tile_top, components = unpack_from(">8LH", frame, start + 8)
    depths = frame[start + 42 : start + 42 + 3 * components : 3]
    if not tile_x or not tile_y or len(depths) < components:
        raise ImageError(Reason.damaged)
    if -(-(x - tile_left) // tile_x) * -(-(y - tile_top) // tile_y) > _MAX_TILES:
        raise ImageError(Reason.damaged)
    return y - top, x - left, components, max(depths, default=0) % 128 + 1


def _jpeg_size(frame: bytes) -> tuple[int, int, int, int]:
    """Rows, columns, components and bits of a JPEG or JPEG-LS codestream (ISO/IEC 10918-1 B.2.2)."""
    for marker, begin, end in codestreams.segments(frame):
        if marker in codestreams.SIZES and end >= begin + 6:
            bits, rows, columns, components = unpack_from(">BHHB", frame, begin)
            return rows, columns, components, bits
    raise ImageError(Reason.damaged)


def _check_rle(frame: bytes, shape: Shape) -> None:
    """One segment for each byte of a pixel, in order, all inside the frame (PS3.5 G.5), and not blown up."""
    if len(frame) < 64:
        raise ImageError(Reason.truncated)
    plain = shape.rows * shape.columns * shape.samples * shape.bits_allocated // 8
    if len(frame) > 2 * plain + _RLE_ROOM:
        raise ImageError(Reason.damaged)
    count, *offsets = unpack("<16L", frame[:64])
    if count != shape.samples * shape.bits_allocated // 8 or count > 15:
        raise ImageError(Reason.damaged)
    bounds = [*offsets[:count], len(frame)]
    if bounds[0] < 64 or bounds != sorted(set(bounds)):
        raise ImageError(Reason.damaged)
