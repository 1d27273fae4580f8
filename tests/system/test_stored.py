"""Runs without a dealer: what `mpc_imaging.preprocess` wrote is used session by session, and never twice."""

import json
import os
import shutil
import signal
import time

import pytest

from mpc_imaging.parties import ledger
from tests.system.command import TINY, finish, mpc_imaging, start

HOSPITALS = ("hospital_a", "hospital_b")
INFER = (*TINY, "model.weights.source=pretrain")
# Long enough to be killed in the middle.
TRAIN = (*TINY, "task=train", "task.epochs=60", "policy=aggregate_only")


def _preprocess(folder, *arguments, store="store", count=2):
    where = (f"preprocess.store={store}", f"preprocess.count={count}")
    run = finish(start("mpc_imaging.preprocess", *arguments, *where, cwd=folder), folder, 200)
    assert run.code == 0, run.output
    return run.output


def _run(folder, *arguments, store="store"):
    return mpc_imaging(*arguments, "randomness=stored", f"randomness.store={store}", cwd=folder)


def _used(run, parties=HOSPITALS):
    """The session that all parties took."""
    entries = [ledger.read(run.folder / "parties" / party / "ledger.jsonl") for party in parties]
    (index,) = {entry["index"] for mine in entries for entry in mine if entry["event"] == "stored"}
    return index


def _last(run):
    assert run.code == 1, run.output
    return run.output.splitlines()[-1]


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sessions_are_used_one_after_the_other(tmp_path, count):
    said = _preprocess(tmp_path, *INFER, count=count)
    assert "store/hospital_b" in said and f"{count} session" in said
    for number in range(count):
        run = _run(tmp_path, *INFER)
        assert run.code == 0, run.output
        assert _used(run) == number
        assert run.metrics["fidelity"]["agreeing"] == 12 and run.metrics["fidelity"]["max_logit_error"] < 0.01
        assert run.metrics["cost"]["dealer_bytes"] == 0 and run.metrics["protocol"] == "fss"
        assert not (run.folder / "parties" / "dealer").exists()
        left = [sorted(path.name for path in (tmp_path / "store" / name / "sessions").iterdir()) for name in HOSPITALS]
        assert left == [["000001.bin"][number : count - 1]] * 2
    assert f"all {count} sessions of the store are used; run python -m mpc_imaging.preprocess again" in _last(
        _run(tmp_path, *INFER)
    )


@pytest.mark.slow  # tests/tasks/test_stored.py refuses them too, with parties as threads
def test_a_store_that_does_not_fit_is_refused_with_what_to_do(tmp_path):
    _preprocess(tmp_path, *INFER, store="one")
    _preprocess(tmp_path, *INFER, store="two", count=3)
    last = _last(_run(tmp_path, *INFER, "task.batch_size=7", store="one"))
    assert "is for another plan: settings have changed since; run python -m mpc_imaging.preprocess again" in last
    shutil.rmtree(tmp_path / "one" / "hospital_b")
    (tmp_path / "two" / "hospital_b").rename(tmp_path / "one" / "hospital_b")
    last = _last(_run(tmp_path, *INFER, store="one"))
    assert "hospital_b's store is sealed to another key than hospital_b's: it was written for another" in last
    names = [path.name for path in (tmp_path / "one").glob("*/sessions/*")]
    assert len(names) == 5, "nothing was used up"


@pytest.mark.slow  # tests/security/test_store.py kills parties at random moments, without a task around
@pytest.mark.parametrize("victim", ["hospital_a", "hospital_b"])
def test_a_session_that_was_cut_short_is_not_taken_again(tmp_path, victim):
    _preprocess(tmp_path, *TRAIN)
    process = start("mpc_imaging", *TRAIN, "randomness=stored", "randomness.store=store", cwd=tmp_path)
    try:
        _kill_while_computing(tmp_path, victim)
    except BaseException:
        process.kill()
        raise
    killed = finish(process, tmp_path, 30)
    assert killed.code not in (0, None) and _used(killed) == 0
    run = _run(tmp_path, *TRAIN)
    assert run.code == 0, run.output
    assert _used(run) == 1
    # Later, such training is chaotic in plaintext too.
    losses = [[entry["loss"] for entry in run.metrics["history"][kind]][:5] for kind in ("secure", "plaintext")]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def _kill_while_computing(folder, victim, timeout_s=60):
    """Kill a party once the loss of an epoch was opened, which is long after the first byte of the session left."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        time.sleep(0.05)
        opened = [path for path in folder.glob(f"outputs/*/*/parties/{victim}/ledger.jsonl") if _loss_is_open(path)]
        if opened:
            os.kill(_process(opened[0].parents[2], victim), signal.SIGKILL)
            return
    raise AssertionError(f"no epoch within {timeout_s} s")


def _loss_is_open(path):
    return '"value": "loss"' in path.read_text()


def _process(run_dir, victim):
    for path in run_dir.parents[-1].glob("proc/[0-9]*/cmdline"):
        try:
            command = path.read_text().split("\0")
        except OSError:
            continue
        if f"party={victim}" in command and str(run_dir) in command:
            return int(path.parent.name)
    raise AssertionError(f"{victim} does not run")


@pytest.mark.slow
def test_three_hospitals_from_a_store_by_a_plan_that_the_parties_made(tmp_path):
    """By Beaver triples; images are counted, not read, where the plan is made."""
    settings = (*INFER, "topology=three_hospitals")
    images = ("--images", "hospital_a=4,hospital_b=4,hospital_c=4", "--write", "plan.json")
    planned = finish(start("mpc_imaging.plan", *settings, *images, cwd=tmp_path), tmp_path, 100)
    assert planned.code == 0, planned.output
    assert json.loads((tmp_path / "plan.json").read_text())["parties"] == 3
    _preprocess(tmp_path, *settings, "--plan", "plan.json", count=1)
    run = _run(tmp_path, *settings)
    assert run.code == 0, run.output
    assert run.metrics["protocol"] == "beaver" and run.metrics["fidelity"]["agreeing"] == 12
    assert _used(run, (*HOSPITALS, "hospital_c")) == 0
    assert "all 1 sessions of the store are used" in _last(_run(tmp_path, *settings))


@pytest.mark.slow
def test_outsourced_owners_have_no_store(tmp_path):
    """Only the clouds do; owners meet them without a dealer."""
    run_parties = ("cloud_a", "cloud_b", "hospital_a", "hospital_c")  # owners saw the session begin
    settings = (*INFER, "topology=outsourced")
    _preprocess(tmp_path, *settings, count=1)
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        "certificates.trial", "cloud_a", "cloud_b",
    ]  # fmt: skip
    run = _run(tmp_path, *settings)
    assert run.code == 0, run.output
    assert run.metrics["fidelity"]["agreeing"] == 12 and _used(run, run_parties) == 0
