"""What a plan predicts is what a real run counts: every demand, round and byte, at every party and layer."""

import json
import subprocess

import pytest

from mpc_imaging import settings as config
from mpc_imaging.compose import compose_settings
from mpc_imaging.parties import ledger
from mpc_imaging.randomness.provider import DemandLog
from mpc_imaging.settings import RandomnessMode
from mpc_imaging.tasks.rehearsal import rehearse
from tests.system.command import TINY, finish, mpc_imaging, start

TRAIN = ("task=train", "task.epochs=3", "task.batch_size=7", "task.eval_batch_size=3")
THREE = (*TRAIN, "topology=three_hospitals", "task.loss=binary_cross_entropy")
OUTSOURCED = (
    "topology=outsourced", "model.weights.source=pretrain", "task.batch_size=5",
    "policy.reveal={predictions: [vendor], metrics: [hospital_a], range_ok: [compute]}",
)  # fmt: skip


@pytest.mark.parametrize(
    "overrides",
    [
        # A megabyte of what the dealer sends comes before the clock starts, and the rest while the task runs.
        pytest.param((*TRAIN, "randomness.buffer_mb=1"), id="train-two"),
        pytest.param(("task.batch_size=5", "randomness=on_demand"), id="infer-two-on-demand", marks=pytest.mark.slow),
        pytest.param((*TRAIN, "randomness=on_demand"), id="train-two-on-demand", marks=pytest.mark.slow),
        pytest.param(("task.batch_size=5", "protocol=beaver"), id="infer-two-beaver", marks=pytest.mark.slow),
        pytest.param(("task.batch_size=5", "topology=three_hospitals"), id="infer-three", marks=pytest.mark.slow),
        pytest.param((*THREE, "randomness=on_demand"), id="train-three-on-demand", marks=pytest.mark.slow),
        pytest.param(THREE, id="train-three", marks=pytest.mark.slow),
        pytest.param(OUTSOURCED, id="infer-outsourced", marks=pytest.mark.slow),
    ],
)
def test_predictions_are_exact(overrides, tmp_path):
    run = mpc_imaging(*TINY, *overrides, cwd=tmp_path)
    assert run.code == 0, run.output
    settings = config.load(run.folder / "settings.yaml")
    log = DemandLog()
    for rank, party in enumerate(settings.compute_parties()):
        real = run.result(party)
        predicted = rehearse(settings, real["counts"], rank)
        costs = ("rounds", "sent_bytes", "dealer_bytes")
        assert {name: real["cost"][name] for name in costs} == {name: predicted.cost[name] for name in costs}
        assert _layers(real["layers"]) == _layers(predicted.layers[: len(real["layers"])])
    plan = predicted.plan
    expected = {"demands": plan.count, "digest": plan.digest}
    if settings.randomness.mode is RandomnessMode.on_demand:  # the dealer never saw the plan, only what was asked for
        for _, demand in plan:
            log.add(demand)
        expected = log.summary()
    (served,) = (e for e in ledger.read(run.folder / "parties" / "dealer" / "ledger.jsonl") if e["event"] == "served")
    assert {name: served[name] for name in ("demands", "digest")} == expected


def _layers(rows):
    return [{name: row[name] for name in ("name", "op", "rounds", "sent_bytes")} for row in rows]


def test_the_command_predicts_a_run(tmp_path):
    """Images are counted by reading them; the files hold the numbers and the plan."""
    process = start(
        "mpc_imaging.plan", *TINY, "--rank", "1", "--json", "costs.json", "--write", "plan.json", cwd=tmp_path
    )
    command = finish(process, tmp_path, 120)
    assert command.code == 0, command.output
    assert "classifier.1" in command.output and "WAN" in command.output
    costs, plan = (json.loads((tmp_path / name).read_text()) for name in ("costs.json", "plan.json"))
    settings = compose_settings(TINY)
    predicted = rehearse(settings, {owner: {"test": 6} for owner in settings.data_owners()}, 1)
    assert costs["digest"] == predicted.plan.digest and plan == json.loads(json.dumps(predicted.plan.to_json()))
    assert costs["party"] == "hospital_b" and costs["total"]["sent_bytes"] == predicted.cost["sent_bytes"]


def test_nobody_has_to_read_to_the_end(tmp_path):
    """``… | head``: no traceback."""
    with start("mpc_imaging.plan", *TINY, cwd=tmp_path, stderr=subprocess.PIPE) as command:
        command.stdout.close()
        assert command.stderr.read() == ""
    assert command.returncode == 1
