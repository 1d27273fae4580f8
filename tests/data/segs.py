"""Small DICOM segmentations, and CT slices to segment, for the tests of masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import pack_bits
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SegmentationStorage, generate_uid

from mpc_imaging.data.dicom import LABEL_MAP_STORAGE
from tests.data.builders import PATIENT, make_dicom, random_pixels

SERIES, SPACE = "1.2.3.4", "1.2.3.5"
SHAPE = (5, 7)  # 35 bits: a binary frame does not end at a byte
ALONG = [1, 0, 0, 0, 1, 0]


def slice_uid(k: int) -> str:
    return f"{SERIES}.{k + 1}"


def make_slice(folder: Path, k: int, shape: tuple[int, int] = SHAPE, **elements: object) -> Path:
    """Slice ``k`` of one series, 2 mm from the next, with pixels of 1 x 0.5 mm."""
    usual = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": slice_uid(k),
        "SeriesInstanceUID": SERIES,
        "StudyInstanceUID": "1.2.3",
        "FrameOfReferenceUID": SPACE,
        "PositionReferenceIndicator": "",
        "ImagePositionPatient": [3, 4, 2 * k],
        "ImageOrientationPatient": ALONG,
        "PixelSpacing": [1, 0.5],
        "SliceThickness": 2,
        "Modality": "CT",
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
    }
    return make_dicom(folder / f"slice{k}.dcm", random_pixels(k, shape), **(usual | elements))


def random_masks(count: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(3).random((count, *shape)) < 0.4


def item(**elements: object) -> Dataset:
    ds = Dataset()
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def derived(uid: str, frame: int | None = None) -> list[Dataset]:
    """A Derivation Image Sequence that names one source."""
    source = item(ReferencedSOPClassUID=CTImageStorage, ReferencedSOPInstanceUID=uid)
    if frame is not None:
        source.ReferencedFrameNumber = frame
    return [item(SourceImageSequence=[source])]


def make_seg(
    path: Path,
    frames: np.ndarray,
    sources: Sequence[list[Dataset] | None],
    kind: str = "BINARY",
    segments: Sequence[int] | None = None,
    positions: Sequence[Sequence[float]] | None = None,
    series: str | None = SERIES,
    **elements: object,
) -> Path:
    """Write ``frames`` (n, H, W); each with its source (see `derived`), segment and, with ``positions``, place."""
    segments = [1] * len(frames) if segments is None else segments
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = LABEL_MAP_STORAGE if kind == "LABELMAP" else SegmentationStorage
    ds.SOPInstanceUID, ds.PatientName, ds.PatientID, ds.Modality = generate_uid(), PATIENT, "Secretname-1", "SEG"
    ds.SegmentationType, ds.FrameOfReferenceUID = kind, SPACE
    ds.SegmentSequence = [item(SegmentNumber=number, SegmentLabel="a") for number in sorted(set(segments))]
    if series is not None:
        ds.ReferencedSeriesSequence = [item(SeriesInstanceUID=series)]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.NumberOfFrames, (ds.Rows, ds.Columns) = len(frames), frames.shape[1:]
    bits = 1 if kind == "BINARY" else 8
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    content = pack_bits(frames.astype(np.uint8).ravel()) if bits == 1 else frames.astype(np.uint8).tobytes()
    ds.PixelData = content + b"\0" * (len(content) % 2)
    if kind == "FRACTIONAL":
        ds.MaximumFractionalValue = 200
    measures = item(PixelMeasuresSequence=[item(PixelSpacing=[1, 0.5], SliceThickness=2)])
    measures.PlaneOrientationSequence = [item(ImageOrientationPatient=ALONG)]
    ds.SharedFunctionalGroupsSequence = [measures] if positions is not None else []
    ds.PerFrameFunctionalGroupsSequence = []
    for k, (source, number) in enumerate(zip(sources, segments, strict=True)):
        groups = Dataset()
        if kind != "LABELMAP":
            groups.SegmentIdentificationSequence = [item(ReferencedSegmentNumber=number)]
        if source is not None:
            groups.DerivationImageSequence = source
        if positions is not None:
            groups.PlanePositionSequence = [item(ImagePositionPatient=list(positions[k]))]
        ds.PerFrameFunctionalGroupsSequence.append(groups)
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    ds.save_as(path, enforce_file_format=True)
    return path
