"""Differentially private gradients on shares: each image's gradient is clipped, and noise is added to their sum.

After Abadi et al. (CCS 2016), with what shares need. The backward pass gives, for each layer, its input and the
gradient of its output. Of a convolution the gradient of each group of images (one, or a micro-batch) is materialised; a
linear layer's is a sum of outer products, whose squared norm comes from Gram matrices: sum of <x_j, x_k> <d_j, d_k>.

    1. f = min(1, bound / norm), approximately, from the squared norm;
    2. d' = f d for linear layers, f for the others: what will be added up is now fixed, in integers;
    3. verified: the squared norm of exactly these integers is at most bound**2. A group that fails counts as zero, so
       nothing depends on step 1 but how much of a gradient is left. Squared norms are only right if no sum has wrapped
       around modulo 2**64: random projections with public coefficients -1, 0 and 1 show that entries are small enough;
    4. the sum over groups, in integers without rounding, plus noise.

`mpc_imaging.protocols.noise` derives how far one image moves that sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from mpc_imaging.engine import gates, gradients as autograd
from mpc_imaging.engine.roots import inverse_root
from mpc_imaging.engine.tensors import from_share, no_grad, precision, rescaled
from mpc_imaging.errors import ModelError
from mpc_imaging.protocols import bilinear, noise
from mpc_imaging.protocols.context import Context
from mpc_imaging.protocols.noise import ClippedSum, HeadSum, integer_sensitivity
from mpc_imaging.protocols.truncate import truncate
from mpc_imaging.randomness.demands import Output
from mpc_imaging.randomness.ring import BilinearOp

if TYPE_CHECKING:
    from crypten.mpc import MPCTensor

    from mpc_imaging.randomness.streams import Stream

Noise = Callable[[int, float], torch.Tensor]
MATMUL, MUL = BilinearOp("matmul"), BilinearOp("mul")
# f aims this much below the bound, relative to its square: for the errors of its root and of rounding.
MARGIN = 2.0**-7
# A sum of squares below this, whatever is in it, may be truncated.
MOST_SQUARES = 2.0**61


class HeadGradients:
    """For a model of one linear layer over the shared inputs: residuals are clipped to [-1, 1], inputs by their owner.

    An owner that does not clip only weakens the guarantee for its own images.
    """

    def __init__(self, parameters: Mapping[str, MPCTensor], total: HeadSum, multiplier: float, draw: Noise) -> None:
        self._parameters, self._total = dict(parameters), total
        self._multiplier, self._draw = multiplier, draw

    def backward(self, logits: MPCTensor, gradient: MPCTensor, images: torch.Tensor) -> None:
        """Give the parameters their noisy gradients, summed over the batch.

        logits: of the batch, (N, K), with their graph. gradient: summed loss by logits, (N, K). images: the share that
        the model was given. Raises `ModelError` unless the model is one linear layer over that.
        """
        with no_grad():
            residuals = _clamped(gradient)
        with autograd.recording() as layers:
            logits.backward(residuals)
        _require_covered(self._parameters, layers, logits.size(0))
        layer = layers[0]
        whole = len(layers) == 1 and torch.equal(layer.input.share.flatten(), images.flatten())
        if not whole or not torch.equal(layer.grad.share, residuals.share):
            raise ModelError(["privacy.input_norm is for models of one linear layer over the inputs; write null"])
        bits = 2 * precision()
        sums = {id(layer.kernel): bilinear.multiply(gates.context(), MATMUL, layer.grad.share.t(), layer.input.share)}
        if layer.bias is not None:
            sums[id(layer.bias)] = layer.grad.share.sum(0) << precision()
        deviation = self._multiplier * integer_sensitivity(self._total.sensitivity, bits)
        _assign(self._parameters, sums, bits, deviation, self._draw)


class ClippedGradients:
    """For linear layers and convolutions: gradients of groups of ``micro_batch`` images are clipped together.

    coins: public randomness, the same at all compute parties, drawn independently of the data.
    """

    def __init__(
        self, parameters: Mapping[str, MPCTensor], total: ClippedSum, multiplier: float, coins: Stream, draw: Noise
    ) -> None:
        self._parameters, self._total = dict(parameters), total
        self._multiplier, self._coins, self._draw = multiplier, coins, draw
        self._signs: torch.Tensor | None = None

    def backward(self, logits: MPCTensor, gradient: MPCTensor, images: torch.Tensor) -> None:
        """As `HeadGradients.backward`. Raises `ModelError` for parameters of other layers."""
        with autograd.recording() as layers:
            logits.backward(gradient)
        _require_covered(self._parameters, layers, logits.size(0))
        flat = [layer for layer in layers if layer.op == MATMUL]
        others = [layer for layer in layers if layer.op != MATMUL]
        if (len(flat), bool(others)) != (self._total.linear, self._total.materialised):
            raise ModelError(["privacy=dp takes weights of linear layers (K, F) and of convolutions (O, C, kh, kw)"])
        ctx = replace(gates.context(), comparison=gates.context().comparison.wide())
        with no_grad():
            batch = _Batch(ctx, self._total, flat, others)
            sums = batch.clipped(self._projector)
        deviation = self._multiplier * integer_sensitivity(self._total.sensitivity, batch.bits)
        _assign(self._parameters, sums, batch.bits, deviation, self._draw)

    def _projector(self, length: int) -> torch.Tensor:
        """Public coefficients -1, 0 and 1 (length, PROJECTIONS), the same in all steps."""
        if self._signs is None or len(self._signs) < length:
            halves = np.unpackbits(self._coins.octets(2 * noise.PROJECTIONS * math.ceil(length / 8)))
            bits = halves[: 2 * noise.PROJECTIONS * length].reshape(2, length, -1).astype(np.int64)
            self._signs = torch.from_numpy(bits[0] - bits[1])
        return self._signs[:length]


def _clamped(gradient: MPCTensor) -> MPCTensor:
    """Residuals in [-1, 1], exactly: on all bits, whatever the session compares with."""
    ctx, one = gates.context(), 1 << precision()
    x = rescaled(gradient).share
    public = one if ctx.first else 0
    sign = ctx.comparison.wide().compare(ctx, torch.stack([x + public, x - public]), Output.value, 0)
    low, high = sign.relu()
    return from_share(low - high - public)


def _require_covered(parameters: Mapping[str, MPCTensor], layers: list[autograd.Recorded], images: int) -> None:
    """Each parameter once in a linear layer or a convolution of images in one batch, a row for each image."""
    seen = [id(p) for layer in layers for p in (layer.kernel, layer.bias) if p is not None]
    problems = [
        f"{name}: privacy=dp clips gradients of linear layers and convolutions; freeze it, or write privacy=none"
        for name, parameter in parameters.items()
        if seen.count(id(parameter)) != 1
    ]
    for layer in layers:
        if layer.op.name not in ("matmul", "conv2d") or (layer.op == MATMUL and layer.input.dim() != 2):
            problems.append(f"a layer over {tuple(layer.input.size())}: privacy=dp takes linear layers over (N, F)")
        if layer.grad.size(0) != images:  # an image of several rows would be clipped several times, and add as often
            rows = f"a layer of {layer.grad.size(0)} rows for {images} images"
            problems.append(f"{rows}: privacy=dp takes layers over whole images; write privacy=none")
    if problems:
        raise ModelError(problems)


def _assign(
    parameters: Mapping[str, MPCTensor], sums: Mapping[int, torch.Tensor], bits: int, deviation: float, draw: Noise
) -> None:
    """Add this party's noise, in units, to its share of the sums (by ``id`` of the parameter; ``bits`` of fraction)."""
    total = sum(p.share.numel() for p in parameters.values())
    added = draw(total, deviation).split([p.share.numel() for p in parameters.values()])
    for parameter, values in zip(parameters.values(), added, strict=True):
        parameter.grad = from_share(sums[id(parameter)] + values.view(parameter.share.shape), bits)


@dataclass
class _Linear:
    """A linear layer in one batch: x (R, F) and d (R, K), rounded to few bits, and d at the session's precision."""

    recorded: autograd.Recorded
    x: torch.Tensor
    d: torch.Tensor
    exact: torch.Tensor
    x_gram: torch.Tensor | None = None


class _Batch:
    """One batch of N images in G groups of m rows: row j * G + b belongs to group b, and zeros fill the last row."""

    def __init__(
        self, ctx: Context, total: ClippedSum, flat: list[autograd.Recorded], others: list[autograd.Recorded]
    ) -> None:
        self._ctx, self._total = ctx, total
        self._m, self._f, self._e = total.micro_batch, precision(), total.exponent
        rows = (flat + others)[0].grad.size(0)
        self._groups = math.ceil(rows / self._m)
        self._residual_bits = noise.RESIDUAL_BITS - self._e
        self._gradient_bits = noise.GRADIENT_BITS - self._e
        self._norm_bits = noise.NORM_BITS - 2 * self._e
        # All sums are brought to so many bits of fraction.
        self.bits = max(self._f, self._gradient_bits + self._f, self._residual_bits + noise.INPUT_BITS)
        self._others = others
        self._flat = [self._linear(layer) for layer in flat]
        self._materialised = self._gradients() if others else None

    def clipped(self, projector: Callable[[int], torch.Tensor]) -> dict[int, torch.Tensor]:
        """Share of the sum of clipped gradients, for each parameter by its ``id``; int64 with `bits` of fraction."""
        squares = self._squares
        before = [layer.d for layer in self._flat]
        norms = self._outer_norms(before) + (0 if squares is None else self._truncated(squares, *self._norm_shift))
        factor = self._factor(norms)
        residuals = [self._scaled(layer.exact, factor) for layer in self._flat]
        valid = self._verified(factor, residuals, projector)
        return self._sums(self._multiply(MUL, factor, valid), [self._rows_times(d, valid) for d in residuals])

    # What enters

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        missing = self._groups * self._m - len(x)
        return F.pad(x, [0, 0] * (x.dim() - 1) + [0, missing]) if missing else x

    def _linear(self, layer: autograd.Recorded) -> _Linear:
        exact = self._padded(layer.grad.share)
        x = self._truncated(self._padded(layer.input.share), self._f, noise.INPUT_BITS)
        return _Linear(layer, x, self._truncated(exact, self._f, self._residual_bits), exact)

    def _gradients(self) -> torch.Tensor:
        """Gradients (G, D) of convolutions, kernels and biases, summed within each group."""
        parts = []
        for layer in self._others:
            x, d = (self._padded(t.share) for t in (layer.input, layer.grad))
            params = dict(layer.op.params)
            params["groups"] *= self._groups  # one group of channels for each group of images
            op = BilinearOp.of("conv2d_weight", kernel=tuple(layer.kernel.size()[2:]), **params)
            together = [t.view(self._m, -1, *t.shape[2:]) for t in (x, d)]
            parts.append(self._multiply(op, *together).view(self._groups, -1))
            if layer.bias is not None:
                parts.append(d.sum((2, 3)).view(self._m, self._groups, -1).sum(0) << self._f)
        return self._truncated(torch.cat(parts, 1), 2 * self._f, self._gradient_bits)

    # Norms

    @cached_property
    def _squares(self) -> torch.Tensor | None:
        """Squared norms (G, 1) of materialised gradients, exact, with twice their bits."""
        g = self._materialised
        return None if g is None else self._multiply(MATMUL, g.unsqueeze(1), g.unsqueeze(2)).view(-1, 1)

    @property
    def _norm_shift(self) -> tuple[int, int]:
        return 2 * self._gradient_bits, self._norm_bits

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        """(G, m, m) inner products of each group's rows of x (R, F)."""
        x = x.view(self._m, self._groups, -1)
        return self._multiply(MATMUL, x.permute(1, 0, 2), x.permute(1, 2, 0))

    def _outer_norms(self, residuals: list[torch.Tensor]) -> torch.Tensor:
        """Squared norms (G, 1) of all linear layers' gradients together, for these gradients of their outputs."""
        total = torch.zeros(self._groups, 1, dtype=torch.int64)
        for layer, d in zip(self._flat, residuals, strict=True):
            if layer.x_gram is None:
                layer.x_gram = self._gram(layer.x)
            x = self._truncated(layer.x_gram, 2 * noise.INPUT_BITS, noise.INPUT_NORM_BITS)
            if layer.recorded.bias is not None and self._ctx.first:
                x = x + (1 << noise.INPUT_NORM_BITS)
            bits = noise.RESIDUAL_NORM_BITS - 2 * self._e
            product = self._multiply(MUL, x, self._truncated(self._gram(d), 2 * self._residual_bits, bits))
            product = self._truncated(product, noise.INPUT_NORM_BITS + bits, self._norm_bits)
            total = total + product.sum((1, 2)).view(-1, 1)
        return total

    # Clipping

    def _factor(self, norms: torch.Tensor) -> torch.Tensor:
        """min(1, bound / norm) at the session's precision, (G, 1), if the norm is below 2**(MOST_GRADIENT / 2)."""
        relative = 4.0**self._e / self._total.bound**2 * (1 + MARGIN)
        spare = self._f - noise.NORM_BITS
        norm = from_share(norms << spare) if spare >= 0 else rescaled(from_share(norms, noise.NORM_BITS))
        return inverse_root(self._ctx, norm * relative, noise.MOST_GRADIENT // 2 + 1).share

    def _scaled(self, d: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return self._truncated(self._rows_times(d, factor), 2 * self._f, self._residual_bits)

    def _rows_times(self, d: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """Each group's rows of d (R, K) times its factor (G, 1)."""
        rows = d.view(self._m, self._groups, -1)
        return self._multiply(MUL, rows, factor.unsqueeze(0)).view(d.shape)

    def _verified(
        self, factor: torch.Tensor, residuals: list[torch.Tensor], projector: Callable[[int], torch.Tensor]
    ) -> torch.Tensor:
        """Share of 1 (G, 1) where a group's clipped gradient is within the bound and nothing wrapped, else of 0."""
        norms = self._outer_norms(residuals)
        margins = [factor, self._public(1 << self._f) - factor]
        parts = [t.view(self._m, self._groups, -1).transpose(0, 1).reshape(self._groups, -1) for t in residuals]
        parts += [
            layer.x.view(self._m, self._groups, -1).transpose(0, 1).reshape(self._groups, -1) for layer in self._flat
        ]
        for layer, d in zip(self._flat, residuals, strict=True):
            for gram, bits, most in (
                (layer.x_gram, 2 * noise.INPUT_BITS, noise.MOST_INPUT),
                (self._gram(d), 2 * self._residual_bits, noise.MOST_RESIDUAL + 2 * self._e),
            ):
                margins.append(self._public(1 << (bits + most)) - gram.diagonal(dim1=1, dim2=2))
        if self._squares is not None:
            most = noise.MOST_GRADIENT + 2 * self._e
            margins.append(self._public(1 << (2 * self._gradient_bits + most)) - self._squares)
            parts.append(self._materialised)
            # f (f n), each truncated; below 2**62 while f and n are as the other margins want them.
            once = self._multiply(MUL, factor, self._truncated(self._squares, *self._norm_shift))
            twice = self._multiply(MUL, factor, truncate(self._ctx, once, self._f))
            norms = norms + truncate(self._ctx, twice, self._f)
        margins.append(self._public(math.floor(self._total.bound**2 * 2.0**self._norm_bits)) - norms)
        margins += self._small(torch.cat(parts, 1), projector)
        failed = self._negative(torch.cat(margins, 1)).sum(1, keepdim=True)
        return self._negative(failed - self._public(1))

    def _small(self, entries: torch.Tensor, projector: Callable[[int], torch.Tensor]) -> list[torch.Tensor]:
        """Margins (G, PROJECTIONS) of the bounds on projections of each group's entries (G, D).

        Of two projections that differ in one coefficient by one, both are within the bound B only if that entry is
        below 2 B in size; so one that is not escapes a projection with probability 1/2, and D (2 B)**2 = MOST_SQUARES.
        """
        projections = entries @ projector(entries.shape[1])
        bound = self._public(math.floor(math.sqrt(MOST_SQUARES / entries.shape[1]) / 2))
        return [bound - projections, bound + projections]

    def _sums(self, factor: torch.Tensor, residuals: list[torch.Tensor]) -> dict[int, torch.Tensor]:
        sums: dict[int, torch.Tensor] = {}

        def put(parameter: MPCTensor, value: torch.Tensor, bits: int) -> None:
            sums[id(parameter)] = value.view(parameter.share.shape) << (self.bits - bits)

        for layer, d in zip(self._flat, residuals, strict=True):
            product = self._multiply(MATMUL, d.t(), layer.x)
            put(layer.recorded.kernel, product, self._residual_bits + noise.INPUT_BITS)
            if layer.recorded.bias is not None:
                put(layer.recorded.bias, d.sum(0), self._residual_bits)
        if self._materialised is not None:
            parameters = [p for layer in self._others for p in (layer.kernel, layer.bias) if p is not None]
            product = self._multiply(MATMUL, factor.t(), self._materialised).view(-1)
            for parameter, part in zip(parameters, product.split([p.share.numel() for p in parameters]), strict=True):
                put(parameter, part, self._gradient_bits + self._f)
        return sums

    # Arithmetic

    def _public(self, value: int) -> int:
        return value if self._ctx.first else 0

    def _multiply(self, op: BilinearOp, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return bilinear.multiply(self._ctx, op, x, y)

    def _truncated(self, x: torch.Tensor, bits: int, wanted: int) -> torch.Tensor:
        """From `bits` of fraction to those wanted; at most one round."""
        return x << (wanted - bits) if wanted >= bits else truncate(self._ctx, x, bits - wanted)

    def _negative(self, x: torch.Tensor) -> torch.Tensor:
        return self._ctx.comparison.compare(self._ctx, x, Output.bit, 0).bit()
