"""Counts what a party of stock CrypTen sends over gloo, between two parties.

CrypTen's own counter adds what a party receives to what it sends. Here a call counts the payload that this party's gloo
puts on the wire, for n bytes of tensor (TCP's own counters agree, see tests/benchmarks/test_gloo.py):

    all_reduce              n     from each: a ring of two swaps halves, adds, and swaps the sums
    all_gather              n     from each
    reduce                  n     from the others; n / 2 from the receiver, whose half of the ring goes to them
    gather                  n     from the others
    broadcast, scatter      n     from the source
    send, isend             n
    *_obj                   4 bytes of length and the pickle, from the source
    recv, irecv, barrier    nothing

gloo's own headers (48 or 96 bytes a message) are left out, while our numbers hold our frames' headers.
A round is a call after which a party has waited for the other: every call but a send; a batched one is one round.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import torch

from mpc_imaging.engine import compat

compat.load()

from crypten.communicator import DistributedCommunicator  # noqa: E402  (needs compat.load)


def _size(tensors: torch.Tensor | Sequence[torch.Tensor]) -> int:
    parts = [tensors] if torch.is_tensor(tensors) else tensors
    return sum(part.numel() * part.element_size() for part in parts)


def _object_size(obj: Any) -> int:
    return 4 + len(pickle.dumps(obj))


class CountingCommunicator(DistributedCommunicator):
    """CrypTen's communicator, unchanged but for two counters: ``rounds`` and ``sent_bytes``."""

    rounds = 0
    sent_bytes = 0

    @classmethod
    def install(cls) -> CountingCommunicator:
        """Make the communicator of this process, which `crypten.init` has made, count from now on."""
        communicator = DistributedCommunicator.get()
        communicator.__class__ = cls
        return communicator

    def _count(self, sent: int, rounds: int = 1) -> None:
        self.sent_bytes += sent
        self.rounds += rounds

    def all_reduce(self, input, *args, **kwargs):
        """Counted."""
        self._count(_size(input))
        return super().all_reduce(input, *args, **kwargs)

    def all_gather(self, tensor):
        """Counted."""
        self._count(_size(tensor))
        return super().all_gather(tensor)

    def reduce(self, input, dst, *args, **kwargs):
        """Counted."""
        size = _size(input)
        self._count(size // 2 if self.rank == dst else size)
        return super().reduce(input, dst, *args, **kwargs)

    def gather(self, tensor, dst):
        """Counted."""
        self._count(0 if self.rank == dst else _size(tensor))
        return super().gather(tensor, dst)

    def broadcast(self, input, src, *args, **kwargs):
        """Counted."""
        self._count(_size(input) if self.rank == src else 0)
        return super().broadcast(input, src, *args, **kwargs)

    def scatter(self, scatter_list, src, *args, **kwargs):
        """Counted."""
        others = [part for rank, part in enumerate(scatter_list) if rank != src] if self.rank == src else []
        self._count(_size(others))
        return super().scatter(scatter_list, src, *args, **kwargs)

    def send(self, tensor, dst):
        """Counted."""
        self._count(_size(tensor), rounds=0)
        return super().send(tensor, dst)

    def isend(self, tensor, dst):
        """Counted."""
        self._count(_size(tensor), rounds=0)
        return super().isend(tensor, dst)

    def recv(self, tensor, src=None):
        """Counted."""
        self._count(0)
        return super().recv(tensor, src)

    def irecv(self, tensor, src=None):
        """Counted."""
        self._count(0)
        return super().irecv(tensor, src)

    def barrier(self):
        """Counted."""
        self._count(0)
        return super().barrier()

    def send_obj(self, obj, dst, group=None):
        """Counted."""
        self._count(_object_size(obj), rounds=0)
        return super().send_obj(obj, dst, group)

    def recv_obj(self, src, group=None):
        """Counted."""
        self._count(0)
        return super().recv_obj(src, group)

    def broadcast_obj(self, obj, src, group=None):
        """Counted."""
        self._count(_object_size(obj) if self.rank == src else 0)
        return super().broadcast_obj(obj, src, group)
