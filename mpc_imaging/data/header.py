"""Open one DICOM file: the few header elements that are needed, and where its pixel data lie.

Only the named elements are kept: names, dates and identifiers of the patient are skipped, except those inside a
sequence that is named, which pydicom parses whole.
"""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from struct import unpack
from typing import BinaryIO

from pydicom import Dataset, dcmread
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from mpc_imaging.data.limits import MAX_HEADER_BYTES, MAX_INFLATED_BYTES, MAX_WHOLE_HEADER_BYTES, Bounded
from mpc_imaging.data.refusals import ImageError, Reason

PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_LONG_VRS = (b"OB", b"OW", b"OF", b"OD", b"UN")
_UNDEFINED = 0xFFFFFFFF
_PREAMBLE = 128
_CHUNK = 2**20

# The decoders' messages quote header values, and a log must not: neither the party's nor Python's last resort, stderr.
for _name in ("pydicom", "pylibjpeg", "libjpeg", "openjpeg", "rle"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)
    logging.getLogger(_name).propagate = False


@dataclass(frozen=True)
class PixelElement:
    """Where the pixel data lie in ``stream``: ``length`` is in bytes, None where the file leaves it undefined."""

    keyword: str
    vr: str
    offset: int
    length: int | None


@dataclass(frozen=True, repr=False)
class Header:
    """What is kept of one file; ``pixels`` is None where it has no pixel data."""

    elements: Dataset
    syntax: UID | None
    stream: Bounded
    pixels: PixelElement | None
    complete: bool  # False where the file ends within an element before its pixel data


@contextmanager
def open_header(path: Path, keywords: Iterable[str] | None) -> Iterator[Header]:
    """Read the elements ``keywords`` of a file, which stays open within the block; None: all before its pixel data.

    Raises:
        ImageError: the file is missing, unreadable, not DICOM, damaged, or its header is larger than the limits.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise ImageError(Reason.missing) from None
    except OSError:
        raise ImageError(Reason.unreadable) from None
    with file:
        with refusing():
            header = _parse(file, None if keywords is None else list(keywords))
        yield header


@contextmanager
def refusing() -> Iterator[None]:
    """Turn whatever pydicom and its plug-ins raise on damaged input into a reason.

    Their errors and warnings may quote the header: both are dropped.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (ImageError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException:  # a panic of pylibjpeg-rle, in Rust, is no Exception
            raise ImageError(Reason.damaged) from None


def _parse(file: BinaryIO, keywords: list[str] | None) -> Header:
    limit = MAX_WHOLE_HEADER_BYTES if keywords is None else MAX_HEADER_BYTES
    stream = Bounded(file, limit)
    start = stream.read(_PREAMBLE + 4)
    prefixed = start[_PREAMBLE:] == b"DICM"
    if not prefixed and not _looks_like_dicom(start):
        raise ImageError(Reason.not_dicom)
    try:
        meta = _file_meta(stream, _PREAMBLE + 4 if prefixed else 0)
        syntax = meta.get("TransferSyntaxUID")
        if syntax == DeflatedExplicitVRLittleEndian:
            stream = Bounded(_inflate(stream), limit)
        else:
            stream.seek(0)
        stream.cut = False
        elements = dcmread(stream, stop_before_pixels=True, force=True, specific_tags=keywords)
        complete = not stream.cut
        if syntax == DeflatedExplicitVRLittleEndian:
            elements.file_meta, syntax = meta, ExplicitVRLittleEndian
        syntax = syntax or _guess(elements)
        pixels = _pixel_element(stream, syntax)
    finally:
        stream.counting = False
        if stream.exceeded:
            raise ImageError(Reason.too_large) from None
    return Header(elements, syntax, stream, pixels, complete)


def _looks_like_dicom(start: bytes) -> bool:
    """Tell a data set without preamble by its first element: of group 0002 or 0008, in one of the byte orders."""
    if len(start) < 8:
        return False
    (little,), (big,) = unpack("<H", start[:2]), unpack(">H", start[:2])
    if not {little, big} & {0x0002, 0x0008}:
        return False
    order = "<" if little in (0x0002, 0x0008) else ">"
    (element, length) = unpack(f"{order}2xHL", start[:8])
    return element < 0x2000 and (start[4:6].isupper() or length < 2**16)


def _file_meta(stream: Bounded, offset: int) -> Dataset:
    """Read group 0002, and stop behind it."""
    stream.seek(offset)
    return read_dataset(
        stream, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, vr, length: tag >> 16 != 2
    )


def _inflate(stream: Bounded) -> BytesIO:
    """Inflate the rest of a file (PS3.5 A.5), piece by piece up to the limit."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    stream.counting = False
    out = BytesIO()
    while not inflate.eof and (data := inflate.unconsumed_tail or stream.read(_CHUNK)):
        out.write(inflate.decompress(data, _CHUNK))
        if out.tell() > MAX_INFLATED_BYTES:
            raise ImageError(Reason.too_large)
    if not inflate.eof:
        raise ImageError(Reason.truncated)
    return out


def _guess(elements: Dataset) -> UID:
    """Name the encoding that pydicom found in a file that does not name it."""
    implicit, little = elements.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _pixel_element(stream: Bounded, syntax: UID) -> PixelElement | None:
    """Read the head of the element that pydicom stopped before. Its VR is there or not, whatever the syntax says."""
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    head = stream.read(12)
    if len(head) < 8:
        return None
    group, element = unpack(f"{order}HH", head[:4])
    keyword = PIXELS.get(group << 16 | element)
    if keyword is None:
        return None
    explicit = head[4:6] in _LONG_VRS
    if explicit and len(head) < 12:
        return None
    (length,) = unpack(f"{order}L", head[8:12] if explicit else head[4:8])
    if not explicit:
        stream.seek(stream.tell() - len(head) + 8)
    vr = head[4:6].decode() if explicit else "OW"
    return PixelElement(keyword, vr, stream.tell(), None if length == _UNDEFINED else length)
