"""Frames that are deflated one by one: Deflated Image Frame Compression (PS3.5), which pydicom 3.0 does not know."""

from __future__ import annotations

import zlib
from io import BytesIO

import numpy as np
from pydicom.uid import UID, ExplicitVRLittleEndian

from mpc_imaging.data import encapsulated
from mpc_imaging.data.claims import claims
from mpc_imaging.data.header import Header, PixelElement
from mpc_imaging.data.limits import MAX_INFLATED_BYTES, Bounded
from mpc_imaging.data.refusals import ImageError, Reason

SYNTAX = UID("1.2.840.10008.1.2.8.1")


def native(header: Header) -> Header:
    """Return the same file as it is without compression, with the inflated pixel data in memory.

    Each frame fills whole bytes; without compression single bits go on from frame to frame (PS3.5 8.1.1).

    Raises:
        ImageError: truncated, or larger than the limits.
    """
    element = header.pixels
    if element is None:
        raise ImageError(Reason.truncated)
    count, shape = claims(header.elements)
    size = -(-shape.bits // 8)
    if size * count > MAX_INFLATED_BYTES:
        raise ImageError(Reason.too_large)
    frames = []
    for pieces in encapsulated.frames(header.stream, element, count, None):
        packed = encapsulated.read_frame(header.stream, pieces)
        frames.append(zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size))
        if len(frames[-1]) < size:
            raise ImageError(Reason.truncated)
    whole = b"".join(frames)
    if shape.bits % 8:
        bits = np.unpackbits(np.frombuffer(whole, np.uint8).reshape(count, size), axis=1, bitorder="little")
        whole = np.packbits(bits[:, : shape.bits].reshape(-1), bitorder="little").tobytes()
    stream = Bounded(BytesIO(whole))
    stream.counting = False
    pixels = PixelElement(element.keyword, element.vr, 0, len(whole))
    return Header(header.elements, ExplicitVRLittleEndian, stream, pixels, header.complete)
