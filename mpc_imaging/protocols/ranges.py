"""Whether values stayed in their range, told by one bit for all of them, and on shares also by where they come from.

Each block of values is projected on `PROJECTIONS` public random vectors of +1 and -1, which costs no communication, and
each projection is compared with both bounds on all bits. If one value of a block is out of bounds, at least one of the
two signs that it may have brings a projection out too, whatever the others are: so a violation escapes with probability
2**-40 for each block. (Two projections within the bounds that differ by 2 x need |x| <= bound, or |x| near 2**63: what
has wrapped around modulo 2**64 is anywhere, so that of bounds near 2**62 a single such value escapes with probability
1/2, k of them with probability below 2**-k / k!.) So few values that projections would save nothing are compared one by
one.

Projections of values in range are as large as their Euclidean norm: a block of n values passes, with probability
1 - 2**-34, if its root mean square is below bound / (7 sqrt(n)): 2**-9 of the bound for `BLOCK` values, 2**-8 for
`FINE_BLOCK` (DESIGN section 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness.demands import Output
from mpc_imaging.randomness.streams import Stream

if TYPE_CHECKING:
    from mpc_imaging.protocols.context import Context

BLOCK = 4096
FINE_BLOCK = 1024
PROJECTIONS = 40


@dataclass(frozen=True)
class Verdict:
    """Shares of 1 where all values were in range, else of 0: int64 (1 + places,), of all together and of each place."""

    places: tuple[str, ...]
    bits: torch.Tensor


class RangeCheck:
    """Projections of all values watched so far, and how many were out of bounds, until `verdict` tells.

    coins: public randomness, the same at all compute parties, drawn independently of the values. ``place``: where the
    values come from that are watched now, such as the name of a layer.
    """

    def __init__(self, coins: Stream) -> None:
        bits = np.unpackbits(coins.octets(PROJECTIONS * BLOCK // 8)).reshape(PROJECTIONS, BLOCK)
        self._signs = torch.from_numpy(1 - 2 * bits.astype(np.int64))
        self._projections: list[tuple[str, torch.Tensor, int]] = []
        self._violations: dict[str, torch.Tensor] = {}  # shares of their numbers
        self.place = "values"

    def watch(self, x: torch.Tensor, bound: int, place: str | None = None, block: int = BLOCK) -> None:
        """Note shares (int64, any shape) of values that should be at most `bound` in size, which is below 2**62.

        block: values that are projected together, at most `BLOCK`: fewer may be larger on average, and cost more.
        """
        flat = x.reshape(-1)
        whole = len(flat) // block * block
        for part in (flat[:whole].view(-1, block).t(), flat[whole:].view(-1, 1)):
            if part.numel():
                few = len(part) <= PROJECTIONS
                projection = part.clone() if few else self._signs[:, : len(part)] @ part
                self._projections.append((self.place if place is None else place, projection.reshape(-1), bound))

    def pending(self) -> bool:
        """Whether anything was watched since the last `verdict`."""
        return bool(self._projections or self._violations)

    def settle(self, ctx: Context) -> None:
        """Compare the projections noted so far, and count those out of bounds, on shares: one comparison, if any."""
        if not self._projections:
            return
        margins = []
        for _, projection, bound in self._projections:
            public = bound if ctx.first else 0
            margins += [projection + public, public - projection]
        counts = [2 * len(projection) for _, projection, _ in self._projections]
        outside = ctx.comparison.wide().compare(ctx, torch.cat(margins), Output.bit, 0).bit().split(counts)
        for (place, _, _), bits in zip(self._projections, outside, strict=True):
            self._violations[place] = self._violations.get(place, 0) + bits.sum()
        self._projections.clear()

    def verdict(self, ctx: Context) -> Verdict:
        """Of all values noted since the last call: one comparison, and one to settle.

        Raises `RandomnessError` if none was noted.
        """
        self.settle(ctx)
        if not self._violations:
            raise RandomnessError("nothing was watched whose range could be checked")
        counts = torch.stack([sum(self._violations.values()), *self._violations.values()])
        places, self._violations = tuple(self._violations), {}
        return Verdict(places, ctx.comparison.wide().compare(ctx, counts - int(ctx.first), Output.bit, 0).bit())
