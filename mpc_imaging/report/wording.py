"""Numbers as people read them, and the sentences that sum up a run: shared by the page and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpc_imaging.choices import IMAGE_OWNER, Role
from mpc_imaging.settings import Settings, TopologySettings

MISSING = "–"
METRIC_NAMES = {
    "accuracy": "Accuracy",
    "auc": "AUC",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "f1": "F1 score",
    "mcc": "Matthews correlation",
}
OVERLAP_NAMES = {
    "dice": "Dice, all pixels together",
    "iou": "IoU, all pixels together",
    "mean_dice": "Dice, mean over images",
    "mean_iou": "IoU, mean over images",
    "hausdorff": "Hausdorff distance, pixels",
    "hausdorff95": "Hausdorff distance, 95 %, pixels",
    "accuracy": "Pixels right",
}
FIDELITY_NAMES = {
    "label_agreement": "Label agreement",
    "max_logit_error": "Largest logit error",
    "mean_logit_error": "Mean logit error",
    "auc_difference": "AUC difference",
}
COST_NAMES = {
    "online_s": "Online time",
    "offline_s": "Waiting for correlated randomness",
    "rounds": "Rounds",
    "sent_bytes": "Sent by one compute party, at most",
    "dealer_bytes": "Sent by the dealer",
}
RECEIVER_COST_NAMES = {"sent_bytes": "Sent by this party", "dealer_bytes": "Received from the dealer"}
_REVEALED = {
    "logits": "Model outputs (logits)",
    "predictions": "Predicted classes",
    "metrics": "Counts of right and wrong, over all images",
    "loss": "Mean training loss of each epoch",
    "auc": "AUC, over all images",
    "weights": "Trained weights",
    "epoch": "When early stopping ends training, and the epoch that it chose",
    "update": "Sum of all owners' clipped updates, after each round",
    "range_ok": "Whether all values were in range, before anything else",
    "range_layer": "Which layers had values out of range, if any",
    "duplicates": "Which images another owner has too, and in which of its splits",
}
_PROTOCOLS = {
    "fss": "Function secret sharing, trusted dealer",
    "beaver": "Beaver multiplication, trusted dealer",
    "insecure_simulation": "insecure simulation",
}


def metric_names(metrics: Mapping[str, Any]) -> Mapping[str, str]:
    """The metrics that a run of this kind has, by key, in the order of tables; ``metrics``: of either run."""
    return OVERLAP_NAMES if "dice" in metrics else METRIC_NAMES


def metric(value: float | None) -> str:
    """A metric or fraction with four decimals."""
    return MISSING if value is None else f"{value:.4f}"


def difference(secure: float | None, plaintext: float | None) -> str:
    """Secure less plaintext, signed, with four decimals."""
    if secure is None or plaintext is None:
        return MISSING
    shown = f"{secure - plaintext:+.4f}"
    return "0.0000" if float(shown) == 0 else shown.replace("-", "−")


def error(value: float | None) -> str:
    """A small error with two significant digits, in scientific notation where zeros would hide them."""
    if value is None:
        return MISSING
    if value == 0 or value >= 1e-4:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def agreement(fidelity: Mapping[str, Any] | None) -> str:
    """Label agreement as a count and a percentage that never rounds up to 100 %."""
    if not fidelity or fidelity["label_agreement"] is None:
        return MISSING
    agreeing, images = fidelity["agreeing"], fidelity["images"]
    percent = 100.0 if agreeing == images else min(99.99, 100 * agreeing / images)
    return f"{agreeing:,} of {images:,} ({percent:.4g} %)"


def seconds(value: float | None) -> str:
    """A duration: ``12 ms``, ``3.4 s``, ``2 min 5 s`` or ``1 h 4 min``."""
    if value is None:
        return MISSING
    if value < 0.9995:
        return f"{value * 1000:.3g} ms" if value else "0 s"
    if value < 59.95:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def count(value: float | None) -> str:
    """A whole number with thousands set apart."""
    return MISSING if value is None else f"{value:,.0f}"


def size(value: float | None) -> str:
    """Bytes in decimal units: ``812 B``, ``3.84 MB``."""
    if value is None:
        return MISSING
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:,.3g} TB"


def cost(name: str, value: float | None) -> str:
    """One entry of metrics.json's cost with its unit."""
    return {"rounds": count, "sent_bytes": size, "dealer_bytes": size}.get(name, seconds)(value)


def summary(metrics: Mapping[str, Any]) -> str:
    """The outcome in one or two sentences of plain words."""
    secure, plaintext, fidelity = metrics["secure"], metrics["plaintext"], metrics["fidelity"]
    if fidelity and fidelity["label_agreement"] is not None:
        what = fidelity.get("unit", "labels")
        first = f"Secure and plaintext agree on {fidelity['agreeing']:,} of {fidelity['images']:,} {what}"
        if "dice" in secure and secure["dice"] is not None and plaintext:
            return f"{first}; Dice is {metric(secure['dice'])} and {metric(plaintext['dice'])}."
        gap = fidelity["auc_difference"]
        return f"{first}; {_auc_gap(gap)}." if gap is not None else f"{first}."
    known = [
        f"{name} {metric(secure[key])}"
        for key, name in (("dice", "Dice"), ("iou", "IoU"), ("accuracy", "accuracy"), ("auc", "AUC"))
        if secure.get(key) is not None
    ]
    if not known:
        return f"The secure run ended ({count(metrics['images'])} images), but no metric of it was revealed here."
    if "dice" in secure:
        return f"The secure run segmented {count(metrics['images'])} images with {' and '.join(known[:2])}."
    text = f"The secure run classified {count(metrics['images'])} images with {' and '.join(known)}."
    counted = _counted(secure)
    if counted < metrics["images"]:
        text = (
            f"The secure run classified {count(metrics['images'])} images. On the {count(counted)} whose outputs and "
            f"labels are known here, it has {' and '.join(known)}."
        )
    if plaintext and plaintext["accuracy"] is not None:
        return f"{text} In plaintext, accuracy is {metric(plaintext['accuracy'])}."
    return f"{text} There is no plaintext run beside it to compare with."


def _counted(run: Mapping[str, Any]) -> int:
    """How many images the metrics are over; with several labels each, every label has counts of all of them."""
    if run.get("per_label"):
        return sum(run["per_label"][0]["counts"].values())
    return sum(map(sum, run["confusion"] or []))


def reveals(settings: Settings) -> list[dict[str, str]]:
    """What the policy opens and to whom, then what it keeps shut: rows of ``what`` and ``to``, as the task needs."""
    rows = []
    ranges = ("range_ok", "range_layer") if settings.checks_range() else ()
    checks = [name for name in (*ranges, "duplicates") if settings.recipients(name)]
    for name in (*settings.produced(), *checks):
        to = [_recipient(recipient, settings.topology) for recipient in settings.policy.reveal.get(name, [])]
        what = "Predicted masks" if name == "predictions" and settings.data.masks else _REVEALED[name]
        rows.append({"what": what, "to": "; ".join(to) or "nobody"})
    return sorted(rows, key=lambda row: row["to"] == "nobody")


def privacy(entry: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What differential privacy promises of a run: names and texts, from result.json's ``privacy``."""
    if entry is None:
        return []
    at = f"at delta {entry['delta']:g}"
    rows = [
        ("Against all compute parties but one", f"epsilon {_epsilon(entry['epsilon_insiders'])} {at}"),
        ("Against everybody else", f"epsilon {_epsilon(entry['epsilon_outsiders'])} {at}"),
        ("Budget", "none" if entry["epsilon_budget"] is None else f"epsilon {entry['epsilon_budget']:g}"),
        ("Data sets differ in", entry["adjacency"]),
        ("Noise", f"{entry['mechanism']}, {entry['noise_multiplier']:g} times the sensitivity, by each compute party"),
        ("Counted", f"{entry['epochs']} epochs and {entry['earlier_sessions']} earlier sessions"),
        ("Amplification by sampling", entry["amplification"]),
        ("Opened without noise, and outside of this", ", ".join(entry["outside"]) or "nothing"),
    ]
    return [*rows, ("Inputs", entry["inputs"])] if "inputs" in entry else rows


def _epsilon(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:.2f}"


def protocol(name: str) -> str:
    """A protocol in words."""
    return _PROTOCOLS.get(name, name)


def roles(values: list[Role]) -> str:
    """A party's roles in words, in the order in which the schema has them."""
    return ", ".join(role.value.replace("_", " ") for role in Role if role in values)


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _auc_gap(gap: float) -> str:
    if gap == 0:
        return "AUC is the same"
    return f"AUC differs by {gap:.4f}" if gap >= 5e-5 else "AUC differs by less than 0.0001"


def _recipient(name: str, topology: TopologySettings) -> str:
    if name == IMAGE_OWNER:
        return "each image's owner, for its own images"
    if name in {role.value for role in Role}:
        holders = [party for party, settings in topology.parties.items() if Role(name) in settings.roles]
        return f"every {name.replace('_', ' ')} ({', '.join(holders) or 'none here'})"
    return name
