"""Federated training with real processes: nothing but the sum of updates is opened, and it equals plaintext."""

import pytest
from safetensors.numpy import load_file

from mpc_imaging.parties import ledger
from tests.system.command import TINY, mpc_imaging

FEDERATED = (
    *TINY, "task=train", "task.method=federated", "task.epochs=2", "task.update_norm=0.1",
    "policy.reveal.update=[data_owner]", "protocol.fraction_bits=20",
)  # fmt: skip


def _run(tmp_path, *overrides):
    run = mpc_imaging(*FEDERATED, *overrides, cwd=tmp_path)
    assert run.code == 0, run.output
    m = run.metrics
    assert m["fidelity"]["agreeing"] == m["images"] == 12
    assert m["fidelity"]["max_logit_error"] < 0.001
    secure, plain = m["history"]["secure"], m["history"]["plaintext"]
    assert [entry["epoch"] for entry in secure] == [1, 2]
    for ours, theirs in zip(secure, plain, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-3)
        assert ours["val"]["accuracy"] == theirs["val"]["accuracy"]
    joint = m["reference"]["joint"]
    assert joint["auc"] is not None and sum(map(sum, joint["confusion"])) == 12
    assert "Plaintext, joint" in (run.folder / "report.html").read_text()
    return run


def _inputs(run, party):
    return [value for event, value in run.events(party) if event == "input"]


def _weights(run, party):
    path = run.folder / "parties" / party / "weights.safetensors"
    return load_file(path) if path.exists() else None


def _alike(first, second, tolerance=0.0):
    return first.keys() == second.keys() and all(abs(first[k] - second[k]).max() <= tolerance for k in first)


@pytest.mark.slow
def test_two_hospitals(tmp_path):
    run = _run(tmp_path)
    opened = [value for event, value in run.events("hospital_b") if event == "reveal"]
    each = ["update", "loss", "range_ok", "metrics", "auc"]
    assert opened == [*each, *each, "range_ok", "logits", "metrics", "auc", "weights"]
    entries = ledger.read(run.folder / "parties" / "hospital_b" / "ledger.jsonl")
    to = [set(entry["to"]) for entry in entries if entry["event"] == "reveal" and entry["value"] == "update"]
    assert to == [{"hospital_a", "hospital_b"}] * 2
    for party in ("hospital_a", "hospital_b"):
        shared = _inputs(run, party)
        assert shared.count("update") == 4 and not {"images train", "labels train"} & set(shared)
    # To hospital_a the policy opens them too, which rounds them.
    assert _alike(_weights(run, "hospital_a"), _weights(run, "hospital_b"), 2**-20)


@pytest.mark.slow
def test_three_hospitals_from_public_weights(tmp_path):
    run = _run(tmp_path, "topology=three_hospitals", "model.weights.source=pretrain", "model.weights.secret=false")
    assert _alike(_weights(run, "hospital_b"), _weights(run, "hospital_c"))


@pytest.mark.slow
@pytest.mark.parametrize("source", [(), ("model.weights.source=pretrain", "model.weights.secret=false")])
def test_clouds_add_up_what_they_do_not_see(tmp_path, source):
    """Owners stay for all rounds; the clouds never learn the weights, and the vendor gets them in the end."""
    run = _run(tmp_path, "topology=outsourced", *source)
    weights = [_weights(run, f"hospital_{x}") for x in "abcd"]
    assert all(_alike(weights[0], other) for other in weights[1:])
    assert _alike(weights[0], _weights(run, "vendor"), 2**-20)
    for cloud in ("cloud_a", "cloud_b"):
        assert _weights(run, cloud) is None
        entries = ledger.read(run.folder / "parties" / cloud / "ledger.jsonl")
        updates = [e["to"] for e in entries if e["event"] == "reveal" and e["value"] == "update"]
        assert len(updates) == 2 and all(set(to) == {f"hospital_{x}" for x in "abcd"} for to in updates)
        assert _inputs(run, cloud).count("update") == 8


@pytest.mark.slow
def test_private_updates_are_noisy(tmp_path):
    """The noise of both hospitals is on the sum: it moves all weights by about as much."""
    private = ("privacy.name=dp", "privacy.clip=0.1", "privacy.outside=[loss,metrics,auc,range_ok]")
    runs = []
    for sigma in ("0.000001", "1"):
        (folder := tmp_path / sigma).mkdir()
        run = mpc_imaging(*FEDERATED, *private, f"privacy.noise_multiplier={sigma}", "task.epochs=1", cwd=folder)
        assert run.code == 0, run.output
        runs.append(_weights(run, "hospital_b"))
    moved = runs[1]["classifier.3.weight"] - runs[0]["classifier.3.weight"]
    # Half of the images are each hospital's, and two hospitals add noise.
    assert moved.std() == pytest.approx(0.1 * 0.5 * 2**0.5, rel=0.05)
