"""Whether values stayed in the range that a narrow comparison needs, told by one bit for all of them.

Each block of up to `BLOCK` values is projected on `PROJECTIONS` public random vectors of +1 and -1, which costs no
communication, and each projection is compared with both bounds on 64 bits. If one value of a block is out of bounds,
at least one of the two signs that it may have brings a projection out too, whatever the others are: so a violation
escapes with probability 2**-40 for each block. (Two projections within the bounds that differ by 2 x need
|x| < bound, or |x| near 2**63, which truncation excludes.) Projections of values in range are as large as their
Euclidean norm: a block passes if its root mean square is below about 2**-9 of the bound (DESIGN section 5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mpc_imaging.errors import RandomnessError
from mpc_imaging.protocols.fss import KeyComparison
from mpc_imaging.randomness.demands import Output
from mpc_imaging.randomness.streams import Stream

if TYPE_CHECKING:
    from mpc_imaging.protocols.context import Context

BLOCK = 4096
PROJECTIONS = 40


class RangeCheck:
    """Projections of all values compared so far, and how many were out of bounds, until `in_range` tells.

    coins: public randomness, the same at all compute parties, drawn independently of the values.
    """

    def __init__(self, coins: Stream) -> None:
        bits = np.unpackbits(coins.octets(PROJECTIONS * BLOCK // 8)).reshape(PROJECTIONS, BLOCK)
        self._signs = torch.from_numpy(1 - 2 * bits.astype(np.int64))
        self._projections: list[tuple[torch.Tensor, int]] = []
        self._violations: torch.Tensor | None = None  # a share of their number

    def watch(self, x: torch.Tensor, bound: int) -> None:
        """Note shares (int64, any shape) of values that should be at most `bound` in size."""
        flat = x.reshape(-1)
        whole = len(flat) // BLOCK * BLOCK
        for part in (flat[:whole].view(-1, BLOCK).t(), flat[whole:].view(-1, 1)):
            if part.numel():
                self._projections.append(((self._signs[:, : len(part)] @ part).reshape(-1), bound))

    def pending(self) -> bool:
        """Whether anything was compared since the last `in_range`."""
        return bool(self._projections) or self._violations is not None

    def settle(self, ctx: Context) -> None:
        """Compare the projections noted so far, and count those out of bounds, on shares. Two rounds, if any."""
        if not self._projections:
            return
        margins = []
        for projection, bound in self._projections:
            public = bound if ctx.first else 0
            margins += [projection + public, public - projection]
        self._projections.clear()
        count = _EXACT.compare(ctx, torch.cat(margins), Output.bit, 0).bit().sum()
        self._violations = count if self._violations is None else self._violations + count

    def in_range(self, ctx: Context) -> torch.Tensor:
        """Share of 1 if all values noted since the last call are in range, else of 0: an int64 scalar.

        Two rounds, and two to settle. Raises `RandomnessError` if none was noted.
        """
        self.settle(ctx)
        if self._violations is None:
            raise RandomnessError("nothing was compared whose range could be checked")
        violations, self._violations = self._violations, None
        return _EXACT.compare(ctx, (violations - int(ctx.first)).view(1), Output.bit, 0).bit().view(())


_EXACT = KeyComparison()
