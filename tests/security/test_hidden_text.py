"""Text put into every place of a DICOM file that is no pixel is in no copy: it is removed, or the file is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from struct import pack

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import (
    HEVCMP51,
    MPEG2MPML,
    MPEG4HP41,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
)

from mpc_imaging.data.refusals import Reason
from tests.data import hiding
from tests.data.builders import make_dicom, make_encapsulated, random_pixels, shipped
from tests.data.hiding import EXIF, SIZE, STUDY, TEXT, copied, has_text

needs_decoders = pytest.mark.skipif(
    not get_decoder(JPEGLSLossless).is_available, reason="the plug-in pylibjpeg-libjpeg is not installed"
)


def compressed(path: Path, frame: bytes | list[bytes], syntax: UID, colour: bool = False, **elements: object) -> Path:
    more = {"SamplesPerPixel": 3, "PlanarConfiguration": 0} if colour else {}
    if colour:
        more["PhotometricInterpretation"] = "YBR_FULL_422" if syntax == JPEGBaseline8Bit else "YBR_RCT"
    frames = [frame] if isinstance(frame, bytes) else frame
    return make_encapsulated(path, frames, syntax, SIZE, 8, **STUDY, **more, **elements)


JPEG_PLACES: dict[str, Callable[[bytes], bytes]] = {
    "comment": lambda frame: hiding.after_start(frame, hiding.segment(0xFE, TEXT)),
    "exif": lambda frame: hiding.after_start(frame, hiding.segment(0xE1, EXIF)),
    "thumbnail": lambda frame: hiding.after_start(
        frame, hiding.segment(0xE0, b"JFIF\0\1\2\0\0\1\0\1\4\1" + TEXT[:12]), hiding.segment(0xE0, b"JFXX\0\x10" + TEXT)
    ),
    "behind adobe": lambda frame: hiding.after_start(
        frame, hiding.segment(0xEE, b"Adobe\0\x64\0\0\0\0\1" + TEXT), hiding.segment(0xEE, TEXT)
    ),
    "each application segment": lambda frame: hiding.after_start(
        frame, *(hiding.segment(marker, TEXT) for marker in range(0xE1, 0xEE))
    ),
    "before a scan": lambda frame: hiding.before(frame, 0xDA, hiding.segment(0xFE, TEXT), last=True),
    "before the end": lambda frame: hiding.before(frame, 0xD9, hiding.segment(0xEB, TEXT), last=True),
    "behind the end": lambda frame: frame + TEXT,
    "a second image": lambda frame: frame + hiding.after_start(frame, hiding.segment(0xFE, TEXT)),
}


@pytest.mark.parametrize("kind", ["grey", "colour", "progressive"])
@pytest.mark.parametrize("place", JPEG_PLACES)
def test_jpeg(tmp_path: Path, place: str, kind: str) -> None:
    """The copy is the frame without the text, byte for byte: nothing is encoded anew."""
    colour, progressive = kind != "grey", kind == "progressive"
    frame = hiding.jpeg(colour, progressive)
    planted = JPEG_PLACES[place](frame)
    assert TEXT[:12] in planted
    syntax = JPEGExtended12Bit if progressive else JPEGBaseline8Bit
    copy, why = copied(compressed(tmp_path / "a.dcm", planted, syntax, colour))
    assert copy is not None, why
    assert not has_text(copy)
    dataset, plain = dcmread(copy), dcmread(compressed(tmp_path / "b.dcm", frame, syntax, colour))
    scans = frame[frame.index(b"\xff\xdb") :]
    assert scans in dataset.PixelData
    if not progressive:
        np.testing.assert_array_equal(dataset.pixel_array, plain.pixel_array)


@pytest.mark.parametrize("marker", [0xDB, 0xC4, 0xC0, 0xDA])
def test_jpeg_segments_that_are_longer_than_what_they_hold(tmp_path: Path, marker: int) -> None:
    frame = hiding.lengthened(hiding.jpeg(), marker, TEXT)
    assert copied(compressed(tmp_path / "a.dcm", frame, JPEGBaseline8Bit)) == (None, Reason.hidden.value)


@pytest.mark.parametrize("last", [False, True])
def test_text_that_is_appended_to_coded_data_is_refused(tmp_path: Path, last: bool) -> None:
    """Decoders skip it up to the next marker: of the end, of another scan, of a restart."""
    if last:
        frame, syntax = hiding.before(hiding.jpeg(), 0xD9, TEXT, last=True), JPEGBaseline8Bit
    else:
        frame, syntax = hiding.before(hiding.jpeg(progressive=True), 0xDA, b"", last=True), JPEGExtended12Bit
        second = frame.rindex(b"\xff\xc4")
        frame = frame[:second] + TEXT + frame[second:]
    assert copied(compressed(tmp_path / "a.dcm", frame, syntax)) == (None, Reason.hidden.value)


def test_text_behind_the_packets_of_a_tile_is_refused(tmp_path: Path) -> None:
    frame = hiding.in_tile_header(hiding.j2k(), b"")
    sot = frame.index(b"\xff\x90")
    length = int.from_bytes(frame[sot + 6 : sot + 10]) + len(TEXT)
    frame = frame[: sot + 6] + length.to_bytes(4) + frame[sot + 10 : -2] + TEXT + frame[-2:]
    assert copied(compressed(tmp_path / "a.dcm", frame, JPEG2000Lossless)) == (None, Reason.hidden.value)


@needs_decoders
@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_jls_lossy_line.dcm"])
@pytest.mark.parametrize("place", ["comment", "each application segment", "behind the end"])
def test_jpeg_ls_and_lossless_jpeg(tmp_path: Path, name: str, place: str) -> None:
    from pydicom.encaps import generate_frames

    dataset = dcmread(shipped(name))
    before = dataset.pixel_array
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    dataset.PixelData = encapsulate([JPEG_PLACES[place](frame)])
    dataset.StudyInstanceUID, dataset.BurnedInAnnotation = "1.2.3", "NO"
    dataset.save_as(tmp_path / "a.dcm")
    copy, why = copied(tmp_path / "a.dcm")
    assert copy is not None, why
    assert not has_text(copy)
    np.testing.assert_array_equal(dcmread(copy).pixel_array, before)


def test_what_jpeg_ls_says_of_colours_stays(tmp_path: Path) -> None:
    """HP's transform, as CharLS reads it: without it the colours would be others. Text cannot stand in for it."""
    from mpc_imaging.data.codestreams import stripped
    from mpc_imaging.data.refusals import ImageError

    frame = hiding.jpeg_ls()
    transformed = hiding.after_start(frame, hiding.segment(0xE8, b"mrfx\1"))
    assert stripped(transformed) == transformed and stripped(frame) == frame
    assert stripped(hiding.after_start(frame, hiding.segment(0xE8, b"mrfx\1" + TEXT))) == frame
    with pytest.raises(ImageError, match="text may hide"):
        stripped(hiding.after_start(frame, hiding.segment(0xF8, b"\2" + TEXT)))


J2K_PLACES: dict[str, Callable[[bytes], bytes]] = {
    "comment": lambda frame: hiding.after_siz(frame, hiding.segment(0x64, b"\0\1" + TEXT)),
    "registration": lambda frame: hiding.after_siz(frame, hiding.segment(0x63, TEXT[:4])),
    "lengths of tile parts": lambda frame: hiding.after_siz(frame, hiding.segment(0x55, b"\0\x60" + TEXT[:12])),
    "lengths of packets": lambda frame: hiding.after_siz(frame, hiding.segment(0x57, b"\0" + TEXT)),
    "comment of a tile": lambda frame: hiding.in_tile_header(frame, hiding.segment(0x64, b"\0\1" + TEXT)),
    "packets of a tile": lambda frame: hiding.in_tile_header(frame, hiding.segment(0x58, b"\0" + TEXT)),
    "behind the end": lambda frame: frame + TEXT,
    "boxes": hiding.boxed,
}


@pytest.mark.parametrize("place", J2K_PLACES)
def test_jpeg_2000(tmp_path: Path, place: str) -> None:
    frame = hiding.j2k()
    planted = J2K_PLACES[place](frame)
    assert TEXT[:4] in planted
    copy, why = copied(compressed(tmp_path / "a.dcm", planted, JPEG2000Lossless))
    assert copy is not None, why
    assert not has_text(copy)
    assert frame[frame.index(b"\xff\x93") :] in dcmread(copy).PixelData  # all packets
    np.testing.assert_array_equal(dcmread(copy).pixel_array, hiding.picture())


def test_lists_of_the_lengths_of_tile_parts_are_right_where_comments_went(tmp_path: Path) -> None:
    """HTJ2K with RPCL must have one."""
    from mpc_imaging.data.jpeg2000 import stripped

    planted = hiding.in_tile_header(hiding.j2k(), hiding.segment(0x64, b"\0\1" + TEXT))
    frame = stripped(hiding.after_siz(planted, hiding.segment(0x55, b"\0\x60" + bytes(6))))
    tile = frame.index(b"\xff\x90")
    expected = b"\xff\x55\0\x0a\0\x60\0\0" + pack(">L", len(frame) - 2 - tile)
    assert expected in frame[:tile] and stripped(frame) == frame


@pytest.mark.parametrize("marker", [0x51, 0x52, 0x5C])
def test_jpeg_2000_segments_that_are_longer_than_what_they_hold(tmp_path: Path, marker: int) -> None:
    frame = hiding.lengthened(hiding.j2k(), marker, TEXT)
    assert copied(compressed(tmp_path / "a.dcm", frame, JPEG2000Lossless)) == (None, Reason.hidden.value)


@pytest.mark.parametrize(
    "frame",
    [
        hiding.after_siz(hiding.j2k(), hiding.segment(0x74, TEXT)),  # of part 2 of the standard
        hiding.before(hiding.j2k(), 0xD9, TEXT, last=True),
        hiding.boxed(hiding.j2k()).replace(b"colr", b"pclr"),
    ],
)
def test_jpeg_2000_with_what_is_not_known_is_refused(tmp_path: Path, frame: bytes) -> None:
    assert copied(compressed(tmp_path / "a.dcm", frame, JPEG2000Lossless)) == (None, Reason.hidden.value)


@pytest.mark.parametrize("syntax", [MPEG2MPML, MPEG4HP41, HEVCMP51], ids=["MPEG-2", "H.264", "HEVC"])
def test_what_cannot_be_searched_is_refused(tmp_path: Path, syntax: UID) -> None:
    path = make_encapsulated(tmp_path / "a.dcm", [b"\0\0\0\1\6" + TEXT], syntax, SIZE, 8, **STUDY)
    copy, why = copied(path)
    assert copy is None and why == Reason.hidden.value


def test_rle(tmp_path: Path) -> None:
    """In the head, behind a segment, between two of them, and in a run that goes on behind the last pixel."""
    frame = np.random.default_rng(1).integers(0, 2**12, SIZE, dtype=np.uint16)
    planes = [(frame >> 8).astype(np.uint8).tobytes(), (frame & 255).astype(np.uint8).tobytes()]
    planted = hiding.rle(hiding.runs(planes[0], TEXT) + TEXT, hiding.runs(planes[1], TEXT) + TEXT, heading=TEXT * 3)
    path = make_encapsulated(tmp_path / "a.dcm", [planted], RLELossless, SIZE, 16, **STUDY, BitsStored=12, HighBit=11)
    copy, why = copied(path)
    assert copy is not None, why
    assert not has_text(copy)
    np.testing.assert_array_equal(dcmread(copy).pixel_array, frame)


def test_rle_bits_that_no_pixel_uses(tmp_path: Path) -> None:
    """Twelve bits of sixteen, with text in the other four: a letter takes two values."""
    frame = np.random.default_rng(1).integers(0, 2**12, SIZE, dtype=np.uint16)
    nibbles = [half for letter in TEXT * 100 for half in (letter >> 4, letter & 15)]
    hidden = frame.copy()
    hidden.reshape(-1)[: len(nibbles)] |= np.array(nibbles, np.uint16) << 12
    planes = [(hidden >> 8).astype(np.uint8).tobytes(), (hidden & 255).astype(np.uint8).tobytes()]
    planted = hiding.rle(*map(hiding.runs, planes))
    elements = STUDY | {"BitsStored": 12, "HighBit": 11}
    copy, why = copied(make_encapsulated(tmp_path / "a.dcm", [planted], RLELossless, SIZE, 16, **elements))
    assert copy is not None, why
    copy = dcmread(copy)
    copy.BitsStored, copy.HighBit = 16, 15
    np.testing.assert_array_equal(copy.pixel_array, frame)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("low", [0, 4])
@pytest.mark.parametrize("big", [False, True])
def test_bits_that_no_pixel_uses(tmp_path: Path, signed: bool, low: int, big: bool) -> None:
    """Pixels are the same to whoever reads them as the header says, and the other bits are gone."""
    values = np.random.default_rng(2).integers(-(2**11) * signed, 2 ** (12 - signed), SIZE).astype(np.int32)
    used = (values & 0xFFF) << low
    hidden = (used | (np.arange(values.size).reshape(SIZE) % 16 << (0 if low else 12))).astype(np.uint16)
    elements = STUDY | {"BitsStored": 12, "HighBit": 11 + low, "PixelRepresentation": int(signed)}
    path = make_dicom(tmp_path / "a.dcm", hidden, 16, **elements)
    if big:
        as_big_endian(path)
    copy, why = copied(path)
    assert copy is not None, why
    found = np.frombuffer(dcmread(copy).PixelData, ">u2" if big else "<u2").reshape(SIZE).astype(np.int32)
    expected = (values << low) & 0xFFFF if signed else used
    np.testing.assert_array_equal(found, expected)


def as_big_endian(path: Path) -> None:
    dataset = dcmread(path)
    dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    turned = Dataset()
    turned.update({element.tag: element for element in dataset})  # each read, since pydicom turns no bytes
    turned.file_meta = dataset.file_meta
    turned.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    turned.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, None])
def test_bytes_behind_the_pixels_and_in_padding(tmp_path: Path, syntax: UID | None) -> None:
    """In the pixel element, behind it, in elements of padding, in the preamble and in the meta header."""
    pixels = random_pixels(3, (13, 9))
    path = make_dicom(tmp_path / "a.dcm", pixels, 12, **STUDY)
    if syntax == ExplicitVRBigEndian:
        as_big_endian(path)
    dataset = dcmread(path)
    dataset.PixelData += TEXT
    dataset.add_new(0x7FE11010, "OB", TEXT)
    dataset.add_new(0xFFFCFFFC, "OB", TEXT)
    dataset.preamble = TEXT * 8
    dataset.file_meta.SourceApplicationEntityTitle = TEXT.decode()
    dataset.file_meta.ImplementationVersionName = TEXT.decode()
    dataset.file_meta.PrivateInformationCreatorUID, dataset.file_meta.PrivateInformation = "1.2.3", TEXT
    if syntax in (ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian):
        dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, enforce_file_format=True)
    path.write_bytes(path.read_bytes() + TEXT)
    copy, why = copied(path)
    assert copy is not None, why
    assert not has_text(copy)
    np.testing.assert_array_equal(dcmread(copy).pixel_array, pixels)


def test_single_bits_and_floats(tmp_path: Path) -> None:
    bits = np.random.default_rng(1).integers(0, 2, (3, 5, 5), dtype=np.uint8)
    packed = np.packbits(bits.reshape(-1), bitorder="little")
    packed[-1] |= 0xF0  # 75 bits are used
    elements = STUDY | {"NumberOfFrames": 3, "BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}
    path = make_dicom(tmp_path / "a.dcm", bits[0], 1, **elements, PixelData=packed.tobytes() + TEXT)
    copy, why = copied(path)
    assert copy is not None, why
    assert not has_text(copy)
    expected = np.packbits(bits.reshape(-1), bitorder="little").tobytes()
    assert dcmread(copy).PixelData == expected


@pytest.mark.parametrize("size", [(5, 5), (8, 8)])
def test_frames_that_are_deflated_one_by_one(tmp_path: Path, size: tuple[int, int]) -> None:
    """pydicom does not know them; they were refused without a reason. Text lies behind each of them."""
    bits = np.random.default_rng(1).integers(0, 2, (3, *size), dtype=np.uint8)
    frames = [hiding.deflated(np.packbits(frame.reshape(-1), bitorder="little").tobytes()) + TEXT for frame in bits]
    path = hiding.write_deflated_frames(tmp_path / "a.dcm", frames, size, bits=1)
    copy, why = copied(path)
    assert copy is not None, why
    assert not has_text(copy)
    np.testing.assert_array_equal(dcmread(copy).pixel_array, bits)


def test_a_transfer_syntax_that_nobody_knows_is_refused_with_a_reason(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "a.dcm", random_pixels(1), **STUDY)
    content = path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0")
    path.write_bytes(content)
    assert copied(path) == (None, Reason.unknown_syntax.value)


def test_tables_of_offsets_and_pieces_between_frames(tmp_path: Path) -> None:
    frames = [hiding.jpeg(), hiding.jpeg() + TEXT]
    item = b"\xfe\xff\x00\xe0"
    table = item + pack("<L", 16) + TEXT
    pieces = [frames[0], TEXT, b"", frames[1] + b"\0" * (len(frames[1]) % 2), TEXT]
    value = table + b"".join(item + pack("<L", len(piece)) + piece for piece in pieces)
    path = compressed(tmp_path / "a.dcm", frames, JPEGBaseline8Bit, PixelData=value)
    dataset = dcmread(path)
    dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = TEXT, TEXT
    dataset.save_as(path)
    copy, why = copied(path)
    assert copy is not None, why
    assert not has_text(copy) and "ExtendedOffsetTable" not in dcmread(copy)
    assert dcmread(copy).pixel_array.shape == (2, *SIZE)
