"""The optimisers and losses that secure training follows, in plaintext."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import nn

from mpc_imaging.baselines.rates import learning_rate
from mpc_imaging.choices import Loss, Optimiser
from mpc_imaging.data.schedule import batch_schedule
from mpc_imaging.settings import TaskSettings

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Of a class in `balanced_weights`.
MAX_WEIGHT = 20.0
# Of a mask's pixels, added to both parts of its Dice: a hundredth also bounds the reciprocal on shares.
DICE_SMOOTHING = 0.01


def make(parameters: Iterable[nn.Parameter], task: TaskSettings) -> torch.optim.Optimizer:
    """The optimiser that ``task`` names; its rate is set by `descend`."""
    if task.optimiser is not Optimiser.sgd:
        amsgrad = task.optimiser is Optimiser.amsgrad
        options = {"lr": task.lr, "betas": tuple(task.betas), "eps": task.eps, "weight_decay": task.weight_decay}
        return torch.optim.Adam(parameters, amsgrad=amsgrad, **options)
    return torch.optim.SGD(
        parameters, lr=task.lr, momentum=task.momentum, weight_decay=task.weight_decay, nesterov=task.nesterov
    )


def descend(optimiser: torch.optim.Optimizer, task: TaskSettings, rate: float) -> None:
    """Clip the gradients, which are means over a batch, as ``task`` says, and take a step."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    if task.clip_value is not None:
        nn.utils.clip_grad_value_(parameters, task.clip_value)
    if task.clip_norm is not None:
        nn.utils.clip_grad_norm_(parameters, task.clip_norm)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()


def descend_epochs(
    optimiser: torch.optim.Optimizer,
    task: TaskSettings,
    count: int,
    seed: int,
    backward: Callable[[torch.Tensor], float],
    begin: Callable[[], object] = lambda: None,
    end: Callable[[int, float], None] = lambda epoch, loss: None,
    part: range | None = None,
) -> list[float]:
    """Train on the public batches of ``count`` images, as ``task`` says; the mean loss of each epoch.

    ``backward(rows)`` gives the parameters the mean gradient of a batch, and returns its mean loss. ``begin()`` comes
    before each epoch, ``end(epoch, loss)`` after it, counted from 1. part: see `plaintext.train_plaintext`.
    """
    losses, part = [], part or range(task.epochs)
    for epoch, batches in enumerate(batch_schedule(count, task.batch_size, len(part), seed), start=1):
        begin()
        total = 0.0
        for step, rows in enumerate(batches, part[epoch - 1] * len(batches)):
            total += backward(rows) * len(rows)
            descend(optimiser, task, learning_rate(task, step, len(batches)))
        losses.append(total / count)
        end(epoch, losses[-1])
    return losses


def loss_function(task: TaskSettings, weights: torch.Tensor | None = None) -> LossFunction:
    """The loss of one batch as a function of logits (B, K) and labels, int64 (B,) or rows of 0 and 1 (B, K): a scalar.

    cross_entropy: the mean over the images of -sum(target * log softmax(logits)). binary_cross_entropy: the mean over
    all entries of that of sigmoid(logits), K yes-or-no answers. mse: the mean over all entries of (logits - target)**2.
    A target is the label with ``task.label_smoothing`` of it spread over all classes (for K answers: between both).
    dice_bce: of logits (B, 1, H, W) and masks (B, H, W), binary cross-entropy over the pixels plus 1 - Dice, which is
    (2 mean(p t) + c) / (mean(p) + mean(t) + c) for each image, of probabilities p, masks t and c = `DICE_SMOOTHING`.
    weights: of each class (K,): an image's loss is multiplied by the sum of those that it has, and the mean stays one
    over the number of images.
    """
    kind, smoothing = task.loss, task.label_smoothing
    if kind is Loss.dice_bce:
        return _overlap_loss

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        rows = (labels if labels.dim() == 2 else F.one_hot(labels, logits.shape[1])).to(logits.dtype)
        targets = rows * (1 - smoothing) + smoothing / (2 if kind is Loss.binary_cross_entropy else rows.shape[1])
        if kind is Loss.cross_entropy:
            each = -(targets * F.log_softmax(logits, 1)).sum(1)
        elif kind is Loss.binary_cross_entropy:
            each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
        else:
            each = (logits - targets).square().mean(1)
        return (each if weights is None else each * (rows @ weights.to(rows.dtype))).mean()

    return loss


def _overlap_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    outputs, truth = logits.flatten(1), masks.flatten(1).to(logits.dtype)
    p = outputs.sigmoid()
    dice = (2 * (p * truth).mean(1) + DICE_SMOOTHING) / (p.mean(1) + truth.mean(1) + DICE_SMOOTHING)
    return (F.binary_cross_entropy_with_logits(outputs, truth, reduction="none").mean(1) + 1 - dice).mean()


def class_weights(task: TaskSettings, labels: torch.Tensor, classes: int) -> torch.Tensor | None:
    """Weights (K,) of the classes of all train labels, int64 (N,) or rows (N, K); None for none.

    balanced: N / (K n), with n images of a class among N, and `MAX_WEIGHT` at most.
    """
    if not task.class_weights and not task.balanced:
        return None
    weights = torch.tensor(task.class_weights or [1.0] * classes)
    if task.balanced:
        rows = labels if labels.dim() == 2 else F.one_hot(labels, classes)
        weights = weights * (len(rows) / (classes * rows.sum(0))).clamp(max=MAX_WEIGHT)
    return weights
