"""Generate CT-like volumes of a chest, each a folder of axial slices, for runs over slices without any data.

As with `phantoms`, a volume depends on data.phantoms.seed, its split and its index alone. Odd indices have a nodule in
one lung, which two to four of the 10 to 14 slices show; vessels, bright in a few slices of all patients, do not tell
it from its brightness alone. Stored values are Hounsfield units. Names in the headers are made up.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from mpc_imaging.data.phantoms import describe_patient
from mpc_imaging.data.rows import Row
from mpc_imaging.settings import SPLITS

_SIDE, _PIXEL_MM, _STEP_MM = 56, 6.0, 20.0
_AIR, _LUNG, _SOFT, _BONE = -1000.0, -850.0, 40.0, 500.0
_NOISE = 35.0
_LUNG_WINDOW = (-550, 1500)


def save(folder: Path, row: Row, seed: int) -> None:
    """Write one volume: a file for each slice, whose names tell nothing of their order."""
    folder.mkdir()
    slices = volume(row.split, row.number, seed)
    order = default_rng([seed, row.number]).permutation(len(slices))
    for name, k in enumerate(order):
        slices[k].save_as(folder / f"{name:02d}.dcm", enforce_file_format=True)


def volume(split: str, index: int, seed: int) -> list[Dataset]:
    """Return the slices of volume ``index`` of a split, from feet to head."""
    random = default_rng([seed, SPLITS.index(split), index])
    values = hounsfield(int(random.integers(10, 15)), index % 2 == 1, random)
    patient = f"phantom-{split}-{index:05d}"
    common = _header(patient, seed, random)
    return [_slice(common, plane, k, f"{seed} {patient}") for k, plane in enumerate(values)]


def hounsfield(count: int, nodule: bool, random: Generator) -> np.ndarray:
    """Return a made-up chest: Hounsfield units (count, H, W), float64.

    Coordinates run from -1 to 1: x from the patient's right to left, y from front to back, z from feet to head.
    """
    axis = (np.arange(_SIDE) - (_SIDE - 1) / 2) * 2 / _SIDE
    x, y, z = axis[None, None], axis[None, :, None], np.linspace(-1, 1, count)[:, None, None]
    width, depth = random.uniform(0.82, 0.92), random.uniform(0.58, 0.68)
    body = _inside(x, y, 0 * z, (0, 0, 0), (width, depth, 9))
    centres = [(side * random.uniform(0.40, 0.44), random.uniform(-0.04, 0.04), 0.05) for side in (-1, 1)]
    lungs = [_inside(x, y, z, centre, (0.31, 0.46, random.uniform(1.2, 1.4))) for centre in centres]
    both = np.maximum(*lungs)
    heart = _inside(x, y, z, (0.12, -0.15, -0.6), (0.36, 0.30, 0.8))
    image = _AIR + (_SOFT - _AIR) * body
    image += (_LUNG - image) * both * (1 - heart)
    image += (_BONE - image) * _inside(x, y, 0 * z, (0, 0.42, 0), (0.11, 0.11, 9))
    for _ in range(5):  # vessels: thin, slanting across slices
        centre = centres[random.integers(2)]
        towards = random.uniform(-0.2, 0.2, 2)
        at = (centre[0] + random.uniform(-0.2, 0.2), centre[1] + random.uniform(-0.3, 0.3), random.uniform(-0.8, 0.8))
        tube = _inside(x - towards[0] * (z - at[2]), y - towards[1] * (z - at[2]), z, at, (0.04, 0.04, 0.5))
        image += random.uniform(200, 450) * tube * both
    if nodule:
        centre = centres[random.integers(2)]
        at = (
            centre[0] + random.uniform(-0.12, 0.12),
            centre[1] + random.uniform(-0.22, 0.22),
            random.uniform(-0.6, 0.6),
        )
        size = random.uniform(0.18, 0.26)
        image += random.uniform(700, 900) * _inside(x, y, z, at, (size, size, random.uniform(0.2, 0.35))) * both
    return image + _NOISE * random.standard_normal(image.shape)


def _inside(x: np.ndarray, y: np.ndarray, z: np.ndarray, centre: tuple, axes: tuple) -> np.ndarray:
    """1 inside of an ellipsoid, 0 outside, with a soft edge."""
    radius = sum(((value - c) / axis) ** 2 for value, c, axis in zip((x, y, z), centre, axes, strict=True))
    return 0.5 * (1 - np.tanh((radius - 1) / 0.3))


def _header(patient: str, seed: int, random: Generator) -> Dataset:
    """What the slices of one CT series have in common (PS3.3 A.3)."""
    ds = Dataset()
    ds.SOPClassUID = CTImageStorage
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(ds, keyword, generate_uid(entropy_srcs=[f"{seed}", patient, "volume", keyword]))
    describe_patient(ds, patient, random)
    ds.SeriesNumber, ds.AcquisitionNumber, ds.PositionReferenceIndicator, ds.PatientPosition = 1, 1, "", "HFS"
    ds.Modality, ds.Manufacturer, ds.KVP, ds.BodyPartExamined = "CT", "Phantom Works", 120, "CHEST"
    ds.ImageType, ds.BurnedInAnnotation = ["ORIGINAL", "PRIMARY", "AXIAL"], "NO"
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "HU"
    ds.WindowCenter, ds.WindowWidth = _LUNG_WINDOW
    ds.Rows = ds.Columns = _SIDE
    ds.PixelSpacing, ds.SliceThickness = [_PIXEL_MM, _PIXEL_MM], _STEP_MM
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    return ds


def _slice(common: Dataset, plane: np.ndarray, k: int, source: str) -> Dataset:
    ds = Dataset()
    ds.update(common)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPInstanceUID = generate_uid(entropy_srcs=[source, f"slice {k}"])
    ds.InstanceNumber = k + 1
    ds.ImagePositionPatient = [-_SIDE * _PIXEL_MM / 2, -_SIDE * _PIXEL_MM / 2, k * _STEP_MM]
    ds.PixelData = np.rint(plane.clip(-1024, 3071)).astype("<i2").tobytes()
    return ds
