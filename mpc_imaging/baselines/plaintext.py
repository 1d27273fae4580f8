"""The same job in plaintext: same splits, initial weights, batches, loss and optimiser as the secure run.

Losses and optimisers are those of `optimisers`. An epoch's training loss is the mean over its images
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
from torch import nn

from mpc_imaging.baselines import optimisers
from mpc_imaging.baselines.private import PrivateGradients, train_private
from mpc_imaging.errors import DataError
from mpc_imaging.report.metrics import output_metrics
from mpc_imaging.settings import Settings, TaskKind, TaskSettings

if TYPE_CHECKING:
    from mpc_imaging.data import Split


@dataclass(frozen=True)
class PlaintextResult:
    """What the plaintext run gave for ``settings.task.split``, rows in joint order, and the weights it ended with."""

    ids: list[str]
    labels: torch.Tensor  # int64 (N,), with data.multi_label (N, K), with data.masks (N, H, W)
    logits: torch.Tensor  # float32 (N, K), with data.masks (N, 1, H, W)
    history: list[dict[str, Any]]  # as in result.json: epoch, loss, val, seconds
    state_dict: dict[str, torch.Tensor]
    images: torch.Tensor | None = None  # what the model was given, such as (N, C, H, W)


def run_plaintext(
    settings: Settings, module: nn.Module, data: dict[str, list[Split]], private: PrivateGradients | None = None
) -> PlaintextResult:
    """Run ``settings.task`` with ``module`` as its start; the module itself stays as it is.

    ``data`` maps a split to its `Split` of each owner, in the order of the data owners. ``private``: makes gradients
    private.

    Raises:
        DataError: a split that the task needs has no images.
    """
    task, model = settings.task, copy.deepcopy(module).eval()
    history: list[dict[str, Any]] = []
    if task.kind is TaskKind.train:
        history = _train(settings, model, data, private)
    images, labels, ids = _joint(data, task.split)
    batch_size = task.eval_batch_size if task.kind is TaskKind.train else task.batch_size
    logits = predict(model, images, batch_size)
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return PlaintextResult(ids, labels, logits, history, state, images)


def train_plaintext(
    module: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    task: TaskSettings,
    seed: int,
    on_epoch: Callable[[int, float], None] | None = None,
    part: range | None = None,
) -> list[float]:
    """Train ``module`` in place on images (N, C, H, W) and labels (N,), as ``task`` says; the mean loss of each epoch.

    Batches are those of `batch_schedule`. ``on_epoch(epoch, loss)`` is called after each epoch, counted from 1, with
    the module in eval mode, in which it is also left. Dropout draws from the seed, not from torch's global generator.
    part: which of ``task.epochs`` to train, counted from 0, by their learning rates; all by default.
    """
    optimiser = optimisers.make(module.parameters(), task)
    criterion = optimisers.loss_function(task, _class_weights(module, images, labels, task))

    def backward(rows: torch.Tensor) -> float:
        optimiser.zero_grad()
        value = criterion(module(images[rows]), labels[rows])
        value.backward()
        return value.item()

    def end(epoch: int, loss: float) -> None:
        module.eval()
        if on_epoch is not None:
            on_epoch(epoch, loss)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return optimisers.descend_epochs(optimiser, task, len(images), seed, backward, module.train, end, part)


def _class_weights(
    module: nn.Module, images: torch.Tensor, labels: torch.Tensor, task: TaskSettings
) -> torch.Tensor | None:
    if not task.class_weights and not task.balanced:
        return None
    return optimisers.class_weights(task, labels, predict(module, images[:1], 1).shape[1])


@torch.no_grad()
def predict(module: nn.Module, images: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Logits (N, K) or (N, 1, H, W) of images (N, C, H, W) in eval mode, ``batch_size`` at a time."""
    module.eval()
    return torch.cat([module(batch) for batch in images.split(batch_size)])


def _train(
    settings: Settings, model: nn.Module, data: dict[str, list[Split]], private: PrivateGradients | None
) -> list[dict[str, Any]]:
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

    if private is None:
        train_plaintext(model, images, labels, task, settings.seed, record)
    else:
        train_private(model, images, labels, private, task, settings.seed, on_epoch=record)
    return history


def _evaluate(
    model: nn.Module, data: dict[str, list[Split]], task: TaskSettings, positive_class: int | None
) -> dict[str, Any]:
    images, labels, _ = _joint(data, "val")
    logits = predict(model, images, task.eval_batch_size)
    return output_metrics(logits.numpy(), labels.numpy(), positive_class)


def _joint(data: dict[str, list[Split]], split: str) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Images, labels and ids of all owners' rows of one split."""
    parts = [part for part in data.get(split, []) if len(part.ids)]
    if not parts:
        raise DataError([f"the {split} split has no images: check data.path, data.limit.{split} and data.partition"])
    ids = [image_id for part in parts for image_id in part.ids]
    return torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]), ids
