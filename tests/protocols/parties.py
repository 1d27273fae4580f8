"""Runs one function at every compute party, as threads with a simulated dealer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from mpc_imaging.protocols.context import Context, ThreadChannel
from mpc_imaging.randomness.provider import SimulatedProvider
from mpc_imaging.randomness.streams import Stream, fresh_key


def share(x: torch.Tensor, parties: int) -> list[torch.Tensor]:
    """Additive shares of an int64 tensor."""
    stream = Stream(fresh_key())
    parts = [stream.ring(x.shape) for _ in range(parties - 1)]
    return [*parts, x - sum(parts, torch.zeros_like(x))]


def contexts(parties: int) -> list[Context]:
    """Connected contexts."""
    keys = [fresh_key() for _ in range(parties)]
    return [
        Context(channel, SimulatedProvider(channel.rank, parties, keys)) for channel in ThreadChannel.group(parties)
    ]


def run(function: Callable[..., Any], parties: int, *inputs: torch.Tensor) -> tuple[Any, list[Context]]:
    """Results of ``function(ctx, *shares)`` of all parties: tensors are added up, tuples element by element."""
    ctxs = contexts(parties)
    shares = [share(x, parties) for x in inputs]
    with ThreadPoolExecutor(parties) as pool:
        jobs = [pool.submit(function, ctx, *(s[i] for s in shares)) for i, ctx in enumerate(ctxs)]
        results = [job.result() for job in jobs]
    if isinstance(results[0], tuple):
        return tuple(sum(parts[1:], parts[0]) for parts in zip(*results, strict=True)), ctxs
    return sum(results[1:], results[0]), ctxs
