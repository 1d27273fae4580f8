"""Volumes through real parties: a head and a liver CT at two hospitals, and training on generated ones."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from pydicom import dcmread

from tests.data.builders import write_manifest
from tests.system.command import mpc_imaging

SMALL = ("model=slices", "data.slices=4", "data.image_size=16", "model.kwargs.features=8")


def hospital(folder: Path, series: Path) -> Path:
    """A copy of a series in a folder with a manifest."""
    folder.mkdir()
    shutil.copytree(series, folder / "series")
    write_manifest(folder, [{"file": "series", "label": "0", "patient": "p1", "split": "test"}])
    return folder


@pytest.mark.parametrize("pool", ["max", pytest.param("attention", marks=pytest.mark.slow)])
def test_real_ct_series_through_secure_weights(medical_data: Path, tmp_path: Path, pool: str) -> None:
    a, b = (hospital(tmp_path / name, medical_data / name) for name in ("ct_head", "ct_liver"))
    run = mpc_imaging(
        "data=dicom", f"data.paths={{hospital_a: {a}, hospital_b: {b}}}", "data.window.centre=40",
        "data.window.width=80", "data.invalid=skip", "data.dicom_results=true",
        *SMALL, "data.slices=16", "data.image_size=32", f"model.kwargs.pool={pool}", cwd=tmp_path,
    )  # fmt: skip
    assert run.code == 0, run.output
    assert run.metrics["fidelity"]["agreeing"] == run.metrics["fidelity"]["images"] == 2
    assert run.metrics["fidelity"]["max_logit_error"] < 1e-3
    for party, files in (("hospital_a", 16), ("hospital_b", 3)):
        assert run.result(party)["counts"][party] == {"test": 1}
        (path,) = (run.folder / "parties" / party / "results").glob("*.dcm")
        report = dcmread(path)
        (study,) = report.CurrentRequestedProcedureEvidenceSequence
        (series,) = study.ReferencedSeriesSequence
        assert len(series.ReferencedSOPSequence) == files  # those that were looked at
    findings = {entry["kind"]: entry["count"] for entry in run.result("hospital_a")["quality"]}
    assert findings["volumes stacked off the normal of their slices"] == 1
    log = (run.folder / "parties" / "hospital_a" / "log.txt").read_text()
    assert re.search(r"left out: row 2 \(image \w+\): not a DICOM file", log) and "LICENSE" not in log


@pytest.mark.slow  # tests/engine/test_multiple_instance.py has the gradients, the test above the data and reports
def test_training_on_generated_volumes(tmp_path: Path) -> None:
    run = mpc_imaging(
        "experiment=volumes", *SMALL, "data.phantoms.train=8", "data.phantoms.val=4", "data.phantoms.test=4",
        "data.augment.copies=2", "data.augment.flip=true", "task.epochs=1", "model.kwargs.pool=gated_attention",
        cwd=tmp_path,
    )  # fmt: skip
    assert run.code == 0, run.output
    (secure,), (plain,) = run.metrics["history"]["secure"], run.metrics["history"]["plaintext"]
    assert abs(secure["loss"] - plain["loss"]) < 1e-3
    assert run.metrics["fidelity"]["max_logit_error"] < 1e-2
    assert run.metrics["fidelity"]["images"] == 4
