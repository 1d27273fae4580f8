"""New TLS keys in the midst of real runs: everything comes out as without. Attacks: tests/transport."""

import pytest

from tests.system import small_keys
from tests.system.command import TINY, finish, start


def _run(folder, monkeypatch, *arguments, timeout_s=300):
    """A run with small keys, and how many times each process moved to a new one."""
    switches = folder / "switches"
    switches.mkdir()
    monkeypatch.setenv(small_keys.SWITCHES, str(switches))
    process = start("tests.system.small_keys", "mpc_imaging", *arguments, cwd=folder)
    run = finish(process, folder, timeout_s)
    return run, [file.read_text().splitlines() for file in switches.iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "processes"),
    [
        (("task=infer",), 3),
        (("task=train",), 3),
        (("task=train", "topology=three_hospitals", "policy=aggregate_only"), 4),
        (("task=train", "task.epochs=3", "task.early_stopping.metric=loss", "task.early_stopping.patience=1"), 3),
        (("task=train", "randomness=on_demand"), 3),
        (("task=train", "task.method=federated", "policy.reveal.update=[data_owner]"), 3),
    ],
    ids=["infer", "train", "three", "phases", "on_demand", "federated"],
)
def test_everything_comes_out_as_without(tmp_path, monkeypatch, overrides, processes):
    run, switches = _run(tmp_path, monkeypatch, *TINY, *overrides)
    assert run.code == 0, run.output
    fidelity, metrics = run.metrics["fidelity"], run.metrics
    if fidelity is None:  # only counts are opened
        assert metrics["secure"]["accuracy"] == metrics["plaintext"]["accuracy"]
    else:
        assert fidelity["agreeing"] == metrics["images"] == 12 and fidelity["max_logit_error"] < 0.01
    assert len(switches) == processes and min(map(len, switches)) >= 3 and sum(map(len, switches)) > 20


@pytest.mark.slow
def test_more_than_all_keys_may_protect_is_refused_before_anything_is_shared(tmp_path, monkeypatch):
    monkeypatch.setenv(small_keys.SPARES, "2")
    run, switches = _run(tmp_path, monkeypatch, *TINY, "task=infer")
    assert run.code == 2 and not switches
    assert "TLS keys may protect" in run.output and "divide the task into several sessions" in run.output
    for party in ("hospital_a", "hospital_b"):
        assert not [event for event, _ in run.events(party) if event == "input"], "nothing was shared"
