"""The mesh of compute parties, as CrypTen's `Communicator` and as the protocols' `Channel`.

No objects are sent, since that would mean unpickling what a peer wrote. One call is one exchange, which is one round.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mpc_imaging.engine import compat
from mpc_imaging.errors import TransportError
from mpc_imaging.transport.frames import Kind
from mpc_imaging.transport.mesh import Mesh

compat.load()

from crypten.communicator import Communicator  # noqa: E402  (CrypTen can only be imported after compat.load)


def _buffer(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(-1).numpy()).cast("B")


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

    def _everyone(self, buffers: list[memoryview], sizes: list[int]) -> list[list[bytearray | memoryview]]:
        """Swap buffers with all others in one round: for each rank its buffers joined."""
        total = sum(sizes)
        received = self._mesh.exchange(
            Kind.OPENING, dict.fromkeys(self._others, buffers), dict.fromkeys(self._others, total)
        )
        return [received[name] for name in self._others]

    # protocols.context.Channel

    def open_ring(self, shares: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Sum of all parties' shares; one round."""
        buffers = [_buffer(share) for share in shares]
        results = [share.clone() for share in shares]
        for payload in self._everyone(buffers, [b.nbytes for b in buffers]):
            words, start = (
                torch.frombuffer(payload, dtype=torch.int64) if payload else torch.empty(0, dtype=torch.int64),
                0,
            )
            for result in results:
                result += words[start : start + result.numel()].view(result.shape)
                start += result.numel()
        return results

    def open_bits(self, shares: np.ndarray) -> np.ndarray:
        """Exclusive-or of all parties' packed bits; one round."""
        shares = np.ascontiguousarray(shares)
        result = shares.copy()
        for payload in self._everyone([memoryview(shares).cast("B")], [shares.nbytes]):
            result ^= np.frombuffer(payload, np.uint8).reshape(shares.shape)
        return result

    # CrypTen's Communicator

    def all_reduce(self, tensor, op=torch.distributed.ReduceOp.SUM, batched=False):
        """Sum (or exclusive-or) over all parties."""
        tensors = list(tensor) if batched else [tensor]
        if op == torch.distributed.ReduceOp.BXOR:
            flat = [t.contiguous() for t in tensors]
            joined = np.concatenate([t.view(-1).numpy().view(np.uint8) for t in flat])
            words = torch.from_numpy(self.open_bits(joined).view(np.int64))
            results = [part.view(t.shape) for part, t in zip(words.split([t.numel() for t in flat]), flat, strict=True)]
        elif op == torch.distributed.ReduceOp.SUM:
            results = self.open_ring(tensors)
        else:
            raise TransportError(f"{self._mesh.me}: the mesh sums and exclusive-ors, not {op}")
        return results if batched else results[0]

    def reduce(self, tensor, dst, op=torch.distributed.ReduceOp.SUM, batched=False):
        """Like `all_reduce`, for one party only: the others send and learn nothing."""
        tensors = list(tensor) if batched else [tensor]
        buffers = [_buffer(t) for t in tensors]
        if self.rank != dst:
            self._mesh.exchange(Kind.OPENING, {self._names[dst]: buffers}, {})
            return None
        results = [t.clone() for t in tensors]
        received = self._mesh.exchange(Kind.OPENING, {}, dict.fromkeys(self._others, sum(b.nbytes for b in buffers)))
        for payload in received.values():
            words, start = torch.frombuffer(payload, dtype=torch.int64), 0
            for result in results:
                part = words[start : start + result.numel()].view(result.shape)
                start += result.numel()
                if op == torch.distributed.ReduceOp.BXOR:
                    result ^= part
                else:
                    result += part
        return results if batched else results[0]

    def all_gather(self, tensor):
        """Every party's tensor, by rank."""
        parts = self._everyone([_buffer(tensor)], [8 * tensor.numel()])
        others = iter([torch.frombuffer(p, dtype=torch.int64).view(tensor.shape) for p in parts])
        return [tensor.clone() if rank == self.rank else next(others) for rank in range(self.parties)]

    def gather(self, tensor, dst):
        """Every party's tensor at one party."""
        if self.rank != dst:
            self._mesh.exchange(Kind.OPENING, {self._names[dst]: [_buffer(tensor)]}, {})
            return [None]
        received = self._mesh.exchange(Kind.OPENING, {}, dict.fromkeys(self._others, 8 * tensor.numel()))
        others = iter([torch.frombuffer(received[n], dtype=torch.int64).view(tensor.shape) for n in self._others])
        return [tensor.clone() if rank == self.rank else next(others) for rank in range(self.parties)]

    def broadcast(self, tensor, src, group=None, batched=False):
        """One party's tensor to all, in place."""
        tensors = list(tensor) if batched else [tensor]
        if self.rank == src:
            self._mesh.exchange(Kind.OPENING, dict.fromkeys(self._others, [_buffer(t) for t in tensors]), {})
            return tensor
        size = 8 * sum(t.numel() for t in tensors)
        payload = self._mesh.exchange(Kind.OPENING, {}, {self._names[src]: size})[self._names[src]]
        for t, part in zip(
            tensors, torch.frombuffer(payload, dtype=torch.int64).split([t.numel() for t in tensors]), strict=True
        ):
            t.copy_(part.view(t.shape))
        return tensor

    def scatter(self, scatter_list, src, size=None, device=None):
        """One tensor to each party."""
        if self.rank == src:
            outgoing = {
                name: [_buffer(t)] for name, t in zip(self._names, scatter_list, strict=True) if name != self._mesh.me
            }
            self._mesh.exchange(Kind.OPENING, outgoing, {})
            return scatter_list[self.rank]
        size = torch.Size(size if size is not None else scatter_list[self.rank].size())
        payload = self._mesh.exchange(Kind.OPENING, {}, {self._names[src]: 8 * size.numel()})[self._names[src]]
        return torch.frombuffer(payload, dtype=torch.int64).view(size)

    def send(self, tensor, dst):
        """One tensor to one party."""
        self._mesh.exchange(Kind.OPENING, {self._names[dst]: [_buffer(tensor)]}, {})

    def recv(self, tensor, src=None):
        """A tensor shaped like `tensor` from one party."""
        payload = self._mesh.exchange(Kind.OPENING, {}, {self._names[src]: 8 * tensor.numel()})[self._names[src]]
        return torch.frombuffer(payload, dtype=torch.int64).view(tensor.shape)

    def barrier(self) -> None:
        """Wait for all parties."""
        self._everyone([], [])

    def _no_objects(self, *args, **kwargs):
        raise TransportError(
            f"{self._mesh.me}: objects are never sent, since receiving one means unpickling it; pass size= to crypten.cryptensor"
        )

    send_obj = recv_obj = broadcast_obj = _no_objects

    def _not_asynchronous(self, *args, **kwargs):
        raise TransportError(f"{self._mesh.me}: the mesh has no isend and irecv; the protocols use exchange")

    isend = irecv = _not_asynchronous
