"""Pixel data as they are stored, for a copy: every pixel as it is, and nothing else that a file may hold beside them.

What is left behind are comments and application data of compressed frames, bytes behind them, offset tables, padding,
surplus bytes, and the bits of a value that no pixel uses, where old files have overlays. A way of compression that is
not known so well is refused. What lies in the values of pixels, as text that is shown does, is not looked at here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from struct import pack

import numpy as np
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    JPEG2000TransferSyntaxes,
    RLELossless,
)
from rle.rle import decode_frame, encode_segment

from mpc_imaging.data import codestreams, deflated, encapsulated, jpeg2000
from mpc_imaging.data.claims import Shape, claims, low_unused_bits, native_bytes
from mpc_imaging.data.header import Header, PixelElement
from mpc_imaging.data.limits import MAX_WHOLE_PIXEL_BYTES
from mpc_imaging.data.refusals import ImageError, Reason

_JPEG_PREFIX = "1.2.840.10008.1.2.4."
_JPEG = frozenset(f"{_JPEG_PREFIX}{number}" for number in (*range(50, 67), 70, 80, 81))  # with the retired ones


@dataclass(frozen=True)
class Stored:
    """The value of the pixel element of a copy, and whether it is encapsulated."""

    value: bytes = field(repr=False)
    encapsulated: bool


def known_syntax(syntax: UID) -> bool:
    """Whether a file of this transfer syntax can be read and written."""
    return syntax == deflated.SYNTAX or (not syntax.is_private and syntax.is_transfer_syntax)


def clean(header: Header) -> Stored:
    """Read the pixel data of an open file without what is no pixel.

    Raises:
        ImageError: truncated or damaged; larger than the limits; hidden: there may be text that cannot be removed.
    """
    element = header.pixels
    if (element.length or header.stream.size - element.offset) > MAX_WHOLE_PIXEL_BYTES:
        raise ImageError(Reason.too_large)
    if header.syntax == deflated.SYNTAX:
        return Stored(_native(deflated.native(header)), False)
    if not header.syntax.is_encapsulated:
        return Stored(_native(header), False)
    strip = _stripper(header)
    frames = [strip(frame) for frame in _frames(header, element)]
    return Stored(encapsulate(frames), True)


def _stripper(header: Header) -> Callable[[bytes], bytes]:
    if header.syntax == RLELossless:
        shape = claims(header.elements)[1]
        return lambda frame: _clean_rle(frame, header.elements, shape)
    if header.syntax in JPEG2000TransferSyntaxes:
        return jpeg2000.stripped
    if header.syntax in _JPEG:
        return codestreams.stripped
    raise ImageError(Reason.hidden)  # video, whose streams have room for anything, JPEG XL


def _frames(header: Header, element: PixelElement) -> list[bytes]:
    count = int(header.elements.get("NumberOfFrames") or 1)
    found = encapsulated.frames(header.stream, element, count, None)
    return [encapsulated.read_frame(header.stream, pieces) for pieces in found]


def _native(header: Header) -> bytes:
    elements, element = header.elements, header.pixels
    count, shape = claims(elements)
    if element.length is None:
        raise ImageError(Reason.damaged)
    length = native_bytes(elements, count, shape)
    if min(element.length, header.stream.size - element.offset) < length:
        raise ImageError(Reason.truncated)
    header.stream.seek(element.offset)
    big = header.syntax == ExplicitVRBigEndian
    if big and shape.bits_allocated == 8 and element.vr == "OW" and length % 2:  # the last word is padding and a pixel
        content = header.stream.read(length + 1)
        return _used_bits(content[:-2] + b"\0" + content[-1:], elements, ">")
    content = header.stream.read(length)
    if shape.bits_allocated == 1 and not big:
        content = _without_last_bits(content, count * shape.rows * shape.columns * shape.samples)
    elif element.keyword == "PixelData":
        content = _used_bits(content, elements, ">" if big else "<")
    return content + b"\0" * (len(content) % 2)


def _without_last_bits(content: bytes, bits: int) -> bytes:
    """Clear what follows the last of ``bits`` single bits in its byte."""
    used = bits % 8
    return content[:-1] + bytes([content[-1] & (1 << used) - 1]) if used else content


def _used_bits(content: bytes, elements: Dataset, order: str) -> bytes:
    """Clear the bits of each value that no pixel uses; above those of a signed value its sign is repeated."""
    allocated, stored = int(elements.BitsAllocated), elements.get("BitsStored")
    if allocated not in (8, 16, 32, 64) or stored is None or not 0 < stored < allocated:
        return content
    below = low_unused_bits(elements)
    above = allocated - below - stored
    kind = "i" if elements.get("PixelRepresentation") == 1 else "u"
    values = np.frombuffer(content, f"{order}{kind}{allocated // 8}").astype(f"={kind}{allocated // 8}")
    values = (values << above) >> (above + below) << below
    return values.astype(f"{order}{kind}{allocated // 8}").tobytes()


def _clean_rle(frame: bytes, elements: Dataset, shape: Shape) -> bytes:
    """Write a frame anew, of segments that end with its last pixel. The order of segments is that of PS3.5 G.2."""
    encapsulated.check_codestream(frame, RLELossless, shape)
    size, width = shape.rows * shape.columns, shape.bits_allocated // 8
    try:
        content = bytes(decode_frame(frame, size, shape.bits_allocated, ">"))
    except ValueError:  # a segment goes on behind the last pixel
        planes = [_expanded(segment, size) for segment in encapsulated.rle_segments(frame)]
        content = np.frombuffer(b"".join(planes), np.uint8).reshape(-1, width, size).transpose(0, 2, 1).tobytes()
    content = _used_bits(content, elements, ">")
    values = np.frombuffer(content, np.uint8).reshape(shape.samples, size, width)
    planes = values.transpose(0, 2, 1).reshape(-1, size)  # the highest bytes of all values come first
    segments = [bytes(encode_segment(plane.tobytes(), shape.columns)) for plane in planes]
    offsets = [64 + sum(map(len, segments[:index])) for index in range(len(segments))]
    return pack("<16L", len(segments), *offsets, *[0] * (15 - len(segments))) + b"".join(segments)


def _expanded(segment: bytes, size: int) -> bytes:
    """The first ``size`` bytes of a segment of RLE (PS3.5 G.3). Raises ImageError (truncated) if it has fewer."""
    out, position = bytearray(), 0
    while len(out) < size:
        if position + 1 >= len(segment):
            raise ImageError(Reason.truncated)
        head = segment[position]
        if head < 128:
            out += segment[position + 1 : position + 2 + head]
            position += 2 + head
        elif head > 128:
            out += segment[position + 1 : position + 2] * (257 - head)
            position += 2
        else:  # says nothing
            position += 1
    return bytes(out[:size])
