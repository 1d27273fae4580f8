"""Agreement of masks, against cases that a pencil can do, and against a definition written out."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mpc_imaging.report.mask_metrics import mask_metrics, mask_scores


def square(top: int, left: int, side: int, size: int = 20) -> np.ndarray:
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def one(predicted: np.ndarray, true: np.ndarray):
    (score,) = mask_scores(predicted[None], true[None])
    return score


def test_the_same_mask() -> None:
    score = one(square(3, 4, 6), square(3, 4, 6) * 255)
    assert (score.dice, score.iou, score.hausdorff, score.hausdorff95) == (1, 1, 0, 0)


def test_a_square_moved_aside() -> None:
    score = one(square(3, 4, 6), square(3, 7, 6))
    assert score.dice == pytest.approx(2 * 18 / 72) and score.iou == pytest.approx(18 / 54)
    assert score.hausdorff == 3 and score.hausdorff95 == 3


def test_a_square_in_a_larger_one_is_measured_by_outlines() -> None:
    score = one(square(8, 8, 4), square(5, 5, 10))
    assert score.dice == pytest.approx(2 * 16 / 116) and score.iou == pytest.approx(0.16)
    assert score.hausdorff == pytest.approx(math.hypot(3, 3)), "corner to corner, though one lies within the other"


def test_single_pixels_and_edges_of_the_image() -> None:
    score = one(square(0, 0, 1), square(3, 4, 1))
    assert (score.dice, score.iou, score.hausdorff, score.hausdorff95) == (0, 0, 5, 5)
    whole = np.ones((20, 20))
    assert one(whole, square(1, 1, 18)).hausdorff == pytest.approx(math.sqrt(2)), "an outline runs along the edge"


def test_a_stray_pixel_does_not_change_the_95_percent_form() -> None:
    predicted, true = square(2, 2, 12, 60), square(2, 2, 12, 60)
    predicted[50, 7] = 1
    score = one(predicted, true)
    assert score.hausdorff == 50 - 13 and score.hausdorff95 == 0


def test_directions_count_alike() -> None:
    predicted, true = square(2, 2, 5), square(2, 2, 5) | square(15, 15, 4)
    a, b = one(predicted, true), one(true, predicted)
    assert (a.dice, a.iou, a.hausdorff, a.hausdorff95) == (b.dice, b.iou, b.hausdorff, b.hausdorff95)
    assert a.hausdorff95 > 10, "a structure that one of them lacks is seen from the other"


def test_against_the_definition() -> None:
    rng = np.random.default_rng(4)
    for _ in range(5):
        masks = rng.random((2, 12, 15)) < 0.3
        outlines = []
        for mask in masks:
            padded = np.pad(mask, 1)
            inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
            outlines.append(np.argwhere(mask & ~inner))
        table = np.linalg.norm(outlines[0][:, None] - outlines[1][None], axis=2)
        directions = table.min(1), table.min(0)
        score = one(*masks)
        assert score.hausdorff == pytest.approx(max(map(np.max, directions)))
        assert score.hausdorff95 == pytest.approx(max(np.percentile(d, 95) for d in directions))


def test_empty_masks() -> None:
    nothing = np.zeros((20, 20))
    both, missed, invented = one(nothing, nothing), one(nothing, square(1, 1, 3)), one(square(1, 1, 3), nothing)
    assert (both.dice, both.iou, both.hausdorff, both.hausdorff95) == (1, 1, None, None)
    for score in (missed, invented):
        assert (score.dice, score.iou, score.hausdorff, score.hausdorff95) == (0, 0, None, None)
    metrics = mask_metrics([both, missed, invented, one(square(1, 1, 3), square(1, 2, 3))])
    assert metrics["images"] == 4
    assert (metrics["missed"], metrics["invented"], metrics["both_empty"]) == (1, 1, 1)
    assert metrics["dice"] == {"mean": pytest.approx((1 + 0 + 0 + 2 / 3) / 4), "n": 4}
    assert metrics["hausdorff"] == {"mean": 1.0, "n": 1}
    assert json.loads(json.dumps(metrics)) == metrics
    assert mask_metrics([both])["hausdorff95"] == {"mean": None, "n": 0}
    assert mask_metrics([])["dice"] == {"mean": None, "n": 0}


@pytest.mark.parametrize("shapes", [((2, 4, 4), (3, 4, 4)), ((4, 4), (4, 4)), ((1, 4, 4), (1, 4, 5))])
def test_masks_that_do_not_fit(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="masks of shapes"):
        mask_scores(*map(np.zeros, shapes))
