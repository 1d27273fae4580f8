"""Training: images and labels of all owners in public batches, by stochastic gradient descent on shares.

It can begin anywhere: a checkpoint holds all that is needed to go on from a batch in the middle of an epoch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mpc_imaging.baselines.rates import learning_rate
from mpc_imaging.data.schedule import batch_schedule
from mpc_imaging.settings import StopMetric
from mpc_imaging.tasks.checkpoints import BEST, LOSS, OPTIMISER, WEIGHTS, Point
from mpc_imaging.tasks.compute import forward
from mpc_imaging.tasks.features import output_shape
from mpc_imaging.tasks.job import Job, with_auc
from mpc_imaging.tasks.privacy import private_gradients
from mpc_imaging.tasks.stopping import BestEpoch, validation_score

Shares = Mapping[str, tuple[torch.Tensor | None, torch.Tensor | None]]


@dataclass
class _Epoch:
    """An epoch, from 0, and its batches, of which ``first`` is the first to train on."""

    number: int
    batches: Sequence[torch.Tensor]
    first: int

    @property
    def images(self) -> int:
        """Images in all batches."""
        return sum(map(len, self.batches))

    def point(self, batch: int) -> Point:
        """The place before a batch. All epochs have as many."""
        return Point(self.number, batch, self.number * len(self.batches) + batch)


@dataclass
class _Inputs:
    """Shares of images (N, ...), of what the model should say of them (N, K), and of their weights (N, 1), if any."""

    images: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor | None

    def batch(self, rows: torch.Tensor) -> _Inputs:
        """Those of these rows."""
        return _Inputs(self.images[rows], self.targets[rows], None if self.weights is None else self.weights[rows])


@dataclass
class _Trainer:
    """A compute party's model and all that training changes. Elsewhere ``model`` and ``optimiser`` are None.

    private: makes gradients private (see `private_gradients`); None if they are not to be.
    """

    job: Job
    model: Any
    optimiser: Any
    best: BestEpoch | None
    private: Any

    def load(self) -> None:
        """Take the state of a checkpoint; the model has its weights already."""
        if not self.job.start.resumed or self.model is None:
            return
        self.optimiser.load(self.job.start.part(OPTIMISER), self.job.start.point.step)
        if self.best is not None:
            self.best.load(self.job.start.part(BEST))

    def save(self, point: Point, loss: torch.Tensor) -> None:
        """Write a checkpoint; ``loss``: share of what the epoch has summed up."""
        from mpc_imaging.engine.tensors import share_of

        tensors = {WEIGHTS + name: share_of(value) for name, value in self.model.parameters.items()}
        tensors |= {OPTIMISER + name: value for name, value in self.optimiser.state().items()}
        if self.best is not None:
            tensors |= {BEST + name: value for name, value in self.best.tensors().items()}
        budget = self.job.budget
        earlier = None if budget is None else budget.earlier
        self.job.checkpoints.save(point, tensors | {LOSS: loss}, self.job.history, earlier)


def train(job: Job, model: Any, data: Shares) -> None:
    """Train ``model`` (the secure module; None at parties that do not compute) for ``task.epochs``.

    data: for each split, shares of its images (N, C, H, W) and one-hot labels (N, K); None at parties that do not
    compute. Each epoch opens its mean loss (``loss``) and the counts on the validation split (``metrics``), where the
    policy lists them, and adds an entry to the history. Begins at ``job.start``, and writes checkpoints when they are
    due. Raises `DataError` for one that cannot be written.
    """
    settings, start = job.settings, job.start.point
    epochs = _epochs(job)
    best = BestEpoch(job, model) if settings.task.early_stopping.metric is not StopMetric.none else None
    optimiser = _optimiser(job, model)
    trainer = _Trainer(job, model, optimiser, best, None if model is None else private_gradients(job, model))
    trainer.load()
    job.history.extend(job.start.history)
    inputs = None if model is None else _inputs(job, *data["train"])
    for epoch in epochs[start.epoch :]:
        started = time.perf_counter()
        # An epoch that was begun before demands less than the others, and other rates may demand something else.
        key = ("epoch", epoch.first, *(_step_key(trainer, epoch, batch) for batch in range(len(epoch.batches))))
        loss, val, score = job.segment(key, _train_epoch, trainer, epoch, inputs, data)
        seconds = time.perf_counter() - started
        job.history.append({"epoch": epoch.number + 1, "loss": loss, "val": val, "seconds": seconds})
        if best is not None and best.update(epoch.number + 1, score):
            break
        if settings.stops_early() and epoch is not epochs[-1]:
            job.phase(end=False)
    if settings.stops_early():
        job.phase(end=True)
    if best is not None:
        job.best_epoch = best.finish()


def _epochs(job: Job) -> list[_Epoch]:
    """All epochs; the one that the job begins in lacks the batches before its start."""
    task, start = job.settings.task, job.start.point
    schedule = batch_schedule(job.catalogue.total("train"), task.batch_size, task.epochs, job.settings.seed)
    return [
        _Epoch(number, batches, start.batch if number == start.epoch else 0) for number, batches in enumerate(schedule)
    ]


def total_steps(job: Job) -> int:
    """Batches of all epochs."""
    task = job.settings.task
    return task.epochs * -(-job.catalogue.total("train") // task.batch_size)


def _optimiser(job: Job, model: Any) -> Any:
    if model is None:
        return None
    from mpc_imaging.engine import optimiser

    parameters = {name: model.parameters[name] for name in model.trainable()}
    for parameter in parameters.values():
        parameter.requires_grad = True
    return optimiser.make(parameters, job.settings.task)


def _inputs(job: Job, images: torch.Tensor, labels: torch.Tensor) -> _Inputs:
    """What the train split's images and labels (N, K) of 0 and 1 become, once for all epochs."""
    from mpc_imaging.engine.losses import image_weights, smoothed
    from mpc_imaging.engine.tensors import from_share, no_grad, share_of

    task = job.settings.task
    with no_grad():
        targets = smoothed(task.loss, from_share(labels), task.label_smoothing)
        weights = image_weights(from_share(labels), task.class_weights, task.balanced)
    return _Inputs(images, share_of(targets), None if weights is None else share_of(weights))


def _rate(job: Job, point: Point) -> float:
    return learning_rate(job.settings.task, point.step, total_steps(job) // job.settings.task.epochs)


def _step_key(trainer: _Trainer, epoch: _Epoch, batch: int) -> tuple:
    """Of the segment that trains on a batch: those of one key demand the same."""
    if trainer.model is None:
        return ()
    from mpc_imaging.engine.losses import gradient_scale
    from mpc_imaging.engine.optimiser import rate_class

    images, rate = len(epoch.batches[batch]), _rate(trainer.job, epoch.point(batch))
    settings = trainer.job.settings
    scale = gradient_scale(settings.task.loss, (images, *output_shape(settings)))
    return "step", images, rate_class(settings.task, rate, images * scale)


def _train_epoch(
    trainer: _Trainer, epoch: _Epoch, inputs: _Inputs | None, data: Shares
) -> tuple[float | None, dict[str, Any] | None, torch.Tensor | None]:
    """Train on the batches; then the mean loss and the metrics on the validation split, if they are opened here.

    Third of the results: a share of what decides which epoch is best, if one is chosen.
    """
    job, model = trainer.job, trainer.model
    task, loss = job.settings.task, None
    if model is not None:
        # Masked anew: under the masks of the last evaluation, an epoch's first step would be unlike that of the next.
        for name in model.trainable():
            model.parameters[name].share = model.parameters[name].share.clone()
        steps, rest = len(epoch.batches), task.epochs - epoch.number - 1
        with job.progress.stage(f"epoch {epoch.number + 1} of {task.epochs}", steps, "step", rest * steps):
            loss = _steps(trainer, epoch, inputs)
    opened = job.open("loss", loss, ())
    mean = None if opened is None else opened.item() / epoch.images
    job.progress.note(loss=mean)
    val, score = _validate(trainer, *data["val"]) if "val" in data else (None, None)
    return mean, val, score


def _validate(
    trainer: _Trainer, images: torch.Tensor | None, labels: torch.Tensor | None
) -> tuple[dict[str, Any] | None, torch.Tensor | None]:
    """What is opened here of the metrics on the validation split, and a share of what decides which epoch is best."""
    job, task, val, score = trainer.job, trainer.job.settings.task, None, None
    shown = [value for value in ("metrics", "auc") if task.evaluate_each_epoch and job.wanted(value)]
    if not shown and trainer.best is None:
        return None, None
    logits = None
    if trainer.model is not None:
        logits = forward(trainer.model, images, task.eval_batch_size, lambda rows: None, job.segment)
    if trainer.best is not None:
        score = validation_score(job, logits, labels)
    if "metrics" in shown:
        val = job.open_confusion("val", logits, labels)
    if "auc" in shown:
        # Found once: of the same values again, a rehearsal would run nothing that is to be checked.
        known = score if task.early_stopping.metric is StopMetric.auc else None
        val = with_auc(val, job.open_auc(logits, labels, known))
    if trainer.best is not None:
        job.check_range()  # nothing of an epoch is left to the next one, which may be planned without it
    return val, score


def _steps(trainer: _Trainer, epoch: _Epoch, inputs: _Inputs) -> torch.Tensor:
    """The batches of an epoch; a share of the loss summed over all of them (zero where the policy opens no loss)."""
    job, checkpoints = trainer.job, trainer.job.checkpoints
    total = job.start.tensors[LOSS] if epoch.first else torch.zeros((), dtype=torch.int64)
    job.progress.skip(epoch.first)
    for batch, rows in enumerate(epoch.batches[epoch.first :], epoch.first):
        key = _step_key(trainer, epoch, batch)
        loss = job.segment(key, _step, trainer, epoch.point(batch), inputs.batch(rows))
        if loss is not None:
            total = total + loss
        job.progress.advance()
        after = epoch.point(batch + 1)
        if checkpoints is not None and checkpoints.due(after.step):
            trainer.save(after, total)
    return total


def _step(trainer: _Trainer, point: Point, batch: _Inputs) -> torch.Tensor | None:
    """Train on one batch; a share of its summed loss, or None where the policy opens no loss."""
    from mpc_imaging.engine.losses import gradient_scale, loss_and_gradient
    from mpc_imaging.engine.tensors import from_share, no_grad, share_of

    job, model = trainer.job, trainer.model
    task, want_loss = job.settings.task, job.wanted("loss")
    logits = model(from_share(batch.images))
    weights = None if batch.weights is None else from_share(batch.weights)
    # Metered like layers: in training most of the time goes here.
    with no_grad(), model.observer("loss", task.loss.value):
        loss, gradient = loss_and_gradient(task.loss, logits.detach(), from_share(batch.targets), want_loss, weights)
    with model.observer("backward pass", "gradients"):
        if trainer.private is None:
            logits.backward(gradient)
        else:
            trainer.private.backward(logits, gradient, batch.images)
    job.watch_gradients(model)
    with model.observer("optimiser", task.optimiser.value):
        scale = gradient_scale(task.loss, logits.size())
        trainer.optimiser.step(len(batch.images) * scale, _rate(job, point))
    job.check_step(model, point.step + 1, point.epoch + 1)
    return None if loss is None else share_of(loss)
