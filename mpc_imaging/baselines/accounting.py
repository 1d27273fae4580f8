"""Epsilon of noise that was added again and again, by dp-accounting's privacy loss distributions.

The batch schedule is public, so an image is known to be in exactly one batch of each epoch: no amplification by
subsampling. Batches are disjoint, and noise is added to each: an epoch is one Gaussian mechanism for any image, epochs
compose. Noise is discrete, which is no less private than the continuous noise that is accounted for, up to far less
than ``delta`` (Canonne, Kamath and Steinke, NeurIPS 2020).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from mpc_imaging.errors import PrivacyError

# With less noise than this, of all mechanisms together, epsilon is above 30: no guarantee, and slow to account for.
LEAST_SIGMA = 0.2


@dataclass(frozen=True)
class Mechanism:
    """Gaussian noise, ``count`` times: of standard deviation ``sigma`` times the sensitivity.

    slack: probability with which the sensitivity does not hold, over all times.
    """

    sigma: float
    count: int
    slack: float = 0.0


def epsilon(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """Epsilon at this delta of all mechanisms together; infinite without noise.

    With probability ``slack`` anything may happen, which adds (1 + exp(epsilon)) * slack to delta; that part is left
    out of the delta at which the rest is accounted. Raises `PrivacyError` if dp-accounting is not installed.
    """
    used = [mechanism for mechanism in mechanisms if mechanism.count]
    if not used:
        return 0.0
    if not all(mechanism.sigma > 0 for mechanism in used):
        return math.inf
    slack = sum(mechanism.slack for mechanism in used)
    # Gaussian mechanisms compose exactly to one (Dong, Roth and Su, JRSS-B 2022, corollary 2), which is faster to
    # account for than many.
    together = sum(mechanism.count / mechanism.sigma**2 for mechanism in used) ** -0.5
    first = _one(together, delta)
    rest = delta - 2 * (1 + math.exp(min(first, 700.0))) * slack
    if not slack or rest <= 0:
        return math.inf if slack else first
    # Twice the part at `first` is enough, while epsilon grows by less than log 2.
    second = _one(together, rest)
    return second if second < first + math.log(2) else math.inf


@functools.lru_cache(maxsize=256)
def _one(sigma: float, delta: float) -> float:
    if sigma < LEAST_SIGMA:
        return math.inf
    try:
        import dp_accounting
        from dp_accounting.pld import PLDAccountant
    except ImportError as error:
        raise PrivacyError("privacy=dp needs dp-accounting; write pip install 'mpc-imaging[dp]'") from error
    accountant = PLDAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(sigma))
    return float(accountant.get_epsilon(delta))
