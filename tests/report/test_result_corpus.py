"""Every DICOM file of four PyPI packages: valid result objects, or a reason why there are none."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from mpc_imaging.data.refusals import ImageError, Reason
from mpc_imaging.report.capture import write_capture
from mpc_imaging.report.result_source import Refusal, ResultError, read_sources
from mpc_imaging.report.segmentation import write_segmentation
from mpc_imaging.report.structured_report import write_structured_report
from tests.report.dicom_checks import MODEL, dump, require, standard_errors

pytest.importorskip("highdicom", reason="an extra: pip install highdicom")
# One UID for two things in the source: a result cannot refer to it by another.
SOURCES_OWN = "has same value as FrameOfReferenceUID"
NO_DATA = (".py", ".pyc", ".zip", ".md", ".txt")
pytestmark = pytest.mark.slow


def objects(source: Path, folder: Path, name: str) -> list[Path]:
    """Write a report, a mask of the first frame and a capture; all of them or none."""
    probabilities = {"normal": 0.25, "ill": 1 / 3}
    report = write_structured_report(source, "normal", probabilities, MODEL, folder, f"{name}-sr", frame=0)
    (header,) = read_sources(source)
    mask = np.zeros((header.Rows, header.Columns), bool)
    mask[1:3, 1:4] = True
    picture = np.full((24, 16, 3), 90, np.uint8)
    return [
        report,
        write_segmentation(source, mask, "lesion", MODEL, folder, f"{name}-seg", frame=0),
        write_capture(source, picture, "Saliency", MODEL, folder, f"{name}-sc", frame=0),
    ]


def check(package: str, subfolder: str, tmp_path: Path) -> tuple[int, dict[object, int]]:
    require("dciodvfy")
    require("dcmdump")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package that holds {package} is not installed")
    counts: Counter[object] = Counter()
    folder = Path(spec.submodule_search_locations[0]) / subfolder
    for k, path in enumerate(
        sorted(each for each in folder.rglob("*") if each.is_file() and each.suffix not in NO_DATA)
    ):
        try:
            written = objects(path, tmp_path, f"{k}")
        except (ImageError, ResultError) as error:
            counts[error.reason] += 1
            continue
        counts["written"] += 1
        for each in written:
            assert [error for error in standard_errors(each) if SOURCES_OWN not in error] == [], path.name
            dump("dsrdump" if each.stem.endswith("-sr") else "dcmdump", each)
    return counts.pop("written"), dict(counts)


def test_pydicom(tmp_path: Path) -> None:
    refused = {
        Refusal.header: 50,  # TINY_ALPHA: headers without rows, columns and pixels
        Refusal.identity: 28,  # without the UIDs of study or series, as palettes and files of a few elements
        Refusal.kind: 17,  # plans, reports, doses, segmentations, an ECG
        Refusal.frames: 3,  # secondary captures of two frames, which their kind does not have
        Reason.not_dicom: 10,
        Reason.damaged: 1,
    }
    assert check("pydicom", "data", tmp_path) == (92, refused)


def test_pydicom_data(tmp_path: Path) -> None:
    refused = {Refusal.frames: 8, Refusal.identity: 3, Refusal.kind: 2}
    assert check("data_store", "data", tmp_path) == (55, refused)


def test_deid_data(tmp_path: Path) -> None:
    assert check("deid_data", "", tmp_path) == (13, {})


def test_mammograms(tmp_path: Path) -> None:
    assert check("mammograms", "", tmp_path) == (8, {})
