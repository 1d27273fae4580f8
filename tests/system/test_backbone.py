"""Transfer learning with real processes: a backbone that the test trains, saves and gives to the owners."""

from __future__ import annotations

import json

import pytest
import torch

from mpc_imaging.baselines.plaintext import train_plaintext
from mpc_imaging.compose import compose_settings
from mpc_imaging.data import load_whole_split
from mpc_imaging.models.build import build
from mpc_imaging.models.weights import save_weights
from mpc_imaging.settings import TaskSettings
from tests.system.command import mpc_imaging

SMALL_CNN = "mpc_imaging.models.zoo.SmallCNN"


def _ok(run):
    assert run.code == 0, run.output
    return run


def _trained_backbone(path, *overrides, epochs):
    """small_cnn, trained in plaintext on the train split of ``overrides``, as a file."""
    settings = compose_settings(["model=small_cnn", *overrides])
    split = load_whole_split(settings, path.parent, "train", settings.model_owner())
    module = build(settings.model, 5)
    train_plaintext(module, split.images, split.labels, TaskSettings(epochs=epochs, lr=0.02), 0)
    save_weights(module.state_dict(), path)
    return path


@pytest.mark.slow
def test_a_head_on_public_features(tmp_path):
    data = ("data=phantoms", "data.image_size=16", "data.phantoms.train=24", "data.phantoms.test=12")
    path = _trained_backbone(tmp_path / "b.safetensors", *data, epochs=1)
    run = _ok(
        mpc_imaging(
            *data, "task=train", "task.epochs=2", "task.batch_size=8", "task.evaluate_each_epoch=false",
            "protocol.fraction_bits=24", "model=head_on_backbone", "model.kwargs.hidden=4",
            f"model.backbone._target_={SMALL_CNN}",
            "model.backbone.kwargs.image_size=16", "model.backbone.features=100", f"model.backbone.path={path}",
            "data.augment.copies=2", "data.augment.flip=true", "data.augment.rotate=10", "data.augment.shift=1",
            cwd=tmp_path,
        )
    )  # fmt: skip
    assert "features of the backbone" in run.output
    assert run.metrics["fidelity"]["agreeing"] == run.metrics["images"] == 12
    assert run.metrics["fidelity"]["max_logit_error"] < 1e-3
    assert run.result("hospital_a")["counts"]["hospital_a"]["train"] == 24, "each image twice"


@pytest.mark.slow
def test_head_on_backbone_follows_plaintext_within_a_minute(medical_data, tmp_path):
    """The backbone has seen breast ultrasound only; the head learns pneumonia from 1,000 chest X-rays."""
    torch.set_num_threads(1)
    breast = ("data=breastmnist", f"data.path={medical_data / 'breastmnist.npz'}", "data.image_size=56")
    path = _trained_backbone(tmp_path / "b.safetensors", *breast, epochs=5)
    m = _ok(
        mpc_imaging(
            "experiment=head_on_backbone", f"data.path={medical_data / 'pneumoniamnist.npz'}",
            f"model.backbone._target_={SMALL_CNN}", "model.backbone.kwargs.image_size=56",
            "model.backbone.features=100", f"model.backbone.path={path}", cwd=tmp_path,
        )
    ).metrics  # fmt: skip
    print(m["secure"], m["plaintext"], m["cost"])
    assert m["cost"]["online_s"] + m["cost"]["offline_s"] < 60
    assert m["secure"]["auc"] == pytest.approx(m["plaintext"]["auc"], abs=0.005)
    assert m["secure"]["auc"] > 0.85


@pytest.mark.slow
def test_the_mean_over_folds_follows_plaintext(medical_data, tmp_path):
    run = mpc_imaging(
        "-m", "experiment=breast_kfold", f"data.path={medical_data / 'breastmnist.npz'}", cwd=tmp_path, timeout_s=1800
    )
    assert run.code == 0, run.output
    (group,) = json.loads((run.folder / "folds.json").read_text())["groups"]
    auc = group["summary"]["auc"]
    print(auc)
    assert auc["secure"]["folds"] == auc["plaintext"]["folds"] == 5
    assert abs(auc["difference"]["mean"]) < 0.02
