"""The mesh of compute parties, as CrypTen's `Communicator` and as the protocols' `Channel`.

No objects are sent, since that would mean unpickling what a peer wrote. One call is one exchange, which is one round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.distributed import ReduceOp

from mpc_imaging.engine import compat
from mpc_imaging.errors import TransportError
from mpc_imaging.randomness.ring import from_octets, octets
from mpc_imaging.transport.frames import Kind
from mpc_imaging.transport.mesh import Mesh

compat.load()

from crypten.communicator import Communicator  # noqa: E402  (CrypTen can only be imported after compat.load)


def _tensors(payload: bytearray, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Received bytes as tensors shaped like those of `like`; they use the memory of `payload`, nobody else does."""
    parts = from_octets(payload, (len(payload) // 8,)).split([t.numel() for t in like])
    return [part.view(t.shape) for part, t in zip(parts, like, strict=True)]


class MeshCommunicator(Communicator):
    """Collective operations of int64 tensors between the compute parties, in the order of their ranks."""

    BYTES_PER_ELEMENT = 8

    def __init__(self, mesh: Mesh, compute: Sequence[str]) -> None:
        self._mesh = mesh
        self._names = list(compute)
        self.rank = self._names.index(mesh.me)
        self.parties = len(self._names)
        self._others = [name for name in self._names if name != mesh.me]
        self.reset_communication_stats()

    def get_world_size(self) -> int:
        """Number of compute parties."""
        return self.parties

    def get_rank(self) -> int:
        """This party's rank among the compute parties."""
        return self.rank

    def get_name(self) -> str:
        """This party's name."""
        return self._mesh.me

    def _everyone(self, buffers: list[memoryview]) -> list[bytearray]:
        """Swap buffers of the same sizes with all others in one round: of each other rank its buffers, joined."""
        total = sum(buffer.nbytes for buffer in buffers)
        received = self._mesh.exchange(
            Kind.OPENING, dict.fromkeys(self._others, buffers), dict.fromkeys(self._others, total)
        )
        return [received[name] for name in self._others]

    def _receive(self, src: int, size: int) -> bytearray:
        return self._mesh.exchange(Kind.OPENING, {}, {self._names[src]: size})[self._names[src]]

    def _in_place(self, op: ReduceOp) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        if op == ReduceOp.SUM:
            return torch.Tensor.add_
        if op == ReduceOp.BXOR:
            return torch.Tensor.bitwise_xor_
        raise TransportError(f"{self._mesh.me}: the mesh sums and exclusive-ors, not {op}")

    # protocols.context.Channel

    def open_ring(self, shares: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Sum of all parties' shares; one round."""
        return self.all_reduce(shares, batched=True)

    def open_bits(self, shares: np.ndarray) -> np.ndarray:
        """Exclusive-or of all parties' packed bits; one round."""
        shares = np.ascontiguousarray(shares)
        result = shares.copy()
        if shares.size:
            for payload in self._everyone([memoryview(shares).cast("B")]):
                result ^= np.frombuffer(payload, np.uint8).reshape(shares.shape)
        return result

    def swap(self, message: bytes) -> list[bytes]:
        """Every party's message, by rank; all have the same length. One round."""
        others = iter(self._everyone([memoryview(message)]))
        return [message if rank == self.rank else bytes(next(others)) for rank in range(self.parties)]

    def name_of(self, rank: int) -> str:
        """The name of the party of a rank."""
        return self._names[rank]

    # CrypTen's Communicator

    def all_reduce(self, tensor, op=ReduceOp.SUM, batched=False):
        """Sum (or exclusive-or) over all parties: a new tensor, or a list of them if `batched`."""
        add = self._in_place(op)
        tensors = list(tensor) if batched else [tensor]
        results = [t.clone() for t in tensors]
        for payload in self._everyone([octets(t) for t in tensors]):
            for result, part in zip(results, _tensors(payload, tensors), strict=True):
                add(result, part)
        return results if batched else results[0]

    def reduce(self, tensor, dst, op=ReduceOp.SUM, batched=False):
        """Like `all_reduce`, for one party only: the others send, learn nothing and get None."""
        add = self._in_place(op)
        tensors = list(tensor) if batched else [tensor]
        buffers = [octets(t) for t in tensors]
        if self.rank != dst:
            self._mesh.exchange(Kind.OPENING, {self._names[dst]: buffers}, {})
            return None
        results = [t.clone() for t in tensors]
        received = self._mesh.exchange(Kind.OPENING, {}, dict.fromkeys(self._others, sum(b.nbytes for b in buffers)))
        for payload in received.values():
            for result, part in zip(results, _tensors(payload, tensors), strict=True):
                add(result, part)
        return results if batched else results[0]

    def all_gather(self, tensor):
        """Every party's tensor, by rank."""
        others = iter([_tensors(payload, [tensor])[0] for payload in self._everyone([octets(tensor)])])
        return [tensor.clone() if rank == self.rank else next(others) for rank in range(self.parties)]

    def gather(self, tensor, dst):
        """Every party's tensor at one party, by rank; [None] at the others, as CrypTen has it."""
        if self.rank != dst:
            self._mesh.exchange(Kind.OPENING, {self._names[dst]: [octets(tensor)]}, {})
            return [None]
        received = self._mesh.exchange(Kind.OPENING, {}, dict.fromkeys(self._others, 8 * tensor.numel()))
        others = iter([_tensors(received[name], [tensor])[0] for name in self._others])
        return [tensor.clone() if rank == self.rank else next(others) for rank in range(self.parties)]

    def broadcast(self, tensor, src, group=None, batched=False):
        """One party's tensor (or list of them, if `batched`) to all, in place."""
        tensors = list(tensor) if batched else [tensor]
        if self.rank == src:
            self._mesh.exchange(Kind.OPENING, dict.fromkeys(self._others, [octets(t) for t in tensors]), {})
            return tensor
        size = sum(octets(t).nbytes for t in tensors)
        payload = self._receive(src, size)
        for t, part in zip(tensors, _tensors(payload, tensors), strict=True):
            t.copy_(part)
        return tensor

    def scatter(self, scatter_list, src, size=None, device=None):
        """One tensor to each party."""
        if self.rank == src:
            outgoing = {
                name: [octets(t)] for name, t in zip(self._names, scatter_list, strict=True) if name != self._mesh.me
            }
            self._mesh.exchange(Kind.OPENING, outgoing, {})
            return scatter_list[self.rank]
        result = torch.empty(size if size is not None else scatter_list[self.rank].size(), dtype=torch.int64)
        return _tensors(self._receive(src, result.nbytes), [result])[0]

    def send(self, tensor, dst):
        """One tensor to one party."""
        self._mesh.exchange(Kind.OPENING, {self._names[dst]: [octets(tensor)]}, {})

    def recv(self, tensor, src=None):
        """A tensor shaped like `tensor` from one party."""
        return _tensors(self._receive(src, 8 * tensor.numel()), [tensor])[0]

    def barrier(self) -> None:
        """Wait for all parties."""
        self._everyone([])

    def _no_objects(self, *args, **kwargs):
        raise TransportError(
            f"{self._mesh.me}: objects are never sent, since receiving one means unpickling it; "
            "pass size= to crypten.cryptensor"
        )

    send_obj = recv_obj = broadcast_obj = _no_objects

    def _not_asynchronous(self, *args, **kwargs):
        raise TransportError(f"{self._mesh.me}: the mesh has no isend and irecv; the protocols use exchange")

    isend = irecv = _not_asynchronous
