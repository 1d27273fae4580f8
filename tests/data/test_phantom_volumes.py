"""Generated volumes: CT series that the reader sorts, which depend on seed and index alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from numpy.random import default_rng

from mpc_imaging.baselines.plaintext import predict, train_plaintext
from mpc_imaging.compose import compose_settings
from mpc_imaging.data import load_party, load_whole_split, phantom_volumes
from mpc_imaging.data.phantom_volumes import hounsfield
from mpc_imaging.data.rows import Row
from mpc_imaging.data.series import read_volumes
from mpc_imaging.models.build import build
from mpc_imaging.settings import DataSettings, PhantomSettings
from tests.data.builders import settings_for
from tests.report.dicom_checks import require, standard_errors


def test_a_volume_is_a_series_of_ct_slices(tmp_path: Path) -> None:
    phantom_volumes.save(tmp_path / "a", Row(3, "val", 1, "p"), seed=7)
    (volume,) = read_volumes(sorted((tmp_path / "a").iterdir())).volumes
    assert not volume.problems and 10 <= len(volume.sources) <= 14 and volume.spacing == (20, 6, 6)
    assert [path for path, _ in volume.sources] != sorted(path for path, _ in volume.sources)
    again = phantom_volumes.volume("val", 3, seed=7)
    for (path, _), slice_ in zip(volume.sources, again, strict=True):
        written = pydicom.dcmread(path)
        assert written.SOPInstanceUID == slice_.SOPInstanceUID and written.PixelData == slice_.PixelData
        assert written.PatientID == "phantom-val-00003" and "^" in str(written.PatientName)
    assert phantom_volumes.volume("val", 3, seed=8)[0].PixelData != again[0].PixelData


def test_slices_are_valid_ct_images(tmp_path: Path) -> None:
    require("dciodvfy")
    phantom_volumes.save(tmp_path / "a", Row(0, "train", 0, "p"), seed=0)
    assert standard_errors(tmp_path / "a" / "00.dcm") == []


@pytest.mark.parametrize("seed", range(4))
def test_a_nodule_is_in_some_slices_of_a_lung(seed: int) -> None:
    clear, ill = (hounsfield(12, nodule, default_rng(seed)) for nodule in (False, True))
    # The noise is drawn after the nodule, so it differs.
    changed = np.abs(ill - clear) > 400
    assert 1 <= changed.any((1, 2)).sum() <= 6 and 3 < changed.sum() < 500
    assert clear.min() > -1200 and 300 < clear.max() < 800


def test_owners_generate_and_read_their_own(tmp_path: Path) -> None:
    sizes = PhantomSettings(train=4, val=1, test=4)
    settings = settings_for(DataSettings(slices=6, image_size=16, class_names=["clear", "nodule"], phantoms=sizes))
    loaded = {
        name: load_party(settings, name, tmp_path / name, ["train", "test"]) for name in ("hospital_a", "hospital_b")
    }
    for name, splits in loaded.items():
        assert [splits[split].images.shape for split in ("train", "test")] == [(2, 6, 1, 16, 16)] * 2
        assert len([path for path in (tmp_path / name / "dicom").iterdir() if path.is_dir()]) == 4
        assert all(len(source) == 6 for source in splits["test"].sources)


@pytest.mark.slow
def test_they_are_learnable_and_training_is_chaotic(tmp_path: Path) -> None:
    """As in conf/experiment/volumes.yaml, in plaintext, twice: from weights that differ by 1e-6. `-rP` prints both."""
    from sklearn.metrics import roc_auc_score

    settings = compose_settings(["experiment=volumes"])
    train, test = (load_whole_split(settings, tmp_path, split, "hospital_a") for split in ("train", "test"))
    assert abs(float(train.images.mean())) < 0.05 and abs(float(train.images.std()) - 1) < 0.05
    logits = []
    for size in (0.0, 1e-6):
        module = build(settings.model, settings.seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        train_plaintext(module, train.images, train.labels, settings.task, settings.seed)
        logits.append(predict(module, test.images, 20))
        assert roc_auc_score(test.labels, logits[-1][:, 1] - logits[-1][:, 0]) > 0.97
    same = (logits[0].argmax(1) == logits[1].argmax(1)).sum().item()
    print(f"logits differ by up to {(logits[0] - logits[1]).abs().max():.2f}, {same} of {len(test)} labels agree")
    assert same >= 0.9 * len(test)
