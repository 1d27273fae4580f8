"""The dealer's pool: makes the messages of demands ahead of their use, in order, on as many cores as it is given.

One worker is a thread of the dealer's own process, which works while another message is being sent. More are processes,
since Python runs one thread at a time between the small steps of a comparison key: threads do not get faster. They are
spawned, not forked, and hand over their work in shared memory.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from multiprocessing.shared_memory import SharedMemory
from types import TracebackType
from typing import Any, NamedTuple

from mpc_imaging.errors import RandomnessError
from mpc_imaging.hardening import harden
from mpc_imaging.randomness import correlations
from mpc_imaging.randomness.demands import Demand
from mpc_imaging.randomness.streams import NumberedStreams

# What is made ahead and held in memory, at most, and one message more.
AHEAD_BYTES = 1 << 28
AHEAD_DEMANDS = 256
# Below this, handing work to another process takes longer than the work.
SMALL_BYTES = 1 << 18

# For each rank the buffers to send, in order.
Messages = list[list[memoryview]]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class DealingPool:
    """Use as a context manager; `deal` may be called for any number of sessions, one after the other."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or cores()
        self._memory = _Memory()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dealer")
        self._processes: Executor | None = None
        if self.workers > 1:
            context = multiprocessing.get_context("spawn")
            self._processes = ProcessPoolExecutor(self.workers, context, _begin_work)
            for _ in range(self.workers):
                self._processes.submit(int)  # starts them now, while the parties prepare themselves

    def __enter__(self) -> DealingPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._thread.shutdown(cancel_futures=True)
        if self._processes is not None:
            self._processes.shutdown(cancel_futures=True)
        self._memory.close()

    def deal(self, demands: Iterable[tuple[int, Demand]], keys: Sequence[bytes], key_id: bytes) -> Iterator[Messages]:
        """The messages of numbered demands, in order; demands without one are left out.

        `keys[i]` is the key that the dealer shares with the party of rank i. Raises `RandomnessError` if a worker dies.
        """
        pending: deque[_Pending] = deque()
        held = 0
        try:
            for index, demand in demands:
                octets = len(keys) * demand.common_octets() + correlations.correction_octets(demand)
                if not octets:
                    continue
                while pending and (held + octets > AHEAD_BYTES or len(pending) >= AHEAD_DEMANDS):
                    held -= pending[0].octets
                    yield self._finished(pending.popleft())
                pending.append(self._start(demand, index, octets, keys, key_id))
                held += octets
            while pending:
                yield self._finished(pending.popleft())
        except BrokenProcessPool:
            raise RandomnessError("a process of the dealer's pool has died; is there enough memory?") from None
        finally:
            for entry in pending:
                self._discard(entry)

    def _start(self, demand: Demand, index: int, octets: int, keys: Sequence[bytes], key_id: bytes) -> _Pending:
        if self._processes is None or octets < SMALL_BYTES:
            streams = [NumberedStreams(key) for key in keys]
            return _Pending(octets, self._thread.submit(correlations.deal, demand, index, streams, key_id))
        memory = self._memory.take(octets)
        arguments = (correlations.to_json(demand), index, list(keys), key_id, memory.name)
        return _Pending(octets, self._processes.submit(_deal_into, *arguments), memory)

    def _finished(self, entry: _Pending) -> Messages:
        result = entry.future.result()
        # Copied, so that nobody who still sends it can keep the memory from being used again.
        messages = result if entry.memory is None else _copies(entry.memory, result)
        self._discard(entry)
        return messages

    def _discard(self, entry: _Pending) -> None:
        if not entry.future.cancel():
            entry.future.exception()  # until then the worker may write into the memory
        if entry.memory is not None:
            self._memory.give(entry.memory)


class _Pending(NamedTuple):
    octets: int
    future: Future[Any]
    memory: SharedMemory | None = None


class _Memory:
    """Shared memory that is used again and again: fresh pages cost as much as what is written into them."""

    def __init__(self) -> None:
        self._free: list[SharedMemory] = []
        self._all: list[SharedMemory] = []

    def take(self, octets: int) -> SharedMemory:
        """Memory of at least so many bytes, and not of more than twice as many."""
        for memory in self._free:
            if octets <= memory.size <= 2 * octets:
                self._free.remove(memory)
                return memory
        memory = SharedMemory(create=True, size=octets)
        self._all.append(memory)
        return memory

    def give(self, memory: SharedMemory) -> None:
        """Take it back."""
        self._free.append(memory)
        while sum(kept.size for kept in self._free) > AHEAD_BYTES:
            oldest = self._free.pop(0)
            self._all.remove(oldest)
            oldest.close()
            oldest.unlink()

    def close(self) -> None:
        """Give all of it back to the system."""
        for memory in self._all:
            memory.close()
            memory.unlink()


def _copies(memory: SharedMemory, sizes: list[int]) -> Messages:
    messages, start = [], 0
    for size in sizes:
        messages.append([memoryview(bytes(memory.buf[start : start + size]))] if size else [])
        start += size
    return messages


# In a worker: the memory that it has attached.
_attached: dict[str, SharedMemory] = {}
MAX_ATTACHED = 64


def _deal_into(demand: list[Any], index: int, keys: list[bytes], key_id: bytes, name: str) -> list[int]:
    """Write all messages of a demand into shared memory, one after another; their sizes. Runs in a worker."""
    if name not in _attached:
        if len(_attached) >= MAX_ATTACHED:
            _attached.pop(next(iter(_attached))).close()
        _attached[name] = SharedMemory(name)
    room = _attached[name].buf
    streams = [NumberedStreams(key) for key in keys]
    sizes, start = [], 0
    for message in correlations.deal(correlations.from_json(demand), index, streams, key_id):
        sizes.append(sum(len(view) for view in message))
        for view in message:
            room[start : start + len(view)] = view
            start += len(view)
    return sizes


def _begin_work() -> None:
    """A worker holds keys as the dealer does, and ends with it, however that one dies."""
    harden()
    parent = multiprocessing.parent_process()

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch-parent").start()
