"""Functions that fixed-point numbers can only approximate, tuned for what classification needs.

CrypTen's exponential, (1 + x / 256)**256, is 5 % off at x = -5, and its logarithm 2 %; training with those does not
follow plaintext. Here the exponential takes two more terms, and the reciprocal and the logarithm start from the best
polynomial on a known interval. Works on any CrypTen tensor, whatever protocol computes. Errors are absolute; a unit is
2**-fraction_bits.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from mpc_imaging.engine.tensors import precision, scaled_bit

if TYPE_CHECKING:
    from crypten.mpc import MPCTensor

# exp(-16) is below half a unit at 20 bits of fraction.
EXP_FLOOR = -16.0
EXP_SQUARINGS = 5
LOG_DEGREE, LOG_RANGE = 6, 4.0
# Beyond this the linear start's error comes so close to 1 that rounding can make Newton's method diverge.
RECIPROCAL_RANGE = 128.0


def exp_nonpositive(x: MPCTensor) -> MPCTensor:
    """exp(x) for x <= 0: (1 + t + t**2 / 2 + t**3 / 6)**32 with t = max(x, -16) / 32; error below 6e-6 + 96 units."""
    t = ((x - EXP_FLOOR).relu() + EXP_FLOOR) / 2**EXP_SQUARINGS
    y = t * (t * (t / 6 + 0.5) + 1) + 1
    for _ in range(EXP_SQUARINGS):
        y = y.square()
    return y


@functools.lru_cache(maxsize=32)
def _reciprocal_plan(high: float, target: float) -> tuple[float, float, int]:
    """Start a - b s for 1 / s on [1, high] (Chebyshev), and how many Newton steps reach relative error `target`."""
    z = (high + 1) / (high - 1)
    error = 1 / (2 * z * z - 1)
    # 1 - s (a - b s) = error * T2((2 s - high - 1) / (high - 1))
    b = 8 * error / (high - 1) ** 2
    a = 8 * error * (high + 1) / (high - 1) ** 2
    steps = 0
    while error > target:
        error, steps = error * error, steps + 1
    return a, b, steps


def reciprocal(s: MPCTensor, high: float) -> MPCTensor:
    """1 / s for 1 <= s <= high, by Newton's method (quadratic) from the best line; error below 4 units.

    A range beyond `RECIPROCAL_RANGE` is first narrowed by comparisons.
    """
    if high == 1:
        return 2 - s  # s is 1 but for rounding
    if high > RECIPROCAL_RANGE:
        cut = math.sqrt(high)
        above, drop = s.ge(cut), 1 - 1 / cut
        y = reciprocal(s - (s * drop) * above, cut)
        return y - (y * drop) * above
    a, b, steps = _reciprocal_plan(float(high), 2.0 ** -precision())
    # Divided, not multiplied: b has few bits of fraction.
    y = a - s / (1 / b)
    for _ in range(steps):
        y = y * (2 - s * y)
    return y


@functools.lru_cache(maxsize=32)
def _log_coefficients(high: float) -> list[float]:
    """Polynomial for log(s) on [1, high] in u = (s - 1) / (high - 1), fitted at Chebyshev's points."""
    u = (1 - np.cos(np.linspace(0, math.pi, 400))) / 2
    fit = np.polynomial.Polynomial.fit(u, np.log1p(u * (high - 1)), LOG_DEGREE, domain=[0, 1], window=[0, 1])
    return fit.coef.tolist()


def log(s: MPCTensor, high: float) -> MPCTensor:
    """log(s) for 1 <= s <= high: comparisons narrow the range until a polynomial serves; error below 1e-3 for 1000."""
    if high > LOG_RANGE:
        cut = math.sqrt(high)
        above = s.ge(cut)
        return log(s - (s * (1 - 1 / cut)) * above, cut) + scaled_bit(above, math.log(cut))
    coefficients = _log_coefficients(float(high))
    u = (s - 1) / (high - 1)
    y = u * coefficients[-1] + coefficients[-2]
    for c in reversed(coefficients[:-2]):
        y = y * u + c
    return y


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
