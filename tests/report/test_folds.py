"""Folds summed up: means and intervals that can be checked by hand, and what is left out."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from mpc_imaging.report.folds import folds_table, summarise, write_folds

SECURE = (0.80, 0.84, 0.88, 0.82, 0.86)
PLAIN = (0.81, 0.84, 0.87, 0.83, 0.86)


def point(index, secure=0.8, plain=0.8, *others, status="ok"):
    metrics = None
    if status == "ok":
        scores = {"accuracy": 0.7, "sensitivity": 0.6, "specificity": None, "f1": 0.5}
        metrics = {
            "name": "breast", "secure": scores | {"auc": secure}, "plaintext": plain and scores | {"auc": plain},
        }  # fmt: skip
    return {
        "overrides": [*others, f"data.folds.index={index}", "experiment=breast_kfold"],
        "run_dir": f"sweep/{index}",
        "status": status,
        "error": None if status == "ok" else "hospital_b: lost",
        "metrics": metrics,
    }


def five(*others):
    return [point(k, s, p, *others) for k, (s, p) in enumerate(zip(SECURE, PLAIN, strict=True))]


def shown(group, width=80):
    console = Console(width=width, file=io.StringIO())
    console.print(folds_table(group))
    return console.file.getvalue()


def test_mean_and_interval():
    (group,) = summarise(five())["groups"]
    auc = group["summary"]["auc"]
    # Standard deviation sqrt(0.001), Student's t with 4 degrees of freedom 2.776.
    half = 2.7764451 * (0.001 / 5) ** 0.5
    assert auc["secure"] == {
        "mean": pytest.approx(0.84), "low": pytest.approx(0.84 - half), "high": pytest.approx(0.84 + half), "folds": 5,
    }  # fmt: skip
    assert auc["plaintext"]["mean"] == pytest.approx(0.842)
    # The difference is paired: its interval knows that both had the same folds.
    assert auc["difference"]["mean"] == pytest.approx(-0.002)
    assert auc["difference"]["high"] - auc["difference"]["low"] < 0.03
    assert group["summary"]["specificity"]["secure"] == {"mean": None, "low": None, "high": None, "folds": 0}
    assert group["overrides"] == []


def test_failed_folds_are_named_and_left_out():
    points = [*five()[:4], point(4, status="failed")]
    (group,) = summarise(points)["groups"]
    assert group["summary"]["auc"]["secure"]["folds"] == 4
    assert group["summary"]["auc"]["secure"]["mean"] == pytest.approx(0.835)
    text = shown(group)
    assert "4 of 5 folds" in text and "fold 4 failed and is left out: hospital_b: lost" in text


def test_all_but_one_failed():
    (group,) = summarise([point(0), point(1, status="failed")])["groups"]
    assert group["summary"]["auc"]["secure"] == {"mean": 0.8, "low": None, "high": None, "folds": 1}
    assert re.search(r"AUC +0\.8000 +0\.8000 +0\.0000", shown(group))


def test_without_plaintext_there_is_no_difference():
    (group,) = summarise([point(k, 0.8, None) for k in range(3)])["groups"]
    assert group["summary"]["auc"]["difference"]["mean"] is None
    assert re.search(r"AUC +0\.8000 ± 0\.0000 +– +–", shown(group))


def test_other_overrides_make_groups():
    points = five("task.lr=0.1") + five("task.lr=0.2")
    groups = summarise(points)["groups"]
    assert [group["overrides"] for group in groups] == [["task.lr=0.1"], ["task.lr=0.2"]]
    assert [len(group["folds"]) for group in groups] == [5, 5]
    assert "5 folds: task.lr=0.2" in shown(groups[1])


@pytest.mark.parametrize(
    "points",
    [
        [point(0)],
        [point(0, 0.8, 0.8, "seed=1"), point(0, 0.8, 0.8, "seed=2")],
        [{**point(0), "overrides": ["seed=1"]}, {**point(0), "overrides": ["seed=2"]}],
    ],
    ids=["one fold", "the same fold twice", "no folds"],
)
def test_other_sweeps_are_not_summed_up(points):
    assert summarise(points) is None


def test_the_table_fits_a_terminal():
    (group,) = summarise(five())["groups"]
    text = shown(group)
    assert re.search(r"AUC +0\.8400 ± 0\.0393 +0\.8420 ± 0\.02\d\d +−0\.0020 ± 0\.0\d{3}", text)
    assert all(len(line) <= 80 for line in text.splitlines())


def test_files(tmp_path):
    summary = summarise([*five("topology=<b>"), point(5, 0.8, 0.8, "topology=<b>", status="failed"), point(0)])
    write_folds(tmp_path, summary)
    assert json.loads((tmp_path / "folds.json").read_text()) == summary
    page = (tmp_path / "folds.html").read_text()
    assert "0.8400 ± 0.0393" in page and "fold 5 failed" in page and "sweep/0" not in page
    assert "<b>" not in page and "topology=&lt;b&gt;" in page
    assert "script" not in page and "http" not in page.replace('http-equiv="Content', "")
