"""The plaintext baseline of private training."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpc_imaging.baselines.plaintext import train_plaintext
from mpc_imaging.baselines.private import PrivateGradients, train_private
from mpc_imaging.settings import Optimiser, TaskSettings


def problem(count=12, features=6):
    torch.manual_seed(0)
    return nn.Linear(features, 3), torch.randn(count, features) * 3, torch.randint(3, (count,))


def each(module, images, labels):
    rows = []
    for image, label in zip(images, labels, strict=True):
        loss = F.cross_entropy(module(image.unsqueeze(0)), label.unsqueeze(0))
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))]))
    return torch.stack(rows)


def gradient(module, images, labels, **options):
    private = PrivateGradients(**{"clip": 1.0, "micro_batch": 1, "head": False, "deviation": 0.0} | options)
    loss = private.backward(module, images, labels, F.cross_entropy)
    assert loss.item() == pytest.approx(F.cross_entropy(module(images), labels).item(), rel=1e-5)
    return torch.cat([p.grad.flatten() for p in module.parameters()])


@pytest.mark.parametrize("micro_batch", [1, 4, 5])
def test_groups_are_clipped(micro_batch):
    module, images, labels = problem()
    groups = -(-len(images) // micro_batch)
    rows = each(module, images, labels)
    sums = torch.stack([rows[group::groups].sum(0) for group in range(groups)])
    want = sums * (0.7 * micro_batch / sums.norm(dim=1, keepdim=True)).clamp(max=1)
    got = gradient(module, images, labels, clip=0.7, micro_batch=micro_batch)
    assert torch.allclose(got, want.sum(0) / len(images), atol=1e-6)


def test_a_heads_residuals_are_clipped_anyway():
    """Those of cross-entropy are within [-1, 1]: nothing changes."""
    module, images, labels = problem()
    want = each(module, images, labels).mean(0)
    assert torch.allclose(gradient(module, images, labels, head=True), want, atol=1e-6)


def test_noise_has_the_deviation():
    module, images, labels = problem()
    large = nn.Linear(200, 100)
    images = torch.zeros(8, 200)
    noisy = gradient(large, images, labels[:8], deviation=3.0) * 8
    assert noisy[: 200 * 100].std().item() == pytest.approx(3.0, rel=0.02)
    assert abs(noisy[: 200 * 100].mean().item()) < 3.0 / 200 * 100**-0.5 * 5 * 10


TASK = {"epochs": 3, "batch_size": 5, "lr": 0.1, "weight_decay": 0.01}


@pytest.mark.parametrize("options", [{"class_weights": [1.0, 0.5, 0.2]}, {"optimiser": Optimiser.adam, "lr": 0.01}])
def test_without_noise_or_clipping_it_is_plain_training(options):
    task = TaskSettings(**TASK | options)
    module, images, labels = problem()
    private = PrivateGradients(clip=1e6, micro_batch=1, head=False, deviation=0.0)
    losses = train_private(module, images, labels, private, task, 1)
    other, _, _ = problem()
    assert losses == pytest.approx(train_plaintext(other, images, labels, task, 1), rel=1e-4)
    assert torch.allclose(module.weight, other.weight, atol=1e-5)


def test_inputs_are_clipped():
    module, images, labels = problem()
    private = PrivateGradients(clip=1.0, micro_batch=1, head=True, deviation=0.0)
    same, _, _ = problem()
    task = TaskSettings(**TASK | {"epochs": 1, "momentum": 0.0, "weight_decay": 0.0})
    train_private(module, images, labels, private, task, 1, input_norm=0.01)
    assert (module.weight - same.weight).norm() <= 3 * 0.1 * 0.01 * 3**0.5
