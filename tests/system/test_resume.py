"""Every party is killed in the middle of an epoch; training goes on from the checkpoints, and ends where it would have.

tests/tasks/test_checkpoints.py has what is the same to the bit, and what is refused, with parties as threads;
tests/tasks/test_train.py what is left to do after a checkpoint.
"""

import os
import signal

import pytest

from mpc_imaging.engine.encoding import decode
from mpc_imaging.parties import sealed
from tests.system.command import TINY, finish, mpc_imaging, start
from tests.system.test_failures import _processes, _wait_for

HOSPITALS = ("hospital_a", "hospital_b")
# 20 steps in each of two epochs; momentum and the loss of the epoch so far must come back too. The model has no ReLU:
# where one is right at zero, rounding decides, and two runs that nobody stopped drift apart too.
TRAINING = (
    *TINY, "task=train", "task.epochs=2", "data.phantoms.train=160", "task.momentum=0.9", "checkpoint.every=3",
    "policy=aggregate_only", "protocol.fraction_bits=20", "model=logistic",
)  # fmt: skip


def _joined(folder, name):
    """Decoded sums of the shares in all parties' files of this name, by name, and their header."""
    total = {}
    for party in HOSPITALS:
        path = folder / "parties" / party
        content = sealed.unseal(path / name, (path / sealed.KEY_FILE).read_bytes())
        total = {key: total.get(key, 0) + share for key, share in content.tensors.items()}
    return {key: decode(value, 20) for key, value in total.items()}, content.header


def _killed(folder):
    """The run folder of a training run that is killed in its second epoch, not long after a checkpoint."""
    process = start("mpc_imaging", *TRAINING, cwd=folder)

    def steps():
        paths = folder.glob("outputs/*/*/parties/*/checkpoints/*.sealed")
        return {(path.parts[-3], int(path.stem.removeprefix("step-"))) for path in paths}

    try:
        _wait_for(lambda: all(any(step > 20 for who, step in steps() if who == party) for party in HOSPITALS), 120)
        for pid, _ in _processes(folder):
            os.kill(pid, signal.SIGKILL)
    finally:
        process.kill()
    run = finish(process, folder, 30)
    assert run.code and not list(run.folder.glob("parties/*/result.json"))
    return run.folder


@pytest.mark.slow
def test_training_ends_where_it_would_have(tmp_path):
    folders = {name: tmp_path / name for name in ("whole", "cut")}
    for folder in folders.values():
        folder.mkdir()
    whole = mpc_imaging(*TRAINING, cwd=folders["whole"])
    killed = _killed(folders["cut"])
    held = [{path.name for path in killed.glob(f"parties/{party}/checkpoints/*.sealed")} for party in HOSPITALS]
    _, header = _joined(killed, f"checkpoints/{max(held[0] & held[1])}")
    assert header["epoch"] == 1 and 20 < header["step"] < 40, "in the middle of the second epoch"

    resumed = mpc_imaging(*TRAINING, "resume=true", f"checkpoint.path={killed}", cwd=folders["cut"])
    assert whole.code == resumed.code == 0, resumed.output
    assert "epoch 2 of 2" in resumed.output and "epoch 1 of 2" not in resumed.output
    expected, _ = _joined(whole.folder, "shares.sealed")
    weights, _ = _joined(resumed.folder, "shares.sealed")
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        assert (value - expected[name]).abs().max() < 2e-4, name
    for party in HOSPITALS:
        one, two = whole.result(party)["history"], resumed.result(party)["history"]
        assert [entry["epoch"] for entry in two] == [1, 2], "what was opened before is remembered"
        for before, after in zip(one, two, strict=True):
            assert (before["loss"] is None and after["loss"] is None) or abs(before["loss"] - after["loss"]) < 1e-4
    assert ("resumed", None) in resumed.events("hospital_a")
