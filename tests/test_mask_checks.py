"""Masks and .npz files: what cannot be configured together, and what to write instead."""

from __future__ import annotations

from typing import Any

import pytest

from mpc_imaging.compose import compose_settings
from mpc_imaging.settings import DataKind
from tests.test_settings import problems

ARRAYS: dict[str, Any] = {"data.kind": "arrays", "data.path": "/file.npz"}
MASKS = ARRAYS | {"data.masks": True, "data.class_names": ["background", "nucleus"], "data.positive_class": 1}
DICOM = MASKS | {"data.kind": "dicom", "data.path": "/"}
TRAIN = {"task.kind": "train"}


@pytest.mark.parametrize("changes", [ARRAYS, MASKS, DICOM, DICOM | {"data.mask_segment": 3}])
def test_what_can_run_has_no_problem(changes: dict[str, Any]) -> None:
    assert problems(changes) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (ARRAYS | {"data.arrays.train": 0.9}, "data.arrays: the shares add up to 1.2; make them add up to 1"),
        (
            ARRAYS | {"data.arrays.train": 1.3, "data.arrays.val": -0.5},
            "data.arrays.val: -0.5 is no share of the images; write a number from 0 to 1",
        ),
        (ARRAYS | {"data.arrays.seed": -1}, "data.arrays.seed: -1 is out of range"),
        (ARRAYS | {"data.partition.kind": "site"}, "arrays files name no sites; write even or fraction"),
        (ARRAYS | {"data.path": None}, "data.path: no images for"),
        ({"data.masks": True}, "data.masks: phantoms have no masks; write data=nuclei or data=dicom, or false"),
        (MASKS | {"data.kind": "medmnist"}, "data.masks: medmnist have no masks"),
        (MASKS | {"data.class_names": ["a", "b", "c"]}, "data.class_names: 3 classes; with data.masks name two"),
        (MASKS | {"data.positive_class": 0}, "data.positive_class: masks mark class 1; write 1"),
        (MASKS | {"data.multi_label": True}, "data.multi_label: each pixel has one class; write false with data.masks"),
        (MASKS | {"data.partition.kind": "label_skew"}, "label_skew takes one class for each image"),
        (MASKS | TRAIN | {"task.balanced": True}, "task.balanced: weighs images by their class, and masks are none"),
        (MASKS | TRAIN | {"task.class_weights": [1.0, 2.0]}, "task.class_weights: weighs images by their class"),
        (
            MASKS | {"model.backbone._target_": "a.b", "model.backbone.features": 5},
            "have no pixels to mark; write null",
        ),
        (MASKS | {"data.mask_segment": 0}, "data.mask_segment: 0 is no segment's number; write 1 to 65535"),
    ],
)
def test_each_rule_finds_its_problem(changes: dict[str, Any], expected: str) -> None:
    assert any(expected in line for line in problems(changes)), problems(changes)


def test_the_group_of_nuclei() -> None:
    data = compose_settings(["data=nuclei", "data.path=/file.npz"]).data
    assert data.kind is DataKind.arrays and data.masks and data.class_names[data.positive_class] == "nucleus"
    assert (data.arrays.train, data.arrays.val, data.arrays.test) == (0.7, 0.1, 0.2)


def test_arrays_hold_no_volumes() -> None:
    assert any("arrays hold images, not volumes" in problem for problem in problems(ARRAYS | {"data.slices": 8}))
