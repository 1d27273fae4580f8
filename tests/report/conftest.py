"""A simulated run folder: what two hospitals and a dealer leave behind, and the plaintext run beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpc_imaging.baselines.plaintext import PlaintextResult
from mpc_imaging.report.metrics import confusion_counts, metrics_from_confusion
from mpc_imaging.report.predictions import write_json, write_predictions
from mpc_imaging.settings import PartySettings, ProtocolName, Role, Settings, TaskKind, TopologySettings

HOSPITALS = ("hospital_a", "hospital_b")


@dataclass(frozen=True)
class SimulatedRun:
    """The run folder and what is true of it. Rows of the arrays are in joint order."""

    folder: Path
    settings: Settings
    ids: list[str]
    labels: np.ndarray
    secure: np.ndarray
    plaintext: PlaintextResult

    def rows(self, hospital: str) -> slice:
        """Which rows are this hospital's: a fifth belongs to the first one."""
        cut = len(self.ids) // 5
        return slice(0, cut) if hospital == "hospital_a" else slice(cut, None)

    def party(self, name: str) -> Path:
        folder = self.folder / "parties" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def write_result(self, party: str, **changes: Any) -> dict[str, Any]:
        counts = {name: {"test": len(self.ids[self.rows(name)])} for name in HOSPITALS}
        result = {
            "party": party,
            "roles": [],
            "counts": counts,
            "history": [],
            "metrics": None,
            "cost": None,
            "layers": [],
        }
        write_json(self.party(party) / "result.json", result | changes)
        return result | changes

    def write_own_predictions(self, logits: bool = True) -> None:
        """Each hospital is shown the outputs of its own images."""
        for name in HOSPITALS:
            rows, classes = self.rows(name), self.settings.data.class_names
            shown = self.secure[rows]
            write_predictions(
                self.party(name), self.ids[rows], self.labels[rows], shown if logits else None, shown.argmax(1), classes
            )

    def counted(self) -> dict[str, Any]:
        """The metrics that counts on shares give."""
        counts = confusion_counts(self.labels, self.secure.argmax(1), self.secure.shape[1])
        return metrics_from_confusion(counts, self.settings.data.positive_class)


def make_settings(classes: int = 2, kind: TaskKind = TaskKind.infer) -> Settings:
    owner = [Role.data_owner, Role.compute, Role.receiver]
    parties = {
        "dealer": PartySettings([Role.dealer]),
        "hospital_a": PartySettings([*owner, Role.model_owner]),
        "hospital_b": PartySettings(owner),
    }
    settings = Settings(name="sample_run", topology=TopologySettings("two_hospitals", parties))
    settings.protocol.name = ProtocolName.beaver
    settings.task.kind = kind
    settings.data.class_names = ["normal", "pneumonia", *(f"class {k}" for k in range(2, classes))]
    settings.data.positive_class = 1 if classes == 2 else None
    settings.policy.reveal = {"logits": ["image_owner"], "metrics": ["receiver"]}
    return settings


def make_run(folder: Path, classes: int = 2, images: int = 60, kind: TaskKind = TaskKind.infer) -> SimulatedRun:
    """A run folder with no party's files in it yet."""
    noise = np.random.default_rng(5)
    labels = noise.integers(0, classes, images)
    logits = noise.normal(0, 1.5, (images, classes))
    logits[np.arange(images), labels] += 1.5
    plain = logits.astype(np.float32)
    secure = (logits + noise.uniform(-1e-3, 1e-3, logits.shape)).astype(np.float32)
    ids = [f"test-{row:04d}" for row in noise.permutation(images)]
    plaintext = PlaintextResult(ids, torch.from_numpy(labels), torch.from_numpy(plain), [], {})
    return SimulatedRun(folder, make_settings(classes, kind), ids, labels, secure, plaintext)


def make_inference(folder: Path) -> SimulatedRun:
    """An inference of which each hospital saw the outputs of its own images, with costs and layers."""
    run = make_run(folder)
    run.write_own_predictions()
    layers = [
        {"name": "conv1", "op": "conv2d", "rounds": 2, "sent_bytes": 4000, "seconds": 0.5},
        {"name": "relu1", "op": "relu", "rounds": 3, "sent_bytes": 90_000, "seconds": 1.5},
    ]
    for name, online, offline, sent in (("hospital_a", 2.5, 0.75, 1000), ("hospital_b", 2.0, 1.0, 4000)):
        cost = {"online_s": online, "offline_s": offline, "rounds": 18, "sent_bytes": sent, "dealer_bytes": 70_000}
        run.write_result(name, cost=cost, layers=layers)
    run.write_result("dealer", counts={})
    return run


@pytest.fixture
def run(tmp_path: Path) -> SimulatedRun:
    """An inference of its own for a test that changes it."""
    return make_inference(tmp_path)


@pytest.fixture
def training(tmp_path: Path) -> SimulatedRun:
    """A training of which only aggregate values were revealed: the loss to one hospital, counts to the other."""
    run = make_run(tmp_path, kind=TaskKind.train)
    run.settings.policy.reveal = {"metrics": ["hospital_b"], "loss": ["model_owner"], "epoch": ["hospital_b"]}
    losses = [(1, 0.9), (2, 0.6)]
    val = metrics_from_confusion([[8, 2], [1, 9]], 1)
    run.write_result("hospital_a", history=[{"epoch": e, "loss": v, "val": None, "seconds": 3.0} for e, v in losses])
    run.write_result(
        "hospital_b",
        history=[{"epoch": e, "loss": None, "val": val, "seconds": 3.0} for e, _ in losses],
        metrics=run.counted(),
    )
    history = [{"epoch": e, "loss": v + 0.001, "val": val | {"auc": 0.9}, "seconds": 0.1} for e, v in losses]
    return replace(run, plaintext=replace(run.plaintext, history=history))
