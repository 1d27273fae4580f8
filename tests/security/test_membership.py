"""Membership inference: whether an image was trained on, told from the model's loss on it.

Each run trains logistic regression on a few images of random labels, which it can only learn by heart, and asks for the
loss on them and on as many others. The attacker (Yeom et al., CSF 2018) chooses its threshold on half of the runs, and
is judged on the other half. The noise is that of one compute party, as an insider faces it, whose epsilon is 1.

How much is left at a given epsilon depends on the task: with two classes, whose residuals come closer to the bound, the
same attack measured 0.044. No test shows the most: ten epochs at noise 11.8 allow any attack 0.107.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpc_imaging.baselines.accounting import Mechanism, epsilon
from mpc_imaging.baselines.private import PrivateGradients, train_private
from mpc_imaging.protocols.noise import HeadSum
from mpc_imaging.settings import TaskSettings

IMAGES, FEATURES, CLASSES = 30, 100, 10
INPUT_NORM, EPOCHS, DELTA = 3.0, 10, 1e-5


def losses(seed, noise):
    """Losses on images that were trained on, and on others, of one run; both (IMAGES,)."""
    torch.manual_seed(seed)
    images = F.normalize(torch.randn(2 * IMAGES, FEATURES)) * INPUT_NORM
    labels = torch.randint(CLASSES, (2 * IMAGES,))
    module = nn.Linear(FEATURES, CLASSES)
    deviation = noise * HeadSum(INPUT_NORM, FEATURES, CLASSES, 24).sensitivity
    private = PrivateGradients(1.0, 1, True, deviation, seed)
    task = TaskSettings(epochs=EPOCHS, batch_size=IMAGES, lr=1.0, momentum=0.0)
    train_private(module, images[:IMAGES], labels[:IMAGES], private, task, seed, INPUT_NORM)
    with torch.no_grad():
        return F.cross_entropy(module(images), labels, reduction="none").split(IMAGES)


def advantage(noise, runs):
    """True less false positive rate of the attack."""
    members, others = (torch.stack(part) for part in zip(*(losses(seed, noise) for seed in range(runs)), strict=True))
    half = runs // 2
    thresholds = torch.cat([members[:half], others[:half]]).flatten().quantile(torch.linspace(0, 1, 101))

    def rates(rows):
        return [(members[rows] <= t).double().mean() - (others[rows] <= t).double().mean() for t in thresholds]

    best = max(range(len(thresholds)), key=rates(slice(0, half)).__getitem__)
    return rates(slice(half, runs))[best].item()


def test_without_noise_members_are_found():
    assert advantage(0.0, runs=60) > 0.3


@pytest.mark.slow
def test_a_small_epsilon_hides_them():
    """9,000 images on each side: a standard error is about 0.007."""
    noise = 11.8
    assert epsilon([Mechanism(noise, EPOCHS)], DELTA) == pytest.approx(1.0, abs=0.005)
    assert advantage(noise, runs=600) < 0.05
