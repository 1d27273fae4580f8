"""Training that stops early, with real processes and the real dealer: every phase with a plan of its own."""

import pytest

from mpc_imaging import settings as config
from mpc_imaging.parties import ledger
from mpc_imaging.randomness import phases
from mpc_imaging.tasks.rehearsal import rehearse
from tests.system.command import TINY, mpc_imaging

HOSPITALS = ("hospital_a", "hospital_b")


@pytest.mark.slow
def test_training_stops_when_nothing_gets_better(tmp_path):
    """At a rate of nearly nothing no epoch is better than the first; nothing but the policy's values is opened."""
    run = mpc_imaging(
        *TINY, "task=train", "task.epochs=5", "task.lr=1e-9", "task.early_stopping.metric=accuracy",
        "task.early_stopping.patience=2", "+policy.reveal.epoch=[compute]", cwd=tmp_path,
    )  # fmt: skip
    assert run.code == 0, run.output
    settings = config.load(run.folder / "settings.yaml")
    for rank, party in enumerate(HOSPITALS):
        result = run.result(party)
        assert [entry["epoch"] for entry in result["history"]] == [1, 2, 3]
        opened = [value for event, value in run.events(party) if event == "reveal"]
        assert opened.count("epoch") == 3 + 1, "a bit after each epoch, and the best one's number"
        assert set(opened) <= set(settings.policy.reveal)
        planned = rehearse(settings, result["counts"], rank).plan.plans
        assert len(planned) == 6
    used = (*planned[:3], planned[-1])
    entries = ledger.read(run.folder / "parties" / "dealer" / "ledger.jsonl")
    (served,) = (entry for entry in entries if entry["event"] == "served")
    assert (served["demands"], served["digest"]) == (sum(plan.count for plan in used), phases.digest(used))
    assert run.metrics["fidelity"]["agreeing"] == 12
