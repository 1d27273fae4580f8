"""report.html: one page, complete in itself, for the person who ran the job and the colleagues they send it to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpc_imaging import __version__
from mpc_imaging.report import plots, streaming, wording
from mpc_imaging.report.labels import SHOWN, label_rows
from mpc_imaging.report.metrics import LOGIT_FIDELITY, log_softmax
from mpc_imaging.report.predictions import write_atomically

_TEMPLATE = Path(__file__).with_name("template.html.j2")


def _now() -> str:
    return datetime.now().strftime("%d %B %Y, %H:%M")


@dataclass(frozen=True)
class Details:
    """What the page shows beyond metrics.json. The arrays have the same N rows, and are None where nothing is known."""

    parties: Sequence[Mapping[str, str]]  # name, roles, images
    reveals: Sequence[Mapping[str, str]]  # what, to
    layers: Sequence[Mapping[str, Any]] = ()  # name, op, rounds, sent_bytes, seconds
    labels: npt.NDArray[np.int64] | None = None  # (N,) or (N, K), -1 where unknown
    secure_logits: npt.NDArray[np.float32] | None = None  # (N, K)
    plain_logits: npt.NDArray[np.float32] | None = None  # (N, K)
    masks: Sequence[tuple[npt.NDArray[Any], ...]] | None = None  # image (H, W) and its true, secure, plaintext mask
    quality: Sequence[Mapping[str, Any]] = ()  # party, split, kind, count
    latencies: Mapping[str, Sequence[float]] = field(default_factory=dict)  # ms of each frame, by its owner
    receiver: str | None = None  # whose page it is, on real machines
    date: str = field(default_factory=_now)


def write_report(path: Path, metrics: Mapping[str, Any], details: Details) -> None:
    """Write the page for ``metrics`` (the content of metrics.json) to ``path``, atomically."""
    from jinja2 import Environment, StrictUndefined  # with matplotlib, only for the process that writes reports

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    write_atomically(path, template.render(_view(metrics, details)).encode())


class _Notes:
    """Footnotes: each reason once, numbered in the order of first use."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def cell(self, text: str, reason: str | None) -> dict[str, Any]:
        """A table cell; a missing value refers to its reason."""
        if text != wording.MISSING or not reason:
            return {"text": text, "reason": "", "note": None}
        return {"text": text, "reason": reason, "note": self.number(reason)}

    def number(self, reason: str) -> int:
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason) + 1


def _view(metrics: Mapping[str, Any], details: Details) -> dict[str, Any]:
    notes = _Notes()
    figures = _figures(metrics, details)
    return {
        "metrics": metrics,
        "details": details,
        "version": __version__,
        "summary": wording.summary(metrics),
        "facts": _facts(metrics, details),
        "tiles": _tiles(metrics),
        "metric_rows": _metric_rows(metrics, notes),
        "label_rows": label_rows(metrics),
        "label_metrics": [wording.METRIC_NAMES[key] for key in SHOWN],
        "fidelity_rows": _fidelity_rows(metrics, notes),
        "cost_rows": _cost_rows(metrics, details, notes),
        "privacy_rows": wording.privacy(metrics.get("privacy")),
        "stream_rows": streaming.rows(metrics["stream"]) if metrics.get("stream") else [],
        "layer_rows": [_layer_row(layer) for layer in details.layers],
        "drawn_layers": len(plots.costliest(details.layers)),
        "notes": notes.reasons,
        "remark": metrics["secure"]["reasons"].get("labels"),
        "positive": _positive(metrics),
        "figures": figures,
    }


def _facts(metrics: Mapping[str, Any], details: Details) -> list[tuple[str, str]]:
    facts = [
        ("Task", metrics["task"]),
        ("Parties", metrics["topology"].replace("_", " ")),
        ("Protocol", wording.protocol(metrics["protocol"])),
        ("Precision", f"{metrics['fraction_bits']} fractional bits"),
        ("Images evaluated", wording.count(metrics["images"])),
        ("Classes", ", ".join(metrics["class_names"])),
        ("Seed", str(metrics["seed"])),
    ]
    if metrics.get("best_epoch") is not None:
        facts.append(("Best epoch", str(metrics["best_epoch"])))
    return [("Seen by", details.receiver), *facts] if details.receiver else facts


def _tiles(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The few numbers to read first: name, value, and what to hold it against."""
    secure, plaintext, fidelity = metrics["secure"], metrics["plaintext"] or {}, metrics["fidelity"] or {}
    names = wording.metric_names(secure)
    key = next((key for key in ("dice", "auc") if secure.get(key) is not None), "accuracy")
    beside = f"plaintext {wording.metric(plaintext[key])}" if plaintext else "no plaintext run"
    tiles = [(f"{names[key].partition(',')[0]}, secure", wording.metric(secure[key]), beside)]
    if fidelity.get("label_agreement") is not None:
        differing = fidelity["images"] - fidelity["agreeing"]
        unit = fidelity.get("unit", "labels")
        of = unit if unit != "labels" else "images"
        tiles.append((f"{unit.capitalize()} that differ", f"{differing:,}", f"of {fidelity['images']:,} {of}"))
    if fidelity.get("max_logit_error") is not None:
        largest = wording.error(fidelity["max_logit_error"])
        tiles.append(("Largest logit error", largest, f"mean {wording.error(fidelity['mean_logit_error'])}"))
    cost = metrics["cost"]
    if metrics.get("stream"):
        tiles.append(streaming.tile(metrics["stream"]))
    elif cost["online_s"] is not None:
        tiles.append(("Online time", wording.seconds(cost["online_s"]), f"{wording.size(cost['sent_bytes'])} sent"))
    return tiles


def _metric_rows(metrics: Mapping[str, Any], notes: _Notes) -> list[dict[str, Any]]:
    secure, plaintext, joint = metrics["secure"], metrics["plaintext"], metrics["reference"].get("joint")
    rows = []
    names = wording.metric_names(secure)
    for key, name in names.items():
        ours, theirs = secure[key], plaintext[key] if plaintext else None
        row = {"name": name}
        row["secure"] = notes.cell(wording.metric(ours), secure["reasons"].get(key))
        row["plaintext"] = notes.cell(wording.metric(theirs), plaintext["reasons"].get(key) if plaintext else None)
        row["difference"] = wording.difference(ours, theirs)
        row["joint"] = notes.cell(wording.metric(joint[key]), joint["reasons"].get(key)) if joint else None
        rows.append(row)
    return rows


def _fidelity_rows(metrics: Mapping[str, Any], notes: _Notes) -> list[tuple[str, dict[str, Any]]]:
    fidelity = metrics["fidelity"]
    if not fidelity:
        return []
    reasons = fidelity["reasons"]
    agreement = notes.cell(wording.agreement(fidelity), reasons.get("label_agreement"))
    pixels = fidelity.get("unit") == "pixels"
    rows = [("Equal pixels" if pixels else wording.FIDELITY_NAMES["label_agreement"], agreement)]
    for key in LOGIT_FIDELITY[: 2 if pixels else None]:  # masks have no AUC
        rows.append((wording.FIDELITY_NAMES[key], notes.cell(wording.error(fidelity[key]), reasons.get(key))))
    return rows


def _cost_rows(metrics: Mapping[str, Any], details: Details, notes: _Notes) -> list[tuple[str, dict[str, Any]]]:
    names = wording.COST_NAMES | (wording.RECEIVER_COST_NAMES if details.receiver else {})
    cost = metrics["cost"]
    return [
        (name, notes.cell(wording.cost(k, cost[k]), "only compute parties measure it")) for k, name in names.items()
    ]


def _layer_row(layer: Mapping[str, Any]) -> tuple[str, ...]:
    measured = wording.seconds(layer["seconds"]), wording.count(layer["rounds"]), wording.size(layer["sent_bytes"])
    return str(layer["name"]), str(layer["op"]), *measured


def _positive(metrics: Mapping[str, Any]) -> str | None:
    """The positive class's name; None where the averages are over all classes."""
    names, index = metrics["class_names"], metrics["positive_class"]
    return names[index] if len(names) == 2 and index is not None else None


def _figures(metrics: Mapping[str, Any], details: Details) -> dict[str, str]:
    """Those figures that the revealed values allow, by name."""
    runs = {"Secure": metrics["secure"], "Plaintext": metrics["plaintext"]}
    figures = {}
    matrices = {title: run["confusion"] for title, run in runs.items() if run and run["confusion"]}
    if matrices:
        figures["confusion"] = plots.confusion_matrices(matrices, metrics["class_names"])
    roc = _roc(metrics, details, runs)
    if roc:
        figures["roc"] = roc
    if details.secure_logits is not None and details.plain_logits is not None and len(details.secure_logits):
        both = np.isfinite(details.secure_logits).all(axis=1) & np.isfinite(details.plain_logits).all(axis=1)
        if both.any():
            ours, theirs = details.secure_logits[both], details.plain_logits[both]
            figures["logits"] = plots.logit_agreement(ours, theirs, metrics["class_names"])
    histories = {"Secure": metrics["history"]["secure"], "Plaintext": metrics["history"]["plaintext"]}
    histories = {title: history for title, history in histories.items() if _shows(history)}
    if histories:
        figures["training"] = plots.training_curves(histories)
    if details.masks:
        figures["masks"] = plots.mask_overlays(details.masks)
    if details.latencies:
        figures["latencies"] = plots.frame_latencies(details.latencies)
    if details.layers:
        figures["layers"] = plots.layer_costs(details.layers)
    return figures


def _shows(history: Sequence[Mapping[str, Any]]) -> bool:
    return any(entry["loss"] is not None or entry["val"] is not None for entry in history)


def _roc(metrics: Mapping[str, Any], details: Details, runs: Mapping[str, Any]) -> str | None:
    logits = {"Secure": details.secure_logits, "Plaintext": details.plain_logits}
    if details.labels is None or details.labels.ndim == 2 or metrics["secure"]["auc"] is None:
        return None
    known = details.labels >= 0
    scores = {
        title: log_softmax(values[known])
        for title, values in logits.items()
        if values is not None and runs[title] and runs[title]["auc"] is not None
    }
    if not scores:
        return None
    classes = len(metrics["class_names"])
    chosen = [metrics["positive_class"]] if classes == 2 else list(range(classes))
    aucs = {title: runs[title]["auc"] for title in scores}
    return plots.roc_curves(scores, details.labels[known], aucs, chosen)
