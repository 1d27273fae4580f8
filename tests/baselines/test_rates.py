from __future__ import annotations

import pytest

from mpc_imaging.baselines.rates import learning_rate
from mpc_imaging.choices import RateSchedule
from mpc_imaging.settings import ScheduleSettings, TaskSettings


def rates(epochs: int, steps: int, **schedule: object) -> list[float]:
    task = TaskSettings(lr=1.0, epochs=epochs, schedule=ScheduleSettings(**schedule))
    return [round(learning_rate(task, step, steps), 6) for step in range(epochs * steps)]


def test_schedules():
    assert rates(2, 2) == [1.0] * 4
    assert rates(4, 2, kind=RateSchedule.step, step_epochs=2, factor=0.5) == [1.0] * 4 + [0.5] * 4
    assert rates(1, 5, kind=RateSchedule.linear, factor=0.2) == [1.0, 0.8, 0.6, 0.4, 0.2]
    cosine = rates(1, 5, kind=RateSchedule.cosine, factor=0.0)
    assert cosine == pytest.approx([1.0, 0.853553, 0.5, 0.146447, 0.0], abs=1e-6)


def test_a_warm_up_comes_before():
    assert rates(1, 6, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rates(1, 6, kind=RateSchedule.linear, factor=0.0, warmup_steps=3) == [0.333333, 0.666667, 1.0, 1.0, 0.5, 0.0]


def test_a_single_step_has_a_rate():
    assert rates(1, 1, kind=RateSchedule.cosine) == [1.0]
