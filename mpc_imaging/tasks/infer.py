"""Inference: the owners' images through the model owner's weights; outputs to those whom the policy names."""

from __future__ import annotations

from typing import Any

import torch

from mpc_imaging.settings import TaskKind, TaskSettings
from mpc_imaging.tasks.compute import forward
from mpc_imaging.tasks.job import Job


def _batch(task: TaskSettings) -> int:
    return task.eval_batch_size if task.kind is TaskKind.train else task.batch_size


def infer(job: Job, model: Any, images: torch.Tensor | None, labels: torch.Tensor | None) -> None:
    """Run a split through the model and open what the policy lists.

    model: the secure module. images, labels: shares of the split (N, C, H, W) and of its one-hot labels (N, K).
    All three are None at parties that do not compute, which wait for their results here.
    """
    task = job.settings.task
    logits = None
    if model is not None:
        with job.progress.stage("secure inference", job.catalogue.total(task.split)):
            with model.observer("weights", "opening"):
                model.open_weights()
            logits = forward(model, images, _batch(task), job.progress.advance, job.segment)
    job.open_outputs(task.split, logits, labels)
