"""CrypTen's communicator on the mesh: each function runs at every party and checks what that party gets."""

import pytest
import torch
from torch.distributed import ReduceOp

SHAPE = (2, 3)


def _communicator():
    from mpc_imaging.engine import compat

    communicator = compat.load().communicator.get()
    return communicator, communicator.get_rank(), communicator.get_world_size()


def _mine(rank):
    """A tensor that tells its owner, with values from the whole ring, not contiguous in memory."""
    return (torch.arange(6).view(3, 2) * (2**61 + 7) + (rank + 1) * 0x0123456789ABCDEF).t()


def _sum(tensors):
    return torch.stack(tensors).sum(0)


def _xor(tensors):
    result = torch.zeros(SHAPE, dtype=torch.int64)
    for tensor in tensors:
        result ^= tensor
    return result


def all_reduce():
    communicator, rank, count = _communicator()
    everyone = [_mine(r) for r in range(count)]
    mine = _mine(rank)
    first = communicator.all_reduce(mine)
    second = communicator.all_reduce(mine, op=ReduceOp.BXOR)
    assert torch.equal(mine, _mine(rank)), "the input is left alone"
    batch = [mine, torch.tensor(rank), mine[:0], mine + 1]
    sums = communicator.all_reduce(batch, batched=True)
    xors = communicator.all_reduce(batch, op=ReduceOp.BXOR, batched=True)
    # Checked last: a later exchange must not change what an earlier one returned.
    assert torch.equal(first, _sum(everyone)) and torch.equal(second, _xor(everyone))
    assert torch.equal(sums[0], _sum(everyone)) and torch.equal(sums[3], _sum(everyone) + count)
    assert sums[1].item() == sum(range(count)) and sums[1].shape == ()
    assert sums[2].shape == (0, 3)
    assert torch.equal(xors[0], _xor(everyone)) and torch.equal(xors[3], _xor([t + 1 for t in everyone]))


def test_all_reduce(parties):
    parties.run(all_reduce)
    assert parties.rounds == 4


def reduce():
    communicator, rank, count = _communicator()
    everyone = [_mine(r) for r in range(count)]
    for dst in range(count):
        results = [
            communicator.reduce(_mine(rank), dst),
            communicator.reduce(_mine(rank), dst, op=ReduceOp.BXOR),
            communicator.reduce([_mine(rank), torch.tensor([rank])], dst, batched=True),
        ]
        if rank == dst:
            assert torch.equal(results[0], _sum(everyone)) and torch.equal(results[1], _xor(everyone))
            assert torch.equal(results[2][0], _sum(everyone)) and results[2][1].item() == sum(range(count))
        else:
            assert results == [None] * 3


def test_reduce(parties):
    parties.run(reduce)


def gather():
    communicator, rank, count = _communicator()
    parts = communicator.all_gather(_mine(rank))
    assert [torch.equal(part, _mine(r)) for r, part in enumerate(parts)] == [True] * count
    for dst in range(count):
        parts = communicator.gather(_mine(rank), dst)
        if rank == dst:
            assert [torch.equal(part, _mine(r)) for r, part in enumerate(parts)] == [True] * count
        else:
            assert parts == [None]


def test_gather(parties):
    parties.run(gather)


def broadcast():
    communicator, rank, count = _communicator()
    for src in range(count):
        mine = _mine(rank).contiguous()
        result = communicator.broadcast(mine, src)
        assert torch.equal(mine, _mine(src)), "in place, as CrypTen has it"
        assert result is mine
        batch = [_mine(rank).contiguous(), torch.tensor(rank), torch.empty(0, dtype=torch.int64)]
        communicator.broadcast(batch, src, batched=True)
        assert torch.equal(batch[0], _mine(src)) and batch[1].item() == src


def test_broadcast(parties):
    parties.run(broadcast)


def scatter():
    communicator, rank, count = _communicator()
    for src in range(count):
        parts = [_mine(10 * src + r) for r in range(count)]
        given = parts if rank == src else None
        assert torch.equal(communicator.scatter(given, src, size=SHAPE), parts[rank])
        shapes = parts if rank == src else [torch.empty(SHAPE)] * count
        assert torch.equal(communicator.scatter(shapes, src), parts[rank])


def test_scatter(parties):
    parties.run(scatter)


def send_in_a_ring():
    communicator, rank, count = _communicator()
    after, before = (rank + 1) % count, (rank - 1) % count
    like = torch.zeros(SHAPE, dtype=torch.int64)
    if rank == 0:
        communicator.send(_mine(0), after)
        received = communicator.recv(like, before)
    else:
        received = communicator.recv(like, before)
        communicator.send(_mine(rank), after)
    assert torch.equal(received, _mine(before))
    assert not like.any(), "the template is left alone, as CrypTen has it"
    assert communicator.recv(like[:0], before).shape == (0, 3) if rank else communicator.send(like[:0], after) is None
    if rank:
        communicator.send(like[:0], after)
    else:
        communicator.recv(like[:0], before)


def test_send_and_receive(parties):
    parties.run(send_in_a_ring)


def barrier():
    communicator, rank, count = _communicator()
    communicator.barrier()
    assert communicator.get_name() == f"party_{rank}"


def test_barrier(parties):
    parties.run(barrier)
    assert parties.rounds == 1


def refusals():
    from mpc_imaging.errors import TransportError

    communicator, rank, _ = _communicator()
    x = _mine(rank)
    objects = [
        lambda: communicator.send_obj({"a": 1}, 0), lambda: communicator.recv_obj(0),
        lambda: communicator.broadcast_obj({"a": 1}, 0),
    ]  # fmt: skip
    for call in objects:
        with pytest.raises(TransportError, match="unpickling"):
            call()
    for call in (lambda: communicator.isend(x, 0), lambda: communicator.irecv(x, 0)):
        with pytest.raises(TransportError, match="isend"):
            call()
    for call in (communicator.all_reduce, lambda t, op: communicator.reduce(t, 0, op=op)):
        with pytest.raises(TransportError, match="sums and exclusive-ors"):
            call(x, op=ReduceOp.MAX)
    for dtype in (torch.float32, torch.int32):
        with pytest.raises(TypeError, match="int64"):
            communicator.all_reduce(x.to(dtype))
    communicator.barrier()


def test_what_is_refused_sends_nothing_and_ends_nothing(parties):
    parties.run(refusals)
    assert parties.rounds == 1


def opened_bits():
    import numpy as np

    communicator, rank, count = _communicator()
    bits = np.arange(7, dtype=np.uint8) * (rank + 1)
    expected = np.bitwise_xor.reduce([np.arange(7, dtype=np.uint8) * (r + 1) for r in range(count)])
    assert np.array_equal(communicator.open_bits(bits), expected)
    assert np.array_equal(bits, np.arange(7, dtype=np.uint8) * (rank + 1))
    assert communicator.open_bits(bits[:0]).shape == (0,)


def test_opened_bits(parties):
    parties.run(opened_bits)
