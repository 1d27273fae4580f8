"""The same job in plaintext: same splits, initial weights, batches, loss and optimiser as the secure run.

The losses here are the definitions that secure training follows. An epoch's training loss is the mean over its images
of the loss that each had when its batch was seen, before that batch's update.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from mpc_imaging.data.schedule import batch_schedule
from mpc_imaging.errors import DataError
from mpc_imaging.report.metrics import classification_metrics, log_softmax
from mpc_imaging.settings import Loss, Settings, TaskKind, TaskSettings

if TYPE_CHECKING:
    from mpc_imaging.data.loading import Split

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class PlaintextResult:
    """What the plaintext run gave for ``settings.task.split``, rows in joint order, and the weights it ended with."""

    ids: list[str]
    labels: torch.Tensor  # int64 (N,)
    logits: torch.Tensor  # float32 (N, K)
    history: list[dict[str, Any]]  # as in result.json: epoch, loss, val, seconds
    state_dict: dict[str, torch.Tensor]


def run_plaintext(settings: Settings, module: nn.Module, data: dict[str, list[Split]]) -> PlaintextResult:
    """Run ``settings.task`` with ``module`` as its start; the module itself stays as it is.

    ``data`` maps a split to its `Split` of each owner, in the order of the data owners.

    Raises:
        DataError: a split that the task needs has no images.
    """
    task, model = settings.task, copy.deepcopy(module).eval()
    history: list[dict[str, Any]] = []
    if task.kind is TaskKind.train:
        history = _train(settings, model, data)
    images, labels, ids = _joint(data, task.split)
    batch_size = task.eval_batch_size if task.kind is TaskKind.train else task.batch_size
    logits = predict(model, images, batch_size)
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return PlaintextResult(ids, labels, logits, history, state)


def train_plaintext(
    module: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    loss: Loss,
    seed: int,
    on_epoch: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train ``module`` in place by SGD on images (N, C, H, W) and labels (N,); the mean loss of each epoch.

    Batches are those of `batch_schedule`. ``on_epoch(epoch, loss)`` is called after each epoch, counted from 1, with
    the module in eval mode, in which it is also left. Dropout draws from the seed, not from torch's global generator.
    """
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    criterion = loss_function(loss)
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch, batches in enumerate(batch_schedule(len(images), batch_size, epochs, seed), start=1):
            module.train()
            total = 0.0
            for rows in batches:
                optimizer.zero_grad()
                value = criterion(module(images[rows]), labels[rows])
                value.backward()
                optimizer.step()
                total += value.item() * len(rows)
            losses.append(total / len(images))
            module.eval()
            if on_epoch is not None:
                on_epoch(epoch, losses[-1])
    return losses


def loss_function(loss: Loss) -> LossFunction:
    """The loss of one batch as a function of logits (B, K) and int64 labels (B,): a scalar."""
    return {
        Loss.cross_entropy: cross_entropy,
        Loss.binary_cross_entropy: binary_cross_entropy,
        Loss.mse: mean_squared_error,
    }[loss]


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over the B images of -log softmax(logits)[label]. Gradient in the logits: (softmax - one_hot) / B."""
    return F.cross_entropy(logits, labels)


def binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over all B * K elements of the BCE of sigmoid(logits) with the one-hot labels: K yes-or-no answers.

    Gradient in the logits: (sigmoid - one_hot) / (B * K).
    """
    return F.binary_cross_entropy_with_logits(logits, _one_hot(logits, labels))


def mean_squared_error(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over all B * K elements of (logits - one_hot)**2. Gradient in the logits: 2 (logits - one_hot) / (B * K)."""
    return F.mse_loss(logits, _one_hot(logits, labels))


@torch.no_grad()
def predict(module: nn.Module, images: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Logits (N, K) of images (N, C, H, W) in eval mode, ``batch_size`` at a time."""
    module.eval()
    return torch.cat([module(batch) for batch in images.split(batch_size)])


def _train(settings: Settings, model: nn.Module, data: dict[str, list[Split]]) -> list[dict[str, Any]]:
    """Train ``model`` in place as ``settings.task`` says; the history, with metrics on ``val`` where it has images."""
    task = settings.task
    images, labels, _ = _joint(data, "train")
    validate = task.evaluate_each_epoch and any(len(part.ids) for part in data.get("val", []))
    history: list[dict[str, Any]] = []
    started = time.perf_counter()

    def record(epoch: int, loss: float) -> None:
        nonlocal started
        seconds = time.perf_counter() - started
        val = _evaluate(model, data, task, settings.data.positive_class) if validate else None
        finite = loss if math.isfinite(loss) else None  # diverged: JSON has no NaN
        history.append({"epoch": epoch, "loss": finite, "val": val, "seconds": seconds})
        started = time.perf_counter()

    train_plaintext(
        model,
        images,
        labels,
        task.epochs,
        task.batch_size,
        task.lr,
        task.momentum,
        task.weight_decay,
        task.loss,
        settings.seed,
        record,
    )
    return history


def _evaluate(
    model: nn.Module, data: dict[str, list[Split]], task: TaskSettings, positive_class: int | None
) -> dict[str, Any]:
    images, labels, _ = _joint(data, "val")
    logits = predict(model, images, task.eval_batch_size)
    return classification_metrics(log_softmax(logits.numpy()), labels.numpy(), positive_class)


def _joint(data: dict[str, list[Split]], split: str) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Images, labels and ids of all owners' rows of one split."""
    parts = [part for part in data.get(split, []) if len(part.ids)]
    if not parts:
        raise DataError([f"the {split} split has no images: check data.path, data.limit.{split} and data.partition"])
    ids = [image_id for part in parts for image_id in part.ids]
    return torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]), ids


def _one_hot(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.one_hot(labels, logits.shape[1]).to(logits.dtype)
