"""Training: images and labels of all owners in public batches, by stochastic gradient descent on shares."""

from __future__ import annotations

import time
from collections.abc import Mapping
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
    total = job.catalogue.total("train")
    epochs = batch_schedule(total, task.batch_size, task.epochs, job.settings.seed)
    optimiser = _optimiser(job, model)
    evaluate = task.evaluate_each_epoch and "val" in data and job.wanted("metrics")
    for number, batches in enumerate(epochs, 1):
        started = time.perf_counter()
        loss = None
        if model is not None:
            with job.progress.stage(f"epoch {number} of {task.epochs}", total):
                loss = _epoch(job, model, optimiser, batches, *data["train"])
        opened = job.open("loss", loss, ())
        counts = None
        if evaluate:
            logits = (
                forward(model, data["val"][0], task.eval_batch_size, lambda rows: None) if model is not None else None
            )
            counts = job.open_confusion("val", logits, data["val"][1])
        job.history.append(
            {
                "epoch": number,
                "loss": None if opened is None else opened.item() / total,
                "val": counts,
                "seconds": time.perf_counter() - started,
            }
        )


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
    job: Job, model: Any, optimiser: Any, batches: list[torch.Tensor], images: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """One pass over the training images; a share of the summed loss (zero where the policy opens no loss)."""
    from mpc_imaging.engine.losses import loss_and_gradient
    from mpc_imaging.engine.tensors import from_share, no_grad, share_of

    task, want_loss = job.settings.task, job.wanted("loss")
    total = torch.zeros((), dtype=torch.int64)
    for rows in batches:
        logits = model(from_share(images[rows]))
        # Metered like layers: in training most of the time goes here.
        with no_grad(), model.observer("loss", task.loss.value):
            loss, gradient = loss_and_gradient(task.loss, logits.detach(), from_share(labels[rows]), want_loss)
        with model.observer("backward pass", "gradients"):
            logits.backward(gradient)
        with model.observer("optimiser", "sgd"):
            optimiser.step(len(rows))
        if loss is not None:
            total = total + share_of(loss)
        job.progress.advance(len(rows))
    return total
