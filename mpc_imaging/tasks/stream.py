"""A stream: each owner's cine through the model owner's weights, frame by frame, while the next ones are being read.

Nobody holds more than a few frames. Each step's outputs are opened before the next step begins.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from mpc_imaging.report.predictions import write_predictions
from mpc_imaging.tasks.compute import forward
from mpc_imaging.tasks.feed import Step, planned_steps
from mpc_imaging.tasks.job import Job, once
from mpc_imaging.tasks.results import write_own


@dataclass
class _Results:
    """What this party saw: for each frame its owner and number, its prediction, and its logits (K,) or None."""

    frames: list[tuple[str, int]] = field(default_factory=list)
    predicted: list[Any] = field(default_factory=list)
    logits: list[torch.Tensor | None] = field(default_factory=list)

    def add(self, step: Step, logits: torch.Tensor | None, predicted: torch.Tensor | None, several: bool) -> None:
        """Add the rows of a step, of which this party may have seen nothing."""
        if predicted is None and logits is not None:
            predicted = (logits > 0).long() if several else logits.argmax(1)
        if predicted is None:
            return
        self.frames += [(step.owner, number) for number in step.frames]
        self.predicted += predicted.tolist()
        self.logits += [None] * len(step.frames) if logits is None else list(logits.float())


@dataclass
class _Clock:
    """Seconds that this party's own frames took: from their arrival, and from when they were taken, to their result."""

    latency_s: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)

    def add(self, arrived: list[float], begun: float) -> None:
        """Frames that arrived then have their result now."""
        now = time.monotonic()
        self.latency_s += [now - at for at in arrived]
        self.step_s += [now - begun] * len(arrived)


def stream(job: Job, model: Any) -> None:
    """Run all frames through the model, open what the policy lists of each, and write what this party gets.

    model: the secure module; None at parties that do not compute, which share, or wait for results, here.
    Raises as `SessionFeed.next` and `Job.open`.
    """
    results, clock, done = _Results(), _Clock(), Counter()
    several, split = job.settings.data.multi_label, job.settings.task.split
    # As the policy has it for all owners together: every step demands the same, in whatever order they come.
    compared = job.compares(job.catalogue.total(split), job.catalogue.spans(split))
    if model is not None:
        with model.observer("weights", "opening"):
            model.open_weights()
    steps = planned_steps(job.feed.counts, job.feed.stream.frames_per_step)
    with job.feed as feed, job.progress.stage("secure stream", job.catalogue.total(feed.split)):
        started = time.monotonic()
        while (step := feed.next()) is not None:
            begun = time.monotonic()
            # What a step costs depends on whose frames it has, and how many.
            key = ("step", step.owner, len(step.frames))
            logits, predicted = job.segment(key, _step, job, model, step, compared)
            results.add(step, logits, predicted, several)
            if step.owner == job.session.me and (model is not None or logits is not None or predicted is not None):
                clock.add(feed.arrivals(), begun)
            done[step.owner] += len(step.frames)
            steps[step.owner] -= 1
            job.progress.advance(len(step.frames))
        seconds = time.monotonic() - started
    job.complete = not any(steps.values())
    frames = {owner: done[owner] for owner in feed.counts}
    dropped = {owner: count - frames[owner] for owner, count in feed.counts.items()}
    job.session.ledger.write("stream", frames=frames, dropped=dropped)
    job.stream = {
        "seconds": seconds,
        "frames": frames,
        "dropped": dropped,
        "latency_s": clock.latency_s,
        "step_s": clock.step_s,
    }
    job.leave(_write, job, results)


def _step(job: Job, model: Any, step: Step, compared: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Share, compute and open one step: its logits (n, K) and predictions, as far as this party may see them."""
    images, count = job.feed.share(step), len(step.frames)
    logits = None
    if model is not None:
        logits = forward(model, images, len(images), lambda rows: None, once)
    return job.open_rows(logits, count, {step.owner: slice(0, count)}, compared)[:2]


def _write(job: Job, results: _Results) -> None:
    """Write this party's rows, each owner's together and in order, as `Job.open_outputs` does."""
    if not results.frames:
        return
    settings, me, split = job.settings, job.session.me, job.settings.task.split
    place = {owner: number for number, owner in enumerate(job.catalogue.counts)}
    order = sorted(range(len(results.frames)), key=lambda row: (place[results.frames[row][0]], results.frames[row][1]))
    frames = [results.frames[row] for row in order]
    own = None if job.own is None else job.own[split]
    names = job.ids if own is None else {**job.ids, me: own.ids}
    ids = [names[owner][number] for owner, number in frames]
    labels = [own.labels[number].tolist() if owner == me else job.unknown_label for owner, number in frames]
    predicted = torch.tensor([results.predicted[row] for row in order])
    rows = [results.logits[row] for row in order]
    # The file has scores for all of its rows or for none.
    logits = None if any(row is None for row in rows) else torch.stack(rows)
    scores = None if logits is None else logits.numpy()
    write_predictions(job.folder, ids, labels, scores, predicted.numpy(), settings.data.class_names)
    mine = [row for row, (owner, _) in enumerate(frames) if owner == me]
    if settings.data.dicom_results and mine:
        numbers = [frames[row][1] for row in mine]
        write_own(job, own, numbers, None if logits is None else logits[mine], predicted[mine])
