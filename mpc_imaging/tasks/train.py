"""Training: images and labels of all owners in public batches, by stochastic gradient descent on shares."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mpc_imaging.data.schedule import batch_schedule
from mpc_imaging.tasks.compute import forward
from mpc_imaging.tasks.job import Job

Shares = Mapping[str, tuple[torch.Tensor | None, torch.Tensor | None]]


def train(job: Job, model: Any, data: Shares) -> None:
    """Train ``model`` (the secure module; None at parties that do not compute) for ``task.epochs``.

    data: for each split, shares of its images (N, C, H, W) and one-hot labels (N, K); None at parties that do not
    compute. Each epoch opens its mean loss (``loss``) and the counts on the validation split (``metrics``), where the
    policy lists them, and adds an entry to the history.
    """
    task = job.settings.task
    epochs = batch_schedule(job.catalogue.total("train"), task.batch_size, task.epochs, job.settings.seed)
    optimiser = _optimiser(job, model)
    for number, batches in enumerate(epochs, 1):
        started = time.perf_counter()
        stage = f"epoch {number} of {task.epochs}"
        loss, counts = job.segment("epoch", _epoch, job, model, optimiser, stage, batches, data)
        seconds = time.perf_counter() - started
        job.history.append({"epoch": number, "loss": loss, "val": counts, "seconds": seconds})


def _optimiser(job: Job, model: Any) -> Any:
    if model is None:
        return None
    from mpc_imaging.engine.optimiser import SGD

    task = job.settings.task
    parameters = {name: model.parameters[name] for name in model.trainable()}
    for parameter in parameters.values():
        parameter.requires_grad = True
    return SGD(parameters, task.lr, task.momentum, task.weight_decay)


def _epoch(
    job: Job, model: Any, optimiser: Any, stage: str, batches: Sequence[torch.Tensor], data: Shares
) -> tuple[float | None, dict[str, Any] | None]:
    """Train on all batches; then the mean loss and the metrics on the validation split, if they are opened here."""
    task, total = job.settings.task, sum(map(len, batches))
    loss = None
    if model is not None:
        # Masked anew: under the masks of the last evaluation, an epoch's first step would be unlike that of the next.
        for name in model.trainable():
            model.parameters[name].share = model.parameters[name].share.clone()
        with job.progress.stage(stage, total):
            loss = _steps(job, model, optimiser, batches, *data["train"])
    opened = job.open("loss", loss, ())
    counts = None
    if task.evaluate_each_epoch and "val" in data and job.wanted("metrics"):
        images, labels = data["val"]
        logits = None if model is None else forward(model, images, task.eval_batch_size, lambda rows: None, job.segment)
        counts = job.open_confusion("val", logits, labels)
    return None if opened is None else opened.item() / total, counts


def _steps(
    job: Job,
    model: Any,
    optimiser: Any,
    batches: Sequence[torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """One pass over the training images; a share of the summed loss (zero where the policy opens no loss)."""
    total = torch.zeros((), dtype=torch.int64)
    for rows in batches:
        loss = job.segment(("step", len(rows)), _step, job, model, optimiser, images[rows], labels[rows])
        if loss is not None:
            total = total + loss
        job.progress.advance(len(rows))
    return total


def _step(job: Job, model: Any, optimiser: Any, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor | None:
    """Train on one batch; a share of its summed loss, or None where the policy opens no loss."""
    from mpc_imaging.engine import gates
    from mpc_imaging.engine.losses import loss_and_gradient
    from mpc_imaging.engine.tensors import from_share, no_grad, share_of

    kind, want_loss = job.settings.task.loss, job.wanted("loss")
    logits = model(from_share(images))
    # Metered like layers: in training most of the time goes here.
    with no_grad(), model.observer("loss", kind.value):
        loss, gradient = loss_and_gradient(kind, logits.detach(), from_share(labels), want_loss)
    with model.observer("backward pass", "gradients"):
        logits.backward(gradient)
    with model.observer("optimiser", "sgd"):
        optimiser.step(len(images))
    gates.settle_ranges()
    return None if loss is None else share_of(loss)
