from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from mpc_imaging.report.joint import joint_metrics
from mpc_imaging.report.tables import missing, summary_table, sweep_table
from mpc_imaging.settings import ProtocolName


def shown(table, width=80):
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_the_summary_has_metrics_fidelity_and_cost(run):
    text = shown(summary_table(joint_metrics(run.folder, run.settings, run.plaintext)))
    assert "sample_run: infer over two_hospitals, 60 images" in text
    assert re.search(r"AUC +0\.\d{4} +0\.\d{4} +[+−]?0\.\d{4}", text)
    flat = re.sub(r"\s+", " ", text)
    assert "Secure and plaintext agree on" in flat and "Largest logit error 0.001" in flat
    assert "Cost: 2.25 s online, 1 s waiting for the dealer, 18 rounds, 4 kB sent" in flat
    assert "INSECURE" not in flat


def test_missing_values_are_dashes_with_a_reason(training):
    training.settings.protocol.name = ProtocolName.insecure_simulation
    text = shown(summary_table(joint_metrics(training.folder, training.settings, None)), width=120)
    assert re.search(r"AUC +– +– +–", text)
    assert "– AUC: needs individual scores; only counts were revealed." in re.sub(r"\s+", " ", text)
    assert "Cost:" not in text and "INSECURE SIMULATION" in text


@pytest.fixture
def points(run):
    metrics = joint_metrics(run.folder, run.settings, run.plaintext)
    return [
        {"overrides": ["seed=1", "topology.parties=[a]"], "status": "ok", "error": None, "metrics": metrics},
        {"overrides": ["model=lenet"], "status": "failed", "error": "1 model problem: [bold] layer", "metrics": None},
    ]


def test_a_sweep_shows_every_point_and_why_one_failed(points):
    text = shown(sweep_table(points))
    assert "Sweep: 2 points, 1 failed" in text
    assert re.search(r"seed=1 +0\.\d{4} +0\.\d{4}", text) and "topology.parties=[a]" in text
    assert re.search(r"model=lenet +failed +–", text)
    assert "model=lenet failed: 1 model problem: [bold] layer" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_sweep_without_failures_says_nothing_of_them(points):
    assert "failed" not in shown(sweep_table([*points[:1], points[0] | {"overrides": []}]))
    assert "(no overrides)" in shown(sweep_table([points[0] | {"overrides": []}]))


def test_masks_do_not_lack_what_they_never_have():
    metrics = {"dice": 0.5, "reasons": {"auc": "why", "confusion": "why", "hausdorff": "nothing marked"}}
    assert missing(metrics) == {"nothing marked": ["Hausdorff distance, pixels"]}
