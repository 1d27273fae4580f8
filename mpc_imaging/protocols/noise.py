"""Differential privacy's noise on shares: discrete Gaussians on an integer sum, added by every party.

Each compute party adds all of the noise that the guarantee needs, so it holds against the others together: to them the
opened sum has at least this party's noise. Whoever sees no party's share faces the sum of all parties' noise.

How far one image moves the sum. A sum of clipped gradients is over integer vectors, one for each image or micro-batch,
that were checked as they are added: nothing is rounded between the check and the noise, so rounding adds nothing to the
sensitivity. (Rounding every summand afterwards would add up to the square root of the dimension, in units.) What is
rounded is the check: `ClippedSum.error` bounds how much longer a vector may be than it seemed. A head's sum is over
exact products too, but there the owner rounds the image that it clipped: `HeadSum` counts half a unit for each input.
An owner's update is rounded after the check, and checked with few bits: `UpdateSum` counts both.
Adjacent data sets differ in one image, whose vector is replaced by zero.

Sampling: OpenDP's discrete Gaussian (Canonne, Kamath and Steinke, NeurIPS 2020), exact; its release brings OpenSSL as
the source of random bytes, which it seeds from the operating system. 17 microseconds for each coordinate on one core:
0.35 s for 20,000.
"""

from __future__ import annotations

import functools
import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from mpc_imaging.errors import PrivacyError

# Bits of fraction, for values relative to 2**ClippedSum.exponent where they scale with the clipping bound.
GRADIENT_BITS = 14  # of a materialised gradient
RESIDUAL_BITS = 18  # of a gradient that reaches a linear layer
INPUT_BITS = 12  # of what enters a linear layer
NORM_BITS = 20  # of squared norms that are compared
INPUT_NORM_BITS, RESIDUAL_NORM_BITS = 18, 26  # of the factors of a linear layer's squared norm
# What a squared norm may be, as a power of two: of inputs of a linear layer, of clipped residuals, of gradients.
MOST_INPUT, MOST_RESIDUAL, MOST_GRADIENT = 12, 2, 14
# A vector that is too large for integers passes its check with probability 2**-PROJECTIONS.
PROJECTIONS = 40
# Of an owner's update in units of the length allowed: by how much it may be longer than 1 as it is verified, once
# scaled, and the largest factor that may scale it.
CLIPPING_ERROR, MOST_FACTOR = 2.0**-7, 1 + 2.0**-4


@dataclass(frozen=True)
class ClippedSum:
    """A sum over images of gradients, clipped in groups of ``micro_batch``: their mean has length ``clip`` at most.

    linear: layers whose gradients are outer products; materialised: whether there are others (convolutions).
    """

    clip: float
    micro_batch: int
    linear: int
    materialised: bool

    @property
    def bound(self) -> float:
        """Length of a group's summed gradient at most."""
        return self.clip * self.micro_batch

    @property
    def exponent(self) -> int:
        """The bound is above 2**(exponent - 1), up to 2**exponent."""
        return math.ceil(math.log2(self.bound))

    @property
    def error(self) -> float:
        """How much longer a group's vector can be than `bound`, relative to it.

        A truncation is off by less than a unit. A linear layer's squared norm is a sum of products X D over the pairs
        of a group's images: X below 2**MOST_INPUT + 1 with INPUT_NORM_BITS, D below 2**MOST_RESIDUAL with
        RESIDUAL_NORM_BITS, and the product is truncated to NORM_BITS. The other layers' f (f n), f <= 1, is truncated
        three times.
        """
        x, d = 2.0**-INPUT_NORM_BITS, 2.0**-RESIDUAL_NORM_BITS
        product = (2**MOST_INPUT + 1) * d + 2**MOST_RESIDUAL * x + x * d + 2.0**-NORM_BITS
        excess = self.linear * self.micro_batch**2 * product + 3 * self.materialised * 2.0**-NORM_BITS
        return math.sqrt(1 + excess * 4.0**self.exponent / self.bound**2) - 1

    @property
    def sensitivity(self) -> float:
        """How far one image moves the sum over images: of a micro-batch, from one clipped vector to any other."""
        return self.bound * (1 + self.error) * (1 if self.micro_batch == 1 else 2)


@dataclass(frozen=True)
class HeadSum:
    """A sum over images of outer products of residuals (K,), each in [-1, 1], with inputs (F,) and a one for the bias.

    Inputs have length ``input_norm`` at most, before each is rounded to ``fraction_bits``.
    """

    input_norm: float
    features: int
    classes: int
    fraction_bits: int

    @property
    def error(self) -> float:
        """How much longer an image's vector can be for the rounding of its inputs, relative to it."""
        return self.sensitivity / (math.hypot(self.input_norm, 1) * math.sqrt(self.classes)) - 1

    @property
    def sensitivity(self) -> float:
        """How far one image moves the sum."""
        rounding = math.sqrt(self.features) * 2.0 ** -(self.fraction_bits + 1)
        return math.hypot(self.input_norm + rounding, 1) * math.sqrt(self.classes)


@dataclass(frozen=True)
class UpdateSum:
    """A sum of owners' updates (``size``,), each counted as often as its owner has images (``counts``).

    An update u, in units of the length allowed and with ``fraction_bits``, is scaled by a factor f on shares, as
    `mpc_imaging.engine.updates` does: what is verified is 0 <= f <= MOST_FACTOR and f (f s) <= 1 + 2 CLIPPING_ERROR,
    with s = <u, u>. Adjacent data sets differ in one owner, whose update is replaced by zero.
    """

    counts: tuple[int, ...]
    size: int
    fraction_bits: int

    @property
    def length(self) -> float:
        """Euclidean length of one scaled update at most, in units of the length allowed.

        A truncation is off by less than a unit: s, f s and f (f s) are truncated, so that f**2 <u, u> is below what is
        verified and 1 + f + f**2 units. Then each entry of f u is truncated.
        """
        unit = 2.0**-self.fraction_bits
        checked = 1 + 2 * CLIPPING_ERROR + (1 + MOST_FACTOR + MOST_FACTOR**2) * unit
        return math.sqrt(checked) + math.sqrt(self.size) * unit

    @property
    def sensitivity(self) -> float:
        """How far one owner moves the sum."""
        return max(self.counts) * self.length


def integer_sensitivity(sensitivity: float, bits: int) -> int:
    """The sensitivity of a sum with ``bits`` of fraction, in units."""
    return math.ceil(sensitivity * 2.0**bits)


def require_sampler() -> None:
    """Raises `PrivacyError` where the sampler is not installed."""
    _opendp()


def gaussian(count: int, scale: float) -> torch.Tensor:
    """int64 (count,) of discrete Gaussian noise with this standard deviation, in units.

    Raises `PrivacyError` if OpenDP is not installed, or for a scale that int64 cannot hold.
    """
    if not 0 < scale < 2.0**59:
        raise PrivacyError(f"noise of 2**{math.log2(scale) if scale > 0 else 0:.0f} units; write a lower privacy.clip")
    return torch.tensor(_measurement(scale)([0] * count), dtype=torch.int64)


class NoiseAhead:
    """`gaussian`, drawn in another thread for the next call while a party computes and waits for its peers."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._wanted: tuple[int, float] | None = None
        self._next: Future[torch.Tensor] | None = None

    def __repr__(self) -> str:
        return "NoiseAhead(noise hidden)"

    def __call__(self, count: int, scale: float) -> torch.Tensor:
        """As `gaussian`; no draw is given twice."""
        if self._next is None or self._wanted != (count, scale):
            self._next = self._pool.submit(gaussian, count, scale)
        values = self._next.result()
        self._wanted, self._next = (count, scale), self._pool.submit(gaussian, count, scale)
        return values


@functools.lru_cache(maxsize=4)
def _measurement(scale: float) -> Any:
    dp = _opendp()
    return dp.m.make_gaussian(dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64"), scale=scale)


@functools.cache
def _opendp() -> Any:
    try:
        import opendp.prelude as dp
    except ImportError as error:
        raise PrivacyError("privacy=dp needs OpenDP's sampler; write pip install 'mpc-imaging[dp]'") from error
    dp.enable_features("contrib")
    return dp
