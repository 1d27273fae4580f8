"""masks.npz, and the metrics of a run with masks."""

import numpy as np
import pytest

from mpc_imaging.errors import DataError
from mpc_imaging.report.masks import MASKS, read_masks, write_masks
from mpc_imaging.report.metrics import METRICS, output_metrics
from mpc_imaging.report.overlap import (
    OVERLAP_METRICS,
    mask_metrics,
    metrics_from_overlap,
    overlap_fidelity,
    undefined_overlap,
)

NAMES = ["background", "nucleus"]
TRUE = np.array([[[1, 1], [0, 0]], [[0, 0], [0, 1]]])
SEEN = np.array([[[1, 0], [1, 0]], [[0, 0], [0, 1]]])


def test_what_is_written_is_read(tmp_path):
    logits = np.random.default_rng(0).normal(size=(2, 2, 2)).astype(np.float32)
    write_masks(tmp_path, ["a-1", "a-2"], TRUE, SEEN, logits)
    read = read_masks(tmp_path, NAMES)
    assert read.ids == ["a-1", "a-2"] and read.class_names == NAMES
    assert (read.labels == TRUE).all() and (read.predicted == SEEN).all() and (read.logits[:, 0] == logits).all()
    write_masks(tmp_path, ["a-1", "a-2"], TRUE, SEEN, None)
    assert read_masks(tmp_path, NAMES).logits is None


def test_an_owner_without_images_of_the_split_has_an_empty_file(tmp_path):
    write_masks(tmp_path, [], TRUE[:0], SEEN[:0], None)
    assert read_masks(tmp_path, NAMES).predicted.shape == (0, 2, 2)


def test_a_file_that_is_cut_or_pickled_or_does_not_fit(tmp_path):
    write_masks(tmp_path, ["a-1", "a-2"], TRUE, SEEN, None)
    content = (tmp_path / MASKS).read_bytes()
    (tmp_path / MASKS).write_bytes(content[:-30])
    with pytest.raises(DataError, match="damaged"):
        read_masks(tmp_path, NAMES)
    np.savez(tmp_path / MASKS, ids=np.array([{}, {}], dtype=object), labels=TRUE, masks=SEEN)
    with pytest.raises(DataError, match="damaged"):
        read_masks(tmp_path, NAMES)
    np.savez(tmp_path / MASKS, ids=["a"], labels=TRUE, masks=SEEN)
    with pytest.raises(DataError, match="damaged"):
        read_masks(tmp_path, NAMES)
    (tmp_path / MASKS).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_masks(tmp_path, NAMES)


def test_counts_give_the_overlap_of_all_pixels():
    metrics = metrics_from_overlap([2, 1, 1], 8)
    assert metrics["dice"] == pytest.approx(2 * 2 / 6) and metrics["iou"] == pytest.approx(2 / 4)
    assert metrics["accuracy"] == pytest.approx(6 / 8) and metrics["f1"] == metrics["dice"]
    assert metrics["mean_dice"] is None and "single images" in metrics["reasons"]["mean_dice"]
    assert set(metrics["reasons"]) == {
        name for name in (*METRICS, *OVERLAP_METRICS, "confusion") if metrics[name] is None
    }
    with pytest.raises(DataError):
        metrics_from_overlap([9, 0, 0], 8)


def test_masks_themselves_give_those_of_single_images_too():
    metrics = mask_metrics(SEEN, TRUE)
    assert metrics["dice"] == pytest.approx(2 / 3)
    assert metrics["mean_dice"] == pytest.approx((1 / 2 + 1) / 2) and metrics["mean_iou"] == pytest.approx(
        (1 / 3 + 1) / 2
    )
    assert metrics["hausdorff"] == pytest.approx((1 + 0) / 2)
    assert "labels" not in metrics["reasons"]
    logits = np.where(SEEN, 1.5, -0.5)[:, None]
    assert output_metrics(logits, TRUE, 1) == metrics


def test_distances_leave_out_images_with_an_empty_mask_and_say_so():
    metrics = mask_metrics(np.concatenate([SEEN, SEEN[:1]]), np.concatenate([TRUE, 0 * TRUE[:1]]))
    assert metrics["hausdorff"] == pytest.approx(0.5) and metrics["mean_dice"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert (
        "2 of 3 images" in metrics["reasons"]["labels"] and "1 marked where nothing is" in metrics["reasons"]["labels"]
    )
    alone = mask_metrics(SEEN[:1], 0 * TRUE[:1])
    assert alone["hausdorff"] is None and "no image" in alone["reasons"]["hausdorff"]


def test_nothing_marked_is_no_overlap_but_a_reason():
    metrics = metrics_from_overlap([0, 0, 0], 8)
    assert metrics["dice"] is None and "no" in metrics["reasons"]["dice"] or "neither" in metrics["reasons"]["dice"]
    assert metrics["accuracy"] == 1
    assert undefined_overlap("why")["reasons"]["dice"] == "why"


def test_fidelity_counts_pixels():
    close = overlap_fidelity(SEEN, TRUE, (SEEN * 1.0, SEEN * 1.0 + 0.25))
    assert (close["agreeing"], close["images"], close["unit"]) == (6, 8, "pixels")
    assert close["max_logit_error"] == close["mean_logit_error"] == 0.25
    assert overlap_fidelity(SEEN, TRUE, None)["reasons"]["max_logit_error"] == "only masks were revealed"


def test_images_without_a_true_mask_are_left_out():
    truth = np.concatenate([TRUE, np.full((1, 2, 2), -1)])
    metrics = mask_metrics(np.concatenate([SEEN, SEEN[:1]]), truth)
    assert metrics["dice"] == pytest.approx(2 / 3) and "1 of 3 images left out" in metrics["reasons"]["labels"]
    none = mask_metrics(SEEN, np.full((2, 2, 2), -1))
    assert none["dice"] is None and none["reasons"]["dice"] == "no image has a known mask"


def test_unknown_masks_are_written_and_read(tmp_path):
    write_masks(tmp_path, ["a", "b"], np.full((2, 2, 2), -1), SEEN, None)
    assert (read_masks(tmp_path, NAMES).labels == -1).all()
