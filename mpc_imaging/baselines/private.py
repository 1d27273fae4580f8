"""The plaintext baseline of differentially private training: the same clipping and as much noise, in floating point.

Its noise is torch's, from the public seed: it shows what privacy costs in accuracy, and protects nobody.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad_and_value, vmap

from mpc_imaging.baselines import optimisers
from mpc_imaging.baselines.optimisers import LossFunction
from mpc_imaging.data.clipping import clip_inputs
from mpc_imaging.settings import TaskSettings


@dataclass
class PrivateGradients:
    """Clips and adds noise, as `mpc_imaging.engine.clipping` does on shares.

    clip, micro_batch: see `PrivacySettings`. head: the model is one linear layer, whose residuals are clipped; ``clip``
    is then not used. deviation: of the noise on the summed gradient, of all parties together, in units of the gradient.
    """

    clip: float
    micro_batch: int
    head: bool
    deviation: float
    seed: int = 0
    _generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    def backward(
        self, module: nn.Module, images: torch.Tensor, labels: torch.Tensor, criterion: LossFunction
    ) -> torch.Tensor:
        """Give the parameters the noisy mean gradient of a batch; its mean loss, without noise.

        images (N, ...), labels (N,) or (N, K). criterion: mean loss of logits and labels.
        """
        names = [name for name, p in module.named_parameters() if p.requires_grad]
        parameters = dict(module.named_parameters())
        compute = self._head if self.head else self._clipped
        sums, loss = compute(module, {name: parameters[name] for name in names}, images, labels, criterion)
        for name in names:
            p = parameters[name]
            noise = torch.empty(p.shape).normal_(generator=self._generator) * self.deviation
            p.grad = (sums[name] + noise) / len(images)
        return loss

    def _head(self, module, parameters, images, labels, criterion) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        logits = module(images)
        leaf = logits.detach().requires_grad_()
        loss = criterion(leaf, labels)
        (residuals,) = torch.autograd.grad(loss * len(images), leaf)
        sums = torch.autograd.grad(logits, list(parameters.values()), residuals.clamp(-1, 1))
        return dict(zip(parameters, sums, strict=True)), loss.detach()

    def _clipped(self, module, parameters, images, labels, criterion) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        def loss_of(values, image, label):
            return criterion(functional_call(module, values, image.unsqueeze(0)), label.unsqueeze(0))

        leaves = {name: p.detach() for name, p in parameters.items()}
        if labels.dim() == 1:  # rows, which vmap can take apart
            labels = F.one_hot(labels, module(images[:1]).shape[1]).to(images.dtype)
        each, losses = vmap(grad_and_value(loss_of), in_dims=(None, 0, 0))(leaves, images, labels)
        groups = math.ceil(len(images) / self.micro_batch)
        group = torch.arange(len(images)) % groups
        sums = {name: g.new_zeros(groups, *g.shape[1:]).index_add_(0, group, g) for name, g in each.items()}
        norms = torch.stack([s.flatten(1).norm(dim=1) for s in sums.values()]).norm(dim=0)
        factor = (self.clip * self.micro_batch / norms.clamp(min=1e-12)).clamp(max=1)
        return {name: torch.tensordot(factor, s, 1) for name, s in sums.items()}, losses.mean().detach()


def train_private(
    module: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    private: PrivateGradients,
    task: TaskSettings,
    seed: int,
    input_norm: float | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> list[float]:
    """As `plaintext.train_plaintext`, with private gradients; inputs are clipped to ``input_norm`` first."""
    if input_norm is not None:
        images = clip_inputs(images, input_norm)
    optimiser = optimisers.make(module.parameters(), task)
    weights = torch.tensor(task.class_weights) if task.class_weights else None
    criterion = optimisers.loss_function(task, weights)

    def backward(rows: torch.Tensor) -> float:
        return private.backward(module, images[rows], labels[rows], criterion).item()

    end = {} if on_epoch is None else {"end": on_epoch}
    return optimisers.descend_epochs(optimiser, task, len(images), seed, backward, **end)
