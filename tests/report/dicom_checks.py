"""What the tests of result objects share: sources with planted names, a model, and outside checkers of validity."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mpc_imaging.data.phantoms import phantom
from mpc_imaging.report.result_objects import ModelIdentity

MODEL = ModelIdentity("small_cnn", "ab" * 32, "1.2")
PLANTED = "Planted free text"


def make_source(path: Path, index: int = 0, **elements: object) -> Path:
    """Write a phantom's DICOM file with free text in its header; ``elements`` go over its own, None removes one."""
    ds = phantom("test", index, seed=3)
    ds.PatientComments = ds.ImageComments = ds.StudyDescription = ds.AdditionalPatientHistory = PLANTED
    ds.StationName, ds.OperatorsName = "Planted1", "Planted^Operator"
    for keyword, value in elements.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    ds.save_as(path, enforce_file_format=True)
    return path


def ct_series(folder: Path, count: int = 3) -> list[Path]:
    """Write a small series of slices with positions in space."""
    common = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "PatientID": "one", "PatientName": "One^Ann"}
    geometry = {"FrameOfReferenceUID": "1.2.3.5", "PixelSpacing": [1, 1], "SliceThickness": 2}
    return [
        make_source(
            folder / f"slice{k}.dcm",
            SOPClassUID="1.2.840.10008.5.1.4.1.1.2",
            SOPInstanceUID=f"1.2.3.4.{k + 1}",
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[0, 0, 2 * k],
            PositionReferenceIndicator="",
            **common,
            **geometry,
        )
        for k in range(count)
    ]


def require(command: str) -> None:
    """Skip the test where a checker is not installed."""
    if shutil.which(command) is None:
        pytest.skip(f"{command} is not installed (Debian: apt-get install dicom3tools dcmtk)")


def standard_errors(path: Path) -> list[str]:
    """Return the errors of dicom3tools; its warnings are about private codes and what the source leaves empty."""
    done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
    return [line for line in done.stderr.splitlines() if line.startswith(("Error", "Abort"))]


def dump(command: str, path: Path) -> str:
    """Return how a tool of dcmtk prints an object that it can read without complaint."""
    done = subprocess.run([command, str(path)], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if "VR checker does not support" not in line]
    assert done.returncode == 0 and not complaints, complaints
    return done.stdout
