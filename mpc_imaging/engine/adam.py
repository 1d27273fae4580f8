"""Adam and AMSGrad on shares, with torch's definitions.

    m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g**2
    p = p - rate sqrt(c2) / c1 * m / (sqrt(v) + eps sqrt(c2)),  c1 = 1 - beta1**t, c2 = 1 - beta2**t public

(Kingma and Ba, ICLR 2015; Reddi et al., ICLR 2018 for AMSGrad.) Gradients may be small, and their squares are smaller:
moments have scales of their own, which follow eps. With s = `_scale(eps)`, about 2**21, v counts in units of 1 / s**2,
and m in units of 1 / (32 s). A root of v is found over all of that range (`octaves`); the same scaling then brings m to
where a product is precise: |m| < 8 sqrt(v) while beta1**2 < beta2.

Right for eps of 1e-5 to 0.1, while an entry of the mean gradient, over the last steps its root mean square, is below
2**30 / s: 400 for eps = 1e-3, 60 for 1e-5. To v is added (eps / 32)**2. Each step then is that of torch to 0.005 of the
rate (AMSGrad: 0.03, eps = 1e-5: 0.06).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from mpc_imaging.choices import Optimiser
from mpc_imaging.engine import approximations as approx, gates
from mpc_imaging.engine.octaves import ROOT_BITS, root, scaled
from mpc_imaging.engine.optimiser import EXCESS_BITS, FACTOR_BITS, SGD, SMALL_FACTOR_BITS, _Aligned, _truncate_together
from mpc_imaging.engine.tensors import from_share, precision, share_of
from mpc_imaging.protocols import bilinear, compare
from mpc_imaging.protocols.context import Context
from mpc_imaging.protocols.truncate import truncate
from mpc_imaging.randomness.ring import BilinearOp

MUL = BilinearOp("mul")
# Bits of fraction of mean gradients.
MEAN_BITS = 26
# To v is added the square of eps / `FLOOR`, so that its root is never much smaller than eps.
FLOOR = 32
# m has so many more bits than the root of v.
FIRST_BITS = 5
# Bits that v loses before it is multiplied by 1 - beta2; and those by which the larger of two may be mistaken.
DECAY_BITS, MAX_BITS = 12, 4
# sqrt(x) + e is at most sqrt(17) + 32 sqrt(1.5).
DENOMINATOR = 44.0


class Adam(SGD):
    """`torch.optim.Adam` with weight decay, and its AMSGrad: see the module. All parameters share their rounds."""

    def _changes(self, names: list[str], gradients: _Aligned, batch: int, rate: float) -> list[torch.Tensor]:
        if not names:
            return []
        ctx, betas = gates.context(), self._task.betas
        shapes = [self._parameters[name].share.shape for name in names]
        sizes = [shape.numel() for shape in shapes]
        gradient = self._decayed(names, torch.cat([g.flatten() for g in self._means(gradients, batch)]))
        kinds = ["m", "v", *(["largest"] if self._task.optimiser is Optimiser.amsgrad else [])]
        moments = self._moments(ctx, {kind: self._moment(kind, names, gradient) for kind in kinds}, gradient)
        direction = self._direction(ctx, moments)
        correction = math.sqrt(1 - betas[1] ** self._steps) / (1 - betas[0] ** self._steps)
        step = truncate(ctx, direction * round(rate * correction * 2**FACTOR_BITS), FACTOR_BITS)
        for kind, value in moments.items():
            parts = (part.view(shape) for part, shape in zip(value.split(sizes), shapes, strict=True))
            self._kept.setdefault(kind, {}).update(zip(names, parts, strict=True))
        return [part.view(shape) for part, shape in zip(step.split(sizes), shapes, strict=True)]

    def _moment(self, kind: str, names: list[str], like: torch.Tensor) -> torch.Tensor:
        kept = self._kept.get(kind)
        return torch.zeros_like(like) if kept is None else torch.cat([kept[name].flatten() for name in names])

    def _means(self, gradients: _Aligned, batch: int) -> list[torch.Tensor]:
        """Mean gradients at `MEAN_BITS`, clipped."""
        if self._task.clip_value is not None or self._task.clip_norm is not None:
            return [g << (MEAN_BITS - precision()) for g in self._clipped_means(gradients, batch)]
        if precision() > EXCESS_BITS:
            gradients = _Aligned(_truncate_together(*gradients), 0)
        bits = precision() + gradients.excess
        shift = SMALL_FACTOR_BITS + bits - MEAN_BITS + math.frexp(batch)[1]
        factor = round(2.0 ** (shift + MEAN_BITS - bits) / batch)
        return _truncate_together([g * factor for g in gradients.shares], shift)

    def _decayed(self, names: list[str], gradient: torch.Tensor) -> torch.Tensor:
        decay = self._task.weight_decay
        if not decay:
            return gradient
        factor = round(decay * 2.0 ** (FACTOR_BITS + MEAN_BITS - precision()))
        weights = torch.cat([self._parameters[name].share.flatten() for name in names])
        return truncate(gates.context(), (gradient << FACTOR_BITS) + weights * factor, FACTOR_BITS)

    def _moments(
        self, ctx: Context, moments: Mapping[str, torch.Tensor], gradient: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The new moments; gradient: share (D,) of the mean gradient, at `MEAN_BITS`."""
        (beta1, beta2), (unit, _) = self._task.betas, _scale(self._task.eps)
        unit *= 2.0 ** (FACTOR_BITS - MEAN_BITS)
        first = moments["m"] * round(beta1 * 2**FACTOR_BITS) + gradient * round((1 - beta1) * unit * 2**FIRST_BITS)
        # The square of this is (1 - beta2) g**2 already.
        weighted = gradient * round(math.sqrt(1 - beta2) * unit)
        first, weighted = (part.clone() for part in _truncate_together([first, weighted], FACTOR_BITS))
        second, shift = moments["v"], math.floor(1.5 - math.log2(1 - beta2))
        lost = truncate(ctx, second, DECAY_BITS) * round((1 - beta2) * 2.0 ** (DECAY_BITS + shift))
        second = second - truncate(ctx, lost, shift) + bilinear.multiply(ctx, MUL, weighted, weighted)
        result = {"m": first, "v": second}
        if "largest" in moments:
            wide = replace(ctx, comparison=ctx.comparison.wide())
            result["largest"], _ = compare.maximum(wide, moments["largest"], second, MAX_BITS)
        return result

    def _direction(self, ctx: Context, moments: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Share (D,) of m / (sqrt(v) + eps sqrt(c2)) at the session's precision."""
        left, (unit, floor) = 1 - self._task.betas[1] ** self._steps, _scale(self._task.eps)
        # In early steps v is small: a public power of four makes up for most of that.
        up = math.floor(-math.log2(left) / 2)
        second = moments.get("largest", moments["v"]) << 2 * up
        u, a = scaled(ctx, second + (floor if ctx.first else 0))
        first = bilinear.multiply(ctx, MUL, moments["m"] << up, a)
        eps = self._task.eps * math.sqrt(left) * 2**up * unit
        bits = ROOT_BITS + FIRST_BITS - precision()
        first, small = (part.clone() for part in _truncate_together([first, a * round(eps * 2**FIRST_BITS)], bits))
        inverse = approx.reciprocal(root(u) + from_share(small), DENOMINATOR)
        return truncate(ctx, bilinear.multiply(ctx, MUL, first, share_of(inverse)), precision())


def _scale(eps: float) -> tuple[float, int]:
    """s, and (s eps / 32)**2: 1.5 times a power of 16, far from where comparisons may err."""
    power = max(1, round(math.log(2**21 * eps / FLOOR, 4)))
    floor = 3 * 16**power // 2
    return math.sqrt(floor) * FLOOR / eps, floor
