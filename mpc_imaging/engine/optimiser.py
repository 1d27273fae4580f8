"""Stochastic gradient descent on shares, with torch's definitions of momentum and weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from mpc_imaging.engine.tensors import from_share

if TYPE_CHECKING:
    from crypten.mpc import MPCTensor

# Public factors such as 1e-4 need more fraction than the values have; products with them are truncated by these bits.
FACTOR_BITS = 24


class SGD:
    """v = momentum * v + gradient / batch + weight_decay * p;  p = p - lr * v, as `torch.optim.SGD`.

    Factors are rounded to `FACTOR_BITS` of fraction: a rate below 2**-25 would be zero.
    """

    def __init__(self, parameters: Mapping[str, MPCTensor], lr: float, momentum: float, weight_decay: float) -> None:
        self._parameters = dict(parameters)
        self._lr, self._momentum, self._weight_decay = lr, momentum, weight_decay
        self._velocity: dict[str, torch.Tensor] = {}

    def step(self, batch: int) -> None:
        """Update all parameters from gradients that are summed over `batch` images, in two rounds for all together.

        Gradients are then cleared. A parameter without one stays as it is. Values must stay below
        2**(38 - fraction_bits) in size.
        """
        names = [name for name, p in self._parameters.items() if p.grad is not None]
        sums = []
        for name in names:
            p = self._parameters[name]
            value = p.grad.share * _factor(1 / batch)
            if self._weight_decay:
                value = value + p.share * _factor(self._weight_decay)
            if self._momentum and name in self._velocity:
                value = value + self._velocity[name] * _factor(self._momentum)
            sums.append(value)
        velocities = _truncate_together(sums)
        self._velocity.update(zip(names, velocities, strict=True))
        steps = _truncate_together([v * _factor(self._lr) for v in velocities])
        for name, step in zip(names, steps, strict=True):
            p = self._parameters[name]
            p.share = p.share - step
            p.grad = None


def _factor(value: float) -> int:
    return round(value * 2**FACTOR_BITS)


def _truncate_together(values: list[torch.Tensor]) -> list[torch.Tensor]:
    """Truncate tensors by `FACTOR_BITS` in one round."""
    if not values:
        return []
    flat = from_share(torch.cat([v.flatten() for v in values]))
    flat.div_(2**FACTOR_BITS)
    parts = flat.share.split([v.numel() for v in values])
    return [part.view(v.shape) for part, v in zip(parts, values, strict=True)]
