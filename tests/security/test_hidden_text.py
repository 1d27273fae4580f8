"""Text put into every place of a DICOM file that is no pixel is in no copy: it is removed, or the file is refused."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Callable
from pathlib import Path
from struct import pack

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.datadict import DicomDictionary, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.sequence import Sequence
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
from mpc_imaging.deidentify import main
from tests.data import hiding
from tests.data.builders import make_dicom, make_encapsulated, random_pixels, shipped
from tests.data.hiding import EXIF, SIZE, TEXT

STUDY = {"StudyInstanceUID": "1.2.3", "BurnedInAnnotation": "NO"}
_ENCODINGS = ("ascii", "utf-16-le", "utf-16-be")

needs_decoders = pytest.mark.skipif(
    not get_decoder(JPEGLSLossless).is_available, reason="the plug-in pylibjpeg-libjpeg is not installed"
)


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


def attributes() -> list[tuple[int, str, str]]:
    """Every attribute of the standard that can hold text, with each VR that it may have."""
    return [
        (tag, vr, keyword)
        for tag, (vrs, _, _, retired, keyword) in DicomDictionary.items()
        for vr in vrs.split(" or ")
        if vr in ("LO", "SH", "CS", "LT", "ST", "UT", "UC", "UR", "PN", "AE", "OB", "OW", "OF", "OD", "OL", "OV", "UN")
        and tag >> 16 not in (0, 2, 4, 0x7FE0)
        and keyword not in _NOT_PLANTED
    ]


# What makes the file what it is, and what the copy says of itself.
_NOT_PLANTED = ("SpecificCharacterSet", "Modality", "PhotometricInterpretation", "BurnedInAnnotation", "ImageType")


_FULL = ("ReferencedImageSequence", "SharedFunctionalGroupsSequence", "SegmentSequence", "ModalityLUTSequence")


def planted(vr: str) -> object:
    if vr in ("OB", "OW", "OF", "OD", "OL", "OV", "UN"):
        return TEXT * 2
    return "ZYXWV" if vr == "CS" else "Zyxwv Anna"


def item() -> Dataset:
    """Everything at once, where a sequence can have it."""
    found = Dataset()
    for tag, vr, _ in attributes():
        found.add(DataElement(tag, vr, planted(vr), validation_mode=0))
    found.add_new(0x00990010, "LO", "Zyxwv")
    found.add_new(0x00991001, "UT", "Zyxwv")
    found.PixelData = TEXT
    found["PixelData"].VR = "OB"
    return found


@pytest.mark.parametrize("syntax", ["explicit", "implicit"])
def test_every_attribute_of_the_standard(tmp_path: Path, syntax: str) -> None:
    """At the top, in every sequence of the standard, and in one of codes."""
    path = make_dicom(tmp_path / "a.dcm", random_pixels(1), **STUDY)
    dataset = dcmread(path)
    nested = item()
    for tag, vr, keyword in attributes():
        if keyword not in dataset:
            dataset.add(DataElement(tag, vr, planted(vr), validation_mode=0))
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if vr == "SQ" and tag >> 16 > 4 and keyword != "DirectoryRecordSequence" and tag not in dataset:
            dataset.add_new(tag, "SQ", Sequence([nested] if keyword in _FULL else [code(), named()]))
    if syntax == "implicit":
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    copy, why = copied(path)
    assert copy is not None, why
    found = [(element.keyword, str(element.value)[:60]) for element in dcmread(copy) if "zyx" in str(element).lower()]
    assert not found and not has_text(copy)
    np.testing.assert_array_equal(dcmread(copy).pixel_array, random_pixels(1))


def code(value: str = "Zyxwv", scheme: str = "99ANNA", meaning: str = "Zyxwv Anna") -> Dataset:
    found = Dataset()
    found.CodeValue, found.CodingSchemeDesignator, found.CodeMeaning = value, scheme, meaning
    found.CodingSchemeVersion = "Zyxwv"
    return found


def named() -> Dataset:
    found = Dataset()
    for keyword in ("LUTExplanation", "SequenceName", "ContentDescription", "StackID", "RescaleType", "SegmentLabel"):
        setattr(found, keyword, "Zyxwv")
    return found


def test_codes_get_the_meaning_that_is_known_and_unknown_ones_go(tmp_path: Path) -> None:
    region = code("816094009", "SCT", "Zyxwv")
    region.AnatomicRegionModifierSequence = Sequence([code("7771000", "SCT", "Zyxwv"), code()])
    path = make_dicom(
        tmp_path / "a.dcm",
        random_pixels(1),
        **STUDY,
        AnatomicRegionSequence=Sequence([region, code()]),
        ViewCodeSequence=Sequence([code("T-D3000", "SRT", "Zyxwv")]),
        PrimaryAnatomicStructureSequence=Sequence([code()]),
    )
    copy, why = copied(path)
    assert copy is not None, why
    dataset = dcmread(copy)
    (kept,) = dataset.AnatomicRegionSequence
    (side,) = kept.AnatomicRegionModifierSequence
    assert (kept.CodeMeaning, side.CodeMeaning) == ("Thorax", "Left")
    (view,) = dataset.ViewCodeSequence
    assert (view.CodeValue, view.CodingSchemeDesignator) == ("T-D3000", "SRT") and view.CodeMeaning != "Zyxwv"
    assert "PrimaryAnatomicStructureSequence" not in dataset and not has_text(copy)


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("Rows", "LO", "Zyxwv Anna"),  # no numbers
        ("SamplesPerPixel", "LO", "Zyxwv Anna"),
        ("KVP", "LO", "Zyxwv Anna"),
        ("SmallestImagePixelValue", "US", list(np.frombuffer(TEXT, "<u2"))),  # more numbers than there can be
        ("LargestImagePixelValue", "SS", list(np.frombuffer(TEXT, "<i2"))),
        ("WindowCenter", "LT", "Zyxwv Anna"),
        ("SOPClassUID", "UI", "1.2.840.10008.Zyxwv.Anna"),
        ("ImageType", "CS", ["ORIGINAL", "PRIMARY", "ZYXWV"]),
        ("ImageType", "CS", ["ORIGINAL", "PRIMARY", "AXIAL", "Zyxwv, Anna"]),
        ("BodyPartExamined", "CS", "ZYXWV"),
        ("LUTExplanation", "LO", "Chest\u200bZyxwv"),
        ("RescaleType", "LO", "Zyxwv"),
        ("ConvolutionKernel", "SH", "Zyxwv"),
        ("Manufacturer", "LO", "Zyxwv Medical"),
        ("SoftwareVersions", "LO", ["1", "Zyxwv"]),
    ],
)
def test_text_in_place_of_what_the_standard_has_there(tmp_path: Path, keyword: str, vr: str, value: object) -> None:
    path = make_dicom(tmp_path / "a.dcm", random_pixels(1), **STUDY)
    dataset = dcmread(path)
    copy_of = dataset.copy()
    if keyword in ("Rows", "SamplesPerPixel"):
        keyword = "ExposuresOnPlate" if keyword == "Rows" else "SeriesNumber"
    if "\u200b" in str(value):
        copy_of.SpecificCharacterSet = "ISO_IR 192"
    copy_of.add(DataElement(tag_for_keyword(keyword), vr, value, validation_mode=0))
    copy_of.save_as(path)
    copy, why = copied(path)
    assert copy is not None, why
    assert not has_text(copy)
    if keyword == "ImageType":
        assert list(dcmread(copy).ImageType)[:2] == ["ORIGINAL", "PRIMARY"]


@pytest.mark.parametrize("keyword", ["KVP", "SeriesNumber"])
def test_numbers_that_are_none(tmp_path: Path, keyword: str) -> None:
    path = make_dicom(tmp_path / "a.dcm", random_pixels(1), **STUDY)
    dataset = dcmread(path)
    setattr(dataset, keyword, "1234567890")
    dataset.save_as(path)
    path.write_bytes(path.read_bytes().replace(b"1234567890", b"Zyxwv Anna"))
    copy, why = copied(path)
    assert copy is not None, why
    assert not has_text(copy) and keyword not in dcmread(copy)


@pytest.mark.parametrize("options", [("--keep-dates",), ("--keep-full-dates",), ("--keep-uids",), ("--keep-patient",)])
def test_what_an_option_keeps_is_what_it_says(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Text behind a date, in place of a time, of a UID and of an age."""
    path = make_dicom(tmp_path / "a.dcm", random_pixels(1), **STUDY)
    dataset = dcmread(path)
    for keyword, vr, value in (
        ("AcquisitionDateTime", "DT", "20200101Zyxwv"),
        ("StudyDate", "DA", "20200101Zyxwv"),
        ("StudyTime", "TM", "Zyxwv"),
        ("FrameOfReferenceUID", "UI", "1.2.Zyxwv"),
        ("PatientAge", "AS", "Zyxwv"),
    ):
        dataset.add(DataElement(tag_for_keyword(keyword), vr, value, validation_mode=0))
    dataset.save_as(path)
    copy, why = copied(path, *options)
    assert copy is not None, why
    assert not has_text(copy)


def test_tables_and_waveforms_end_with_their_last_value(tmp_path: Path) -> None:
    wave = Dataset()
    wave.NumberOfWaveformChannels, wave.NumberOfWaveformSamples, wave.WaveformBitsAllocated = 2, 3, 16
    wave.WaveformData, wave.MultiplexGroupLabel = bytes(12) + TEXT, "Zyxwv"
    wave.add_new("WaveformPaddingValue", "OW", TEXT)
    wave["WaveformData"].VR = "OW"
    wave.UnformattedTextValue = "Zyxwv"
    table = Dataset()
    table.LUTDescriptor, table.LUTExplanation = [4, 0, 16], "Zyxwv"
    table.add_new("LUTData", "OW", bytes(8) + TEXT)
    colours = {}
    for name in ("Red", "Green", "Blue"):
        colours[f"{name}PaletteColorLookupTableDescriptor"] = [2, 0, 16]
        colours[f"{name}PaletteColorLookupTableData"] = b"\1\2\3\4" + TEXT
        colours[f"Segmented{name}PaletteColorLookupTableData"] = pack("<HHHH", 0, 1, 7, 1)[:6] + b"\7\7" + TEXT
    path = make_dicom(
        tmp_path / "a.dcm", random_pixels(1), **STUDY, **colours, WaveformSequence=Sequence([wave]),
        ModalityLUTSequence=Sequence([table]), ICCProfile=TEXT,
    )  # fmt: skip
    copy, why = copied(path)
    assert copy is not None, why
    assert not has_text(copy)
    dataset = dcmread(copy)
    assert len(dataset.WaveformSequence[0].WaveformData) == 12 and dataset.RedPaletteColorLookupTableData == b"\1\2\3\4"
    assert len(dataset.ModalityLUTSequence[0].LUTData) == 8
    assert dataset.SegmentedRedPaletteColorLookupTableData == pack("<HHH", 0, 1, 7)


def test_reports_and_documents(tmp_path: Path) -> None:
    """Without pixels: text of a report, a document in the file, and what follows the last element."""
    for name in ("reportsi.dcm", "test-SR.dcm"):
        dataset = dcmread(shipped(name))
        for element in dataset.iterall():
            if element.VR in ("UT", "LO", "ST"):
                element.value = "Zyxwv Anna"
        dataset.EncapsulatedDocument, dataset.DocumentTitle = TEXT, "Zyxwv"
        folder = tmp_path / name
        folder.mkdir()
        dataset.save_as(folder / "a.dcm")
        content = (folder / "a.dcm").read_bytes()
        (folder / "a.dcm").write_bytes(content + pack("<HH2sHL", 0xFFFC, 0xFFFC, b"OB", 0, len(TEXT)) + TEXT)
        copy, why = copied(folder / "a.dcm")
        assert copy is not None, why
        assert not has_text(copy)
