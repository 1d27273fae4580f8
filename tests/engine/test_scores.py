"""The AUC on shares against scikit-learn's, and what it is where there is none; loss and accuracy against torch's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from mpc_imaging.baselines.optimisers import loss_function
from mpc_imaging.engine import scores
from mpc_imaging.engine.tensors import from_share, share_of
from mpc_imaging.report.metrics import classification_metrics, log_softmax
from mpc_imaging.settings import Loss, TaskSettings


def direct(key, body, *args):
    return body(*args)


def auc(logits, labels, bins=64, positive=1, multi_label=False):
    return from_share(scores.auc(share_of(logits), share_of(labels), bins, positive, multi_label, direct))


def plaintext(logits, labels, positive=1):
    return classification_metrics(log_softmax(logits), labels, positive)["auc"]


def _two_classes(count, separation, scale, seed=0, positives=0.7):
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, generator=generator) < positives).long()
    score = torch.randn(count, generator=generator) + separation * labels
    noise = torch.randn(count, generator=generator)
    return torch.stack([noise, noise + score], 1) * scale, labels


@pytest.mark.parametrize(("separation", "scale"), [(0.3, 1.0), (1.5, 0.02), (4.0, 200.0)])
def test_two_classes(parties, separation, scale):
    """Whatever the size of the logits."""
    logits, labels = _two_classes(624, separation, scale)
    value = parties.run(auc, logits, F.one_hot(labels, 2).double())
    assert value.item() == pytest.approx(plaintext(logits, labels), abs=0.003)


@pytest.mark.parametrize("positive", [0, 1])
def test_more_bins_are_more_exact(two, positive):
    logits, labels = _two_classes(300, 1.0, 3.0)
    value = two.run(auc, logits, F.one_hot(labels, 2).double(), bins=1024, positive=positive)
    assert value.item() == pytest.approx(plaintext(logits, labels, positive), abs=0.0005)
    coarse = two.run(auc, logits, F.one_hot(labels, 2).double(), bins=2, positive=positive)
    assert coarse.item() == pytest.approx(plaintext(logits, labels, positive), abs=0.1)


@pytest.mark.parametrize(("classes", "scale"), [(3, 1.0), (3, 20.0), (9, 4.0)])
def test_more_classes(two, classes, scale):
    """Of confident models too, whose probabilities are all near 0 or 1."""
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(classes, (400,), generator=generator)
    onehot = F.one_hot(labels, classes).double()
    logits = scale * (torch.randn(400, classes, generator=generator) + 1.5 * onehot)
    value = two.run(auc, logits, onehot, bins=256, positive=None)
    assert value.item() == pytest.approx(plaintext(logits, labels, None), abs=0.002)


def test_several_labels(parties):
    generator = torch.Generator().manual_seed(2)
    labels = (torch.rand(300, 4, generator=generator) < torch.tensor([0.1, 0.5, 0.7, 0.3])).double()
    logits = torch.randn(300, 4, generator=generator) * torch.tensor([0.1, 1, 5, 30]) + labels
    value = parties.run(auc, logits, labels, bins=256, positive=None, multi_label=True)
    expected = np.mean([roc_auc_score(labels[:, k], logits[:, k]) for k in range(4)])
    assert value.item() == pytest.approx(expected, abs=0.002)


def in_pieces(logits, labels, **options):
    before, scores.CHUNK = scores.CHUNK, 50
    try:
        return auc(logits, labels, **options)
    finally:
        scores.CHUNK = before


def test_many_scores_are_handled_piece_by_piece(two):
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(3, (120,), generator=generator)
    logits = torch.randn(120, 3, generator=generator) + F.one_hot(labels, 3)
    whole, pieces = (
        two.run(function, logits, F.one_hot(labels, 3).double(), positive=None).item() for function in (auc, in_pieces)
    )
    assert pieces == pytest.approx(whole, abs=0.003)


def _edge(logits, labels):
    return torch.tensor(logits).double().reshape(-1, 1) * torch.tensor([0.0, 1.0]), torch.tensor(labels)


ABSENT = scores.UNDEFINED
CASES = {
    "all tied": ([3.0] * 8, [0, 1] * 4, 0.5),
    "all zero": ([0.0] * 8, [0, 1] * 4, 0.5),
    "perfect": ([-2.0, -1.0, 4.0, 5.0], [0, 0, 1, 1], 1.0),
    "perfectly wrong": ([-2.0, -1.0, 4.0, 5.0], [1, 1, 0, 0], 0.0),
    "huge": ([-30000.0, -20000.0, 20000.0, 30000.0], [0, 0, 1, 1], 1.0),
    "tiny": ([-3 / 2**16, -2 / 2**16, 2 / 2**16, 3 / 2**16], [0, 0, 1, 1], 1.0),
    "one outlier": ([10000.0, 0.0, 0.001, 0.0], [1, 0, 1, 1], 2 / 3),  # beside which the others are tied
    "two images": ([1.0, 2.0], [0, 1], 1.0),
    "no positive": ([1.0, 2.0, 3.0], [0, 0, 0], ABSENT),
    "no negative": ([1.0, 2.0, 3.0], [1, 1, 1], ABSENT),
    "one image": ([1.0], [1], ABSENT),
}


@pytest.mark.parametrize(("logits", "labels", "expected"), CASES.values(), ids=CASES.keys())
def test_edge_cases(two, logits, labels, expected):
    logits, labels = _edge(logits, labels)
    value = two.run(auc, logits, F.one_hot(labels, 2).double())
    assert value.item() == pytest.approx(expected, abs=0.001)


def test_undefined_for_one_class_is_undefined_for_all(three):
    labels = torch.tensor([0, 1, 0, 1, 1])
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    assert plaintext(logits, labels, None) is None
    value = three.run(auc, logits, F.one_hot(labels, 3).double(), positive=None)
    assert value.item() == pytest.approx(ABSENT, abs=1e-3)


def loss(logits, labels, kind):
    return from_share(scores.loss(kind, share_of(logits), share_of(labels), direct))


def hits(logits, labels, multi_label):
    return from_share(scores.hits(share_of(logits), share_of(labels), multi_label, direct))


def masks_loss(logits, masks):
    return from_share(scores.loss(Loss.dice_bce, share_of(logits), share_of(masks), direct))


def test_the_loss_of_masks_equals_the_baseline_times_the_images(two):
    """More pixels than are handled together, so that images are handled one by one."""
    logits, masks = torch.randn(2, 96 * 96) * 2, (torch.rand(2, 96 * 96) < 0.2).double()
    expected = loss_function(TaskSettings(loss=Loss.dice_bce))(logits, masks).item() * 2
    assert two.run(masks_loss, logits, masks).item() == pytest.approx(expected, rel=0.002)


@pytest.mark.parametrize("kind", [kind for kind in Loss if kind is not Loss.dice_bce])
def test_losses_equal_the_baseline_times_the_images(two, kind):
    logits, labels = _two_classes(40, 1.0, 1.0)
    value = two.run(loss, logits, F.one_hot(labels, 2).double(), kind=kind)
    assert value.item() == pytest.approx(loss_function(TaskSettings(loss=kind))(logits, labels).item() * 40, rel=0.005)


def test_hits(parties):
    logits, labels = _two_classes(60, 1.0, 1.0)
    value = parties.run(hits, logits, F.one_hot(labels, 2).double(), multi_label=False)
    assert value.item() == (logits.argmax(1) == labels).sum()
    several = (torch.rand(60, 2, generator=torch.Generator().manual_seed(3)) < 0.4).double()
    value = parties.run(hits, logits, several, multi_label=True)
    assert value.item() == ((logits > 0) == several.bool()).sum()
