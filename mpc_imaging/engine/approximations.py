"""Functions that fixed-point numbers can only approximate, tuned for what classification needs: few rounds.

CrypTen's exponential, (1 + x / 256)**256, is 5 % off at x = -5, and its logarithm 2 %; training with those does not
follow plaintext. Here they are the best polynomials on known intervals, with all powers of one doubling of the degree
in the same rounds, and reciprocals come from Goldschmidt's iteration, whose two products share their rounds. Works on
any CrypTen tensor, whatever protocol computes, with gradients. Errors are absolute; a unit is 2**-fraction_bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from mpc_imaging.engine import gates
from mpc_imaging.engine.tensors import crypten, from_share, precision, rescaled, scaled_bit
from mpc_imaging.protocols.selection import select
from mpc_imaging.randomness.demands import Output

if TYPE_CHECKING:
    from crypten.mpc import MPCTensor

# exp(-16) is below half a unit at 20 bits of fraction.
EXP_FLOOR = -16.0
EXP_SQUARINGS = 3
EXP_DEGREE = 7
LOG_DEGREE, LOG_RANGE = 7, 4.0
RECIPROCAL_DEGREE = 3
# Beyond this, Newton's step is worth its four rounds: it forgets earlier rounding, which Goldschmidt's steps keep.
ROUNDING_RANGE = 16.0
RECIPROCAL_RANGE = 128.0
COEFFICIENT_BITS = 24


def exp_nonpositive(x: MPCTensor) -> MPCTensor:
    """exp(x) for x <= 0: a polynomial for exp(t), t = max(x, -16) / 8, to the power of 8; error below 24 units."""
    u = _scaled_relu(x - EXP_FLOOR, EXP_SQUARINGS) - 1  # t + 1, between -1 and 1
    y = _combination(_powers(u, EXP_DEGREE), _exp_coefficients())
    for _ in range(EXP_SQUARINGS):
        y = y.square()
    return y


def reciprocal(s: MPCTensor, high: float) -> MPCTensor:
    """1 / s for 1 <= s <= high, by Goldschmidt's iteration (quadratic); error below 8 units.

    It starts from the cubic with the least relative error. A range beyond `RECIPROCAL_RANGE` is first narrowed by
    comparisons.
    """
    if high == 1:
        return 2 - s  # s is 1 but for rounding
    if high > RECIPROCAL_RANGE:
        cut = math.sqrt(high)
        above, drop = _Above(s, cut), 1 - 1 / cut
        y = reciprocal(s - above.times(s, drop), cut)
        return y - above.times(y, drop)
    start, rest, steps = _reciprocal_plan(float(high), 2.0 ** -precision())
    powers = _powers(_centred(s, high), RECIPROCAL_DEGREE + 1)
    y, h = _combination(powers, start), _combination(powers, rest)
    for step in range(steps):  # y s = 1 - h
        last = step == steps - 1
        first, *second = products([(y, h)] if last else [(y, h), (h, h)])
        y, h = y + first, second[0] if second else h
    return y * (2 - s * y) if high > ROUNDING_RANGE else y


@functools.lru_cache(maxsize=32)
def _reciprocal_plan(high: float, target: float) -> tuple[list[float], list[float], int]:
    """Polynomials q and 1 - s q in u = (2 s - high - 1) / (high - 1), and the steps to relative error `target`.

    1 - s q is Chebyshev's polynomial, scaled to be 1 at s = 0: the smallest of its degree on [1, high].
    """
    chebyshev = Chebyshev.basis(RECIPROCAL_DEGREE + 1).convert(kind=Polynomial)
    error = 1 / chebyshev(-(high + 1) / (high - 1))
    rest = error * chebyshev
    start = (1 - rest) // Polynomial([(high + 1) / 2, (high - 1) / 2])
    steps, left = 0, abs(error)
    while left > target:
        left, steps = left * left, steps + 1
    return start.coef.tolist(), rest.coef.tolist(), steps


def log(s: MPCTensor, high: float) -> MPCTensor:
    """log(s) for 1 <= s <= high: comparisons narrow the range until a polynomial serves; error below 1e-3 for 1000."""
    if high > LOG_RANGE:
        cut = math.sqrt(high)
        above = _Above(s, cut)
        return log(s - above.times(s, 1 - 1 / cut), cut) + scaled_bit(above.bit(), math.log(cut))
    return _combination(_powers(_centred(s, high), LOG_DEGREE), _log_coefficients(high))


def sigmoid(x: MPCTensor) -> MPCTensor:
    """1 / (1 + exp(-x)), from exp(-|x|), which is at most 1."""
    negative = x.lt(0)
    u = exp_nonpositive(-(x * (1 - 2 * negative)))
    inverse = reciprocal(u + 1, 2.0)
    # sigma(-|x|) = 1 - sigma(|x|)
    return inverse + negative * (1 - 2 * inverse)


def softmax_parts(x: MPCTensor, dim: int) -> tuple[MPCTensor, MPCTensor, MPCTensor]:
    """exp(x - max), its sum along `dim` (between 1 and the number of classes), and x - max."""
    shifted = x - x.max(dim, keepdim=True)[0]
    e = exp_nonpositive(shifted)
    return e, e.sum(dim, keepdim=True), shifted


def softmax(x: MPCTensor, dim: int) -> MPCTensor:
    """Probabilities along `dim`."""
    e, total, _ = softmax_parts(x, dim)
    return e * reciprocal(total, float(x.size(dim)))


def log_softmax(x: MPCTensor, dim: int) -> MPCTensor:
    """Logarithms of `softmax`."""
    _, total, shifted = softmax_parts(x, dim)
    return shifted - log(total, float(x.size(dim)))


def softplus(x: MPCTensor) -> MPCTensor:
    """log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))."""
    positive = x.relu()
    return positive + log(exp_nonpositive(x - positive * 2) + 1, 2.0)


# Steps


def _fused(*tensors: MPCTensor) -> bool:
    """Whether shares may be worked on directly: with our protocols, and where no gradient is recorded."""
    recording = crypten.CrypTensor.AUTOGRAD_ENABLED and any(tensor.requires_grad for tensor in tensors)
    return gates.installed() and not recording


class _Above:
    """The comparison s >= cut."""

    def __init__(self, s: MPCTensor, cut: float) -> None:
        self._fused = _fused(s)
        if self._fused:
            ctx = gates.context()
            self._sign = ctx.comparison.compare(ctx, (s - cut).share, Output.bit, 0)
        else:
            self._bit = s.ge(cut)

    def bit(self) -> MPCTensor:
        """1 where s >= cut, 0 elsewhere, without a scale."""
        return 1 - from_share(self._sign.bit(), 0) if self._fused else self._bit

    def times(self, x: MPCTensor, factor: float) -> MPCTensor:
        """The bit times x times a public factor; one round."""
        if not self._fused:
            return (x * factor) * self._bit
        share = x.share * round(factor * 2**COEFFICIENT_BITS)
        return from_share(select(gates.context(), self._sign, share, COEFFICIENT_BITS).relu())


def _scaled_relu(x: MPCTensor, bits: int) -> MPCTensor:
    """max(x, 0) / 2**bits, truncated in the rounds of the comparison."""
    if not _fused(x):
        return x.relu() / 2**bits
    return from_share(x.share, x.encoder._precision_bits + bits).relu()


def _centred(s: MPCTensor, high: float) -> MPCTensor:
    """[1, high] brought to [-1, 1]."""
    # Divided, not multiplied: the factor would have few bits of fraction.
    return (s - (high + 1) / 2) / ((high - 1) / 2)


def _fitted(function: Callable[[np.ndarray], np.ndarray], degree: int) -> list[float]:
    """Coefficients of a polynomial close to the best for `function` on [-1, 1], lowest first."""
    u = np.cos(np.linspace(0, math.pi, 50 * (degree + 1)))
    return Polynomial.fit(u, function(u), degree, domain=[-1, 1], window=[-1, 1]).coef.tolist()


@functools.cache
def _exp_coefficients() -> list[float]:
    """For exp(u - 1)."""
    return _fitted(lambda u: np.exp(u - 1), EXP_DEGREE)


@functools.lru_cache(maxsize=32)
def _log_coefficients(high: float) -> list[float]:
    """For log(s), with s between 1 and `high` where u is between -1 and 1."""
    return _fitted(lambda u: np.log1p((u + 1) / 2 * (high - 1)), LOG_DEGREE)


def _powers(u: MPCTensor, degree: int) -> list[MPCTensor]:
    """u, u**2 up to u**degree; two rounds for each doubling."""
    powers = [u]
    while len(powers) < degree:
        powers += products([(powers[-1], power) for power in powers[: degree - len(powers)]])
    return powers


def products(pairs: Sequence[tuple[MPCTensor, MPCTensor]]) -> list[MPCTensor]:
    """Products of tensors of one shape, in two rounds for all."""
    if len(pairs) == 1:
        return [pairs[0][0] * pairs[0][1]]
    product = crypten.stack([a for a, _ in pairs]) * crypten.stack([b for _, b in pairs])
    return [product[i] for i in range(len(pairs))]


def _combination(powers: Sequence[MPCTensor], coefficients: Sequence[float]) -> MPCTensor:
    """c0 + c1 u + c2 u**2 ...; one round."""
    constant, *factors = coefficients
    if not _fused(*powers):
        return sum((p * c for p, c in zip(powers, factors, strict=False)), start=constant)
    share = sum(p.share * round(c * 2**COEFFICIENT_BITS) for p, c in zip(powers, factors, strict=False))
    return rescaled(from_share(share, precision() + COEFFICIENT_BITS)) + constant
