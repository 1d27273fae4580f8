"""Stochastic gradient descent on shares, with torch's definitions of momentum and weight decay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch

from mpc_imaging.engine.tensors import excess, from_share, precision

if TYPE_CHECKING:
    from crypten.mpc import MPCTensor

# Public factors such as 1e-4 need more fraction than the values have; products with them are truncated by these bits.
FACTOR_BITS = 24
# With so many bits of fraction or fewer, a gradient that has those of both operands of its product, times a factor of
# `SMALL_FACTOR_BITS`, stays below 2**62 while it is below 2**12.
EXCESS_BITS = 17
SMALL_FACTOR_BITS = 15


class SGD:
    """v = momentum * v + gradient / batch + weight_decay * p;  p = p - lr * v, as `torch.optim.SGD`.

    Factors are rounded to `FACTOR_BITS` of fraction: a rate below 2**-25 would be zero.
    """

    def __init__(self, parameters: Mapping[str, MPCTensor], lr: float, momentum: float, weight_decay: float) -> None:
        self._parameters = dict(parameters)
        self._lr, self._momentum, self._weight_decay = lr, momentum, weight_decay
        self._velocity: dict[str, torch.Tensor] = {}

    def step(self, batch: int) -> None:
        """Update all parameters from gradients that are summed over `batch` images, in one to three rounds for all.

        Gradients are then cleared. A parameter without one stays as it is. Values must stay below
        2**(38 - fraction_bits) in size.
        """
        names = [name for name, p in self._parameters.items() if p.grad is not None]
        gradients = _aligned([self._parameters[name].grad for name in names])
        if self._momentum or self._weight_decay:
            velocities = self._velocities(names, gradients, batch)
            self._velocity.update(zip(names, velocities, strict=True))
            steps = _truncate_together([v * _factor(self._lr) for v in velocities], FACTOR_BITS)
        else:
            steps = _scaled(gradients, self._lr / batch)
        for name, step in zip(names, steps, strict=True):
            p = self._parameters[name]
            p.share = p.share - step
            p.grad = None

    def _velocities(self, names: list[str], gradients: _Aligned, batch: int) -> list[torch.Tensor]:
        sums = []
        for name, gradient in zip(names, _truncate_together(*gradients), strict=True):
            value = gradient * _factor(1 / batch)
            if self._weight_decay:
                value = value + self._parameters[name].share * _factor(self._weight_decay)
            if name in self._velocity:
                value = value + self._velocity[name] * _factor(self._momentum)
            sums.append(value)
        return _truncate_together(sums, FACTOR_BITS)


class _Aligned(NamedTuple):
    """Shares with so many bits of fraction more than the session's."""

    shares: list[torch.Tensor]
    excess: int


def _aligned(tensors: list[MPCTensor]) -> _Aligned:
    most = max(map(excess, tensors), default=0)
    return _Aligned([tensor.share << (most - excess(tensor)) for tensor in tensors], most)


def _scaled(gradients: _Aligned, rate: float) -> list[torch.Tensor]:
    """Gradients times a public rate, of which the product has `SMALL_FACTOR_BITS` or more."""
    if precision() > EXCESS_BITS:
        return _truncate_together([g * _factor(rate) for g in _truncate_together(*gradients)], FACTOR_BITS)
    bits = min(SMALL_FACTOR_BITS - math.frexp(rate)[1], 61 - gradients.excess)
    multiplier = round(rate * 2**bits)
    return _truncate_together([g * multiplier for g in gradients.shares], bits + gradients.excess)


def _factor(value: float) -> int:
    return round(value * 2**FACTOR_BITS)


def _truncate_together(values: list[torch.Tensor], bits: int) -> list[torch.Tensor]:
    """Truncate tensors by so many bits, in one round (none for no bits)."""
    if not values or not bits:
        return values
    flat = from_share(torch.cat([v.flatten() for v in values]))
    flat.div_(2**bits)
    parts = flat.share.split([v.numel() for v in values])
    return [part.view(v.shape) for part, v in zip(parts, values, strict=True)]
