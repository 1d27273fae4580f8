"""Classification metrics from scores or from counts, and the fidelity of secure outputs to plaintext ones.

Everything here is plain numbers, ready for JSON: an undefined value is ``None`` with a sentence in ``reasons``, never
NaN. With two classes the positive class decides sensitivity, specificity, F1 and AUC; with more, they are averages over
all classes (AUC one-vs-rest), and undefined if they are undefined for one class. Images that may show several classes
have rows of labels, (N, K) of 0 and 1: then each class is a question of its own, answered yes where its logit is above
0, all metrics are averages over the classes, and ``per_label`` has those of each. scikit-learn takes a second to import
and only AUC needs it: a party that merely counts never loads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mpc_imaging.errors import ConfigError, DataError

METRICS = ("accuracy", "auc", "sensitivity", "specificity", "f1", "mcc")
LOGIT_FIDELITY = ("max_logit_error", "mean_logit_error", "auc_difference")
UNKNOWN_LABEL = -1
COUNTS = ("true_positives", "false_positives", "false_negatives", "true_negatives")
SEVERAL = "images have several labels: see each of them"
ONLY_COUNTS = "needs individual scores; only counts were revealed"
ONLY_PREDICTIONS = "needs individual scores; only predicted labels were revealed"


def output_metrics(logits: npt.ArrayLike, labels: npt.ArrayLike, positive_class: int | None) -> dict[str, Any]:
    """Metrics of ``logits`` (N, K) against ``labels``, of which -1 is unknown: (N,) classes, or (N, K) of 0 and 1.

    Of masks, logits are (N, 1, H, W) and labels (N, H, W). Raises as `classification_metrics` and `label_metrics`.
    """
    if np.ndim(labels) == 3:
        from mpc_imaging.report.overlap import mask_metrics  # which imports this module

        return mask_metrics(np.asarray(logits)[:, 0] > 0, labels)
    if np.ndim(labels) == 2:
        return label_metrics(logits, labels)
    return classification_metrics(log_softmax(logits), labels, positive_class)


def classification_metrics(scores: npt.ArrayLike, labels: npt.ArrayLike, positive_class: int | None) -> dict[str, Any]:
    """Metrics of ``scores`` (N, K), higher meaning likelier, against ``labels`` (N,), where -1 is an unknown label.

    Scores are class probabilities, or any increasing function of them such as `log_softmax` of the logits. Images of
    unknown label are left out, which ``reasons["labels"]`` then says.

    Raises:
        ConfigError: two classes without a valid ``positive_class``.
        DataError: shapes or labels that do not fit.
    """
    values = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(labels, dtype=np.int64)
    classes = _number_of_classes(values, truth)
    known = truth != UNKNOWN_LABEL
    values, truth = values[known], truth[known]
    bad = int((~np.isfinite(values).all(axis=1)).sum())
    if bad:
        return undefined_metrics(f"the scores of {_images(bad)} are not finite numbers")
    result = metrics_from_confusion(confusion_counts(truth, values.argmax(axis=1), classes), positive_class)
    if len(truth):
        result["reasons"].pop("auc")
        result["auc"], reason = _auc(values, truth, _chosen(classes, positive_class))
        if reason:
            result["reasons"]["auc"] = reason
    if not known.all():
        result["reasons"]["labels"] = f"{int((~known).sum())} of {_images(len(known))} left out: label unknown"
    return result


def metrics_from_confusion(confusion: npt.ArrayLike, positive_class: int | None) -> dict[str, Any]:
    """Metrics of a ``confusion`` matrix (K, K) of counts, rows = true class, columns = predicted; AUC is ``None``.

    Raises:
        ConfigError: two classes without a valid ``positive_class``.
        DataError: no square matrix of counts.
    """
    matrix = _counts(confusion)
    chosen = _chosen(len(matrix), positive_class)
    total = int(matrix.sum())
    if total == 0:
        return undefined_metrics("no image has a known label")
    hits = np.diag(matrix)
    labelled, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    clear = total - labelled - predicted + hits  # neither labelled nor predicted as the class: its true negatives
    values: dict[str, tuple[float | None, str]] = {
        "accuracy": (float(hits.sum() / total), ""),
        "auc": (None, ONLY_COUNTS),
        "sensitivity": _mean_ratio(hits, labelled, chosen, "no image is labelled {}"),
        "specificity": _mean_ratio(clear, total - labelled, chosen, "every image is labelled {}"),
        "f1": _mean_ratio(2 * hits, labelled + predicted, chosen, "no image is labelled or predicted {}"),
        "mcc": _matthews(hits, labelled, predicted),
    }
    result: dict[str, Any] = {name: value for name, (value, _) in values.items()}
    return result | {
        "confusion": matrix.tolist(),
        "reasons": {name: reason for name, (value, reason) in values.items() if value is None},
    }


def label_metrics(logits: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, Any]:
    """Metrics of ``logits`` (N, K) against ``labels`` (N, K) of 0 and 1; a row with -1 is left out.

    Raises:
        DataError: shapes or labels that do not fit.
    """
    values, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if values.shape != truth.shape or truth.ndim != 2:
        raise DataError([f"logits {values.shape} and labels {truth.shape} must both be (N, K)"])
    known = (truth != UNKNOWN_LABEL).all(axis=1)
    values, truth = values[known], truth[known]
    bad = int((~np.isfinite(values).all(axis=1)).sum())
    if bad:
        return undefined_metrics(f"the scores of {_images(bad)} are not finite numbers")
    result = metrics_from_label_counts(label_counts(truth, values > 0), len(truth))
    if len(truth):
        result["reasons"].pop("auc")
        result["auc"], reason = _auc(values, truth, range(truth.shape[1]))
        for k, entry in enumerate(result["per_label"]):
            entry["auc"] = _auc(values, truth, [k])[0]
        if reason:
            result["reasons"]["auc"] = reason
    if not known.all():
        result["reasons"]["labels"] = f"{int((~known).sum())} of {_images(len(known))} left out: label unknown"
    return result


def label_counts(labels: npt.ArrayLike, predicted: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """True positives, false positives and false negatives (K, 3) of rows of labels and predictions, both (N, K).

    Rows with a label of -1 are left out.
    """
    truth, guess = np.asarray(labels, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    known = (truth != UNKNOWN_LABEL).all(axis=1)
    truth, guess = truth[known], guess[known]
    return np.stack([(truth & guess).sum(0), (guess & ~truth).sum(0), (truth & ~guess).sum(0)], axis=1)


def metrics_from_label_counts(counts: npt.ArrayLike, images: int) -> dict[str, Any]:
    """Metrics from `label_counts` of so many images; AUCs are ``None``.

    Raises:
        DataError: no counts of so many images.
    """
    given = np.asarray(counts, dtype=np.int64)
    if given.ndim != 2 or given.shape[1] != 3 or (given < 0).any() or (given.sum(axis=1) > images).any():
        raise DataError(
            [f"counts {given.shape} of {images} images must be (K, 3), none negative and no more than those"]
        )
    if not images:
        return undefined_metrics("no image has a known label")
    hits, false, missed = given.T
    clear, every = images - given.sum(axis=1), range(len(given))
    correct, total = hits + clear, np.full(len(given), images)
    ratios = {
        "accuracy": (correct, total, ""),
        "sensitivity": (hits, hits + missed, "no image is labelled {}"),
        "specificity": (clear, clear + false, "every image is labelled {}"),
        "f1": (2 * hits, 2 * hits + false + missed, "no image is labelled or predicted {}"),
    }
    values: dict[str, tuple[float | None, str]] = {
        **{name: _mean_ratio(*parts[:2], every, parts[2]) for name, parts in ratios.items()},
        "auc": (None, ONLY_COUNTS),
        "mcc": (None, SEVERAL),
        "confusion": (None, SEVERAL),
    }
    per_label = [
        {name: _mean_ratio(*parts[:2], [k], "")[0] for name, parts in ratios.items()}
        | {"auc": None, "counts": dict(zip(COUNTS, map(int, (hits[k], false[k], missed[k], clear[k])), strict=True))}
        for k in every
    ]
    return {name: values[name][0] for name in (*METRICS, "confusion")} | {
        "per_label": per_label,
        "reasons": {name: reason for name, (value, reason) in values.items() if value is None},
    }


def undefined_metrics(reason: str) -> dict[str, Any]:
    """The metrics of a run that gives none of them."""
    names = (*METRICS, "confusion")
    return dict.fromkeys(names) | {"reasons": dict.fromkeys(names, reason)}


def confusion_counts(labels: npt.ArrayLike, predicted: npt.ArrayLike, classes: int) -> npt.NDArray[np.int64]:
    """Confusion matrix (K, K), rows = true class, of two (N,) class indices; images of label -1 are left out."""
    truth, guess = np.asarray(labels, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    known = truth != UNKNOWN_LABEL
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (truth[known], guess[known]), 1)
    return matrix


def fidelity(
    secure_logits: npt.ArrayLike, plain_logits: npt.ArrayLike, labels: npt.ArrayLike, positive_class: int | None
) -> dict[str, Any]:
    """How close secure logits (N, K) are to plaintext ones: label agreement, absolute logit errors, |AUC difference|.

    Errors are over all N * K logits. ``labels``, (N,) or (N, K), may hold -1; only the AUC difference needs them. With
    several labels for each image, those agree whose logits have the same signs.
    """
    secure, plain = np.asarray(secure_logits, dtype=np.float64), np.asarray(plain_logits, dtype=np.float64)
    if secure.shape != plain.shape:
        raise DataError([f"secure logits {secure.shape} and plaintext logits {plain.shape} must have one shape"])
    finite = np.isfinite(secure).all(axis=1) & np.isfinite(plain).all(axis=1)
    # Two different stand-ins, so that an output without a number agrees with nothing.
    ours, theirs = (predicted_labels(logits, np.ndim(labels) == 2) for logits in (secure, plain))
    ours[~finite], theirs[~finite] = -1, -2
    result = label_agreement(ours, theirs, "no images")
    if not len(secure):
        return result
    if not finite.all():
        reason = f"the logits of {_images(int((~finite).sum()))} are not finite numbers"
        return result | {"reasons": dict.fromkeys(LOGIT_FIDELITY, reason)}
    errors = np.abs(secure - plain)
    result |= {"max_logit_error": float(errors.max()), "mean_logit_error": float(errors.mean()), "reasons": {}}
    ones, others = (output_metrics(logits, labels, positive_class) for logits in (secure, plain))
    if ones["auc"] is None or others["auc"] is None:
        result["reasons"]["auc_difference"] = ones["reasons"].get("auc", others["reasons"].get("auc"))
    else:
        result["auc_difference"] = abs(ones["auc"] - others["auc"])
    return result


def predicted_labels(logits: npt.ArrayLike, several: bool) -> npt.NDArray[np.int64]:
    """The class (N,) of the largest of logits (N, K); with several labels for each image those (N, K) above 0."""
    values = np.asarray(logits)
    return (values > 0).astype(np.int64) if several else values.argmax(axis=1)


def label_agreement(secure: npt.ArrayLike, plain: npt.ArrayLike, reason: str) -> dict[str, Any]:
    """The fidelity of predicted classes (N,), or labels (N, K), alone; ``reason`` says why there are no logits."""
    ours, theirs = np.asarray(secure), np.asarray(plain)
    agreeing = int((ours == theirs).reshape(len(ours), -1).all(axis=1).sum()) if len(ours) else 0
    reasons = dict.fromkeys(LOGIT_FIDELITY, reason)
    if not len(ours):
        reasons["label_agreement"] = "no images"
    return {
        "label_agreement": agreeing / len(ours) if len(ours) else None,
        "agreeing": agreeing,
        "images": len(ours),
        **dict.fromkeys(LOGIT_FIDELITY),
        "reasons": reasons,
    }


def log_softmax(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Logarithms of the class probabilities of ``logits`` (N, K), in float64.

    Probabilities themselves round to one near certainty, which would make ties that the logits do not have.
    """
    values = np.asarray(logits, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # a row with an infinity becomes NaN, which `classification_metrics` reports
        shifted = values - values.max(axis=1, keepdims=True)
        others = np.exp(shifted)
    others[np.arange(len(others)), shifted.argmax(axis=1)] = 0.0  # the largest term is one, and would swallow the rest
    return shifted - np.log1p(others.sum(axis=1, keepdims=True))


def _auc(
    scores: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], chosen: Sequence[int]
) -> tuple[float | None, str]:
    """Mean over ``chosen`` of each class's AUC against the rest; (None, reason) if one of them is undefined."""
    member = {k: labels == k if labels.ndim == 1 else labels[:, k] == 1 for k in chosen}
    counts = {k: int(member[k].sum()) for k in chosen}
    lacking = [k for k, count in counts.items() if count == 0]
    full = [k for k, count in counts.items() if count == len(labels)]
    if lacking or full:
        return None, f"no image is labelled {_name(lacking)}" if lacking else f"every image is labelled {_name(full)}"
    from sklearn.metrics import roc_auc_score  # a second to import: not for parties that only count

    return float(np.mean([roc_auc_score(member[k], scores[:, k]) for k in chosen])), ""


def _mean_ratio(
    numerators: npt.NDArray[np.int64], denominators: npt.NDArray[np.int64], chosen: Sequence[int], why: str
) -> tuple[float | None, str]:
    lacking = [k for k in chosen if denominators[k] == 0]
    if lacking:
        return None, why.format(_name(lacking))
    return float(np.mean([numerators[k] / denominators[k] for k in chosen])), ""


def _matthews(
    hits: npt.NDArray[np.int64], labelled: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]
) -> tuple[float | None, str]:
    """Matthews correlation of K classes (Gorodkin, 2004), in Python's integers: counts to the fourth power overflow."""
    rows, columns = [int(v) for v in labelled], [int(v) for v in predicted]
    total, correct = sum(rows), int(hits.sum())
    spread_rows = total**2 - sum(v * v for v in rows)
    spread_columns = total**2 - sum(v * v for v in columns)
    if not spread_rows or not spread_columns:
        return None, f"every {'image is labelled' if not spread_rows else 'prediction is'} the same class"
    covariance = correct * total - sum(r * c for r, c in zip(rows, columns, strict=True))
    return covariance / (spread_rows**0.5 * spread_columns**0.5), ""


def _chosen(classes: int, positive_class: int | None) -> Sequence[int]:
    """The classes to average over: the positive one of two, or all of more."""
    if classes > 2:
        return range(classes)
    if positive_class not in (0, 1):
        raise ConfigError(
            [f"data.positive_class={positive_class}: two classes need it to be 0 or 1, the disease's class"]
        )
    return [positive_class]


def _number_of_classes(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> int:
    if scores.ndim != 2 or scores.shape[1] < 2 or labels.shape != scores.shape[:1]:
        raise DataError(
            [f"scores {scores.shape} and labels {labels.shape} must be (N, K) and (N,) with K >= 2 classes"]
        )
    if len(labels) and (labels.min() < UNKNOWN_LABEL or labels.max() >= scores.shape[1]):
        raise DataError([f"labels must lie in 0..{scores.shape[1] - 1}, the model's outputs, or be -1 for unknown"])
    return scores.shape[1]


def _counts(confusion: npt.ArrayLike) -> npt.NDArray[np.int64]:
    given = np.asarray(confusion)
    if given.ndim != 2 or given.shape[0] != given.shape[1] or len(given) < 2:
        raise DataError([f"a confusion matrix must be (K, K) with K >= 2 classes, not {given.shape}"])
    matrix = given.astype(np.int64)
    if (matrix != given).any() or (matrix < 0).any():
        raise DataError(["a confusion matrix must hold whole, non-negative counts: round them before"])
    return matrix


def _name(classes: Sequence[int]) -> str:
    return f"class {classes[0]}" if len(classes) == 1 else "classes " + ", ".join(str(k) for k in classes)


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"
