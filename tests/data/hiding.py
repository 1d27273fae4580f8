"""Text put into places of compressed frames that are not pixels: each function gives a frame that decodes as before."""

from __future__ import annotations

import csv
import io
import zlib
from pathlib import Path
from struct import pack, unpack_from

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless

from mpc_imaging.deidentify import main
from tests.data.builders import make_encapsulated, shipped

TEXT = b"Zyxwv^Anna 0815 "
EXIF = b"Exif\0\0II*\0" + TEXT
SIZE = (64, 64)
STUDY = {"StudyInstanceUID": "1.2.3", "BurnedInAnnotation": "NO"}
_ENCODINGS = ("ascii", "utf-16-le", "utf-16-be")


def copied(path: Path, *options: str) -> tuple[Path | None, str]:
    """The copy of one file, or why there is none."""
    source, out, listing = path.parent / "in", path.parent / "out", path.parent / "list.csv"
    source.mkdir()
    path.rename(source / path.name)
    main([str(source), str(out), "--list", str(listing), *options])
    with listing.open() as file:
        (row,) = csv.DictReader(file)
    return (out / row["became"] if row["became"] else None), row["refused"]


def has_text(copy: Path) -> bool:
    """Whether the text begins anywhere in a file, in any order of bytes; a deflated file is inflated first."""
    content = copy.read_bytes()
    if dcmread(copy).file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        start = 144 + int.from_bytes(content[140:144], "little")
        content += zlib.decompressobj(-zlib.MAX_WBITS).decompress(content[start:])
    swapped = np.frombuffer(content[: len(content) // 2 * 2], "<u2").byteswap().tobytes()
    found = ["zyxw".encode(code) for code in _ENCODINGS]
    return any(one in where.lower() for one in found for where in (content, swapped))


def picture(colour: bool = False) -> np.ndarray:
    """A picture with an even part and an uneven one."""
    values = np.random.default_rng(5).integers(0, 256, (*SIZE, 3) if colour else SIZE, dtype=np.uint8)
    values[:40] = 90
    return values


def jpeg(colour: bool = False, progressive: bool = False) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture(colour)).save(out, "JPEG", quality=90, progressive=progressive)
    return out.getvalue()


def jpeg_ls() -> bytes:
    dataset = dcmread(shipped("MR_small_jpeg_ls_lossless.dcm"))
    return next(generate_frames(dataset.PixelData, number_of_frames=1))


def lossless() -> bytes:
    dataset = dcmread(shipped("SC_rgb_jpeg_gdcm.dcm"))
    return next(generate_frames(dataset.PixelData, number_of_frames=1))


def j2k(colour: bool = False) -> bytes:
    from openjpeg.utils import encode_array

    return encode_array(picture(colour), photometric_interpretation=1 if colour else 2, use_mct=colour)


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + pack(">H", len(content) + 2) + content


def after_start(frame: bytes, *parts: bytes) -> bytes:
    return frame[:2] + b"".join(parts) + frame[2:]


def before(frame: bytes, marker: int, part: bytes, last: bool = False) -> bytes:
    """Before a marker that is nowhere else in the frame, or that is there more than once."""
    at = (frame.rindex if last else frame.index)(bytes((0xFF, marker)))
    return frame[:at] + part + frame[at:]


def lengthened(frame: bytes, marker: int, more: bytes) -> bytes:
    """With text at the end of the first segment of a kind."""
    at = frame.index(bytes((0xFF, marker)))
    length = unpack_from(">H", frame, at + 2)[0]
    stop = at + 2 + length
    return frame[: at + 2] + pack(">H", length + len(more)) + frame[at + 4 : stop] + more + frame[stop:]


def in_tile_header(frame: bytes, part: bytes) -> bytes:
    """In the header of the first tile part, whose length then is another."""
    sot, sod = frame.index(b"\xff\x90"), frame.index(b"\xff\x93")
    length = unpack_from(">L", frame, sot + 6)[0]
    head = frame[sot : sot + 6] + pack(">L", length + len(part)) + frame[sot + 10 : sod]
    return frame[:sot] + head + part + frame[sod:]


def after_siz(frame: bytes, part: bytes) -> bytes:
    stop = 4 + unpack_from(">H", frame, 4)[0]
    return frame[:stop] + part + frame[stop:]


def boxed(frame: bytes) -> bytes:
    """A JP2 file with text in a box of its own, around the codestream."""

    def box(kind: bytes, content: bytes) -> bytes:
        return pack(">L4s", len(content) + 8, kind) + content

    rows, columns = SIZE
    header = box(b"ihdr", pack(">LLHBBBB", rows, columns, 1, 7, 7, 0, 0)) + box(b"colr", b"\1\0\0\0\0\0\x11")
    start = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + box(b"jp2h", header)
    return start + box(b"uuid", bytes(16) + TEXT) + box(b"xml ", TEXT) + box(b"jp2c", frame) + box(b"xml ", TEXT)


def runs(plane: bytes, more: bytes = b"") -> bytes:
    """A segment of RLE in literal runs, of which the last goes beyond the plane by ``more``."""
    parts = [plane[at : at + 64] for at in range(0, len(plane), 64)]
    parts[-1] += more
    return b"".join(bytes([len(part) - 1]) + part for part in parts)


def rle(*segments: bytes, heading: bytes = b"") -> bytes:
    """A frame of RLE; ``heading`` lies in the part of its head that lists no segment."""
    offsets = [64 + sum(map(len, segments[:index])) for index in range(len(segments))]
    return (
        pack(f"<{len(segments) + 1}L", len(segments), *offsets)
        + heading.ljust(60 - 4 * len(segments), b"\0")
        + b"".join(segments)
    )


def deflated(content: bytes) -> bytes:
    pack_ = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return pack_.compress(content) + pack_.flush()


def write_deflated_frames(path: Path, frames: list[bytes], shape: tuple[int, int], bits: int) -> Path:
    """A file of Deflated Image Frame Compression, which pydicom 3.0 does not write."""
    elements = {"StudyInstanceUID": "1.2.3", "BurnedInAnnotation": "NO", "NumberOfFrames": len(frames)}
    elements |= {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1, "PixelData": encapsulate(frames)}
    make_encapsulated(path, frames, JPEG2000Lossless, shape, 8, **elements)
    content, name = path.read_bytes(), JPEG2000Lossless.encode()
    assert content.count(name) == 1
    path.write_bytes(content.replace(name, b"1.2.840.10008.1.2.8.1".ljust(len(name), b"\0")))
    return path
