from __future__ import annotations

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mpc_imaging.errors import MPCImagingError, PeerLostError, TransportError
from mpc_imaging.transport import Credentials, FrameError, Kind, Mesh, PeerAbortedError, PeerLeftError
from tests.transport.parties import DEALER, A, B, CountingPoll, Town, returned, together

ORDER = (A, B, DEALER)


def everybody_sends(mesh: Mesh, size: int) -> dict[str, bytearray]:
    """One round in which each party sends its own payload to each peer."""
    return mesh.exchange(Kind.OPENING, {peer: [payload(mesh.me, peer, size)] for peer in mesh.peers}, sizes(mesh, size))


def sizes(mesh: Mesh, size: int) -> dict[str, int]:
    return dict.fromkeys(mesh.peers, size)


def payload(sender: str, receiver: str, size: int) -> bytes:
    return np.random.default_rng([*sender.encode(), *receiver.encode()]).bytes(size)


@pytest.mark.parametrize(("count", "size"), [(2, 8192), (3, 0), (3, 5_000_000), (5, 300_000)])
def test_one_round_of_any_size(town: Town, count: int, size: int):
    meshes = town.meshes(("hospital_a", "hospital_b", "dealer", "owner", "receiver")[:count])
    results = together({mesh.me: lambda mesh=mesh: everybody_sends(mesh, size) for mesh in meshes})
    for mesh in meshes:
        got = returned(results[mesh.me])
        assert list(got) == list(mesh.peers)
        assert all(got[peer] == payload(peer, mesh.me, size) and isinstance(got[peer], bytearray) for peer in got)
        assert mesh.traffic.snapshot().rounds == 1


def test_many_rounds_stay_in_step(town: Town):
    meshes = town.meshes(ORDER)

    def talk(mesh: Mesh) -> bool:
        for number in range(200):
            mine = number.to_bytes(2, "big") + mesh.me.encode()
            incoming = {peer: 2 + len(peer) for peer in mesh.peers}
            got = mesh.exchange(Kind.OPENING, {peer: [mine] for peer in mesh.peers}, incoming)
            assert got == {peer: number.to_bytes(2, "big") + peer.encode() for peer in mesh.peers}
        return True

    assert all(returned(result) for result in together({m.me: lambda m=m: talk(m) for m in meshes}).values())


def test_payloads_are_joined_from_any_buffers(town: Town):
    a, b = town.meshes([A, B])
    array = np.arange(100_000, dtype=np.int64)
    parts = [b"head", array, memoryview(b""), np.arange(6).reshape(2, 3), bytearray(b"tail"), array[:5000]]
    whole = b"".join(np.asarray(part).tobytes() if isinstance(part, np.ndarray) else bytes(part) for part in parts)
    jobs = {A: lambda: a.send(B, Kind.SHARE, parts), B: lambda: b.receive(A, Kind.SHARE, len(whole))}
    assert returned(together(jobs)[B]) == whole
    jobs = {A: lambda: a.send(B, Kind.SHARE, array), B: lambda: b.receive(A, Kind.SHARE)}
    assert np.array_equal(np.frombuffer(returned(together(jobs)[B]), np.int64), array)


def test_one_way_rounds_and_frames_that_come_early(town: Town):
    a, b, dealer = town.meshes(ORDER)
    dealer.send(A, Kind.CORRECTION, b"for later")
    b.exchange(Kind.OPENING, {A: [b"one"]}, {})
    b.exchange(Kind.OPENING, {A: [b"two"]}, {})
    b.send(A, Kind.SHARE, b"three")
    assert a.exchange(Kind.OPENING, {}, {B: 3}) == {B: b"one"}
    assert a.exchange(Kind.OPENING, {}, {B: 3}) == {B: b"two"}
    assert a.receive(B, Kind.SHARE, 5) == b"three"
    assert a.receive(DEALER, Kind.CORRECTION, limit=100) == b"for later"


def test_json(town: Town):
    a, b = town.meshes([A, B])
    message = {"text": "größe", "list": [1, 2.5, None, True], "nested": {"x": []}}
    a.send_json(B, message)
    assert b.receive_json(A) == message
    with pytest.raises(ValueError):
        a.send_json(B, math.nan)
    with pytest.raises(ValueError, match="at most 1048576"):
        a.send_json(B, "x" * (1 << 20))
    b.send_json(A, "still open")
    assert a.receive_json(B) == "still open"


def test_observers_see_every_frame(town: Town):
    a, b = town.meshes([A, B])
    seen = []
    a.observers.append(lambda *frame: seen.append(frame))
    jobs = {
        A: lambda: a.exchange(Kind.OPENING, {B: [b"12", b"34"]}, {B: 3}),
        B: lambda: b.exchange(Kind.OPENING, {A: [b"abc"]}, {A: 4}),
    }
    together(jobs)
    a.send(B, Kind.REQUEST, b"")
    assert seen == [
        ("sent", B, Kind.OPENING, b"1234"),
        ("received", B, Kind.OPENING, b"abc"),
        ("sent", B, Kind.REQUEST, b""),
    ]
    assert all(type(frame[3]) is bytes for frame in seen)


def test_traffic_of_a_session(town: Town):
    meshes = town.meshes(ORDER)
    together({mesh.me: lambda mesh=mesh: everybody_sends(mesh, 1000) for mesh in meshes})
    a, _, dealer = meshes
    before = a.traffic.snapshot()
    assert (before.sent_bytes, before.received_bytes, before.rounds) == (2000, 2000, 1)
    dealer_waits = together({A: lambda: a.receive(DEALER, Kind.CORRECTION), DEALER: lambda: late_correction(dealer)})
    assert returned(dealer_waits[A]) == b"x" * 50
    after = a.traffic.snapshot() - before
    assert after.peer(DEALER).received_bytes == 50 and after.peer(B).received_bytes == 0
    assert 0.1 < after.peer(DEALER).wait_s < 5 and after.wait_s == after.kind(Kind.CORRECTION).wait_s
    assert after.rounds == 0


def late_correction(dealer: Mesh) -> None:
    time.sleep(0.15)
    dealer.send(A, Kind.CORRECTION, b"x" * 50)


def test_a_silent_peer_is_named_within_the_timeout(town: Town):
    a, _, dealer = town.meshes(ORDER, timeout_s=0.3)
    started = time.monotonic()
    with pytest.raises(PeerLostError, match=r"hospital_a waited 0.3 s in vain for hospital_b \(step 2: nothing came\)"):
        a.exchange(Kind.OPENING, {B: [b"x"]}, {B: 1})
    assert time.monotonic() - started < 1.5
    with pytest.raises(PeerAbortedError, match="hospital_a ended the session: hospital_a: hospital_a waited 0.3 s"):
        dealer.receive(B, Kind.SHARE)  # waits for another, and hears of it all the same


def test_all_silent_peers_are_named(town: Town):
    a, *_ = town.meshes(ORDER, timeout_s=0.2)
    with pytest.raises(PeerLostError, match=r"hospital_b \(step 2: nothing came\), dealer \(step 2: nothing came\)"):
        a.exchange(Kind.OPENING, {}, {B: 1, DEALER: 1})


def test_a_peer_that_takes_nothing_is_named(town: Town):
    a, _ = town.meshes([A, B], timeout_s=0.3)
    with pytest.raises(PeerLostError, match=r"hospital_b \(step 2: it takes nothing\)"):
        a.send(B, Kind.SHARE, bytes(64 << 20))


def test_patience_can_be_longer_where_silence_is_right(town: Town):
    a, b = town.meshes([A, B], timeout_s=0.1)
    for patience in (math.inf, 5.0):
        jobs = {A: lambda: late_correction_to(b), B: lambda p=patience: a.receive(B, Kind.SHARE, 1, wait_s=p)}
        assert returned(together(jobs)[B]) == b"x"


def test_patience_holds_for_a_peer_that_takes_a_large_input_late(town: Town):
    a, b = town.meshes([A, B], timeout_s=0.2)
    size = 64 << 20  # more than the kernel's buffers hold

    def take_late() -> bytearray:
        time.sleep(0.6)
        return b.receive(A, Kind.SHARE, size)

    jobs = {A: lambda: a.send(B, Kind.SHARE, bytes(size), wait_s=math.inf), B: take_late}
    assert len(returned(together(jobs)[B])) == size


def late_correction_to(b: Mesh) -> None:
    time.sleep(0.25)
    b.send(A, Kind.SHARE, b"x")


def test_the_cause_reaches_those_who_wait_for_somebody_else(town: Town):
    a, b, dealer = town.meshes(ORDER)
    jobs = {
        A: lambda: a.receive(B, Kind.OPENING, 8),
        B: lambda: b.receive(A, Kind.OPENING, 8, wait_s=math.inf),
        DEALER: lambda: dealer.abort("out of\nmemory"),
    }
    results = together(jobs)
    for me in (A, B):
        assert isinstance(results[me], PeerAbortedError)
        assert results[me].cause == "dealer: out of memory"
        assert str(results[me]).endswith("ended the session: dealer: out of memory")


def test_the_first_cause_is_passed_on_unchanged(town: Town):
    # The dealer and hospital_a have no link: the cause comes by way of hospital_b.
    links = {A: [B], B: [A, DEALER], DEALER: [B]}
    a, b, dealer = town.meshes(ORDER, links=lambda name: links[name], leader=B)
    dealer.abort("no more triples")
    jobs = {A: lambda: a.receive(B, Kind.OPENING, 8), B: lambda: b.receive(DEALER, Kind.CORRECTION)}
    results = together(jobs)
    assert results[A].cause == results[B].cause == "dealer: no more triples"


def test_after_an_error_every_call_raises(town: Town):
    a, b = town.meshes([A, B])
    b.send(A, Kind.SHARE, b"123")
    with pytest.raises(FrameError):
        a.receive(B, Kind.SHARE, 4)
    calls = (
        lambda: a.send(B, Kind.SHARE, b""),
        lambda: a.receive(B, Kind.SHARE),
        lambda: a.exchange(Kind.SHARE, {}, {B: 1}),
        lambda: a.send_json(B, 1),
        lambda: a.receive_json(B),
    )
    for call in calls:
        with pytest.raises(TransportError, match="the session of hospital_a has ended: .*1 missing"):
            call()
    a.abort("again")
    a.close()


def test_mistakes_of_the_caller_do_not_end_the_session(town: Town):
    a, b = town.meshes([A, B])
    with pytest.raises(ValueError, match="hospital_a has no link to 'dealer', only to hospital_b"):
        a.send(DEALER, Kind.SHARE, b"")
    with pytest.raises(TypeError, match="contiguous"):
        a.exchange(Kind.OPENING, {B: [np.zeros((4, 4))[:, 1]]}, {})
    a.send(B, Kind.SHARE, b"fine")
    assert b.receive(A, Kind.SHARE) == b"fine"


def test_leaving_in_good_order(town: Town):
    a, b, dealer = town.meshes(ORDER)
    jobs = {B: lambda: leave_after_sharing(b), A: lambda: a.receive(B, Kind.SHARE)}
    assert returned(together(jobs)[A]).endswith(b"end")
    with pytest.raises(PeerLeftError, match="hospital_b left the session at step 3"):
        a.receive(B, Kind.SHARE)
    with pytest.raises(PeerLeftError):
        a.send(B, Kind.SHARE, b"")
    together({A: lambda: a.send(DEALER, Kind.REQUEST, b"go on"), DEALER: lambda: dealer.receive(A, Kind.REQUEST)})
    with pytest.raises(PeerLeftError):
        a.exchange(Kind.OPENING, {B: [b"x"], DEALER: [b"x"]}, {DEALER: 1})
    with pytest.raises(TransportError, match="has ended"):
        a.send(DEALER, Kind.REQUEST, b"")


def leave_after_sharing(b: Mesh) -> None:
    b.send(A, Kind.SHARE, [bytes(3_000_000), b"end"])
    b.close()


def test_waiting_goes_on_quietly_when_others_leave(town: Town):
    a, b, dealer = town.meshes(ORDER)
    b.close()
    a._poll = poll = CountingPoll()
    results = together({A: lambda: a.receive(DEALER, Kind.CORRECTION), DEALER: lambda: late_correction(dealer)})
    assert returned(results[A]) == b"x" * 50
    assert 0 < poll.calls < 10


def test_a_mesh_as_a_context_says_goodbye_or_why_not(town: Town):
    a, b, dealer = town.meshes(ORDER)
    with a:
        pass
    with pytest.raises(PeerLeftError):
        b.receive(A, Kind.SHARE)
    with pytest.raises(ZeroDivisionError), b:
        1 / 0  # noqa: B018
    with pytest.raises(PeerAbortedError, match="hospital_b: ZeroDivisionError$"):  # no details: they might hold data
        dealer.receive(B, Kind.SHARE)


def test_own_errors_are_told_in_full(town: Town):
    a, b = town.meshes([A, B])
    with pytest.raises(MPCImagingError), a:
        raise MPCImagingError("store is used up; make a new one")
    with pytest.raises(PeerAbortedError, match="hospital_a: store is used up; make a new one$"):
        b.receive(A, Kind.SHARE)


# Parties as processes

spawn = multiprocessing.get_context("spawn")


def process_party(me: str, folder: Path, addresses: dict, conduct: str, result) -> None:
    """A party with no listener of its own (it is last in the order)."""
    mesh = Mesh.connect(
        me=me,
        order=[A, B],
        links=[A],
        addresses=addresses,
        credentials=Credentials(folder / me),
        listener=None,
        connect_timeout_s=20,
        timeout_s=20,
        leader=A,
    )
    size = 64 << 20
    if conduct == "exchange":
        mine = payload(B, A, size)
        got = mesh.exchange(Kind.OPENING, {A: [mine]}, {A: size})[A]
        result.send(got == payload(A, B, size))
        mesh.close()
    elif conduct == "stop half-way":
        mesh.observers.append(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        mesh.receive(A, Kind.CONTROL)
    elif conduct == "stop in a frame":
        channel = mesh._channels[A]
        channel.queue(Kind.OPENING, [memoryview(bytes(size))])
        for _ in range(3):
            channel.push()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def with_process(town: Town):
    """A real hospital_a here, and a hospital_b in a process of its own that does as told."""
    started = []

    def start(conduct: str):
        addresses = town.listen([A]) | {B: ("127.0.0.1", 1)}
        receiver, sender = spawn.Pipe(duplex=False)
        process = spawn.Process(target=process_party, args=(B, town.folder, addresses, conduct, sender))
        process.start()
        started.append((process, receiver, sender))
        return town.join(A, [A, B], addresses, connect_timeout_s=20, timeout_s=20), receiver

    yield start
    for process, *ends in started:
        process.join(10)
        alive = process.is_alive()
        if alive:
            process.kill()
            process.join()
        process.close()
        for end in ends:
            end.close()
        assert not alive


def test_64_megabytes_both_ways_at_once(with_process):
    mesh, result = with_process("exchange")
    size = 64 << 20
    got = mesh.exchange(Kind.OPENING, {B: [payload(A, B, size)]}, {B: size})[B]
    assert got == payload(B, A, size)
    assert result.recv()
    mesh.close()


def test_a_killed_peer_is_noticed_at_once(with_process):
    mesh, _ = with_process("stop half-way")
    mesh.send(B, Kind.CONTROL, b"{}")
    started = time.monotonic()
    with pytest.raises(PeerLostError, match="hospital_a lost hospital_b at step [23]: "):
        mesh.exchange(Kind.OPENING, {B: [bytes(32 << 20)]}, {B: 32 << 20})
    assert time.monotonic() - started < 5
    assert mesh.traffic.snapshot().received_bytes == 0


def test_a_peer_killed_in_the_middle_of_a_frame(with_process):
    mesh, _ = with_process("stop in a frame")
    with pytest.raises(PeerLostError, match="hospital_a lost hospital_b at step 2: "):
        mesh.exchange(Kind.OPENING, {}, {B: 64 << 20})


def test_the_transport_needs_no_torch():
    # The dealer and parties that only hold data start it; torch alone takes two seconds to import.
    code = "import sys, mpc_imaging.transport; print(sorted({'torch', 'numpy', 'crypten', 'hydra'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
