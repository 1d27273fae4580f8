"""Compressed pixel data that lie about themselves, and claims that are refused before memory is taken for them."""

from __future__ import annotations

import tracemalloc
import zlib
from pathlib import Path
from struct import pack

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from mpc_imaging.data import ImageError, Reason, limits, read_dicom
from mpc_imaging.settings import Frames
from tests.data import hiding
from tests.data.builders import make_dicom, make_encapsulated, random_pixels, shipped

_SEQUENCE = b"\x00\x52\x30\x92SQ\0\0"  # the per-frame functional groups
_EMPTY_ITEM = b"\xfe\xff\x00\xe0\0\0\0\0"


def refusal(path: Path, frames: Frames = Frames.all) -> Reason:
    """Why ``path`` is refused, with little memory at any time: a bomb takes hundreds of MiB."""
    tracemalloc.start()
    with pytest.raises(ImageError) as caught:
        read_dicom(path, frames, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20
    return caught.value.reason


def with_header_bytes(path: Path, extra: bytes) -> Path:
    """Put raw elements before the pixel data of a small image."""
    whole = make_dicom(path, random_pixels(1)).read_bytes()
    cut = whole.index(b"\xe0\x7f\x10\x00")
    path.write_bytes(whole[:cut] + extra + whole[cut:])
    return path


def rle(*segments: bytes) -> bytes:
    offsets = np.cumsum([64, *map(len, segments)])[:-1].tolist()
    return pack("<16L", len(segments), *offsets, *[0] * (15 - len(segments))) + b"".join(segments)


def runs(pixels: np.ndarray) -> bytes:
    """One RLE segment of 16 bytes in literal runs."""
    return b"".join(b"\x0f" + bytes(pixels.reshape(-1)[k : k + 16]) for k in range(0, pixels.size, 16))


def siz(rows: int, columns: int, tile: int = 60000) -> bytes:
    sizes = pack(">HHHLLLLLLLLH", 0xFF51, 41, 0, columns, rows, 0, 0, tile, tile, 0, 0, 1)
    return b"\xff\x4f" + sizes + bytes([15, 1, 1]) + bytes(64) + b"\xff\xd9"


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"Rows": 65535, "Columns": 65535}, Reason.too_large),
        ({"NumberOfFrames": 2**31 - 1}, Reason.too_large),
        ({"NumberOfFrames": 60000, "Rows": 60000, "Columns": 1000}, Reason.truncated),
        ({"Rows": 0}, Reason.damaged),
        ({"BitsStored": 17}, Reason.damaged),
        ({"BitsAllocated": 4096}, Reason.damaged),
        ({"NumberOfFrames": 2}, Reason.truncated),
        ({"SamplesPerPixel": 4}, Reason.unsupported),
        ({"PhotometricInterpretation": "RGB"}, Reason.unsupported),
    ],
)
def test_claims_that_do_not_fit(tmp_path: Path, claims: dict[str, object], reason: Reason) -> None:
    assert refusal(make_dicom(tmp_path / "a.dcm", random_pixels(1), **claims)) is reason


def test_huge_headers(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    whole = pack("<L", 2**25) + bytes(2**25)
    assert refusal(with_header_bytes(path, _SEQUENCE + whole)) is Reason.too_large
    items = _EMPTY_ITEM * (limits.MAX_HEADER_PARTS + 1)
    assert refusal(with_header_bytes(path, _SEQUENCE + pack("<L", len(items)) + items)) is Reason.too_large
    claim = pack("<L", 2**32 - 2)  # of 4 GiB: the file ends first
    assert refusal(with_header_bytes(path, _SEQUENCE + claim)) is Reason.truncated
    deep = (_SEQUENCE + b"\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * 20_000
    assert refusal(with_header_bytes(path, deep)) is Reason.damaged
    skipped = b"\x09\x00\x10\x10OB\0\0" + pack("<L", 2**25) + bytes(2**25)  # a private element nobody asked for
    assert len(read_dicom(with_header_bytes(path, skipped), Frames.first, 1)) == 1


def test_a_deflated_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_dicom(tmp_path / "a.dcm", random_pixels(1))
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(path)
    assert len(read_dicom(path, Frames.all, 1)) == 1
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert refusal(path) is Reason.truncated
    head = whole[: 132 + 12 + int.from_bytes(whole[140:144], "little")]
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(head + deflate.compress(bytes(2**28)) + deflate.flush())
    monkeypatch.setattr("mpc_imaging.data.header.MAX_INFLATED_BYTES", 2**22)
    assert refusal(path) is Reason.too_large


@pytest.mark.parametrize(
    ("syntax", "frame"),
    [
        (JPEG2000Lossless, siz(60000, 60000)),
        (JPEG2000Lossless, siz(16, 16, tile=0)),
        (JPEG2000Lossless, bytes(80) + b"\xff\xd9"),
        (JPEGLosslessSV1, b"\xff\xd8\xff\xc3" + pack(">HBHHB", 11, 16, 65535, 65535, 1) + b"\1\x11\0\xff\xd9"),
        (JPEGLosslessSV1, b"\xff\xd8" + bytes(40) + b"\xff\xd9"),
        (JPEGLosslessSV1, b"\xff\xd8\xff\xe0\0\0" + bytes(40) + b"\xff\xd9"),
        (RLELossless, rle(b"\x81\x00" * 1000)),  # one segment of two
        (RLELossless, rle(b"\x81\x00" * 1000, b"\x81\x00" * 1000)),  # 128 KB each for 256 pixels
        (RLELossless, rle(b"\x81\x00" * 10**6, b"\x81\x00" * 10**6)),
        (RLELossless, rle(b"\x81\x00", b"\x81\x00")),  # too short
        (RLELossless, pack("<16L", 2, 64, 2**31, *[0] * 13) + bytes(64)),
    ],
)
def test_frames_that_do_not_fit_the_header(tmp_path: Path, syntax: UID, frame: bytes) -> None:
    path = make_encapsulated(tmp_path / "a.dcm", [frame], syntax, (16, 16))
    assert refusal(path) is Reason.damaged


def test_frames_are_found_with_and_without_tables(tmp_path: Path) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (3, 16, 16), dtype=np.uint8)
    encoded = [rle(runs(frame)) for frame in frames]
    expected = frames[:, None] / np.float32(255)
    path = tmp_path / "a.dcm"
    plain = make_encapsulated(path, encoded, RLELossless, (16, 16), bits=8)
    np.testing.assert_allclose(read_dicom(plain, Frames.all, 1), expected, atol=1e-6)
    for data in (
        encapsulate(encoded, has_bot=False),
        encapsulate(encoded, fragments_per_frame=2),  # the table says which pieces belong together
        _EMPTY_ITEM[:4] + pack("<LLLL", 12, 0, 7, 9) + encapsulate(encoded, has_bot=False)[8:],  # a table that lies
    ):
        make_encapsulated(path, encoded, RLELossless, (16, 16), bits=8, PixelData=data)
        np.testing.assert_allclose(read_dicom(path, Frames.all, 1), expected, atol=1e-6)
    make_encapsulated(path, encoded, RLELossless, (16, 16), bits=8, NumberOfFrames=4)
    assert refusal(path) is Reason.truncated
    whole = plain.read_bytes()
    path.write_bytes(whole[:-40])
    assert refusal(path, Frames.first) is Reason.truncated


def test_many_empty_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpc_imaging.data.encapsulated.MAX_FRAGMENTS", 1000)
    data = _EMPTY_ITEM * 1100
    path = make_encapsulated(tmp_path / "a.dcm", [b"ab"], RLELossless, (16, 16), PixelData=data)
    assert refusal(path) is Reason.too_large


def test_all_frames_together_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpc_imaging.data.dicom.MAX_RETURNED_SAMPLES", 3 * 120)
    path = make_dicom(tmp_path / "a.dcm", random_pixels(1, (4, 12, 10)))
    assert refusal(path) is Reason.too_large
    assert len(read_dicom(path, Frames.first, 1)) == 1


@pytest.mark.parametrize("name", ["MR_small_jp2klossless.dcm", "SC_rgb_jpeg_dcmtk.dcm"])
def test_a_frame_without_its_end_is_truncated(tmp_path: Path, name: str) -> None:
    """Decoders make up the rest of such a picture in grey."""
    whole = shipped(name).read_bytes()
    end = whole.rindex(b"\xff\xd9")
    path = tmp_path / "a.dcm"
    path.write_bytes(whole[:end] + b"\0\0" + whole[end + 2 :])
    assert refusal(path) is Reason.truncated


@pytest.mark.parametrize("behind", [b"\1" * 7, b"\0" * 64 + b"\1" * 64])
@pytest.mark.parametrize("kind", ["JPEG", "JPEG 2000"])
def test_bytes_behind_the_end_marker_are_no_truncation(tmp_path: Path, behind: bytes, kind: str) -> None:
    """As in multi-frame files whose frames were cut out of buffers that are longer; with a table and without one."""
    frame, syntax = (hiding.jpeg(), JPEGBaseline8Bit) if kind == "JPEG" else (hiding.j2k(), JPEG2000Lossless)
    plain = make_encapsulated(tmp_path / "plain.dcm", [frame], syntax, hiding.SIZE, 8)
    (expected,) = read_dicom(plain, Frames.all, 1)
    half = len(frame) // 4 * 2
    for data in (
        encapsulate([frame + behind] * 3),
        encapsulate([frame[:half], frame[half:] + behind] * 3, has_bot=False),
    ):
        path = make_encapsulated(tmp_path / "a.dcm", [], syntax, hiding.SIZE, 8, NumberOfFrames=3, PixelData=data)
        found = read_dicom(path, Frames.all, 1)
        assert len(found) == 3
        for image in found:
            np.testing.assert_array_equal(image, expected)


def test_frames_that_are_deflated_one_by_one_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (3, *hiding.SIZE), dtype=np.uint8)
    packed = [hiding.deflated(frame.tobytes()) for frame in frames]
    path = hiding.write_deflated_frames(tmp_path / "a.dcm", packed, hiding.SIZE, bits=8)
    np.testing.assert_array_equal(read_dicom(path, Frames.all, 1), frames[:, None] / np.float32(255))
    short = hiding.write_deflated_frames(tmp_path / "b.dcm", [*packed[:2], packed[2][:-9]], hiding.SIZE, bits=8)
    assert refusal(short) is Reason.truncated
    bomb = hiding.write_deflated_frames(tmp_path / "c.dcm", [hiding.deflated(bytes(2**26))], hiding.SIZE, bits=8)
    assert len(read_dicom(bomb, Frames.all, 1)) == 1  # of which no more is inflated than a frame has
    monkeypatch.setattr("mpc_imaging.data.deflated.MAX_INFLATED_BYTES", 1000)
    assert refusal(path) is Reason.too_large
