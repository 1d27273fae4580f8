"""Settings of task=stream that cannot run: checks in the manner of `validation`."""

from __future__ import annotations

from collections.abc import Iterator

from mpc_imaging.choices import DataKind, Frames, Quality, TaskKind
from mpc_imaging.reading import Problem
from mpc_imaging.settings import Settings


def cine(settings: Settings, party: str | None) -> Iterator[Problem]:
    """Of where the frames come from, and how many wait."""
    data, stream = settings.data, settings.task.stream
    if settings.task.kind is not TaskKind.stream:
        return
    if data.kind is not DataKind.dicom:
        yield Problem("data.kind", f"{data.kind.name} have no frames to stream; write data=dicom")
    elif data.frames is not Frames.all:
        yield Problem("data.frames", f"{data.frames.name}, but a stream takes every frame of a file; write all")
    if data.quality is Quality.refuse:
        what = "frames are never together to be compared; write report, which leaves it out here"
        yield Problem("data.quality", what)
    if settings.finds_duplicates():
        what = "owners compare whole data sets, and a stream reads frame by frame; write duplicates: []"
        yield Problem("policy.reveal.duplicates", what)
    if settings.model.backbone._target_ is not None:
        yield Problem("model.backbone._target_", "a stream shares frames, not features; write null, or task=infer")
    if data.masks:
        yield Problem("data.masks", "a stream opens classes of frames, not masks; write false, or task=infer")
    if data.slices is not None:
        yield Problem("data.slices", "a stream has frames, not volumes; write null, or task=infer")
    if 1 <= stream.queue < stream.frames_per_step:
        what = f"room for {stream.queue} of the {stream.frames_per_step} frames of a step; write as many or more"
        yield Problem("task.stream.queue", what)


CHECKS = (cine,)
