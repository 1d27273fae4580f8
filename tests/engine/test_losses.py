"""Training losses on shares against the plaintext baseline's."""

import pytest
import torch
import torch.nn.functional as F

from mpc_imaging.baselines.optimisers import class_weights, loss_function
from mpc_imaging.engine.losses import gradient_scale, image_weights, loss_and_gradient, smoothed
from mpc_imaging.settings import Loss, TaskSettings

CLASS_LOSSES = [kind for kind in Loss if kind is not Loss.dice_bce]


def loss(logits, onehot, kind):
    return loss_and_gradient(kind, logits, onehot, True)


@pytest.mark.parametrize("kind", CLASS_LOSSES)
@pytest.mark.parametrize("classes", [2, 7])
def test_losses_equal_the_baseline_times_the_batch(two, kind, classes):
    logits, labels = torch.randn(16, classes) * 3, torch.randint(classes, (16,))
    value, gradient = two.run(loss, logits, F.one_hot(labels, classes).double(), kind=kind)
    logits.requires_grad_()
    expected = loss_function(TaskSettings(loss=kind))(logits, labels) * 16
    expected.backward()
    assert abs(value - expected.item()) < 0.002 * expected.item() + 0.01
    assert (gradient - logits.grad.double()).abs().max() < 2e-3


def gradient_only(logits, onehot, kind):
    loss, gradient = loss_and_gradient(kind, logits, onehot, False)
    assert loss is None
    return gradient


@pytest.mark.parametrize("kind", CLASS_LOSSES)
def test_a_loss_that_nobody_sees_costs_nothing(two, kind):
    logits, onehot = torch.randn(8, 3), F.one_hot(torch.arange(8) % 3, 3).double()
    _, gradient = two.run(loss, logits, onehot, kind=kind)
    with_loss = two.rounds
    alone = two.run(gradient_only, logits, onehot, kind=kind)
    assert two.rounds < with_loss
    assert (alone - gradient).abs().max() < 1e-3


def weighted(logits, labels, kind, smoothing, weights, balanced):
    targets = smoothed(kind, labels, smoothing)
    return loss_and_gradient(kind, logits, targets, True, image_weights(labels, weights, balanced))


@pytest.mark.parametrize("kind", CLASS_LOSSES)
@pytest.mark.parametrize(
    ("smoothing", "weights", "balanced"),
    [(0.2, [], False), (0.0, [0.5, 2.0, 1.0], False), (0.1, [1.0, 2.0, 3.0], True)],
)
def test_smoothing_and_weights_are_those_of_the_baseline(two, kind, smoothing, weights, balanced):
    logits, labels = torch.randn(40, 3) * 2, torch.tensor([0] * 37 + [1, 1, 1])
    options = {"smoothing": smoothing, "weights": weights, "balanced": balanced}
    value, gradient = two.run(weighted, logits, F.one_hot(labels, 3).double(), kind=kind, **options)
    task = TaskSettings(loss=kind, label_smoothing=smoothing, class_weights=weights, balanced=balanced)
    logits.requires_grad_()
    expected = loss_function(task, class_weights(task, labels, 3))(logits, labels) * 40
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=0.005, abs=0.02)
    assert (gradient - logits.grad.double()).abs().max() < 5e-3


def test_a_class_that_is_absent_or_rare_has_the_largest_weight():
    task = TaskSettings(balanced=True)
    assert class_weights(task, torch.tensor([0] * 300 + [1]), 3).tolist() == pytest.approx([301 / 900, 20, 20])


def several(logits, labels):
    return loss_and_gradient(Loss.binary_cross_entropy, logits, labels, True)


def test_an_image_may_have_several_labels(two):
    logits, labels = torch.randn(12, 4), torch.randint(2, (12, 4))
    value, gradient = two.run(several, logits, labels.double())
    logits.requires_grad_()
    expected = F.binary_cross_entropy_with_logits(logits, labels.float()) * 12
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=0.005)
    assert (gradient - logits.grad.double()).abs().max() < 2e-3


def narrow_weights(labels, bits):
    from dataclasses import replace

    from mpc_imaging.engine import gates
    from mpc_imaging.engine.losses import image_weights
    from mpc_imaging.protocols.fss import KeyComparison

    before = gates.context()
    gates.set_context(replace(before, comparison=KeyComparison(bits)))
    try:
        return image_weights(labels, [], True)
    finally:
        gates.set_context(before)


def test_frequencies_may_be_larger_than_narrow_comparisons_take(two):
    """90 % of the images: 36 in units of the frequency that has the largest weight; 22 bits take 32."""
    labels = F.one_hot((torch.arange(100) < 10).long(), 2).double()
    weights = two.run(narrow_weights, labels, bits=22).flatten()
    assert (weights[[0, 99]] - torch.tensor([5.0, 100 / 180])).abs().max() < 5e-3


@pytest.mark.parametrize(("size", "scale"), [(8, 8), (28, 16)])
@pytest.mark.parametrize("share_of_ones", [0.0, 0.02, 0.4])
def test_dice_and_cross_entropy_of_masks_equal_the_baseline(two, size, scale, share_of_ones):
    logits = torch.randn(6, 1, size, size) * 3
    masks = (torch.rand(6, size, size) < share_of_ones).long()
    value, gradient = two.run(loss, logits, masks.double(), kind=Loss.dice_bce)
    logits.requires_grad_()
    expected = loss_function(TaskSettings(loss=Loss.dice_bce))(logits, masks) * 6
    expected.backward()
    assert gradient_scale(Loss.dice_bce, logits.shape) == scale
    assert value == pytest.approx(expected.item(), rel=0.002)
    assert gradient.shape == logits.shape
    assert (gradient - logits.grad.double() * scale).abs().max() < 2e-3


def test_a_loss_of_masks_that_nobody_sees_costs_nothing(two):
    logits, masks = torch.randn(2, 1, 4, 4), torch.randint(2, (2, 4, 4)).double()
    _, gradient = two.run(loss, logits, masks, kind=Loss.dice_bce)
    with_loss = two.rounds
    alone = two.run(gradient_only, logits, masks, kind=Loss.dice_bce)
    assert two.rounds < with_loss
    assert (alone - gradient).abs().max() < 2e-3
