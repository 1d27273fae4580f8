"""The result of a comparison with zero, whichever protocol found it, and what follows from it without more rounds.

A comparison ends with the bit b = [x < 0] masked by the dealer's rho and opened as beta. With shares of a value v and
of rho * v, these cost nothing more:

    [b]   = beta + (1 - 2 beta) [rho]
    [b v] = beta [v] + (1 - 2 beta) [rho v]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from mpc_imaging.protocols.arrays import tensor
from mpc_imaging.randomness.demands import Output
from mpc_imaging.randomness.fields import BitsRef

if TYPE_CHECKING:
    from mpc_imaging.protocols.context import Context


@dataclass(frozen=True, repr=False)
class Sign:
    """The secret bit b = [x < 0] of each element, and perhaps a value v; all arrays are flat, (N,) uint64."""

    shape: torch.Size
    first: bool
    sources: tuple[BitsRef, ...]  # the demands that rho came with, in order
    beta: np.ndarray  # public: b ^ rho
    rho: np.ndarray
    v: np.ndarray | None = None
    rho_v: np.ndarray | None = None

    def bits(self) -> Sign:
        """The comparison without the value, for another one later (`selection.select`)."""
        return replace(self, v=None, rho_v=None)

    def bit(self) -> torch.Tensor:
        """Share of b as an integer 0 or 1, shaped like x."""
        b = self._turned() * self.rho
        if self.first:
            b += self.beta
        return tensor(b, self.shape)

    @classmethod
    def of_nothing(cls, shape: torch.Size, first: bool) -> Sign:
        """For an x without elements."""
        return cls(shape, first, (), *[np.empty(0, np.uint64)] * 4)

    def value(self) -> torch.Tensor:
        """Share of v: x itself, or x truncated."""
        return tensor(self.v, self.shape)

    def selected(self) -> torch.Tensor:
        """Share of b * v."""
        product = self._turned() * self.rho_v
        product += self.beta * self.v
        return tensor(product, self.shape)

    def relu(self) -> torch.Tensor:
        """Share of max(v, 0): v - b * v."""
        product = self._turned() * self.rho_v
        kept = np.uint64(1) - self.beta
        kept *= self.v
        kept -= product
        return tensor(kept, self.shape)

    def _turned(self) -> np.ndarray:
        """1 - 2 beta."""
        turned = self.beta * np.uint64(2**64 - 2)
        turned += np.uint64(1)
        return turned


class Comparison(Protocol):
    """A family of protocols for [x < 0]."""

    def compare(self, ctx: Context, x: torch.Tensor, output: Output, shift: int) -> Sign:
        """Compare int64 shares of any shape with zero.

        `Output.truncated`: v is x / 2**shift, stochastically rounded (`truncate`), and b its sign. Else v is x, and b
        may be the sign of x / 2**shift alone, rounded so: it is then unreliable for |x| < 2**shift.
        """

    def wide(self) -> Comparison:
        """The same on all bits, where values are public that are too large for narrow comparisons."""
