"""Images with several labels each, from the file to the joint report: a synthetic set like ChestMNIST."""

import csv

import numpy as np
import pytest
import torch

from mpc_imaging.report.predictions import read_predictions
from tests.system.command import mpc_imaging

PARTIES = ("hospital_a", "hospital_b")
NAMES = ("atelectasis", "effusion", "mass")


def write_set(path, counts):
    """A bright square in one of three corners for each label that an image has; about half have one, some have none."""
    rng = np.random.default_rng(4)
    arrays = {}
    for split, count in counts.items():
        labels = (rng.random((count, 3)) < 0.45).astype(np.uint8)
        images = rng.integers(60, 120, (count, 12, 12), dtype=np.uint8)
        for k, (row, column) in enumerate(((0, 0), (0, 7), (7, 0))):
            images[:, row : row + 5, column : column + 5] += labels[:, k, None, None] * 110
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    np.savez(path, **arrays)
    return path


def _run(tmp_path, *overrides):
    path = write_set(tmp_path / "chest.npz", {"train": 96, "val": 16, "test": 24})
    return mpc_imaging(
        "data=medmnist", f"data.path={path}", f"data.class_names=[{','.join(NAMES)}]", "data.multi_label=true",
        "data.positive_class=null", "data.image_size=12", "model=logistic", "task=train",
        "task.loss=binary_cross_entropy", "task.epochs=2",
        "task.batch_size=16", "task.lr=0.5", "protocol.fraction_bits=20", *overrides, cwd=tmp_path,
    )  # fmt: skip


@pytest.mark.slow
def test_training_on_several_labels(tmp_path):
    run = _run(tmp_path)
    assert run.code == 0, run.output
    metrics = run.metrics
    secure, plain = metrics["secure"], metrics["plaintext"]
    assert secure["auc"] > 0.9 and len(secure["per_label"]) == 3
    assert secure["auc"] == pytest.approx(plain["auc"], abs=0.02)
    assert metrics["fidelity"]["max_logit_error"] < 0.01 and metrics["fidelity"]["agreeing"] == 24
    for history in metrics["history"].values():
        assert history[-1]["loss"] < history[0]["loss"] and history[-1]["val"]["accuracy"] > 0.6
    part = read_predictions(run.folder / "parties" / "hospital_a")
    assert part.labels.shape == part.predicted.shape == part.logits.shape == (len(part.ids), 3)
    with (run.folder / "parties" / "hospital_a" / "predictions.csv").open() as file:
        assert {f"{kind}_{name}" for kind in ("label", "predicted", "score") for name in NAMES} < set(
            next(csv.reader(file))
        )


@pytest.mark.slow
def test_counts_and_predictions_alone(tmp_path):
    policy = ("policy.reveal.logits=[]", "policy.reveal.predictions=[image_owner]")
    run = _run(tmp_path, *policy, "task.epochs=1", "task.evaluate_each_epoch=false")
    assert run.code == 0, run.output
    counted = next(
        run.result(party)["metrics"] for party in ("hospital_a", "hospital_b") if run.result(party)["metrics"]
    )
    parts = [read_predictions(run.folder / "parties" / party) for party in ("hospital_a", "hospital_b")]
    labels, predicted = (np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "predicted"))
    for k, entry in enumerate(counted["per_label"]):
        assert entry["counts"]["true_positives"] == ((labels[:, k] == 1) & (predicted[:, k] == 1)).sum()
        assert sum(entry["counts"].values()) == 24
        assert entry["accuracy"] == pytest.approx((labels[:, k] == predicted[:, k]).mean())
    assert torch.tensor(predicted).unique().tolist() == [0, 1]
    assert run.metrics["fidelity"]["agreeing"] >= 23
