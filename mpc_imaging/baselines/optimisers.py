"""The optimisers and losses that secure training follows, in plaintext."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import nn

from mpc_imaging.choices import Loss, Optimiser
from mpc_imaging.settings import TaskSettings

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Adam sees gradients of this many eps at most: larger ones move a parameter by the same step, and would need more bits.
LARGEST = 512.0
# Of a class in `balanced_weights`.
MAX_WEIGHT = 20.0


class Adam(torch.optim.Optimizer):
    """Adam or AMSGrad: p -= lr * m' / sqrt(v' + eps**2), with m' and v' corrected for their start at zero.

    torch has sqrt(v') + eps. Under the root, eps bounds what the root is taken of, which fixed point needs; the two
    differ by a factor between 1 and sqrt(2), and only where gradients are about as small as eps. Gradients are clamped
    to `LARGEST` * eps.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], task: TaskSettings) -> None:
        options = {"lr": task.lr, "betas": task.betas, "eps": task.eps, "weight_decay": task.weight_decay}
        super().__init__(parameters, options)
        self._keeps_maximum = task.optimiser is Optimiser.amsgrad

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)

    def _update(self, p: nn.Parameter, group: dict) -> None:
        (beta1, beta2), eps = group["betas"], group["eps"]
        state = self.state[p]
        if not state:
            state.update(steps=0, m=torch.zeros_like(p), v=torch.zeros_like(p), largest=torch.zeros_like(p))
        state["steps"] += 1
        h = ((p.grad + group["weight_decay"] * p) / eps).clamp(-LARGEST, LARGEST)
        state["m"] = beta1 * state["m"] + (1 - beta1) * h
        state["v"] = beta2 * state["v"] + (1 - beta2) * h * h
        state["largest"] = torch.maximum(state["largest"], state["v"])
        v = state["largest"] if self._keeps_maximum else state["v"]
        rate = group["lr"] / (1 - beta1 ** state["steps"])
        p -= rate * state["m"] / (v / (1 - beta2 ** state["steps"]) + 1).sqrt()


def make(parameters: Iterable[nn.Parameter], task: TaskSettings) -> torch.optim.Optimizer:
    """The optimiser that ``task`` names; its rate is set by `descend`."""
    if task.optimiser is not Optimiser.sgd:
        return Adam(parameters, task)
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


def loss_function(task: TaskSettings, weights: torch.Tensor | None = None) -> LossFunction:
    """The loss of one batch as a function of logits (B, K) and labels, int64 (B,) or rows of 0 and 1 (B, K): a scalar.

    cross_entropy: the mean over the images of -sum(target * log softmax(logits)). binary_cross_entropy: the mean over
    all entries of that of sigmoid(logits), K yes-or-no answers. mse: the mean over all entries of (logits - target)**2.
    A target is the label with ``task.label_smoothing`` of it spread over all classes (for K answers: between both).
    weights: of each class (K,): an image's loss is multiplied by the sum of those that it has, and the mean stays one
    over the number of images.
    """
    kind, smoothing = task.loss, task.label_smoothing

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
