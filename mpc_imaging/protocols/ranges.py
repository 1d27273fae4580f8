"""Whether values stayed in their range, told by one bit for all of them, and on shares also by where they come from.

Each block of values is projected on `PROJECTIONS` public random vectors, which costs no communication, and each
projection p is compared with half the bound B, on both sides and on all bits. A coefficient is the difference of two
fair bits: 0 with probability 1/2, 1 and -1 with 1/4 each. Say that x is out of range, |x| > B, and all other
coefficients are fixed. If p is in [-B/2, B/2] with coefficient 0, it is not with 1 or -1, since x modulo 2**64 is no
difference of two such values. So at most half of the coefficient's probability passes, however many other values are
out of range, and a violation escapes all projections with probability at most 2**-`PROJECTIONS` a session. (Signs alone
would not do: an even number of values near 2**63 cancels under them.) The coins are tossed after the values are fixed,
afresh for each check (`coins`). So few values that projections would save nothing are compared one by one.

Projections of values in range are about as large as their Euclidean norm: 2 exp(-(B/2)**2 / sum(x**2)) bounds the
probability that one leaves [-B/2, B/2]. A block of n values passes, with probability 1 - 2**-34, if its root mean
square is below B / (10.6 sqrt(n)): 2**-9.4 of the bound for `BLOCK` values, 2**-8.4 for `FINE_BLOCK` (DESIGN,
section 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from mpc_imaging.errors import RandomnessError
from mpc_imaging.protocols.coins import Coins
from mpc_imaging.randomness.demands import Output
from mpc_imaging.randomness.streams import Stream

if TYPE_CHECKING:
    from mpc_imaging.protocols.context import Context

BLOCK = 4096
FINE_BLOCK = 1024
PROJECTIONS = 40
# Values (8 bytes each) that are kept until coins are tossed for them: after so many, at once.
KEPT = 1 << 22

# A bound on |x| below 2**62, or a share, int64 of shape (), of half of one that is secret.
Bound = int | torch.Tensor


# By place: shares (m,) of numbers that are all at least 0 if the values of the place were in range.
Margins = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Verdict:
    """Shares of 1 where all values were in range, else of 0: int64 (1 + places,), of all together and of each place."""

    places: tuple[str, ...]
    bits: torch.Tensor


@dataclass(frozen=True, repr=False)
class _Watched:
    """Shares of values, int64 (blocks, n), each row to be projected; of one column: to be compared as they are."""

    place: str
    values: torch.Tensor
    bound: Bound


def coefficients(coins: Stream, rows: int, projections: int = PROJECTIONS) -> torch.Tensor:
    """Return int64 (projections, rows) of differences of two fair bits each."""
    count = projections * rows
    bits = np.unpackbits(coins.octets(2 * -(-count // 8)).reshape(2, -1), axis=1, count=count).astype(np.int64)
    return torch.from_numpy((bits[0] - bits[1]).reshape(projections, rows))


def _join(margins: Margins, more: Margins) -> None:
    for place, values in more.items():
        known = margins.get(place)
        margins[place] = values if known is None else torch.cat([known, values])


class RangeCheck:
    """Watches values, and counts those out of bounds, until `verdict` tells.

    ``place``: where the values come from that are watched now, such as the name of a layer. projections: of each block.
    """

    def __init__(self, coins: Coins, projections: int = PROJECTIONS) -> None:
        self._coins, self._count = coins, projections
        self._watched: list[_Watched] = []
        self._kept = 0
        self._projected: Margins = {}
        self._given: Margins = {}
        self._violations: dict[str, torch.Tensor] = {}  # shares of their numbers
        self.place = "values"

    def watch(self, ctx: Context, x: torch.Tensor, bound: Bound, place: str | None = None, block: int = BLOCK) -> None:
        """Note shares (int64, any shape) of values that should be at most `bound` in size.

        block: values that are projected together, at most `BLOCK`: fewer may be larger on average, and cost more.
        """
        # A copy: what is watched is fixed now, whatever becomes of x.
        flat = x.detach().reshape(-1).clone()
        whole = len(flat) // block * block
        for part in (flat[:whole].view(-1, block), flat[whole:].view(1, -1)):
            if part.numel():
                values = part.view(-1, 1) if part.shape[1] <= self._count else part
                self._watched.append(_Watched(self.place if place is None else place, values, bound))
                self._kept += part.numel()
        if self._kept > KEPT:
            self.project(ctx)

    def pending(self) -> bool:
        """Return whether anything was watched since the last `verdict`."""
        return bool(self._watched or self._projected or self._given or self._violations)

    def project(self, ctx: Context) -> None:
        """Toss coins for the values watched so far, and keep their projections alone: one round, if there are any.

        Raises as `Coins.toss`.
        """
        most_values = max((each.values.shape[1] for each in self._watched), default=0)
        signs = coefficients(self._coins.toss(ctx.channel), most_values, self._count) if most_values > 1 else None
        for each in self._watched:
            size, bound = each.values.shape[1], each.bound
            few = size == 1
            # In this order torch multiplies integers twice as fast as in the other.
            projection = (each.values if few else each.values @ signs[:, :size].t()).reshape(-1)
            if isinstance(bound, torch.Tensor):
                most = 2 * bound if few else bound
            else:
                most = (bound if few else bound // 2) if ctx.first else 0
            _join(self._projected, {each.place: torch.cat([projection + most, most - projection])})
        self._watched.clear()
        self._kept = 0

    def take(self, ctx: Context) -> Margins:
        """Hand out what is to be compared of values watched since the last `take`: to `give` back, with others.

        So a part of a task that a dry run counts, and does not run, has its margins among its results.
        """
        self.project(ctx)
        margins, self._projected = self._projected, {}
        return margins

    def give(self, margins: Margins) -> None:
        """Take margins back, and keep them until `settle`."""
        _join(self._given, margins)

    def settle(self, ctx: Context) -> None:
        """Count on shares which of the values watched so far are out of bounds: a toss and a comparison, if any are."""
        self.give(self.take(ctx))
        margins, self._given = self._given, {}
        if not margins:
            return
        outside = ctx.comparison.wide().compare(ctx, torch.cat(list(margins.values())), Output.bit, 0).bit()
        for place, bits in zip(margins, outside.split([len(each) for each in margins.values()]), strict=True):
            self._violations[place] = self._violations.get(place, 0) + bits.sum()

    def verdict(self, ctx: Context) -> Verdict:
        """Tell of all values noted since the last call: one comparison, after one to settle.

        Raises `RandomnessError` if none was noted, and as `project`.
        """
        self.settle(ctx)
        if not self._violations:
            raise RandomnessError("nothing was watched whose range could be checked")
        counts = torch.stack([sum(self._violations.values()), *self._violations.values()])
        places, self._violations = tuple(self._violations), {}
        return Verdict(places, ctx.comparison.wide().compare(ctx, counts - int(ctx.first), Output.bit, 0).bit())
