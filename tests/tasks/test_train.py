"""Training at one party, rehearsed: what checkpoints hold, and what is left to do after one."""

import pytest
import torch

from mpc_imaging.compose import compose_settings
from mpc_imaging.randomness.phases import Phases
from mpc_imaging.tasks import rehearsal as module
from mpc_imaging.tasks.checkpoints import Point, Start
from mpc_imaging.tasks.rehearsal import rehearse
from tests.system.command import TINY

COUNTS = {"hospital_a": {"train": 5, "val": 3, "test": 2}, "hospital_b": {"train": 6, "val": 2, "test": 2}}
# 3 batches an epoch, the last of them smaller.
TRAIN = (*TINY, "model=logistic", "task=train", "task.epochs=3", "task.batch_size=4", "policy=aggregate_only")
CASES = {
    "sgd": ("task.momentum=0",),
    "momentum": ("task.momentum=0.9", "task.weight_decay=0.01"),
    "adam": ("task.optimiser=adam",),
    "best": ("task.early_stopping.metric=accuracy",),
    "early": (
        "task.early_stopping.metric=loss",
        "task.early_stopping.patience=1",
        "policy.reveal={epoch: [compute], loss: [receiver], range_ok: [compute]}",
    ),
}


class Kept:
    """Checkpoints that are kept in memory."""

    def __init__(self, every):
        self.every, self.saved, self.history = every, {}, {}

    def due(self, step):
        return step % self.every == 0

    def save(self, point, tensors, history=(), privacy=None):
        self.saved[point] = {name: x.clone() for name, x in tensors.items()}
        self.history[point] = list(history)


@pytest.fixture
def flat(monkeypatch):
    """Rehearsals that run all steps; whatever is given as ``checkpoints`` keeps what they save."""
    original = module._job

    def run(settings, checkpoints=None, start=None):
        def job(*arguments):
            made = original(*arguments)
            made.checkpoints = checkpoints
            return made

        with monkeypatch.context() as patch:
            patch.setattr(module, "_job", job)
            patch.setattr(module._Repeats, "segment", lambda self, key, body, *args: body(*args))
            patch.setattr(module.run, "_keep_weights", lambda *arguments: None)
            return rehearse(settings, COUNTS, start=start)

    return run


def _demands(plan):
    """All of them, or those of each phase."""
    return [list(phase) for phase in plan.plans] if isinstance(plan, Phases) else list(plan)


@pytest.mark.parametrize("case", CASES)
def test_checkpoints_hold_all_that_training_changes(flat, case):
    settings, kept = compose_settings([*TRAIN, *CASES[case]]), Kept(2)
    flat(settings, kept)
    assert list(kept.saved) == [Point(0, 2, 2), Point(1, 1, 4), Point(1, 3, 6), Point(2, 2, 8)]
    assert [len(kept.history[point]) for point in kept.saved] == [0, 1, 1, 2]
    for point, tensors in kept.saved.items():
        assert {"weights.classifier.1.weight", "weights.classifier.1.bias", "loss"} <= tensors.keys()
        assert any(name.startswith("optimiser.") for name in tensors) == (case != "sgd")
        assert any(name.startswith("best.") for name in tensors) == (case in ("best", "early") and point.epoch > 0)
        assert all(x.dtype is torch.int64 for x in tensors.values())
        assert tensors["loss"].shape == ()


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case == "momentum" else []) for case in CASES]
)
def test_what_is_left_to_do_counts_as_if_it_was_run(flat, case):
    """From each checkpoint: in an epoch, and at its end, when nothing of it is opened yet."""
    settings, kept = compose_settings([*TRAIN, *CASES[case]]), Kept(1)
    whole = flat(settings, kept)
    rounds = [whole.cost["rounds"]]
    for point, tensors in kept.saved.items():
        start = Start(point, True, tensors).blank()
        rest, short = flat(settings, start=start), rehearse(settings, COUNTS, start=start)
        assert _demands(short.plan) == _demands(rest.plan)
        assert short.cost == rest.cost and short.layers == rest.layers
        rounds.append(rest.cost["rounds"])
    assert rounds == sorted(rounds, reverse=True) and len(set(rounds)) == len(rounds)


def test_a_rehearsal_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    written = []
    monkeypatch.setattr("mpc_imaging.parties.sealed.seal", lambda *arguments: written.append(arguments))
    rehearse(compose_settings([*TRAIN, "checkpoint.every=1"]), COUNTS)
    assert not written and not list(tmp_path.iterdir())
