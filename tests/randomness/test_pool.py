"""The dealer's work ahead of the parties: in order whoever does it, bounded, and ended in time."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness import correlations, pool
from mpc_imaging.randomness.demands import SharedBit, SignKeys, TruncationPair
from mpc_imaging.randomness.pool import DealingPool
from mpc_imaging.randomness.streams import NumberedStreams
from tests.randomness.test_dealer import DEMANDS

KEYS = [bytes([i]) * 32 for i in range(2)]
STREAMS = [NumberedStreams(key) for key in KEYS]
KEY_ID = bytes(16)


def _octets(messages):
    return sum(len(view) for message in messages for view in message)


def _joined(messages):
    return [b"".join(message) for message in messages]


def _expected(demands, key_id=KEY_ID):
    dealt = [_joined(correlations.deal(demand, i, STREAMS, key_id)) for i, demand in demands]
    return [messages for messages in dealt if any(messages)]


@pytest.fixture
def alone():
    with DealingPool(1) as dealing:
        yield dealing


@pytest.fixture(scope="module")
def processes():
    with DealingPool(2) as dealing:
        yield dealing


def test_messages_come_in_order(alone):
    demands = [*enumerate(DEMANDS * 20)]
    assert [_joined(messages) for messages in alone.deal(demands, KEYS, KEY_ID)] == _expected(demands)


def test_processes_make_the_same(processes, monkeypatch):
    """Small ones, too, which the dealer would rather make itself; and the same pool serves other sessions."""
    monkeypatch.setattr(pool, "SMALL_BYTES", 0)
    demands = [*enumerate(DEMANDS * 5)]
    for key_id in (KEY_ID, b"another session."):
        got = [_joined(messages) for messages in processes.deal(demands, KEYS, key_id)]
        assert got == _expected(demands, key_id)


def test_large_and_small_ones_keep_their_order(processes):
    large = SignKeys(4000, 32, 16, 2)
    demands = [*enumerate([SharedBit(9), large, SharedBit(3), large, large, SharedBit(9)])]
    assert [_joined(messages) for messages in processes.deal(demands, KEYS, KEY_ID)] == _expected(demands)


def test_shared_memory_is_used_again_and_given_back(monkeypatch):
    monkeypatch.setattr(pool, "AHEAD_BYTES", 10 << 20)
    demands = [(i, SignKeys(4000, 32, 16, 2)) for i in range(30)]
    with DealingPool(2) as dealing:
        for _ in dealing.deal(demands, KEYS, KEY_ID):
            pass
        names = [memory.name for memory in dealing._memory._all]
        assert 1 <= len(names) < 30
    assert not [name for name in names if os.path.exists(f"/dev/shm/{name}")]


def test_a_worker_that_dies(monkeypatch):
    monkeypatch.setattr(pool, "SMALL_BYTES", 0)
    with DealingPool(2) as dealing:
        for process in dealing._processes._processes.values():
            os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(RandomnessError, match="a process of the dealer's pool has died"):
            list(dealing.deal([*enumerate(DEMANDS)], KEYS, KEY_ID))


def _pool_that_is_killed(pipe):
    with DealingPool(2) as dealing:
        pipe.send([process.pid for process in dealing._processes._processes.values()])
        time.sleep(60)


def _running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks for processes in /proc")
def test_no_worker_outlives_the_dealer():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    dealer = context.Process(target=_pool_that_is_killed, args=(theirs,))
    dealer.start()
    assert ours.poll(60)
    workers = ours.recv()
    assert len(workers) == 2
    dealer.kill()
    dealer.join()
    deadline = time.monotonic() + 30
    while any(map(_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_running, workers))


@pytest.fixture
def watched(monkeypatch):
    """Counts the messages, and their bytes, that were asked for and not handed out yet."""
    state, lock, deal = {"made": 0, "octets": 0, "most": 0}, threading.Lock(), correlations.deal

    def counted(demand, index, streams, key_id):
        messages = deal(demand, index, streams, key_id)
        with lock:
            state["made"] += 1
            state["octets"] += _octets(messages)
            state["most"] = max(state["most"], state["octets"])
        return messages

    monkeypatch.setattr(correlations, "deal", counted)
    return state


def test_no_more_than_the_limit_is_held(alone, watched, monkeypatch):
    demand = TruncationPair(1000, 16)
    size = correlations.correction_octets(demand)
    monkeypatch.setattr(pool, "AHEAD_BYTES", 3 * size)
    for count, messages in enumerate(alone.deal(((i, demand) for i in range(40)), KEYS, KEY_ID), 1):
        watched["octets"] -= _octets(messages)
        assert watched["made"] <= count + 3
    assert count == watched["made"] == 40
    assert watched["most"] <= 4 * size  # the one that was handed out counts until the next is asked for


def test_a_plan_is_read_only_as_far_as_needed(alone, monkeypatch):
    """A plan may be long, and its iteration is part of the work."""
    monkeypatch.setattr(pool, "AHEAD_DEMANDS", 4)
    read = []

    def demands():
        for i in range(10**9):
            read.append(i)
            yield i, SharedBit(1)

    ahead = alone.deal(demands(), KEYS, KEY_ID)
    for _ in range(10):
        next(ahead)
    ahead.close()
    assert len(read) <= 10 + 5


def test_a_demand_larger_than_the_limit_is_dealt_alone(alone, watched, monkeypatch):
    monkeypatch.setattr(pool, "AHEAD_BYTES", 10)
    demands = [(i, TruncationPair(1000, 16)) for i in range(5)]
    for count, messages in enumerate(alone.deal(demands, KEYS, KEY_ID), 1):
        assert watched["made"] <= count + 1
        assert _octets(messages) == 12_000
    assert count == 5


def test_a_demand_that_fails_ends_the_others(alone):
    demands = [(0, SharedBit(3)), (1, SignKeys(3, 32, 0, 0)), (2, SharedBit(3))]
    ahead = alone.deal(demands, [*KEYS, bytes([9]) * 32], KEY_ID)
    next(ahead)
    with pytest.raises(RandomnessError, match="for 2 compute parties, not 3"):
        next(ahead)


def test_cores():
    assert pool.cores() >= 1
