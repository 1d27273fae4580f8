"""Training losses on shares against the plaintext baseline's."""

import pytest
import torch
import torch.nn.functional as F

from mpc_imaging.baselines.plaintext import loss_function
from mpc_imaging.engine.losses import loss_and_gradient
from mpc_imaging.settings import Loss


def loss(logits, onehot, kind):
    return loss_and_gradient(kind, logits, onehot, True)


@pytest.mark.parametrize("kind", list(Loss))
@pytest.mark.parametrize("classes", [2, 7])
def test_losses_equal_the_baseline_times_the_batch(two, kind, classes):
    logits, labels = torch.randn(16, classes) * 3, torch.randint(classes, (16,))
    value, gradient = two.run(loss, logits, F.one_hot(labels, classes).double(), kind=kind)
    logits.requires_grad_()
    expected = loss_function(kind)(logits, labels) * 16
    expected.backward()
    assert abs(value - expected.item()) < 0.002 * expected.item() + 0.01
    assert (gradient - logits.grad.double()).abs().max() < 2e-3


def gradient_only(logits, onehot, kind):
    loss, gradient = loss_and_gradient(kind, logits, onehot, False)
    assert loss is None
    return gradient


@pytest.mark.parametrize("kind", list(Loss))
def test_a_loss_that_nobody_sees_costs_nothing(two, kind):
    logits, onehot = torch.randn(8, 3), F.one_hot(torch.arange(8) % 3, 3).double()
    _, gradient = two.run(loss, logits, onehot, kind=kind)
    with_loss = two.rounds
    alone = two.run(gradient_only, logits, onehot, kind=kind)
    assert two.rounds < with_loss
    assert (alone - gradient).abs().max() < 1e-3
