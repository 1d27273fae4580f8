"""Generate chest-X-ray-like phantoms, written as DICOM files: a demo needs no data and still uses the real reader.

A phantom depends on data.phantoms.seed, its split and its index alone: each owner writes just its own, on its machine.
Odd indices have an opacity; every second pair comes from the other of two simulated scanners, which differ in size,
response and noise. Stored values are 12-bit, MONOCHROME1 or MONOCHROME2 by a coin. Names in the headers are made up.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from mpc_imaging.data.anatomy import chest, smooth_noise
from mpc_imaging.data.manifest import NAME
from mpc_imaging.data.rows import Row
from mpc_imaging.errors import ConfigError
from mpc_imaging.settings import SPLITS, PhantomSettings

_MAX = 4095  # 12 bits stored
# What an opacity adds to the attenuation. Most are plain, so that a small net learns within a few epochs; one in
# thirteen is faint to invisible, so that its test AUC ends between 0.9 and 0.99 however long it trains.
_PLAIN, _FAINT, _FAINT_EVERY = (0.20, 0.42), (0.01, 0.05), 13
_FAMILY_NAMES = (
    "Alder",
    "Brook",
    "Dunne",
    "Ewing",
    "Frost",
    "Holt",
    "Jarvis",
    "Lowell",
    "Marsh",
    "Orr",
    "Pike",
    "Quill",
)
_GIVEN_NAMES = ("Ada", "Bela", "Cleo", "Edda", "Finn", "Greta", "Hugo", "Ines", "Kira", "Lars", "Mina", "Odile", "Pia")


@dataclass(frozen=True)
class _Scanner:
    """One simulated X-ray unit: detector (rows, columns), pixel size, response curve and noise."""

    site: str
    maker: str
    shape: tuple[int, int]
    spacing_mm: float
    gamma: float
    noise: float
    grain: float
    dose: tuple[float, float]


_SCANNERS = (
    _Scanner("north", "Phantom Works", (160, 160), 2.5, gamma=1.0, noise=0.012, grain=1.0, dose=(0.9, 1.1)),
    _Scanner("south", "Made-up Imaging", (152, 128), 2.8, gamma=0.75, noise=0.022, grain=1.6, dose=(0.8, 1.2)),
)


def rows(settings: PhantomSettings) -> list[Row]:
    """Return the rows of all phantoms of all owners; ``number`` is the index in the split, ``site`` the scanner's."""
    return [
        Row(index, split, index % 2, f"phantom-{split}-{index:05d}", _scanner(index).site)
        for split in SPLITS
        for index in range(getattr(settings, split))
    ]


def save(path: Path, row: Row, seed: int) -> None:
    """Write one phantom."""
    phantom(row.split, row.number, seed).save_as(path, enforce_file_format=True)


def write(
    folder: Path,
    rows: Sequence[Row],
    seed: int,
    class_names: Sequence[str],
    save: Callable[[Path, Row, int], None] = save,
    suffix: str = ".dcm",
) -> None:
    """Write the phantoms of ``rows`` as DICOM files into ``folder``, with their manifest.csv.

    ``save`` writes one: as a file, or for volumes a folder of slices, with the ``suffix`` "".
    A folder that already has them is left as it is: the plaintext baseline reads what the parties wrote.

    Raises:
        ConfigError: data.class_names are not two.
    """
    if len(class_names) != 2:
        raise ConfigError(
            [f"data.class_names has {len(class_names)} names: phantoms need two, clear and with an opacity"]
        )
    table = io.StringIO()
    manifest = csv.writer(table)
    manifest.writerow(["file", "label", "patient", "split", "site"])
    files = [f"seed{seed}-{row.split}-{row.number:05d}{suffix}" for row in rows]
    for row, file in zip(rows, files, strict=True):
        manifest.writerow([file, class_names[row.label], row.patient, row.split, row.site])
    path = folder / NAME
    if path.is_file() and path.read_bytes().decode() == table.getvalue():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for row, file in zip(rows, files, strict=True):
        save(folder / file, row, seed)
    path.write_bytes(table.getvalue().encode())  # last: a manifest means that every file is there


def phantom(split: str, index: int, seed: int) -> Dataset:
    """Return phantom ``index`` of a split as a DICOM object, ready to save."""
    random = default_rng([seed, SPLITS.index(split), index])
    scanner = _scanner(index)
    values = _expose(scanner, _contrast(index, random), random)
    header = _header(scanner, f"phantom-{split}-{index:05d}", seed, random)
    low, high = np.percentile(values, (2, 99.5))
    if random.random() < 0.5:
        header.PhotometricInterpretation, header.PresentationLUTShape = "MONOCHROME1", "INVERSE"
        values, low, high = _MAX - values, _MAX - high, _MAX - low
    header.WindowCenter, header.WindowWidth = int(round((low + high) / 2)), max(int(round(high - low)), 2)
    header.PixelData = values.astype("<u2").tobytes()
    return header


def _scanner(index: int) -> _Scanner:
    return _SCANNERS[index // 2 % 2]


def _contrast(index: int, random: Generator) -> float:
    """Return what the opacity of phantom ``index`` adds to the attenuation, 0 where it has none."""
    if index % 2 == 0:
        return 0.0
    return random.uniform(*(_FAINT if index // 2 % _FAINT_EVERY == _FAINT_EVERY // 2 else _PLAIN))


def _expose(scanner: _Scanner, opacity: float, random: Generator) -> np.ndarray:
    """Return stored values (rows, columns), 0 to 4095, white for dense."""
    height, width = scanner.shape
    step = 2.1 / max(scanner.shape)
    x = (np.arange(width)[None] - (width - 1) / 2) * step
    y = (np.arange(height)[:, None] - (height - 1) / 2) * step
    attenuation = chest(x, y, opacity, random)
    # Fewer photons arrive behind dense tissue: the noise of the logarithm grows with the attenuation.
    noise = scanner.noise * np.exp(0.7 * attenuation) * smooth_noise(scanner.shape, scanner.grain, random)
    signal = np.clip((attenuation + noise) * random.uniform(*scanner.dose) / 1.4, 0, 1) ** scanner.gamma
    return np.rint(200 + 3600 * signal).astype(np.int64)


def _header(scanner: _Scanner, patient: str, seed: int, random: Generator) -> Dataset:
    """Return a Digital X-Ray header (PS3.3 A.26) without its pixels and window."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = generate_uid(entropy_srcs=[f"{seed}", patient])
    ds.StudyInstanceUID = generate_uid(entropy_srcs=[f"{seed}", patient, "study"])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[f"{seed}", patient, "series"])
    describe_patient(ds, patient, random)
    ds.SeriesNumber, ds.InstanceNumber = 1, 1
    ds.Modality, ds.Manufacturer, ds.InstitutionName = "DX", scanner.maker, f"Hospital {scanner.site} (made up)"
    ds.BodyPartExamined, ds.ViewPosition, ds.PatientOrientation = "CHEST", "PA", ["L", "F"]
    ds.ImageLaterality, ds.ImageType = "U", ["ORIGINAL", "PRIMARY", ""]
    ds.PresentationIntentType, ds.BurnedInAnnotation, ds.LossyImageCompression = "FOR PRESENTATION", "NO", "00"
    ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "US"
    ds.PhotometricInterpretation, ds.PresentationLUTShape = "MONOCHROME2", "IDENTITY"
    ds.Rows, ds.Columns = scanner.shape
    ds.ImagerPixelSpacing = [scanner.spacing_mm, scanner.spacing_mm]
    ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 1, 16, 12, 11, 0
    return ds


def describe_patient(ds: Dataset, patient: str, random: Generator) -> None:
    """Fill in a made-up patient and study."""
    ds.PatientName = f"{_pick(_FAMILY_NAMES, random)}^{_pick(_GIVEN_NAMES, random)}"
    ds.PatientID = patient
    ds.PatientBirthDate = f"{random.integers(1930, 2005)}{random.integers(1, 13):02d}{random.integers(1, 29):02d}"
    ds.PatientSex = _pick("FMO", random)
    ds.StudyDate = ds.ContentDate = "20240102"
    ds.StudyTime = ds.ContentTime = "101500"
    ds.AccessionNumber, ds.StudyID, ds.ReferringPhysicianName = "", "1", ""


def _pick(choices: Sequence[str], random: Generator) -> str:
    return choices[random.integers(len(choices))]
