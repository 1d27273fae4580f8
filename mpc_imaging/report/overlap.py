"""How well masks overlap with the true ones, as the metrics of a run: of all pixels together, and of single images.

Dice and IoU over all images together come from counts of pixels, which may be all that is opened. Their means over
images and Hausdorff distances need the masks themselves, which are their owners'. See `metrics` for how metrics say
that one is undefined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mpc_imaging.report import mask_metrics as single
from mpc_imaging.report.metrics import METRICS, UNKNOWN_LABEL, label_agreement, label_counts, metrics_from_label_counts

# Of a run with masks, in the order of tables. The first two are of all pixels of all images together.
OVERLAP_METRICS = ("dice", "iou", "mean_dice", "mean_iou", "hausdorff", "hausdorff95")
ONLY_OVERLAP = "needs the masks of single images; only counts of pixels were revealed"
# Of single images: the names that `mask_metrics` has for them.
SINGLE = {"mean_dice": "dice", "mean_iou": "iou", "hausdorff": "hausdorff", "hausdorff95": "hausdorff95"}
NO_DISTANCE = "no image has something marked in both of its masks"
NO_AUC = "masks are compared pixel by pixel"
UNKNOWN = "no image has a known mask"
ONLY_MASKS = "only masks were revealed"
EMPTY = "neither masks nor predictions have a pixel of the structure"


def metrics_from_overlap(counts: Sequence[int], pixels: int) -> dict[str, Any]:
    """Metrics from how many of so many pixels are true positives, false positives and false negatives.

    Raises:
        DataError: counts that are negative, or more than the pixels.
    """
    hits, false, missed = (int(count) for count in counts)
    known = metrics_from_label_counts([[hits, false, missed]], pixels)
    marked = hits + false + missed
    result = dict.fromkeys(OVERLAP_METRICS) | {name: known[name] for name in (*METRICS, "confusion")}
    reasons = dict.fromkeys(OVERLAP_METRICS[2:], ONLY_OVERLAP) | known["reasons"] | {"auc": NO_AUC, "mcc": NO_AUC}
    if marked:
        result |= {"dice": 2 * hits / (marked + hits), "iou": hits / marked}
    else:
        reasons |= dict.fromkeys(("dice", "iou"), EMPTY)
    return result | {"reasons": {name: reason for name, reason in reasons.items() if result[name] is None}}


def mask_metrics(masks: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, Any]:
    """Metrics of masks (N, H, W) of 0 and 1 against the true ones, with those of single images.

    Images whose true mask is unknown, -1, are left out, which ``reasons["labels"]`` then says.
    """
    predicted, truth = np.asarray(masks), np.asarray(labels)
    known = (truth != UNKNOWN_LABEL).all(axis=(1, 2))
    if not known.all():
        result = mask_metrics(predicted[known], truth[known]) if known.any() else undefined_overlap(UNKNOWN)
        left_out = f"{int((~known).sum())} of {len(known)} images left out: mask unknown"
        result["reasons"]["labels"] = "; ".join(filter(None, [left_out, result["reasons"].get("labels")]))
        return result
    counts = label_counts(truth.reshape(-1, 1), predicted.reshape(-1, 1))[0]
    result = metrics_from_overlap(counts.tolist(), truth.size)
    means = single.mask_metrics(single.mask_scores(predicted, truth))
    for name, key in SINGLE.items():
        result[name] = means[key]["mean"]
        result["reasons"].pop(name)
        if result[name] is None:
            result["reasons"][name] = NO_DISTANCE if len(truth) else "no images"
    measured = means["hausdorff"]["n"]
    if 0 < measured < len(truth):
        result["reasons"]["labels"] = (
            f"distances are over {measured} of {len(truth)} images; in the others nothing is marked: {means['missed']} "
            f"missed, {means['invented']} marked where nothing is, {means['both_empty']} without either"
        )
    return result


def undefined_overlap(reason: str) -> dict[str, Any]:
    """The metrics of a run with masks that gives none of them."""
    names = (*OVERLAP_METRICS, *METRICS, "confusion")
    return dict.fromkeys(names) | {"reasons": dict.fromkeys(names, reason)}


def overlap_fidelity(
    secure: npt.ArrayLike, plain: npt.ArrayLike, logits: tuple[npt.ArrayLike, npt.ArrayLike] | None
) -> dict[str, Any]:
    """How close secure masks (N, H, W) are to plaintext ones: equal pixels, and errors of their logits if known."""
    result = label_agreement(np.ravel(secure), np.ravel(plain), ONLY_MASKS) | {"unit": "pixels"}
    result["reasons"]["auc_difference"] = NO_AUC
    if logits is not None and result["images"]:
        errors = np.abs(np.asarray(logits[0], dtype=np.float64) - np.asarray(logits[1], dtype=np.float64))
        for name, value in (("max_logit_error", errors.max()), ("mean_logit_error", errors.mean())):
            result[name] = float(value)
            del result["reasons"][name]
    return result
