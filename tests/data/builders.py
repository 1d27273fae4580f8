"""Small DICOM files, manifests and settings for the tests of data."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from mpc_imaging.settings import DataKind, DataSettings, PartySettings, Role, Settings, TopologySettings

# Planted in every header that the tests write; nothing that the package logs, raises or names may contain it.
PATIENT = "Secretname^Zed"


def make_dicom(path: Path, pixels: np.ndarray, bits: int = 12, **elements: object) -> Path:
    """Write pixels (H, W), (frames, H, W) or (H, W, 3) as one DICOM file; ``elements`` go over the usual ones."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
    ds.PatientName, ds.PatientID, ds.Modality = PATIENT, "Secretname-1", "DX"
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    ds.PhotometricInterpretation, ds.SamplesPerPixel = ("RGB", 3) if colour else ("MONOCHROME2", 1)
    ds.Rows, ds.Columns = pixels.shape[:2] if colour or pixels.ndim == 2 else pixels.shape[1:]
    if colour:
        ds.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        ds.NumberOfFrames = len(pixels)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = pixels.dtype.itemsize * 8, bits, bits - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    ds.save_as(path, enforce_file_format=True)
    return path


def make_cine(path: Path, count: int, seed: int = 0, size: tuple[int, int] = (12, 10)) -> Path:
    """Write ``count`` frames in colour as one file; each is smooth, and another one."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, 3, 3, 3), dtype=np.uint8)
    frames = noise.repeat(-(-size[0] // 3), axis=1).repeat(-(-size[1] // 3), axis=2)[:, : size[0], : size[1]]
    content = frames.tobytes() + b"\0" * (frames.nbytes % 2)
    return make_dicom(path, np.ascontiguousarray(frames[0]), 8, NumberOfFrames=count, PixelData=content)


def make_encapsulated(
    path: Path, frames: list[bytes], syntax: UID, shape: tuple[int, int], bits: int = 16, **elements: object
) -> Path:
    """Write compressed grey frames of one ``shape`` as they are; ``elements`` go over the usual ones."""
    elements = {"NumberOfFrames": len(frames), "PixelData": encapsulate(frames), **elements}
    make_dicom(path, np.zeros(shape, dtype=f"u{bits // 8}"), bits)
    ds = dcmread(path)
    ds.file_meta.TransferSyntaxUID = syntax
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.save_as(path)
    return path


def random_pixels(seed: int, shape: tuple[int, ...] = (12, 10)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4096, shape, dtype=np.uint16)


def make_folder(folder: Path, rows: list[dict[str, str]]) -> Path:
    """Write manifest.csv with ``rows``, and an image for each file of theirs that is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, row in enumerate(rows):
        path = folder / row["file"]
        if path.is_relative_to(folder) and ".." not in row["file"] and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            make_dicom(path, random_pixels(seed))
    write_manifest(folder, rows)
    return folder


def write_manifest(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "manifest.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def some_rows(count: int, split: str = "test", **columns: str) -> list[dict[str, str]]:
    return [
        {"file": f"{split}/{i}.dcm", "label": str(i % 2), "patient": f"{split}-p{i}", "split": split, **columns}
        for i in range(count)
    ]


def rows_of(folder: Path, ids: list[str]) -> list[int]:
    """The rows of manifest.csv that pseudonyms stand for, by the table in a party's run folder."""
    with (folder / "results" / "images.csv").open(newline="") as stream:
        known = {line["pseudonym"]: int(line["row"]) for line in csv.DictReader(stream) if not line["refused"]}
    return [known[name.split("-")[2]] for name in ids]


def with_files(folder: Path, text: str) -> str:
    """What a log or an error says of rows, with the names of files in place of pseudonyms: those of a run folder."""
    with (folder / "results" / "images.csv").open(newline="") as stream:
        known = {line["pseudonym"]: line["file"] for line in csv.DictReader(stream)}
    return re.sub(r" \(image (\w+)\)", lambda match: f", {known[match[1]]}", text)


def settings_for(data: DataSettings, owners: tuple[str, ...] = ("hospital_a", "hospital_b")) -> Settings:
    parties = {name: PartySettings([Role.data_owner, Role.compute]) for name in owners}
    parties["dealer"] = PartySettings([Role.dealer])
    settings = Settings(data=data, topology=TopologySettings("test", parties))
    settings.policy.reveal = {"metrics": ["hospital_a"]}  # so that labels are needed
    return settings


def dicom_settings(path: Path | None, **keys: object) -> DataSettings:
    return DataSettings(kind=DataKind.dicom, path=None if path is None else str(path), image_size=8, **keys)


def shipped(name: str) -> Path:
    """One of the files inside the pydicom package; never a download."""
    path = get_testdata_file(name, download=False)
    assert path is not None, f"pydicom no longer ships {name}"
    return Path(path)
