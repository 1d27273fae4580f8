"""The learning rate of each step: public, and the same for secure training and for its plaintext baseline."""

from __future__ import annotations

import math

from mpc_imaging.choices import RateSchedule
from mpc_imaging.settings import TaskSettings


def learning_rate(task: TaskSettings, step: int, steps_per_epoch: int) -> float:
    """The rate of a step, counted from 0 over all epochs, as `ScheduleSettings` describes it."""
    schedule = task.schedule
    if step < schedule.warmup_steps:
        return task.lr * (step + 1) / schedule.warmup_steps
    if schedule.kind is RateSchedule.step:
        return task.lr * schedule.factor ** (step // steps_per_epoch // schedule.step_epochs)
    last = task.epochs * steps_per_epoch - 1
    done = (step - schedule.warmup_steps) / max(1, last - schedule.warmup_steps)
    if schedule.kind is RateSchedule.linear:
        return task.lr * (1 - (1 - schedule.factor) * done)
    if schedule.kind is RateSchedule.cosine:
        return task.lr * (schedule.factor + (1 - schedule.factor) * (1 + math.cos(math.pi * done)) / 2)
    return task.lr
