"""What the page and the terminal say of each label, where images have several."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from mpc_imaging.report.joint import joint_metrics, receiver_report, write_joint_report
from mpc_imaging.report.labels import label_rows, label_table
from mpc_imaging.report.metrics import label_counts, metrics_from_label_counts
from mpc_imaging.report.predictions import write_predictions
from mpc_imaging.report.tables import outcome_tables
from tests.report.conftest import SimulatedRun, make_run
from tests.report.test_html import Page

NAMES = ["mass", "no[dule]", "hernia"]


@pytest.fixture
def several(tmp_path: Path) -> SimulatedRun:
    """Hospitals that saw the outputs of their own images, which may show three findings; none shows the last."""
    run = make_run(tmp_path, classes=3)
    run.settings.data.multi_label, run.settings.data.class_names = True, NAMES
    labels = (np.random.default_rng(1).random((60, 3)) < (0.5, 0.2, 0)).astype(np.int64)
    plaintext = replace(run.plaintext, labels=torch.from_numpy(labels))
    run = replace(run, labels=labels, plaintext=plaintext)
    for name in ("hospital_a", "hospital_b"):
        rows = run.rows(name)
        shown = run.secure[rows]
        write_predictions(run.party(name), run.ids[rows], labels[rows], shown, shown > 0, NAMES)
        run.write_result(name)
    return run


def text(table: object) -> str:
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_each_label_has_a_row(several: SimulatedRun) -> None:
    metrics = write_joint_report(several.folder, several.settings, several.plaintext)
    rows = label_rows(metrics)
    assert [row["name"] for row in rows] == NAMES
    assert [int(row["images"]) for row in rows] == several.labels.sum(0).tolist()
    per_label = metrics["secure"]["per_label"][0]
    assert rows[0]["secure"] == [f"{per_label[key]:.4f}" for key in ("auc", "sensitivity", "specificity")]
    assert rows[2]["secure"][:2] == ["–", "–"] and rows[2]["secure"][2] != "–"
    page = Page(several.folder / "report.html").text
    assert re.search(rf"Each label .* no\[dule\] {rows[1]['images']} +0\.\d{{4}} +0\.\d{{4}} +0\.\d{{4}}", page)
    summary, of_labels = outcome_tables(metrics)
    assert "AUC" in text(summary)
    assert re.search(r"no\[dule\] +\d+ +0\.\d{4} / 0\.\d{4} +0\.\d{4} / 0\.\d{4}", text(of_labels))
    assert "Each label, secure / plaintext" in text(of_labels)


def test_a_receiver_of_counts_has_them_without_an_auc(several: SimulatedRun, tmp_path: Path) -> None:
    counted = metrics_from_label_counts(label_counts(several.labels, several.secure > 0), 60)
    result = several.write_result("hospital_b", metrics=counted)
    (several.party("hospital_b") / "predictions.csv").unlink()
    (several.party("hospital_b") / "logits.safetensors").unlink()
    metrics = receiver_report(several.party("hospital_b"), several.settings, result)
    assert [row["secure"][0] for row in label_rows(metrics)] == ["–"] * 3
    assert "plaintext" not in text(label_table(metrics))
    page = Page(several.party("hospital_b") / "report.html").text
    assert "Each label" in page and "The secure run classified 60 images with accuracy" in page


def test_there_is_none_where_each_image_has_one_class(run: SimulatedRun) -> None:
    metrics = joint_metrics(run.folder, run.settings, run.plaintext)
    assert label_rows(metrics) == [] and label_table(metrics) is None and len(outcome_tables(metrics)) == 1
