"""Short tables for the terminal: the outcome of a run, and all points of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mpc_imaging.report import streaming, wording
from mpc_imaging.report.labels import label_table

if TYPE_CHECKING:
    from rich.table import Table


def outcome_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """What ends a run: its summary, and where images have several labels, what is known of each."""
    of_labels = label_table(metrics)
    return [summary_table(metrics), *([] if of_labels is None else [of_labels])]


def summary_table(metrics: Mapping[str, Any]) -> Table:
    """Metrics of metrics.json, secure beside plaintext, with fidelity and cost below."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    secure, plaintext = metrics["secure"], metrics["plaintext"] or {}
    unit = "frames" if metrics.get("stream") else "images"
    title = (
        f"{metrics['name']}: {metrics['task']} over {metrics['topology']}, {wording.count(metrics['images'])} {unit}"
    )
    table = Table(title=Text(title), caption=Text(_caption(metrics)), caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("metric")
    joint = metrics.get("reference", {}).get("joint")
    for heading in ("secure", "plaintext", "difference", *(["joint plaintext"] if joint else [])):
        table.add_column(heading, justify="right")
    for key, name in wording.metric_names(secure).items():
        ours, theirs = secure[key], plaintext.get(key)
        beside = [wording.metric(joint[key])] if joint else []
        table.add_row(name, wording.metric(ours), wording.metric(theirs), wording.difference(ours, theirs), *beside)
    return table


def sweep_table(points: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each point: ``overrides``, ``status`` ("ok" or "failed"), ``error`` and ``metrics`` (or None)."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    failed = [point for point in points if point["status"] != "ok"]
    title = f"Sweep: {len(points)} points, {len(failed)} failed" if failed else f"Sweep: {len(points)} points"
    errors = "\n".join(f"{_point(failure, ' ')} failed: {failure['error']}" for failure in failed)
    # Text, not str: an override such as topology.parties=[a] would be read as markup.
    table = Table(title=title, caption=Text(errors), caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("point", overflow="fold")
    # Headings on two lines leave the overrides room in a terminal of 80 columns.
    for heading in ("AUC", "plain\nAUC", "accuracy", "labels\nequal", "logit\nerror", "online", "sent"):
        table.add_column(heading, justify="right", overflow="fold")
    for point in points:
        ok = point["status"] == "ok"
        table.add_row(Text(_point(point, "\n"), style="" if ok else "red"), *_cells(point["metrics"], ok))
    return table


def _point(point: Mapping[str, Any], separator: str) -> str:
    return separator.join(point["overrides"]) or "(no overrides)"


def _cells(metrics: Mapping[str, Any] | None, ok: bool) -> list[str]:
    if metrics is None:
        return [wording.MISSING if ok else "failed", *[wording.MISSING] * 6]
    secure, plaintext = metrics["secure"], metrics["plaintext"] or {}
    fidelity, cost = metrics["fidelity"] or {}, metrics["cost"]
    return [
        wording.metric(secure["auc"]),
        wording.metric(plaintext.get("auc")),
        wording.metric(secure["accuracy"]),
        wording.metric(fidelity.get("label_agreement")),
        wording.error(fidelity.get("max_logit_error")),
        wording.seconds(cost["online_s"]),
        wording.size(cost["sent_bytes"]),
    ]


def _caption(metrics: Mapping[str, Any]) -> str:
    """Fidelity, cost, why a metric is missing, and the warning of an insecure run, a line each."""
    fidelity, cost = metrics["fidelity"] or {}, metrics["cost"]
    lines = [wording.summary(metrics)]
    if fidelity.get("max_logit_error") is not None:
        lines[0] += f" Largest logit error {wording.error(fidelity['max_logit_error'])}."
    if cost["online_s"] is not None:
        lines.append(
            f"Cost: {wording.seconds(cost['online_s'])} online, {wording.seconds(cost['offline_s'])} waiting for the "
            f"dealer, {wording.count(cost['rounds'])} rounds, {wording.size(cost['sent_bytes'])} sent by a compute "
            f"party at most, {wording.size(cost['dealer_bytes'])} from the dealer."
        )
    if metrics.get("stream"):
        lines.append(streaming.sentence(metrics["stream"]))
    if metrics.get("privacy"):
        rows = dict(wording.privacy(metrics["privacy"]))
        lines.append("Privacy: " + "; ".join(f"{name.lower()} {rows[name]}" for name in list(rows)[:2]) + ".")
    for reason, names in missing(metrics["secure"]).items():
        lines.append(f"{wording.MISSING} {', '.join(names)}: {reason}.")
    if metrics["insecure"]:
        lines.append("INSECURE SIMULATION: the randomness is known to one party, so nothing was protected.")
    return "\n".join(lines)


def missing(metrics: Mapping[str, Any]) -> dict[str, list[str]]:
    """Reasons of ``metrics``, each with the names of the metrics it concerns."""
    reasons: dict[str, list[str]] = {}
    for key, reason in metrics["reasons"].items():
        names = wording.metric_names(metrics)
        if key in (*wording.METRIC_NAMES, "confusion") and key not in names and names is not wording.METRIC_NAMES:
            continue  # what masks never have
        name = names.get(key) or wording.FIDELITY_NAMES.get(key) or key.replace("_", " ").capitalize()
        reasons.setdefault(reason, []).append(name)
    return reasons
