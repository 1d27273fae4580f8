"""Federated averaging in plaintext (McMahan et al., AISTATS 2017, algorithm 1), and what each owner does in it.

The global weights are public to the data owners: that is what federated averaging means. In a round every owner trains
from them on its own images alone; the owners' changes of weights, each scaled to a length at most, are averaged by
their numbers of images. `local_update` is also what an owner runs in a secure session, where only the sum is opened.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mpc_imaging.baselines.plaintext import PlaintextResult, run_plaintext, train_plaintext
from mpc_imaging.errors import DataError
from mpc_imaging.protocols.noise import UpdateSum
from mpc_imaging.report.metrics import output_metrics
from mpc_imaging.settings import Method, PrivacyName, PrivacySettings, Settings, TaskKind

if TYPE_CHECKING:
    from mpc_imaging.data import Split


@dataclass(frozen=True, repr=False)
class LocalUpdate:
    """What an owner's training changed: ``change`` float64 (D,), and the mean loss of the images it trained on."""

    change: torch.Tensor
    loss: float


def run_federated(settings: Settings, module: nn.Module, data: dict[str, list[Split]]) -> PlaintextResult:
    """Federated averaging in plaintext as ``settings.task`` says; the module stays as it is.

    With privacy=dp there is as much noise as all compute parties add, from the public seed: it protects nobody.

    module: trainable as `local_update` needs it. data: as in `run_plaintext`, which says what it raises.
    """
    task, model = settings.task, copy.deepcopy(module).eval()
    weights, history = flat_weights(model), []
    validate = task.evaluate_each_epoch and any(len(part.ids) for part in data.get("val", []))
    if not any(len(part.ids) for part in data.get("train", [])):
        raise DataError(["the train split has no images: check data.path, data.limit.train and data.partition"])
    for number in range(task.epochs):
        started = time.perf_counter()
        weights, loss = _round(settings, model, weights, data["train"], number)
        load_flat(model, weights)
        val = _metrics(settings, model, data) if validate else None
        seconds = time.perf_counter() - started
        finite = loss if math.isfinite(loss) else None  # diverged: JSON has no NaN
        history.append({"epoch": number + 1, "loss": finite, "val": val, "seconds": seconds})
    result = _outputs(settings, model, data, task.split)
    return replace(result, history=history)


def joint_reference(settings: Settings, module: nn.Module, data: dict[str, list[Split]]) -> PlaintextResult:
    """The same model trained in plaintext, without noise, on all owners' images, for as many passes over them."""
    task = settings.task
    joint = replace(task, method=Method.joint, epochs=task.epochs * task.local_epochs)
    return run_plaintext(replace(settings, task=joint, privacy=PrivacySettings()), module, data)


def local_update(
    settings: Settings, module: nn.Module, weights: torch.Tensor, train: Split, number: int, owner: int
) -> LocalUpdate:
    """One owner's part of a round: ``task.local_epochs`` on its own images, from the global weights.

    module: is trained in place; its parameters that require a gradient are ``weights`` (D,), float64. number: of the
    round, from 0. owner: place among the data owners. The batches depend on both and on the public seed.
    """
    task = settings.task
    load_flat(module, weights)
    before = flat_weights(module)
    seed = (settings.seed + 1_000_003 * (number + 1) + 10_007 * owner) % 2**32
    whole = replace(task, epochs=task.epochs * task.local_epochs)
    part = range(number * task.local_epochs, (number + 1) * task.local_epochs)
    losses = train_plaintext(module, train.images, train.labels, whole, seed, part=part)
    return LocalUpdate(flat_weights(module) - before, sum(losses) / len(losses))


def update_limit(settings: Settings) -> float | None:
    """Euclidean length of one owner's update at most; None: any."""
    private = settings.privacy.name is PrivacyName.dp
    return settings.privacy.clip if private else settings.task.update_norm


def flat_weights(module: nn.Module) -> torch.Tensor:
    """All parameters that are trained, in one vector (D,), float64."""
    return torch.cat([p.detach().flatten().double() for p in _trained(module)])


def load_flat(module: nn.Module, weights: torch.Tensor) -> None:
    """Set what `flat_weights` reads."""
    parameters = _trained(module)
    with torch.no_grad():
        for parameter, part in zip(parameters, weights.split([p.numel() for p in parameters]), strict=True):
            parameter.copy_(part.view(parameter.shape))


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _round(
    settings: Settings, model: nn.Module, weights: torch.Tensor, train: Sequence[Split], number: int
) -> tuple[torch.Tensor, float]:
    """The weights after a round, and the mean loss over all owners' images."""
    limit, total = update_limit(settings), sum(len(part.ids) for part in train)
    counts = tuple(len(part.ids) for part in train)
    change, loss = _noise(settings, weights, counts, number) / total, 0.0
    for owner, split in enumerate(train):
        count = len(split.ids)
        if not count:
            continue
        update = local_update(settings, model, weights, split, number, owner)
        length = update.change.norm().item()
        scale = 1.0 if limit is None or length <= limit else limit / length
        change += update.change * (scale * count / total)
        loss += update.loss * count / total
    return weights + change, loss


def _noise(settings: Settings, weights: torch.Tensor, counts: tuple[int, ...], number: int) -> torch.Tensor:
    """Noise (D,) for the sum of updates, counted so often; zeros without privacy=dp."""
    private = settings.privacy
    if private.name is not PrivacyName.dp:
        return torch.zeros_like(weights)
    generator = torch.Generator().manual_seed(settings.seed + number)
    moved = private.clip * UpdateSum(counts, weights.numel(), settings.protocol.fraction_bits).sensitivity
    deviation = private.noise_multiplier * moved * math.sqrt(len(settings.compute_parties()))
    return torch.empty_like(weights).normal_(generator=generator) * deviation


def _metrics(settings: Settings, model: nn.Module, data: dict[str, list[Split]]) -> dict[str, Any]:
    result = _outputs(settings, model, data, "val")
    return output_metrics(result.logits.numpy(), result.labels.numpy(), settings.data.positive_class)


def _outputs(settings: Settings, model: nn.Module, data: dict[str, list[Split]], split: str) -> PlaintextResult:
    """The model's outputs for a split, of all owners."""
    task = settings.task
    infer = replace(task, kind=TaskKind.infer, split=split, batch_size=task.eval_batch_size)
    return run_plaintext(replace(settings, task=infer), model, data)
