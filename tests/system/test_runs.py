"""Whole runs with real processes: every task, topology and way to open results."""

import csv
import shutil

import pytest
from safetensors.numpy import load_file

from tests.system.command import TINY, mpc_imaging

HOSPITALS = ("hospital_a", "hospital_b")


def _ok(run):
    assert run.code == 0, run.output
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training run of two hospitals."""
    return _ok(mpc_imaging(*TINY, "task=train", "name=trained", cwd=tmp_path_factory.mktemp("train")))


def test_training_leaves_everything(trained):
    m = trained.metrics
    assert m["fidelity"]["agreeing"] == m["images"] == 12
    assert m["fidelity"]["max_logit_error"] < 0.01
    assert m["secure"]["auc"] == pytest.approx(m["plaintext"]["auc"], abs=0.05)
    secure, plain = m["history"]["secure"], m["history"]["plaintext"]
    assert [e["epoch"] for e in secure] == [1]
    assert secure[0]["loss"] == pytest.approx(plain[0]["loss"], rel=0.01)
    assert secure[0]["val"]["accuracy"] == plain[0]["val"]["accuracy"]
    cost = m["cost"]
    assert cost["online_s"] > 0 and cost["offline_s"] > 0 and cost["rounds"] > 50
    assert cost["sent_bytes"] > 10_000 and cost["dealer_bytes"] > 10_000
    assert (trained.folder / "report.html").stat().st_size > 10_000
    for party in HOSPITALS:
        files = {path.name for path in (trained.folder / "parties" / party).iterdir()}
        assert {"log.txt", "ledger.jsonl", "predictions.csv", "logits.safetensors", "shares.sealed"} <= files
    assert (trained.folder / "parties" / "hospital_a" / "weights.safetensors").exists(), "opened to the model owner"
    assert not (trained.folder / "parties" / "hospital_b" / "weights.safetensors").exists()


def test_each_hospital_sees_its_own_images_only(trained):
    for party in HOSPITALS:
        with (trained.folder / "parties" / party / "predictions.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 6 and all(row["image_id"].startswith(party) for row in rows)
        assert all(row["label"] in "01" and float(row[f"score_{name}"]) <= 1 for row in rows for name in _classes(row))


def _classes(row):
    return [key.removeprefix("score_") for key in row if key.startswith("score_")]


def test_the_ledger_lists_what_was_opened(trained):
    values = [value for event, value in trained.events("hospital_b") if event == "reveal"]
    assert [value for value in values if value != "range_ok"] == [
        *("loss", "metrics", "auc"),
        *("logits", "metrics", "auc", "weights"),
    ]
    assert "range_ok" in values[: values.index("loss")], "each step of the epoch was checked"
    events = trained.events("dealer")
    assert [event for event, _ in events] == ["session", "served", "end"]


def test_infer_from_share_files(trained, tmp_path):
    run = _ok(
        mpc_imaging(
            *TINY, "task=infer", "model.weights.source=shares", f"model.weights.path={trained.folder}", cwd=tmp_path
        )
    )
    for party in HOSPITALS:
        before, after = (
            load_file(r.folder / "parties" / party / "logits.safetensors")["logits"] for r in (trained, run)
        )
        assert abs(before - after).max() < 1e-3, "the same weights give the same outputs"
    assert run.metrics["fidelity"]["agreeing"] == 12, "and the baseline is those weights in plaintext"


@pytest.mark.slow  # tests/tasks/test_weights.py refuses them too, with parties as threads
def test_share_files_of_different_runs_are_refused(trained, tmp_path):
    other = _ok(mpc_imaging(*TINY, "task=train", "seed=5", cwd=tmp_path))
    mixed = tmp_path / "mixed" / "parties"
    for party, source in zip(HOSPITALS, (trained, other), strict=True):
        (mixed / party).mkdir(parents=True)
        for name in (f"parties/{party}/shares.sealed", f"parties/{party}/share.key"):
            shutil.copy(source.folder / name, tmp_path / "mixed" / name)  # with its mode: a key is private
    run = mpc_imaging(
        *TINY, "task=infer", "model.weights.source=shares", f"model.weights.path={tmp_path / 'mixed'}", cwd=tmp_path
    )
    assert run.code == 1
    assert "shares of different training runs" in run.output.splitlines()[-1]


@pytest.mark.slow
def test_outsourced_owners_leave_and_receivers_wait(tmp_path):
    """Four hospitals and a vendor, two clouds; outputs of all images to the vendor, counts to hospital_a."""
    run = _ok(
        mpc_imaging(
            *TINY, "topology=outsourced", "model.weights.source=pretrain",
            "policy.reveal={logits: [vendor], metrics: [hospital_a], range_ok: [compute]}", cwd=tmp_path,
        )
    )  # fmt: skip
    assert run.metrics["fidelity"]["agreeing"] == 12
    assert "leaves" in (run.folder / "parties" / "hospital_b" / "log.txt").read_text()
    assert run.events("hospital_b")[-1] == ("end", None)
    with (run.folder / "parties" / "vendor" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and {row["label"] for row in rows} == {""}, "the vendor has no labels"
    assert {row["image_id"].split("-")[0] for row in rows} == {f"hospital_{x}" for x in "abcd"}
    assert not (run.folder / "parties" / "cloud_a" / "predictions.csv").exists()
    private = [path for path in (run.folder / "parties").glob("*/*") if path.name != "stderr.txt"]
    assert private and all(path.stat().st_mode & 0o077 == 0 for path in [*private, *(run.folder / "parties").iterdir()])
    assert run.result("hospital_a")["metrics"]["accuracy"] == run.metrics["plaintext"]["accuracy"]
    assert run.result("hospital_a")["metrics"]["auc"] is None


def test_three_hospitals_train_with_counts_only(tmp_path):
    run = _ok(
        mpc_imaging(
            *TINY, "topology=three_hospitals", "task=train", "task.loss=binary_cross_entropy", "policy=aggregate_only",
            cwd=tmp_path,
        )
    )  # fmt: skip
    assert run.metrics["secure"]["accuracy"] == run.metrics["plaintext"]["accuracy"]
    assert run.metrics["secure"]["auc"] == pytest.approx(run.metrics["plaintext"]["auc"], abs=0.01)
    assert run.metrics["fidelity"] is None or run.metrics["fidelity"]["max_logit_error"] is None
    assert not list(run.folder.glob("parties/*/predictions.csv"))


@pytest.mark.slow
def test_predictions_without_scores_and_public_weights(tmp_path):
    run = _ok(
        mpc_imaging(
            *TINY, "model.weights.source=pretrain", "model.weights.secret=false", "task.loss=mse",
            "policy.reveal={predictions: [image_owner], range_ok: [compute]}", cwd=tmp_path,
        )
    )  # fmt: skip
    assert run.metrics["fidelity"]["agreeing"] == 12
    linear = [layer for layer in run.result("hospital_a")["layers"] if "linear" in layer["op"].lower()]
    assert linear and all(layer["rounds"] == 0 for layer in linear[:1])
    assert run.metrics["secure"]["auc"] is None


@pytest.mark.slow  # CrypTen as it comes, of which tests/benchmarks and tests/engine have the rest
def test_insecure_simulation_is_marked(tmp_path):
    run = _ok(mpc_imaging(*TINY, "protocol=insecure_simulation", "model.weights.source=pretrain", cwd=tmp_path))
    assert run.metrics["insecure"] is True and run.metrics["fidelity"]["agreeing"] == 12
    assert "secure" in run.output.lower() and "insecure" in (run.folder / "report.html").read_text().lower()
    assert run.result("hospital_a")["cost"]["dealer_bytes"] == 0


@pytest.mark.slow  # hospitals b to d of the outsourced test leave as well
def test_a_topology_of_ones_own(tmp_path):
    """One hospital that leaves; the receiver still learns the pseudonyms of its images."""
    mine = tmp_path / "mine" / "topology"
    mine.mkdir(parents=True)
    roles = {
        "hospital": "data_owner",
        "vendor": "model_owner, receiver",
        "cloud_a": "compute",
        "cloud_b": "compute",
        "dealer": "dealer",
    }
    parties = "".join(f"  {name}: {{roles: [{role}], address: '127.0.0.1:0'}}\n" for name, role in roles.items())
    (mine / "leaving.yaml").write_text(f"name: leaving\nparties:\n{parties}")
    run = _ok(
        mpc_imaging(
            *TINY, "--config-dir", str(tmp_path / "mine"), "topology=leaving", "policy=one_receiver", cwd=tmp_path
        )
    )
    assert "leaves" in (run.folder / "parties" / "hospital" / "log.txt").read_text()
    with (run.folder / "parties" / "vendor" / "predictions.csv").open() as file:
        assert all(row["image_id"].startswith("hospital-test-") for row in csv.DictReader(file))
