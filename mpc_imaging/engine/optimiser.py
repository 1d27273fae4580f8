"""Gradient descent on shares, with torch's definitions, and clipping of gradients. `adam` holds Adam and AMSGrad."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from mpc_imaging.choices import Optimiser
from mpc_imaging.engine import gates
from mpc_imaging.engine.roots import inverse_root
from mpc_imaging.engine.tensors import excess, from_share, no_grad, precision, share_of
from mpc_imaging.protocols import bilinear, compare
from mpc_imaging.protocols.context import Context
from mpc_imaging.protocols.truncate import truncate
from mpc_imaging.randomness.ring import BilinearOp

if TYPE_CHECKING:
    from crypten.mpc import MPCTensor

    from mpc_imaging.settings import TaskSettings

# Public factors such as 1e-4 need more fraction than the values have; products with them are truncated by these bits.
FACTOR_BITS = 24
# With so many bits of fraction or fewer, a gradient that has those of both operands of its product, times a factor of
# `SMALL_FACTOR_BITS`, stays below 2**62 while it is below 2**12.
EXCESS_BITS = 17
SMALL_FACTOR_BITS = 15
# Of norms in units of their bound: `inverse_root` takes so many octaves, and larger ones than 2**`COARSE_BITS` are
# found from gradients with so many bits less.
OCTAVES, COARSE_BITS = 9, 8


def make(parameters: Mapping[str, MPCTensor], task: TaskSettings) -> SGD:
    """The optimiser that ``task`` names, for parameters by name."""
    if task.optimiser is Optimiser.sgd:
        return SGD(parameters, task)
    from mpc_imaging.engine.adam import Adam  # which is an SGD of this module

    return Adam(parameters, task)


def rate_class(task: TaskSettings, rate: float, batch: int) -> int:
    """Steps whose rates and batches have the same class demand the same of the dealer."""
    plain = task.optimiser is Optimiser.sgd and not (task.momentum or task.weight_decay)
    return math.frexp(rate / batch)[1] if plain else 0


class SGD:
    """v = momentum * v + g + weight_decay * p;  p = p - rate * v, as `torch.optim.SGD`, g the mean gradient of a batch.

    With nesterov, p = p - rate * (g + weight_decay * p + momentum * v). Factors are rounded to `FACTOR_BITS` of
    fraction: a rate below 2**-25 would be zero. Before all that g is clipped, as the task says.
    """

    def __init__(self, parameters: Mapping[str, MPCTensor], task: TaskSettings) -> None:
        self._parameters, self._task = dict(parameters), task
        self._kept: dict[str, dict[str, torch.Tensor]] = {}
        self._steps = 0

    def step(self, batch: int, rate: float) -> None:
        """Update all parameters from gradients that are summed over `batch` images, in one to three rounds for all.

        Clipping by value takes a comparison more, by norm about thirty rounds. Gradients are then cleared. A parameter
        without one stays as it is. Values must stay below 2**(38 - fraction_bits) in size.
        """
        names = [name for name, p in self._parameters.items() if p.grad is not None]
        gradients = _aligned([self._parameters[name].grad for name in names])
        self._steps += 1
        with no_grad():
            steps = self._changes(names, gradients, batch, rate)
        for name, step in zip(names, steps, strict=True):
            p = self._parameters[name]
            p.share = p.share - step
            p.grad = None

    def state(self) -> dict[str, torch.Tensor]:
        """What training needs to go on, besides the parameters: int64 shares by name."""
        return {f"{kind}.{name}": share for kind, kept in self._kept.items() for name, share in kept.items()}

    def load(self, state: Mapping[str, torch.Tensor], steps: int) -> None:
        """Go on from the `state` after so many steps."""
        self._steps, self._kept = steps, {}
        for name, share in state.items():
            kind, _, parameter = name.partition(".")
            self._kept.setdefault(kind, {})[parameter] = share

    def _changes(self, names: list[str], gradients: _Aligned, batch: int, rate: float) -> list[torch.Tensor]:
        """What is taken from each parameter."""
        task = self._task
        clipped = task.clip_value is not None or task.clip_norm is not None
        if not (clipped or task.momentum or task.weight_decay):
            return _scaled(gradients, rate / batch)
        # The mean is taken in the same truncation as the sum with velocities, where nothing is clipped before.
        means = self._clipped_means(gradients, batch) if clipped else _truncate_together(*gradients)
        scale = 1.0 if clipped else 1 / batch
        velocities = self._velocities(names, means, scale)
        return _truncate_together([v * _factor(rate) for v in velocities], FACTOR_BITS)

    def _clipped_means(self, gradients: _Aligned, batch: int) -> list[torch.Tensor]:
        means = [g * _factor(1 / batch) for g in _truncate_together(*gradients)]
        return _clipped(_truncate_together(means, FACTOR_BITS), self._task)

    def _velocities(self, names: list[str], means: list[torch.Tensor], scale: float) -> list[torch.Tensor]:
        """The directions of all parameters; ``scale`` times ``means`` are their gradients."""
        task = self._task
        fresh = [mean * _factor(scale) for mean in means]
        if task.weight_decay:
            decay = _factor(task.weight_decay)
            fresh = [value + self._parameters[name].share * decay for name, value in zip(names, fresh, strict=True)]
        if not task.momentum:
            return _truncate_together(fresh, FACTOR_BITS)
        before = self._kept.get("velocity", {})
        sums = [
            value + before[name] * _factor(task.momentum) if name in before else value
            for name, value in zip(names, fresh, strict=True)
        ]
        velocities = _truncate_together(sums, FACTOR_BITS)
        self._kept["velocity"] = before | dict(zip(names, velocities, strict=True))
        if not task.nesterov:
            return velocities
        ahead = [value + v * _factor(task.momentum) for value, v in zip(fresh, velocities, strict=True)]
        return _truncate_together(ahead, FACTOR_BITS)


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


def _clipped(means: list[torch.Tensor], task: TaskSettings) -> list[torch.Tensor]:
    """Gradients clipped by value, then by their norm together."""
    flat = torch.cat([mean.flatten() for mean in means])
    if task.clip_value is not None:
        flat = _clamped(flat, task.clip_value)
    if task.clip_norm is not None:
        flat = _shortened(flat, task.clip_norm)
    return _parted(flat, means)


def _clamped(flat: torch.Tensor, bound: float) -> torch.Tensor:
    return share_of(gates.hardtanh(from_share(flat), -bound, bound))


def _shortened(flat: torch.Tensor, bound: float) -> torch.Tensor:
    """Shares (D,) scaled to a Euclidean length of ``bound`` at most, in units of which all is done.

    Right for lengths below 2**17 bounds, with 24 bits of fraction below 2**13. A length of 2**`COARSE_BITS` or more
    (2**6) is taken of values that are so much smaller: the squares of others may wrap, and are not chosen then.
    """
    ctx = gates.context()
    wide = replace(ctx, comparison=ctx.comparison.wide())
    fine = _times(flat, 1 / bound)
    # The square of 2**bits, with twice the session's bits of fraction, is below 2**62.
    coarse = truncate(ctx, fine, min(COARSE_BITS, 30 - precision()))
    lengths = truncate(ctx, torch.stack([_square_sum(ctx, x) for x in (fine, coarse)]), precision())
    one = 1 << precision() if ctx.first else 0
    small = compare.less_than_zero(wide, lengths[1:] - one)
    gaps = torch.cat([fine - coarse, lengths[:1] - lengths[1:]])
    chosen = torch.cat([coarse, lengths[1:]]) + _products(ctx, gaps, small)
    factor = share_of(inverse_root(wide, from_share(chosen[-1:]), OCTAVES))
    scaled = truncate(ctx, _products(ctx, chosen[:-1].clone(), factor), precision())
    return _times(scaled, bound)


def _products(ctx: Context, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Shares (D,) times one that is (1,); one round."""
    return bilinear.multiply(ctx, BilinearOp("matmul"), x.view(-1, 1), factor.view(1, 1)).flatten()


def _square_sum(ctx: Context, x: torch.Tensor) -> torch.Tensor:
    return bilinear.multiply(ctx, BilinearOp("matmul"), x.view(1, -1), x.view(-1, 1)).view(())


def _parted(flat: torch.Tensor, like: list[torch.Tensor]) -> list[torch.Tensor]:
    parts = flat.split([part.numel() for part in like])
    return [part.reshape(shape.shape).clone() for part, shape in zip(parts, like, strict=True)]


def _times(x: torch.Tensor, factor: float) -> torch.Tensor:
    """x times a public factor; one round."""
    return truncate(gates.context(), x * _factor(factor), FACTOR_BITS)


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
