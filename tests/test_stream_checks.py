from __future__ import annotations

from typing import Any

import pytest

from tests.test_settings import problems

STREAM: dict[str, Any] = {
    "task.kind": "stream",
    "data.kind": "dicom",
    "data.path": "/",
    "data.frames": "all",
}

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"data.kind": "phantoms", "data.path": None}, "data.kind: phantoms have no frames to stream; write data=dicom"),
    ({"data.kind": "medmnist"}, "data.kind: medmnist have no frames to stream; write data=dicom"),
    ({"data.frames": "middle"}, "data.frames: middle, but a stream takes every frame of a file; write all"),
    ({"data.quality": "refuse"}, "data.quality: frames are never together to be compared; write report"),
    (
        {"model.backbone._target_": "torchvision.models.resnet18", "model.backbone.features": 512},
        "model.backbone._target_: a stream shares frames, not features; write null, or task=infer",
    ),
    ({"policy.reveal.duplicates": ["image_owner"]}, "policy.reveal.duplicates: owners compare whole data sets"),
    ({"task.stream.queue": 0}, "task.stream.queue: 0 is out of range; write a whole number from 1"),
    ({"task.stream.fps": 0.0}, "task.stream.fps: 0.0 is out of range; write a number above 0"),
    ({"task.stream.frames_per_step": 0}, "task.stream.frames_per_step: 0 is out of range; write a whole number from 1"),
    (
        {"task.stream.frames_per_step": 8},
        "task.stream.queue: room for 4 of the 8 frames of a step; write as many or more",
    ),
    ({"data.masks": True}, "data.masks: a stream opens classes of frames, not masks; write false, or task=infer"),
    ({"resume": True, "checkpoint.path": "/run"}, "resume: stream is not resumed"),
    (
        {"policy.reveal": {"metrics": ["receiver"], "range_ok": ["compute"]}},
        "nobody receives anything from stream; name a recipient of one of logits, predictions",
    ),
]


@pytest.mark.parametrize(
    "changes", [{}, {"task.stream.fps": 25.0}, {"task.stream.queue": 8, "task.stream.frames_per_step": 8}]
)
def test_what_can_run_has_no_problem(changes: dict[str, Any]) -> None:
    assert problems(STREAM | changes) == []


@pytest.mark.parametrize(("changes", "expected"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_each_rule_finds_its_problem(changes: dict[str, Any], expected: str) -> None:
    (found,) = problems(STREAM | changes)
    assert expected in found


def test_volumes_are_no_stream() -> None:
    assert any("a stream has frames, not volumes" in problem for problem in problems(STREAM | {"data.slices": 8}))


def test_other_tasks_are_left_alone() -> None:
    assert problems({"task.stream.queue": 1, "task.stream.frames_per_step": 4}) == []
