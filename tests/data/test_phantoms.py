"""Phantoms: real DICOM files that depend on seed and index alone, learnable but not trivial."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch

from mpc_imaging.data import load_whole_split, phantoms
from mpc_imaging.errors import ConfigError
from mpc_imaging.settings import DataSettings, PhantomSettings
from tests.data.builders import settings_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("phantoms")
    rows = phantoms.rows(PhantomSettings(train=12, val=4, test=4, seed=7))
    phantoms.write(path, rows, 7, ["clear", "opacity"])
    return path


def test_they_are_dicom_files_as_a_scanner_writes_them(folder: Path) -> None:
    files = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    assert len(files) == 20
    assert {ds.PhotometricInterpretation for ds in files} == {"MONOCHROME1", "MONOCHROME2"}
    assert {(ds.Rows, ds.Columns) for ds in files} == {(160, 160), (152, 128)}
    assert len({ds.SOPInstanceUID for ds in files}) == 20
    for ds in files:
        assert ds.SOPClassUID.name == "Digital X-Ray Image Storage - For Presentation"
        assert ds.BitsStored == 12 and ds.pixel_array.min() > 0 and ds.pixel_array.max() < 4096
        assert "^" in str(ds.PatientName) and ds.WindowWidth > 500


def test_a_phantom_depends_on_seed_and_index_alone(folder: Path) -> None:
    alone = phantoms.phantom("val", 3, seed=7)
    written = pydicom.dcmread(folder / "seed7-val-00003.dcm")
    assert written.PixelData == alone.PixelData
    assert (written.PatientName, written.SOPInstanceUID) == (alone.PatientName, alone.SOPInstanceUID)
    for other in (phantoms.phantom("val", 3, seed=8), phantoms.phantom("test", 3, seed=7)):
        assert other.PixelData != alone.PixelData and other.SOPInstanceUID != alone.SOPInstanceUID


def test_labels_and_scanners_are_balanced_and_unrelated() -> None:
    rows = phantoms.rows(PhantomSettings(train=100, val=0, test=0))
    counts = {(label, site): 0 for label in (0, 1) for site in ("north", "south")}
    for row in rows:
        counts[row.label, row.site] += 1
    assert set(counts.values()) == {25}


def test_what_is_there_is_not_written_again(folder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    phantoms.write(folder, phantoms.rows(PhantomSettings(train=12, val=4, test=4, seed=7)), 7, ["clear", "opacity"])
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_two_classes_are_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 3 names"):
        phantoms.write(tmp_path, phantoms.rows(PhantomSettings()), 0, ["a", "b", "c"])


@pytest.mark.slow
def test_they_are_learnable_but_not_trivial(tmp_path: Path) -> None:
    from sklearn.metrics import roc_auc_score

    sizes = PhantomSettings(train=240, val=0, test=120)
    data = DataSettings(mean=[0.41], std=[0.29], class_names=["clear", "opacity"], phantoms=sizes)
    train, test = (load_whole_split(settings_for(data), tmp_path, split, "hospital_a") for split in ("train", "test"))
    assert (len(train), len(test)) == (240, 120)
    assert abs(float(train.images.mean())) < 0.05 and abs(float(train.images.std()) - 1) < 0.05
    generator = torch.Generator().manual_seed(0)
    weights = torch.zeros(28 * 28, requires_grad=True)
    optimiser = torch.optim.SGD([weights], lr=0.005, momentum=0.9)
    for _ in range(30):
        for batch in torch.randperm(240, generator=generator).split(32):
            optimiser.zero_grad()
            logits = train.images[batch].flatten(1) @ weights
            torch.nn.functional.binary_cross_entropy_with_logits(logits, train.labels[batch].float()).backward()
            optimiser.step()
    scores = (test.images.flatten(1) @ weights).detach()
    assert 0.9 < roc_auc_score(np.asarray(test.labels), np.asarray(scores)) < 0.99
