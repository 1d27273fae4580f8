from __future__ import annotations

from typing import Any

import pytest

from tests.test_settings import problems

TRAIN: dict[str, Any] = {"task.kind": "train"}
PRIVATE = TRAIN | {"privacy.name": "dp", "privacy.outside": ["metrics", "range_ok"]}
FEDERATED = TRAIN | {"task.method": "federated", "policy.reveal.update": ["data_owner"]}
RESUMED = TRAIN | {"resume": True, "checkpoint.path": "/run"}
BACKBONE = {"model.backbone._target_": "torchvision.models.resnet18", "model.backbone.features": 512}
MULTI = TRAIN | {"data.multi_label": True, "data.positive_class": None, "task.loss": "binary_cross_entropy"}
EARLY = TRAIN | {"task.early_stopping.metric": "auc", "task.early_stopping.patience": 2}

SLICES = {
    "data.slices": 8,
    "model._target_": "mpc_imaging.models.multiple_instance.MultipleInstance",
    "model.kwargs.slices": 8,
}
CONSENT = {"data.kind": "dicom", "data.path": "/", "data.require_consent": True, "data.purpose": "research"}

RUNS = [
    CONSENT,
    TRAIN,
    PRIVATE,
    FEDERATED,
    RESUMED,
    BACKBONE,
    SLICES,
    SLICES | TRAIN,
    SLICES | FEDERATED | {"privacy.name": "dp", "privacy.outside": ["metrics", "range_ok"]},
    MULTI,
    EARLY,
    EARLY | {"policy.reveal.epoch": ["compute"]},
    {"policy.reveal.range_ok": [], "protocol.range_check": False},
]

WRONG: list[tuple[dict[str, Any], str]] = [
    (
        SLICES | {"data.slices": 1, "model.kwargs.slices": 1},
        "data.slices: 1 is out of range; write a whole number from 2 to 1024, or null",
    ),
    (
        SLICES | {"data.slices": 4},
        "model.kwargs.slices: the model takes 8 slices, data.slices is 4; write ${data.slices}",
    ),
    (
        SLICES | {"data.slices": None, "model.kwargs.slices": None},
        "data.slices: this model takes volumes; write how many",
    ),
    ({"data.slices": 4}, "model._target_: it takes images, not volumes; write model=slices"),
    (SLICES | BACKBONE, "model.backbone: a backbone takes images; write model=slices"),
    (SLICES | {"data.frames": "middle"}, "data.frames: middle chooses images"),
    (SLICES | PRIVATE, "privacy.name: gradients of single volumes cannot be clipped yet; write privacy=none"),
    (TRAIN | {"task.nesterov": True, "task.momentum": 0.0}, "task.nesterov: needs momentum"),
    (TRAIN | {"task.nesterov": True, "task.optimiser": "adam"}, "task.nesterov: belongs to sgd, not to adam"),
    (TRAIN | {"task.optimiser": "adamw"}, "task.optimiser: 'adamw' is not valid; did you mean adam?"),
    ({"task.betas": [0.9]}, "task.betas: [0.9] are no decay rates; write two numbers"),
    ({"task.betas": [0.9, 1.0]}, "task.betas"),
    ({"task.eps": 1e-8}, "task.eps: 1e-08 is out of range; write a number from 0.00001"),
    ({"task.class_weights": [1.0, 2.0, 3.0]}, "task.class_weights: [1.0, 2.0, 3.0]; write 2 numbers from 0 to 1000"),
    ({"task.clip_norm": 0.0}, "task.clip_norm: 0.0 is out of range; write a number from 0.001 to 1000"),
    ({"task.label_smoothing": 1.0}, "task.label_smoothing"),
    ({"task.schedule.factor": 2.0}, "task.schedule.factor"),
    (MULTI | {"task.loss": "cross_entropy"}, "task.loss: cross_entropy takes one class for each image"),
    (MULTI | {"task.balanced": True}, "task.balanced: with multi_label an image may have none of the classes"),
    (MULTI | {"data.positive_class": 1}, "data.positive_class: with multi_label each class is reported on its own"),
    (MULTI | {"data.partition.kind": "label_skew"}, "label_skew takes one class for each image"),
    (TRAIN | {"task.early_stopping.patience": 2}, "task.early_stopping.metric: patience with what?"),
    (EARLY | {"policy.reveal.epoch": ["hospital_a"]}, "policy.reveal.epoch: all compute parties must learn"),
    (
        EARLY | {"policy.reveal.epoch": ["compute"], "randomness.mode": "stored", "randomness.store": "/store"},
        "randomness.mode: a store holds sessions of full length",
    ),
    (TRAIN | {"task.method": "federated"}, "policy.reveal.update: owners train on from the sum of all updates"),
    (FEDERATED | {"model.weights.source": "pretrain"}, "model.weights.secret: federated training shows weights"),
    (FEDERATED | {"task.early_stopping.metric": "auc"}, "only joint training chooses its best epoch"),
    (FEDERATED | {"checkpoint.every": 5}, "only joint training writes checkpoints"),
    (FEDERATED | {"protocol.name": "insecure_simulation"}, "updates are not added up in insecure_simulation"),
    (PRIVATE | {"task.split": "train"}, "task.split: outputs on training images are made of these images"),
    (PRIVATE | {"privacy.outside": []}, "privacy.outside: metrics, range_ok: opened without noise; list each here"),
    (PRIVATE | {"policy.reveal.duplicates": ["image_owner"]}, "privacy.outside: duplicates: opened without noise"),
    (PRIVATE | {"privacy.outside": ["metrics", "range_ok", "metricks"]}, "'metricks' needs no declaration; did you"),
    (PRIVATE | {"privacy.delta": 0.0}, "privacy.delta: 0.0 is out of range; write a number above 0, below 1"),
    (PRIVATE | {"protocol.name": "insecure_simulation"}, "privacy.name: insecure_simulation adds no noise"),
    (PRIVATE | {"data.augment.copies": 2, "data.augment.flip": True}, "each spend its budget"),
    (PRIVATE | {"task.clip_norm": 1.0}, "privacy.clip bounds gradients already"),
    (PRIVATE | {"task.balanced": True}, "counts of classes would be used without noise"),
    (PRIVATE | {"task.class_weights": [1.0, 2.0]}, "scale them to at most 1"),
    (PRIVATE | {"model.weights.source": "pretrain"}, "pre-training adds no noise, so no budget holds"),
    (PRIVATE | {"privacy.micro_batch": 2, "privacy.input_norm": 1.0}, "residuals are clipped image by image"),
    (CONSENT | {"data.kind": "phantoms", "data.path": None}, "data.require_consent: phantoms have no manifest"),
    (CONSENT | {"data.kind": "medmnist"}, "data.require_consent: medmnist have no manifest that could say so"),
    (CONSENT | {"data.purpose": None}, "data.purpose: consent to what? Write the purpose"),
    (CONSENT | {"data.purpose": " "}, "data.purpose: consent to what?"),
    (CONSENT | {"data.purpose": "Any"}, "data.purpose: 'Any' is not one purpose"),
    (CONSENT | {"data.purpose": "research;teaching"}, "data.purpose: 'research;teaching' is not one purpose"),
    (TRAIN | {"resume": True}, "checkpoint.path: resume=true needs it; write the run folder"),
    (TRAIN | {"checkpoint.path": "/run"}, "checkpoint.path: read only with resume=true"),
    ({"resume": True, "checkpoint.path": "/run"}, "resume: infer is not resumed"),
    (RESUMED | {"protocol.name": "insecure_simulation"}, "insecure_simulation has no shares to keep"),
    (
        RESUMED | {"randomness.mode": "stored", "randomness.store": "/store"},
        "randomness.mode: a store holds whole sessions, not the rest of one",
    ),
    ({"data.kind": "dicom", "data.path": "/a", "data.window.centre": 40.0}, "a window has a centre and a width"),
    (
        {"data.kind": "dicom", "data.path": "/a", "data.window.centre": 40.0, "data.window.width": 0.5},
        "0.5 is no width in Hounsfield units",
    ),
    ({"data.window.centre": 40.0, "data.window.width": 400.0}, "only DICOM files have Hounsfield units"),
    (MULTI | {"data.dicom_results": True}, "data.dicom_results: a report has one predicted class"),
    ({"data.augment.copies": 2}, "data.augment.copies: copies of what? Add flip, shift, rotate or brightness"),
    (
        {"data.kind": "medmnist", "data.path": "/a", "data.folds.count": 1},
        "data.folds.count: 1 is out of range; write a whole number from 2",
    ),
    ({"data.folds.count": 5}, "phantoms are drawn for each split"),
    (
        {"data.kind": "medmnist", "data.path": "/a", "data.folds.count": 5, "data.folds.index": 5},
        "data.folds.index: 5 is no fold of 5; write 0 to 4",
    ),
    ({"model.backbone.path": "/w.safetensors"}, "weights of which network? Write model.backbone._target_"),
    (BACKBONE | {"model.backbone.features": 0}, "write how many features it makes of an image"),
    (BACKBONE | {"model.backbone._target_": "resnet18"}, "'resnet18' is no dotted name"),
    ({"policy.reveal.range_ok": ["hospital_a"]}, "policy.reveal.range_ok: goes to those who compute, no others"),
    (
        {"policy.reveal.range_ok": []},
        "policy.reveal.range_ok: whether values left the range is told by a bit that is opened; write range_ok:",
    ),
    (
        {"policy.reveal.range_ok": [], "policy.reveal.range_layer": ["compute"], "protocol.range_check": False},
        "range_layer is opened only when it is 0",
    ),
]


@pytest.mark.parametrize("changes", RUNS)
def test_what_can_run_has_no_problem(changes: dict[str, Any]) -> None:
    assert problems(changes) == []


@pytest.mark.parametrize(("changes", "expected"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_each_rule_finds_its_problem(changes: dict[str, Any], expected: str) -> None:
    (found,) = problems(changes)
    assert expected in found
