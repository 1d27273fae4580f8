"""A sweep over folds summed up: mean and 95 % interval over the folds, secure beside plaintext."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpc_imaging.report import wording
from mpc_imaging.report.predictions import write_atomically, write_json

if TYPE_CHECKING:
    from rich.table import Table

INDEX = "data.folds.index"
METRICS = ("auc", "accuracy", "sensitivity", "specificity")
COLUMNS = ("secure", "plaintext", "difference")
_TEMPLATE = Path(__file__).with_name("folds.html.j2")


def summarise(points: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The content of folds.json; None if the points of the sweep are not several folds.

    points: ``overrides``, ``status``, ``error``, ``run_dir`` and ``metrics`` of each, as in points.json. Folds that
    share all other overrides belong together (``groups``). Of each metric there are mean, low and high (the ends of the
    interval, null for one fold) and the number of folds that have it; the difference is that of each fold, secure less
    plaintext. Failed folds are listed, with their error, and left out.
    """
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for point in points:
        index, others = _parted(point["overrides"])
        if index is not None:
            groups.setdefault(others, []).append(_fold(index, point))
    if len({fold["index"] for folds in groups.values() for fold in folds}) < 2:
        return None
    common = set.intersection(*map(set, groups)) if len(groups) > 1 else {*next(iter(groups))}
    return {
        "name": next((point["metrics"]["name"] for point in points if point["metrics"]), None),
        "groups": [
            {
                "overrides": [text for text in others if text not in common],
                "folds": folds,
                "summary": {metric: _summary(folds, metric) for metric in METRICS},
            }
            for others, folds in groups.items()
        ],
    }


def _parted(overrides: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """The fold that overrides choose, and all that is not about folds."""
    pairs = [(text.partition("="), text) for text in overrides]
    index = next((value for (key, _, value), _ in pairs if key == INDEX), None)
    return index, tuple(text for (key, _, _), text in pairs if key != INDEX)


def _fold(index: str, point: Mapping[str, Any]) -> dict[str, Any]:
    fold = {"index": int(index), "run_dir": point["run_dir"], "status": point["status"], "error": point["error"]}
    metrics = point["metrics"] or {}
    for column in ("secure", "plaintext"):
        values = metrics.get(column) or {}
        fold[column] = {metric: values.get(metric) for metric in METRICS}
    return fold


def _summary(folds: Sequence[Mapping[str, Any]], metric: str) -> dict[str, dict[str, float | int | None]]:
    secure, plaintext = ([fold[column][metric] for fold in folds] for column in ("secure", "plaintext"))
    both = [s - p for s, p in zip(secure, plaintext, strict=True) if s is not None and p is not None]
    return {"secure": _interval(secure), "plaintext": _interval(plaintext), "difference": _interval(both)}


def _interval(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """Mean and 95 % interval by Student's t. Training sets of folds overlap, so that it is somewhat too narrow."""
    known = [value for value in values if value is not None]
    count = len(known)
    mean = math.fsum(known) / count if known else None
    low = high = None
    if count > 1:
        from scipy.special import stdtrit  # a quarter of a second, for sweeps only

        variance = math.fsum((value - mean) ** 2 for value in known) / (count - 1)
        half = float(stdtrit(count - 1, 0.975)) * math.sqrt(variance / count)
        low, high = mean - half, mean + half
    return {"mean": mean, "low": low, "high": high, "folds": count}


def folds_table(group: Mapping[str, Any]) -> Table:
    """One group's metrics for the terminal, with failed folds below."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    caption = "\n".join(failures(group))
    table = Table(title=Text(heading(group)), caption=Text(caption), caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("mean ± 95 %")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for metric, entry in group["summary"].items():
        table.add_row(wording.METRIC_NAMES[metric], *(shown(entry[column], column) for column in COLUMNS))
    return table


def heading(group: Mapping[str, Any]) -> str:
    """How many folds there are, and what else sets them apart from those of other groups."""
    ended = sum(fold["status"] == "ok" for fold in group["folds"])
    count = f"{ended} folds" if ended == len(group["folds"]) else f"{ended} of {len(group['folds'])} folds"
    return " ".join([f"{count}:", *group["overrides"]]) if group["overrides"] else count


def failures(group: Mapping[str, Any]) -> list[str]:
    """A line for each fold that is left out."""
    return [
        f"fold {fold['index']} failed and is left out: {fold['error']}"
        for fold in group["folds"]
        if fold["status"] != "ok"
    ]


def shown(entry: Mapping[str, Any], column: str) -> str:
    """A mean, ± half of its interval; a difference with its sign."""
    mean = entry["mean"]
    text = wording.difference(mean, 0.0) if column == "difference" else wording.metric(mean)
    return text if entry["low"] is None else f"{text} ± {wording.metric(entry['high'] - mean)}"


def write_folds(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write folds.json and folds.html into the folder of the sweep."""
    from jinja2 import Environment, StrictUndefined

    write_json(folder / "folds.json", dict(summary))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(
        name=summary["name"] or "folds",
        groups=[_view(group) for group in summary["groups"]],
        columns=COLUMNS,
        metrics=[wording.METRIC_NAMES[metric] for metric in METRICS],
    )
    write_atomically(folder / "folds.html", page.encode())


def _view(group: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "heading": heading(group),
        "failures": failures(group),
        "rows": [
            (wording.METRIC_NAMES[metric], [shown(entry[column], column) for column in COLUMNS])
            for metric, entry in group["summary"].items()
        ],
        "folds": [
            (
                fold["index"],
                [(wording.metric(fold["secure"][m]), wording.metric(fold["plaintext"][m])) for m in METRICS],
            )
            for fold in group["folds"]
            if fold["status"] == "ok"
        ],
    }
