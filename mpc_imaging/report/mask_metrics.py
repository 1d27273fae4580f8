"""How well masks that were revealed agree with those of the reader, image by image: Dice, IoU, Hausdorff distances.

Dice is 2|A∩B| / (|A| + |B|), IoU |A∩B| / |A∪B|. Distances are between outlines, in pixels of the masks. An outline is
the marked pixels that have one of their four neighbours unmarked, or outside of the image. From each pixel of one
outline the nearest of the other is looked for, in both directions; the Hausdorff distance is the largest of these, and
its 95 % form the larger of the two directions' 95th percentiles, which a few stray pixels do not change.

Where nothing is marked: if both masks are empty they agree, so that Dice and IoU are 1; if one is, they are 0. Either
way there is no distance: such images are left out of its mean, whose ``n`` says so, and counted by kind. A mean
distance alone therefore flatters a model that misses structures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

NAMES = ("dice", "iou", "hausdorff", "hausdorff95")


@dataclass(frozen=True)
class MaskScore:
    """Of one image. Distances are in pixels, None where one of the masks is empty."""

    dice: float
    iou: float
    hausdorff: float | None
    hausdorff95: float | None
    predicted_empty: bool
    true_empty: bool


def mask_scores(predicted: npt.ArrayLike, true: npt.ArrayLike) -> list[MaskScore]:
    """Compare masks (N, H, W), anything but 0 is marked.

    Raises:
        ValueError: their shapes differ, or are no (N, H, W).
    """
    first, second = np.asarray(predicted) != 0, np.asarray(true) != 0
    if first.shape != second.shape or first.ndim != 3:
        raise ValueError(f"masks of shapes {first.shape} and {second.shape}, not (N, H, W) both")
    return [_score(one, other) for one, other in zip(first, second, strict=True)]


def mask_metrics(scores: Sequence[MaskScore]) -> dict[str, Any]:
    """Means over images, each with the ``n`` that it is over (None where that is 0), and how many masks are empty.

    ``missed``: images with a structure of which nothing was marked; ``invented``: without one, but something was
    marked; ``both_empty``: neither.
    """
    means = {}
    for name in NAMES:
        values = [value for score in scores if (value := getattr(score, name)) is not None]
        means[name] = {"mean": float(np.mean(values)) if values else None, "n": len(values)}
    return {
        "images": len(scores),
        **means,
        "missed": sum(score.predicted_empty and not score.true_empty for score in scores),
        "invented": sum(score.true_empty and not score.predicted_empty for score in scores),
        "both_empty": sum(score.true_empty and score.predicted_empty for score in scores),
    }


def _score(predicted: np.ndarray, true: np.ndarray) -> MaskScore:
    both, either = int((predicted & true).sum()), int((predicted | true).sum())
    sizes = int(predicted.sum()) + int(true.sum())
    dice, iou = (2 * both / sizes, both / either) if sizes else (1.0, 1.0)
    largest, most = _distances(predicted, true) if predicted.any() and true.any() else (None, None)
    return MaskScore(dice, iou, largest, most, not predicted.any(), not true.any())


def _distances(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The Hausdorff distance of two outlines and its 95 % form; neither mask is empty."""
    one, other = _outline(first), _outline(second)
    there = ndimage.distance_transform_edt(~other)[one]
    back = ndimage.distance_transform_edt(~one)[other]
    most = max(float(np.percentile(there, 95)), float(np.percentile(back, 95)))
    return max(float(there.max()), float(back.max())), most


def _outline(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask)
