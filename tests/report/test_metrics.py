from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from mpc_imaging.errors import ConfigError, DataError
from mpc_imaging.report.metrics import (
    METRICS,
    ONLY_COUNTS,
    classification_metrics,
    confusion_counts,
    fidelity,
    label_agreement,
    log_softmax,
    metrics_from_confusion,
)


@st.composite
def scored_labels(draw, min_classes=2, max_classes=4):
    classes = draw(st.integers(min_classes, max_classes))
    images = draw(st.integers(0, 30))
    # Few distinct scores, so that ties, which AUC counts as one half, are common.
    scores = draw(hnp.arrays(np.float64, (images, classes), elements=st.integers(0, 5).map(float)))
    labels = draw(hnp.arrays(np.int64, images, elements=st.integers(0, classes - 1)))
    return scores, labels


def pairwise_auc(scores, positive):
    """The definition: the share of pairs (positive, negative) in the right order, ties counting one half."""
    above = scores[positive][:, None] - scores[~positive][None, :]
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


@given(scored_labels(max_classes=2), st.integers(0, 1))
def test_binary_metrics_are_their_direct_formulas(case, positive):
    scores, labels = case
    result = classification_metrics(scores, labels, positive)
    truth, guess = labels == positive, scores.argmax(1) == positive
    tp, fn = int((truth & guess).sum()), int((truth & ~guess).sum())
    fp, tn = int((~truth & guess).sum()), int((~truth & ~guess).sum())
    spread = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    expected = {
        "accuracy": (tp + tn) / len(labels) if len(labels) else None,
        "sensitivity": tp / (tp + fn) if tp + fn else None,
        "specificity": tn / (tn + fp) if tn + fp else None,
        "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None,
        "mcc": (tp * tn - fp * fn) / spread**0.5 if spread else None,
        "auc": pairwise_auc(scores[:, positive], truth) if 0 < truth.sum() < len(truth) else None,
    }
    for name, value in expected.items():
        assert result[name] == (None if value is None else pytest.approx(value)), name
        assert (name in result["reasons"]) == (value is None)


@settings(max_examples=60)
@given(scored_labels(min_classes=3))
def test_multiclass_metrics_are_macro_averages_as_scikit_learn_has_them(case):
    scores, labels = case
    classes = scores.shape[1]
    result = classification_metrics(scores, labels, None)
    json.dumps(result, allow_nan=False)
    if not set(range(classes)) <= set(labels.tolist()):
        assert result["auc"] is None and result["sensitivity"] is None
        assert all(result["reasons"][name] for name in METRICS if result[name] is None)
        return
    guess = scores.argmax(1)
    one_vs_rest = [pairwise_auc(scores[:, k], labels == k) for k in range(classes)]
    others = [np.mean(guess[labels != k] != k) for k in range(classes)]
    assert result["accuracy"] == pytest.approx(sk.accuracy_score(labels, guess))
    assert result["auc"] == pytest.approx(np.mean(one_vs_rest))
    assert result["sensitivity"] == pytest.approx(sk.recall_score(labels, guess, average="macro"))
    assert result["specificity"] == pytest.approx(np.mean(others))
    assert result["f1"] == pytest.approx(sk.f1_score(labels, guess, average="macro"))
    if result["mcc"] is not None:
        assert result["mcc"] == pytest.approx(sk.matthews_corrcoef(labels, guess), abs=1e-12)
    assert result["confusion"] == sk.confusion_matrix(labels, guess).tolist()


def test_a_known_example_worked_by_hand():
    labels = np.array([1, 1, 1, 0, 0])
    positive = np.array([0.9, 0.8, 0.3, 0.4, 0.1])
    result = classification_metrics(np.stack([1 - positive, positive], 1), labels, 1)
    assert result["confusion"] == [[2, 0], [1, 2]]
    assert result["sensitivity"] == pytest.approx(2 / 3)
    assert result["specificity"] == 1.0
    assert result["auc"] == pytest.approx(5 / 6)  # of the six pairs, only 0.3 against 0.4 is in the wrong order
    assert result["reasons"] == {}


def test_the_positive_class_swaps_sensitivity_and_specificity():
    counts = [[50, 5], [20, 80]]
    zero, one = metrics_from_confusion(counts, 0), metrics_from_confusion(counts, 1)
    assert zero["sensitivity"] == one["specificity"] == pytest.approx(50 / 55)
    assert zero["specificity"] == one["sensitivity"] == pytest.approx(80 / 100)
    assert zero["mcc"] == pytest.approx(one["mcc"])


def test_counts_give_every_metric_but_auc():
    scores, labels = np.eye(2)[[0, 1, 1, 0]], np.array([0, 1, 0, 0])
    individual = classification_metrics(scores, labels, 1)
    counted = metrics_from_confusion(confusion_counts(labels, scores.argmax(1), 2), 1)
    assert counted["auc"] is None and counted["reasons"] == {"auc": ONLY_COUNTS}
    assert {k: v for k, v in counted.items() if k not in ("auc", "reasons")} == {
        k: v for k, v in individual.items() if k not in ("auc", "reasons")
    }


def test_one_class_only_leaves_metrics_undefined_with_reasons():
    result = classification_metrics([[0.2, 0.8], [0.6, 0.4]], [1, 1], 1)
    assert result["accuracy"] == 0.5 and result["sensitivity"] == 0.5
    assert result["auc"] is None and result["reasons"]["auc"] == "every image is labelled class 1"
    assert result["specificity"] is None and result["mcc"] is None
    absent = classification_metrics([[0.2, 0.8], [0.6, 0.4]], [1, 1], 0)
    assert absent["sensitivity"] is None and absent["reasons"]["sensitivity"] == "no image is labelled class 0"


def test_unknown_labels_are_left_out_and_said_so():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]])
    some = classification_metrics(scores, [0, 1, -1, -1], 1)
    assert some["confusion"] == [[1, 0], [0, 1]] and some["auc"] == 1.0
    assert some["reasons"] == {"labels": "2 of 4 images left out: label unknown"}
    none = classification_metrics(scores, [-1] * 4, 1)
    assert all(none[name] is None and "no image has a known label" in none["reasons"][name] for name in METRICS)
    assert none["confusion"] is None


def test_scores_that_are_no_numbers_make_metrics_undefined_not_nan():
    result = classification_metrics([[np.nan, 0.1], [0.2, np.inf]], [0, 1], 1)
    json.dumps(result, allow_nan=False)
    assert all(result[name] is None for name in METRICS)
    assert result["reasons"]["accuracy"] == "the scores of 2 images are not finite numbers"


@pytest.mark.parametrize("positive", [None, 2, -1])
def test_two_classes_need_a_positive_class(positive):
    with pytest.raises(ConfigError, match="data.positive_class"):
        metrics_from_confusion([[1, 0], [0, 1]], positive)


def test_shapes_labels_and_counts_that_do_not_fit_are_typed_errors():
    for scores, labels in [([[1.0]], [0]), ([[1.0, 0.0]], [0, 1]), ([[1.0, 0.0]], [2]), ([[1.0, 0.0]], [-2])]:
        with pytest.raises(DataError):
            classification_metrics(scores, labels, 1)
    for confusion in [[[1, 2]], [[1]], [[1, -1], [0, 1]], [[0.5, 1], [1, 1]]]:
        with pytest.raises(DataError):
            metrics_from_confusion(confusion, 1)


def test_large_counts_do_not_overflow():
    big = 3_000_000_000
    assert metrics_from_confusion([[big, big], [big, 3 * big]], 1)["mcc"] == pytest.approx(0.25)


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(2, 4)), elements=st.floats(-50, 50)))
def test_log_softmax_is_the_logarithm_of_probabilities(logits):
    probabilities = np.exp(log_softmax(logits))
    assert np.allclose(probabilities.sum(1), 1)
    assert np.allclose(probabilities, np.exp(logits) / np.exp(logits).sum(1, keepdims=True))


def test_log_softmax_keeps_apart_what_probabilities_round_together():
    logits = np.array([[0.0, 60.0], [0.0, 50.0], [0.0, 40.0]])
    assert len(set(np.exp(log_softmax(logits))[:, 1])) < 3
    assert classification_metrics(log_softmax(logits), [1, 0, 0], 1)["auc"] == 1.0


@settings(max_examples=50)
@given(scored_labels(max_classes=3), st.integers(0, 2**32 - 1))
def test_fidelity_is_its_direct_formulas(case, seed):
    plain, labels = case
    secure = plain + np.random.default_rng(seed).normal(0, 0.5, plain.shape)
    result = fidelity(secure, plain, labels, 1 if plain.shape[1] == 2 else None)
    json.dumps(result, allow_nan=False)
    assert result["images"] == len(labels)
    if not len(labels):
        assert result["label_agreement"] is None and result["max_logit_error"] is None
        return
    assert result["agreeing"] == (secure.argmax(1) == plain.argmax(1)).sum()
    assert result["label_agreement"] == pytest.approx(result["agreeing"] / len(labels))
    assert result["max_logit_error"] == pytest.approx(np.abs(secure - plain).max())
    assert result["mean_logit_error"] == pytest.approx(np.abs(secure - plain).mean())
    aucs = [classification_metrics(log_softmax(v), labels, 1)["auc"] for v in (secure, plain)]
    assert result["auc_difference"] == (None if None in aucs else pytest.approx(abs(aucs[0] - aucs[1])))
    assert ("auc_difference" in result["reasons"]) == (None in aucs)


def test_outputs_without_a_number_agree_with_nothing():
    nan = np.array([[np.nan, 1.0], [0.0, 1.0]])
    result = fidelity(nan, nan, [0, 1], 1)
    assert result["agreeing"] == 1 and result["max_logit_error"] is None
    assert result["reasons"]["max_logit_error"] == "the logits of 1 image are not finite numbers"


def test_fidelity_of_predictions_alone_has_no_logit_errors():
    result = label_agreement([0, 1, 1], [0, 1, 0], "why")
    assert result["label_agreement"] == pytest.approx(2 / 3)
    assert result["max_logit_error"] is None and result["reasons"]["auc_difference"] == "why"


def test_a_party_that_counts_does_not_import_scikit_learn():
    code = (
        "import sys; from mpc_imaging.report.metrics import metrics_from_confusion as m; m([[1, 0], [0, 1]], 1);"
        "assert not {'sklearn', 'matplotlib', 'jinja2', 'rich', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
