"""Metrics of images that have several labels, against scikit-learn, and what is undefined."""

import numpy as np
import pytest
import sklearn.metrics as sk

from mpc_imaging.errors import DataError
from mpc_imaging.report.metrics import fidelity, label_counts, label_metrics, metrics_from_label_counts, output_metrics


@pytest.fixture
def outputs():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, (50, 4))
    return rng.normal(size=(50, 4)) + labels, labels


def test_averages_and_each_label(outputs):
    logits, labels = outputs
    result, predicted = label_metrics(logits, labels), (logits > 0).astype(int)
    assert result == output_metrics(logits, labels, None)
    assert result["auc"] == pytest.approx(sk.roc_auc_score(labels, logits, average="macro"))
    assert result["f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert result["sensitivity"] == pytest.approx(sk.recall_score(labels, predicted, average="macro"))
    assert result["specificity"] == pytest.approx(sk.recall_score(1 - labels, 1 - predicted, average="macro"))
    assert result["accuracy"] == pytest.approx((labels == predicted).mean())
    assert result["mcc"] is result["confusion"] is None and {"mcc", "confusion"} == set(result["reasons"])
    for k, entry in enumerate(result["per_label"]):
        assert entry["auc"] == pytest.approx(sk.roc_auc_score(labels[:, k], logits[:, k]))
        (clear, false), (missed, hits) = sk.confusion_matrix(labels[:, k], predicted[:, k])
        assert list(entry["counts"].values()) == [hits, false, missed, clear]


def test_counts_alone_give_all_but_the_auc(outputs):
    logits, labels = outputs
    full, counted = label_metrics(logits, labels), metrics_from_label_counts(label_counts(labels, logits > 0), 50)
    assert counted["auc"] is None and "auc" in counted["reasons"]
    assert all(counted[name] == full[name] for name in ("accuracy", "sensitivity", "specificity", "f1"))


def test_rows_of_unknown_labels_are_left_out(outputs):
    logits, labels = outputs
    labels[:10] = -1
    result = label_metrics(logits, labels)
    assert result["auc"] == label_metrics(logits[10:], labels[10:])["auc"]
    assert result["reasons"]["labels"] == "10 of 50 images left out: label unknown"
    assert label_metrics(logits[:10], labels[:10])["reasons"]["accuracy"] == "no image has a known label"


def test_a_label_that_no_image_has(outputs):
    logits, labels = outputs
    labels[:, 2] = 0
    result = label_metrics(logits, labels)
    assert result["auc"] is None and result["reasons"]["auc"] == "no image is labelled class 2"
    assert result["per_label"][2]["auc"] is result["per_label"][2]["sensitivity"] is None
    assert result["per_label"][1]["auc"] is not None and result["accuracy"] is not None


def test_what_does_not_fit(outputs):
    logits, labels = outputs
    with pytest.raises(DataError, match="must both be"):
        label_metrics(logits, labels[:, :3])
    with pytest.raises(DataError, match="of 5 images must be"):
        metrics_from_label_counts([[3, 2, 1]], 5)
    logits[0, 0] = np.inf
    assert label_metrics(logits, labels)["reasons"]["auc"] == "the scores of 1 image are not finite numbers"


def test_fidelity_counts_images_whose_labels_all_agree(outputs):
    logits, labels = outputs
    other = logits + 1e-4
    other[3, 1] = -logits[3, 1]
    other[4, 0], other[4, 2] = -logits[4, 0], -logits[4, 2]
    result = fidelity(other, logits, labels, None)
    assert (result["agreeing"], result["images"]) == (48, 50)
    assert result["auc_difference"] == pytest.approx(
        abs(sk.roc_auc_score(labels, other) - sk.roc_auc_score(labels, logits))
    )
