"""What all parties of a local simulation saw together, beside plaintext; and what one receiver saw on a real machine.

Only a local simulation may write the joint report: it puts together what the parties would never show each other. A
receiver on a machine of its own reports what was revealed to it, and leaves the rest ``null``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mpc_imaging import strict_json
from mpc_imaging.errors import DataError
from mpc_imaging.report import streaming, wording
from mpc_imaging.report.html import Details, write_report
from mpc_imaging.report.masks import MASKS, read_masks
from mpc_imaging.report.metrics import (
    ONLY_PREDICTIONS,
    UNKNOWN_LABEL,
    confusion_counts,
    fidelity,
    label_agreement,
    label_counts,
    metrics_from_confusion,
    metrics_from_label_counts,
    output_metrics,
    predicted_labels,
    undefined_metrics,
)
from mpc_imaging.report.overlap import mask_metrics, overlap_fidelity, undefined_overlap
from mpc_imaging.report.predictions import PREDICTIONS, Predictions, read_predictions, write_json
from mpc_imaging.settings import SPLITS, ProtocolName, Settings

if TYPE_CHECKING:
    from mpc_imaging.baselines.plaintext import PlaintextResult

COST = ("online_s", "offline_s", "rounds", "sent_bytes", "dealer_bytes")
# Images that the page shows with their masks.
SHOWN_MASKS = 6
NOTHING_REVEALED = "neither outputs nor counts were revealed"


def joint_metrics(
    run_folder: Path, settings: Settings, plaintext: PlaintextResult | None, joint: PlaintextResult | None = None
) -> dict[str, Any]:
    """The content of metrics.json, from ``run_folder/parties/*`` and the plaintext run.

    joint: beside a federated run and its plaintext, the model that was trained in plaintext on all images together.

    Raises:
        DataError: no party left a result, or a file is damaged.
    """
    results, parts = _read_results(run_folder, settings), _read_parts(run_folder, settings)
    return _collect(results, parts, settings, plaintext, joint)[0]


def write_joint_report(
    run_folder: Path, settings: Settings, plaintext: PlaintextResult | None, joint: PlaintextResult | None = None
) -> dict[str, Any]:
    """Write metrics.json (see `joint_metrics`) and report.html into ``run_folder``; returns the metrics."""
    results, parts = _read_results(run_folder, settings), _read_parts(run_folder, settings)
    metrics, details = _collect(results, parts, settings, plaintext, joint)
    _write(run_folder, metrics, details)
    return metrics


def receiver_report(party_folder: Path, settings: Settings, result: Mapping[str, Any]) -> dict[str, Any]:
    """Write one party's metrics.json and report.html from what it was shown: ``result`` (result.json) and its files."""
    parts = [_read_outputs(path, settings) for path in [party_folder] if _has_outputs(path)]
    metrics, details = _collect([result], parts, settings, None, receiver=result["party"])
    _write(party_folder, metrics, details)
    return metrics


@dataclass(frozen=True)
class _Outputs:
    """Revealed outputs of all parties by image; ``logits`` is None unless every row has them."""

    ids: list[str]
    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32] | None


def _collect(
    results: Sequence[Mapping[str, Any]], parts: Sequence[Predictions], settings: Settings,
    plaintext: PlaintextResult | None, joint: PlaintextResult | None = None, receiver: str | None = None,
) -> tuple[dict[str, Any], Details]:  # fmt: skip
    outputs = _merge(parts, plaintext)
    counts = _counts(results)
    stream = streaming.stream_metrics(results)
    images = sum(splits.get(settings.task.split, 0) for splits in counts.values()) or len(outputs.ids)
    images = images if stream is None else stream["frames"]
    aggregate = next((result["metrics"] for result in results if result["metrics"]), None)
    individual = len(outputs.ids) > 0 and not (aggregate and _partial(outputs, images))
    secure = _from_outputs(outputs, settings, images) if individual else aggregate
    undefined = undefined_overlap if settings.data.masks else undefined_metrics
    rows = _plaintext_rows(outputs, plaintext)
    shown = rows if individual else None
    metrics = {
        "name": settings.name,
        "task": settings.task.kind.value,
        "topology": settings.topology.name,
        "protocol": settings.protocol.name.value,
        "insecure": settings.protocol.name is ProtocolName.insecure_simulation,
        "seed": settings.seed,
        "fraction_bits": settings.protocol.fraction_bits,
        "positive_class": settings.data.positive_class,
        "class_names": list(settings.data.class_names),
        "images": images,
        "secure": secure or undefined(NOTHING_REVEALED),
        "plaintext": _plaintext_metrics(plaintext, shown, settings),
        "reference": {} if joint is None else {"joint": _plaintext_metrics(joint, shown, settings)},
        "privacy": next((result["privacy"] for result in results if result.get("privacy")), None),
        "best_epoch": next((n for result in results if (n := result.get("best_epoch")) is not None), None),
        "fidelity": _fidelity(outputs, plaintext, rows, settings),
        "cost": _cost(results),
        "stream": stream,
        "history": {"secure": _history(results), "plaintext": list(plaintext.history) if plaintext else []},
    }
    return metrics, _details(results, outputs, settings, plaintext, rows, counts, receiver)


def _details(
    results: Sequence[Mapping[str, Any]], outputs: _Outputs, settings: Settings, plaintext: PlaintextResult | None,
    rows: npt.NDArray[np.int64] | None, counts: Mapping[str, Mapping[str, int]], receiver: str | None,
) -> Details:  # fmt: skip
    parties = []
    for name, party in settings.topology.parties.items():
        held = ", ".join(f"{n:,}\u00a0{split}" for split in SPLITS if (n := counts.get(name, {}).get(split)))
        parties.append({"name": name, "roles": wording.roles(party.roles), "images": held})
    comparable = plaintext is not None and rows is not None and (rows >= 0).all()
    classified = not settings.data.masks
    return Details(
        parties=parties,
        reveals=wording.reveals(settings),
        layers=next((result["layers"] for result in results if result["layers"]), []),
        labels=outputs.labels if len(outputs.ids) and classified else None,
        secure_logits=outputs.logits if classified else None,
        plain_logits=plaintext.logits.numpy()[rows] if comparable and classified else None,
        masks=_shown_masks(outputs, plaintext, rows) if comparable and not classified else None,
        receiver=receiver,
        latencies=streaming.latencies(results),
        quality=[{"party": result["party"], **found} for result in results for found in result.get("quality", [])],
    )


def _shown_masks(
    outputs: _Outputs, plaintext: PlaintextResult, rows: npt.NDArray[np.int64]
) -> list[tuple[npt.NDArray[Any], ...]]:
    """A few images (H, W), from the first to the last, each with its true, secure and plaintext mask."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(SHOWN_MASKS, len(rows))).astype(int)) if len(rows) else []
    images, plain = plaintext.images.numpy(), plaintext.logits.numpy()[:, 0] > 0
    return [
        (images[rows[k]].mean(0), outputs.labels[k], outputs.predicted[k], plain[rows[k]].astype(int)) for k in chosen
    ]


def _read_results(run_folder: Path, settings: Settings) -> list[dict[str, Any]]:
    """result.json of each party, in the order of the topology; a party that left early may have none."""
    results = []
    for path in _party_files(run_folder, settings.topology.parties, "result.json"):
        try:
            results.append(strict_json.mapping(strict_json.loads(path.read_bytes())))
        except (OSError, ValueError):
            raise DataError([f"{path} is damaged: run the job again"]) from None
    if not results:
        raise DataError([f"{run_folder / 'parties'} holds no result.json: the run did not end, see parties/*/log.txt"])
    return results


def _read_parts(run_folder: Path, settings: Settings) -> list[Predictions]:
    """The predictions, or masks, of every party that was shown some, in the order of the topology."""
    folders = [run_folder / "parties" / party for party in settings.topology.parties]
    return [_read_outputs(folder, settings) for folder in folders if _has_outputs(folder)]


def _has_outputs(folder: Path) -> bool:
    return any((folder / name).exists() for name in (PREDICTIONS, MASKS))


def _read_outputs(folder: Path, settings: Settings) -> Predictions:
    return read_masks(folder, settings.data.class_names) if settings.data.masks else read_predictions(folder)


def _party_files(run_folder: Path, parties: Iterable[str], name: str) -> list[Path]:
    paths = [run_folder / "parties" / party / name for party in parties]
    return [path for path in paths if path.exists()]


def _merge(parts: Sequence[Predictions], plaintext: PlaintextResult | None) -> _Outputs:
    """One row for each image id, in order of first sight; labels that a party lacks come from others or plaintext."""
    labels: dict[str, Any] = {}  # a class, or a list with the 0 or 1 of each
    predicted: dict[str, Any] = {}
    logits: dict[str, npt.NDArray[np.float32]] = {}
    for part in parts:
        for row, image_id in enumerate(part.ids):
            predicted.setdefault(image_id, part.predicted[row].tolist())
            if _unknown(labels.get(image_id, UNKNOWN_LABEL)):
                labels[image_id] = part.labels[row].tolist()
            if part.logits is not None:
                logits.setdefault(image_id, part.logits[row])
    if plaintext is not None:
        known = dict(zip(plaintext.ids, plaintext.labels.tolist(), strict=True))
        labels = {k: known.get(k, label) if _unknown(label) else label for k, label in labels.items()}
    ids = list(predicted)
    return _Outputs(
        ids,
        np.array([labels[k] for k in ids], dtype=np.int64),
        np.array([predicted[k] for k in ids], dtype=np.int64),
        np.stack([logits[k] for k in ids]) if ids and len(logits) == len(ids) else None,
    )


def _unknown(label: Any) -> bool:
    return UNKNOWN_LABEL in np.atleast_1d(label)


def _partial(outputs: _Outputs, images: int) -> bool:
    return len(outputs.ids) < images or bool((outputs.labels == UNKNOWN_LABEL).any())


def _from_outputs(outputs: _Outputs, settings: Settings, images: int) -> dict[str, Any]:
    positive = settings.data.positive_class
    if settings.data.masks:
        metrics = mask_metrics(outputs.predicted, outputs.labels)
    elif outputs.logits is not None:
        metrics = output_metrics(outputs.logits, outputs.labels, positive)
    elif settings.data.multi_label:
        known = outputs.labels[(outputs.labels != UNKNOWN_LABEL).all(axis=1)]
        metrics = metrics_from_label_counts(label_counts(outputs.labels, outputs.predicted), len(known))
        metrics["reasons"]["auc"] = ONLY_PREDICTIONS
    else:
        classes = len(settings.data.class_names)
        metrics = metrics_from_confusion(confusion_counts(outputs.labels, outputs.predicted, classes), positive)
        metrics["reasons"]["auc"] = ONLY_PREDICTIONS
    if len(outputs.ids) < images:
        known = metrics["reasons"].get("labels")
        revealed = f"outputs of {len(outputs.ids):,} of {images:,} images were revealed here"
        metrics["reasons"]["labels"] = f"{revealed}; {known}" if known else revealed
    return metrics


def _plaintext_rows(outputs: _Outputs, plaintext: PlaintextResult | None) -> npt.NDArray[np.int64] | None:
    """The plaintext row of each output, -1 where plaintext lacks the image."""
    if plaintext is None:
        return None
    position = {image_id: row for row, image_id in enumerate(plaintext.ids)}
    return np.array([position.get(image_id, -1) for image_id in outputs.ids], dtype=np.int64)


def _plaintext_metrics(
    plaintext: PlaintextResult | None, rows: npt.NDArray[np.int64] | None, settings: Settings
) -> dict[str, Any] | None:
    """Plaintext metrics over the images that the secure metrics are over: ``rows``, or all of them for None."""
    if plaintext is None:
        return None
    chosen = np.arange(len(plaintext.ids)) if rows is None else rows[rows >= 0]
    logits, labels = plaintext.logits.numpy()[chosen], plaintext.labels.numpy()[chosen]
    return output_metrics(logits, labels, settings.data.positive_class)


def _fidelity(
    outputs: _Outputs, plaintext: PlaintextResult | None, rows: npt.NDArray[np.int64] | None, settings: Settings
) -> dict[str, Any] | None:
    if plaintext is None or rows is None or not len(outputs.ids):
        return None
    both = rows >= 0
    plain = plaintext.logits.numpy()[rows[both]]
    if settings.data.masks:
        logits = None if outputs.logits is None else (outputs.logits[both], plain)
        result = overlap_fidelity(outputs.predicted[both], plain[:, 0] > 0, logits)
    elif outputs.logits is None:
        expected = predicted_labels(plain, settings.data.multi_label)
        result = label_agreement(outputs.predicted[both], expected, ONLY_PREDICTIONS)
    else:
        result = fidelity(outputs.logits[both], plain, outputs.labels[both], settings.data.positive_class)
    if not both.all():
        result["reasons"]["images"] = f"plaintext lacks {int((~both).sum())} of {len(both)} images"
    return result


def _cost(results: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Cost of the slowest or busiest compute party; ``dealer_bytes`` adds up what the dealer sent to each of them.

    A party that waits for another, which waits for the dealer, counts that time as its own: so ``online_s`` is the
    longest total less the longest wait for the dealer.
    """
    costs = [result["cost"] for result in results if result["cost"]]
    reduced = {}
    for name in COST:
        values = [cost[name] for cost in costs if cost.get(name) is not None]
        reduced[name] = (sum(values) if name == "dealer_bytes" else max(values)) if values else None
    if reduced["online_s"] is not None and reduced["offline_s"] is not None:
        longest = max(cost["online_s"] + cost["offline_s"] for cost in costs)
        reduced["online_s"] = max(0.0, longest - reduced["offline_s"])
    return reduced


def _counts(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Images of each owner and split; they are public, so any party's word for an owner will do."""
    counts: dict[str, dict[str, int]] = {}
    for result in results:
        for owner, splits in result["counts"].items():
            counts.setdefault(owner, {}).update(splits)
    return counts


def _history(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each epoch; loss and validation metrics may have been revealed to different parties."""
    epochs: dict[int, dict[str, Any]] = {}
    for result in results:
        for entry in result["history"]:
            merged = epochs.setdefault(entry["epoch"], dict(entry))
            merged.update({key: value for key, value in entry.items() if merged.get(key) is None})
    return [epochs[epoch] for epoch in sorted(epochs)]


def _write(folder: Path, metrics: dict[str, Any], details: Details) -> None:
    write_json(folder / "metrics.json", metrics)
    write_report(folder / "report.html", metrics, details)
