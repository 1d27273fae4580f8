"""Whole objects: as pydicom reads them, but no more than the limits allow, and written whole or not at all."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless

from mpc_imaging.data import limits, stored
from mpc_imaging.data.refusals import ImageError, Reason
from mpc_imaging.data.whole import read_whole, write_whole
from tests.data import hiding
from tests.data.builders import make_dicom, make_encapsulated, random_pixels, shipped

NAMES = [
    "CT_small.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_RLE.dcm",
    "JPEG2000.dcm",
    "image_dfl.dcm",  # deflated
    "SC_rgb_jpeg_gdcm.dcm",
    "reportsi.dcm",  # no pixels
    "emri_small_RLE.dcm",  # several frames
    "SC_rgb_rle_2frame.dcm",
]


def refusal(path: Path, **options: bool) -> Reason | None:
    try:
        read_whole(path, **options)
    except ImageError as error:
        return error.reason
    return None


@pytest.mark.parametrize("name", NAMES)
def test_whole_objects_are_those_of_pydicom(name: str, tmp_path: Path) -> None:
    found, expected = read_whole(shipped(name)), dcmread(shipped(name))
    for tag in (0xFFFCFFFC, 0xFFFAFFFA):
        if tag in expected:
            del expected[tag]
    assert found.file_meta.TransferSyntaxUID == expected.file_meta.TransferSyntaxUID
    write_whole(found, tmp_path / "copy.dcm")
    assert [path.name for path in tmp_path.iterdir()] == ["copy.dcm"]
    copy = dcmread(tmp_path / "copy.dcm")
    if "PixelData" in expected:  # which has less beside the pixels
        np.testing.assert_array_equal(copy.pixel_array, expected.pixel_array)
        for dataset in (found, expected, copy):
            del dataset.PixelData
    assert found == expected == copy


def test_every_file_of_pydicom_is_read_or_refused() -> None:
    folder = shipped("CT_small.dcm").parent
    reasons = {path.name: refusal(path) for path in folder.rglob("*") if path.is_file()}
    assert sum(reason is None for reason in reasons.values()) > 90
    assert reasons["rtplan_truncated.dcm"] is Reason.cut
    assert reasons["DICOMDIR"] is Reason.directory and reasons["MR_truncated.dcm"] is Reason.truncated


def test_a_file_that_does_not_name_its_syntax(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "whole.dcm", random_pixels(1), StudyInstanceUID="1.2.3")
    content = path.read_bytes()
    bare = tmp_path / "bare.dcm"
    bare.write_bytes(content[144 + int.from_bytes(content[140:144], "little") :])
    found = read_whole(bare)
    write_whole(found, tmp_path / "copy.dcm")
    assert dcmread(tmp_path / "copy.dcm").SOPInstanceUID == dcmread(path).SOPInstanceUID


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_header_that_ends_early_is_no_whole_object(tmp_path: Path, part: float) -> None:
    """pydicom takes what is there; a copy must not pass for the whole."""
    content = shipped("reportsi.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(content[: int(part * len(content))])
    assert refusal(tmp_path / "cut.dcm") in (Reason.cut, Reason.damaged)
    assert refusal(shipped("reportsi.dcm")) is None


def test_limits_are_kept_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_dicom(tmp_path / "a.dcm", random_pixels(1), ImageComments="x" * 5000, StudyInstanceUID="1.2.3")
    assert refusal(path) is None
    monkeypatch.setattr("mpc_imaging.data.header.MAX_WHOLE_HEADER_BYTES", 4000)
    assert refusal(path) is Reason.too_large
    monkeypatch.undo()
    monkeypatch.setattr(stored, "MAX_WHOLE_PIXEL_BYTES", 100)
    assert refusal(path) is Reason.too_large
    monkeypatch.undo()
    monkeypatch.setattr(limits, "MAX_HEADER_PARTS", 10)
    assert refusal(path) is Reason.too_large


def test_a_deflated_bomb_and_a_length_beyond_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_dicom(tmp_path / "a.dcm", random_pixels(1), StudyInstanceUID="1.2.3")
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "deflated.dcm")
    meta = (tmp_path / "deflated.dcm").read_bytes()
    assert refusal(tmp_path / "deflated.dcm") is None
    deflate = zlib.compressobj(wbits=-15)
    start = 144 + int.from_bytes(meta[140:144], "little")
    (tmp_path / "bomb.dcm").write_bytes(meta[:start] + deflate.compress(bytes(2**25)) + deflate.flush())
    monkeypatch.setattr("mpc_imaging.data.header.MAX_INFLATED_BYTES", 2**24)
    assert refusal(tmp_path / "bomb.dcm") is Reason.too_large
    (tmp_path / "cut.dcm").write_bytes(path.read_bytes()[:-20])
    assert refusal(tmp_path / "cut.dcm") is Reason.truncated


def test_frames_that_lie_are_refused(tmp_path: Path) -> None:
    """One whose end cannot be found always; one of another size where it will be decoded."""
    frame = b"\xff\x4f\xff\x51" + bytes(4) + b"\x7f\xff\xff\xff" * 2 + bytes(32) + b"\xff\xd9"
    path = make_encapsulated(tmp_path / "a.dcm", [frame], JPEG2000Lossless, (8, 8), StudyInstanceUID="1.2.3")
    assert refusal(path) is Reason.damaged and refusal(path, decoded=True) is Reason.damaged
    path = make_encapsulated(tmp_path / "b.dcm", [hiding.j2k()], JPEG2000Lossless, (8, 8), StudyInstanceUID="1.2.3")
    assert refusal(path) is None and refusal(path, decoded=True) is Reason.damaged


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_dicom(tmp_path / "a.dcm", np.zeros((4, 4), np.uint16), StudyInstanceUID="1.2.3")
    dataset = read_whole(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.add_new(0x00100020, "LO", 7)  # what pydicom notices only while it writes
    with pytest.raises((TypeError, AttributeError, ValueError)):
        write_whole(dataset, tmp_path / "b.dcm")
    assert [each.name for each in tmp_path.iterdir()] == ["a.dcm"]
