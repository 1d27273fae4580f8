"""Runs one function at every compute party, as threads with a simulated dealer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import BrokenBarrierError
from typing import Any

import pytest
import torch

from mpc_imaging.protocols.context import Context, ThreadChannel
from mpc_imaging.protocols.fss import KeyComparison
from mpc_imaging.protocols.sign import Comparison
from mpc_imaging.protocols.tables import TableComparison
from mpc_imaging.randomness.demands import Demand
from mpc_imaging.randomness.provider import SimulatedProvider
from mpc_imaging.randomness.streams import Stream, fresh_key

# For `pytest.mark.parametrize`: two parties with keys, two to five with tables.
KEYS = pytest.param(2, KeyComparison(), id="fss-2")
FAMILIES = [KEYS, *(pytest.param(n, TableComparison(), id=f"tables-{n}") for n in (2, 3, 4, 5))]
FEW_FAMILIES = [KEYS, pytest.param(3, TableComparison(), id="tables-3")]


def share(x: torch.Tensor, parties: int) -> list[torch.Tensor]:
    """Additive shares of an int64 tensor: tensors of their own, alike at all parties, and no views."""
    stream = Stream(fresh_key())
    parts = [stream.ring(x.shape).clone() for _ in range(parties - 1)]
    return [*parts, (x - sum(parts, torch.zeros_like(x))).contiguous()]


def contexts(parties: int, comparison: Comparison | None = None) -> list[Context]:
    """Connected contexts, which compare with tables unless told otherwise."""
    keys = [fresh_key() for _ in range(parties)]
    comparison = comparison or TableComparison()
    return [
        Context(channel, SimulatedProvider(channel.rank, parties, keys), comparison)
        for channel in ThreadChannel.group(parties)
    ]


def demands(ctx: Context) -> list[Demand]:
    """What a party asked its dealer for."""
    return list(ctx.provider.log._pending)


def total(parts: list[Any]) -> Any:
    """The sum of what the parties returned: tensors, or tuples of them."""
    if isinstance(parts[0], tuple):
        return tuple(map(total, map(list, zip(*parts, strict=True))))
    return sum(parts[1:], parts[0])


def run_in(ctxs: list[Context], function: Callable[..., Any], *inputs: torch.Tensor) -> list[Any]:
    """What ``function(ctx, *shares)`` returns at each party. If one fails the others need not wait for it."""
    shares = [share(x, len(ctxs)) for x in inputs]

    def party(i: int, ctx: Context) -> Any:
        try:
            return function(ctx, *(s[i] for s in shares))
        except BaseException:
            ctx.channel._barrier.abort()
            raise

    with ThreadPoolExecutor(len(ctxs)) as pool:
        jobs = [pool.submit(party, i, ctx) for i, ctx in enumerate(ctxs)]
        errors = [job.exception() for job in jobs]
    causes = [error for error in errors if error and not isinstance(error, BrokenBarrierError)]
    for error in [*causes, *filter(None, errors)]:
        raise error
    return [job.result() for job in jobs]


def run(
    function: Callable[..., Any], parties: int, *inputs: torch.Tensor, comparison: Comparison | None = None
) -> tuple[Any, list[Context]]:
    """Results of ``function(ctx, *shares)`` of all parties, added up (`total`); and the contexts."""
    ctxs = contexts(parties, comparison)
    return total(run_in(ctxs, function, *inputs)), ctxs
