from __future__ import annotations

import io

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from mpc_imaging.data.annotations import Mask, blacken, burned_in, regions


def ultrasound(photometric: str = "RGB", frames: int = 2) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.Modality, dataset.Rows, dataset.Columns, dataset.NumberOfFrames = "US", 12, 10, frames
    dataset.SamplesPerPixel = 3 if photometric == "RGB" else 1
    dataset.PhotometricInterpretation = photometric
    if photometric == "RGB":
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = bytes([200]) * (frames * 120 * dataset.SamplesPerPixel)
    dataset["PixelData"].VR = "OB"
    region = Dataset()
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 2, 3
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 7, 9
    dataset.SequenceOfUltrasoundRegions = Sequence([region])
    return dataset


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"BurnedInAnnotation": "YES", "Modality": "CT"}, "is YES"),
        ({"BurnedInAnnotation": "NO", "Modality": "US"}, None),
        ({"Modality": "US"}, "often show text"),
        ({"Modality": "CT"}, None),
        ({}, "often show text"),
        ({"Modality": "CT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary capture"),
        ({"Modality": "CT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4"}, "secondary capture"),
    ],
)
def test_what_may_show_text(header: dict[str, str], reason: str | None):
    dataset = Dataset()
    for name, value in header.items():
        setattr(dataset, name, value)
    found = burned_in(dataset)
    assert (found is None) == (reason is None) and (reason or "") in (found or "")


@pytest.mark.parametrize("photometric", ["RGB", "MONOCHROME2", "MONOCHROME1"])
def test_boxes_become_black_in_every_frame(photometric: str):
    dataset = ultrasound(photometric)
    blacken(dataset, Mask(((1, 2, 4, 5),)))
    pixels = dataset.pixel_array
    black = 255 if photometric == "MONOCHROME1" else 0
    assert (pixels[:, 2:5, 1:4] == black).all()
    pixels = np.array(pixels)
    pixels[:, 2:5, 1:4] = 200
    assert (pixels == 200).all()


def test_only_ultrasound_regions_are_left():
    dataset = ultrasound()
    assert regions(dataset) == [(2, 3, 8, 10)]
    blacken(dataset, Mask(outside_regions=True))
    pixels = np.array(dataset.pixel_array)
    assert (pixels[:, 3:10, 2:8] == 200).all()
    pixels[:, 3:10, 2:8] = 0
    assert not pixels.any()


def test_signed_pixels_become_the_smallest_value():
    dataset = dcmread(get_testdata_file("CT_small.dcm"))
    kept = dataset.pixel_array[50:].copy()
    blacken(dataset, Mask(((0, 0, 128, 50),)))
    assert (dataset.pixel_array[:50] == -32768).all() and (dataset.pixel_array[50:] == kept).all()


def test_compressed_pixels_are_masked_and_stored_uncompressed():
    dataset = dcmread(get_testdata_file("MR_small_RLE.dcm"))
    kept = dataset.pixel_array[10:].copy()
    blacken(dataset, Mask(((0, 0, 64, 10),)))
    assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert (dataset.pixel_array[10:] == kept).all() and len(set(dataset.pixel_array[:10].flat)) == 1


def test_masks_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="is not inside of 10x12 pixels"):
        blacken(ultrasound(), Mask(((0, 0, 11, 2),)))
    without = ultrasound()
    del without.SequenceOfUltrasoundRegions
    with pytest.raises(ValueError, match="no ultrasound regions"):
        blacken(without, Mask(outside_regions=True))


@pytest.mark.parametrize(("right", "bottom"), [(10, 9), (7, 12), (10, 12)])
def test_regions_that_count_one_pixel_too_many_end_at_the_edge(right: int, bottom: int):
    dataset = ultrasound()
    (region,) = dataset.SequenceOfUltrasoundRegions
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = right, bottom
    assert regions(dataset) == [(2, 3, min(right + 1, 10), min(bottom + 1, 12))]
    blacken(dataset, Mask(outside_regions=True))
    assert (dataset.pixel_array[:, 3:bottom, 2:right] == 200).all() and not dataset.pixel_array[:, :3].any()
    region.RegionLocationMaxX1 = 11
    with pytest.raises(ValueError, match="is not inside of 10x12 pixels"):
        blacken(dataset, Mask(outside_regions=True))


@pytest.mark.parametrize("name", ["MR_small_bigendian.dcm", "liver_expb_1frame.dcm"])
def test_big_endian_files_are_masked_and_written(name: str):
    """They were refused by a bare ValueError: pydicom does not turn the bytes of a whole file. One has single bits."""
    dataset = dcmread(get_testdata_file(name))
    before = np.array(dataset.pixel_array)
    blacken(dataset, Mask(((0, 0, 40, 10),)))
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    after = dcmread(buffer).pixel_array
    assert after.shape == before.shape
    np.testing.assert_array_equal(after[10:], before[10:])
    assert len(set(after[:10, :40].flat)) == 1
