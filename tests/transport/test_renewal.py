"""New TLS keys in the midst of a session: what every link does when a key is worn, and what a cheat can try then."""

from __future__ import annotations

import re
import socket
import ssl

import numpy as np
import pytest

from mpc_imaging.errors import ConfigError, PeerLostError, TransportError
from mpc_imaging.transport import Credentials, FrameError, Kind, renewal, tls
from mpc_imaging.transport.frames import encode
from tests.transport.parties import DEALER, A, B, RawPeer, Town, certificates, returned, together

KEY = 1 << 16


@pytest.fixture
def small_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "KEY_OCTETS", KEY)


@pytest.fixture
def switched(monkeypatch: pytest.MonkeyPatch) -> list[tls.TlsSocket]:
    """The socket of each switch of a sending direction."""
    sockets: list[tls.TlsSocket] = []
    real = tls.TlsSocket.switch_sending

    def switch(self: tls.TlsSocket) -> None:
        sockets.append(self)
        real(self)

    monkeypatch.setattr(tls.TlsSocket, "switch_sending", switch)
    return sockets


def prepared(town: Town, order: tuple[str, ...], count: int, **changes):
    """Meshes whose links have so many successors each; of two parties the first in order says how many."""
    meshes = town.meshes(order, **changes)

    def prepare(mesh) -> None:
        mesh.prepare({p: count if order.index(mesh.me) < order.index(p) else None for p in mesh.peers})

    results = together({mesh.me: lambda mesh=mesh: prepare(mesh) for mesh in meshes})
    for result in results.values():
        returned(result)
    return meshes


def payload(sender: str, receiver: str, number: int) -> bytes:
    """Of any size from nothing to several keys' worth."""
    drawn = np.random.default_rng([*sender.encode(), *receiver.encode(), number])
    return drawn.bytes(int(drawn.choice([0, 1, 700, 16_384, 65_536, 300_000])))


def test_keys_are_renewed_in_the_midst_of_everything(town: Town, small_keys, switched):
    order = (A, B, DEALER)
    meshes = prepared(town, order, 100)

    def talk(mesh) -> bool:
        for number in range(50):
            incoming = {peer: len(payload(peer, mesh.me, number)) for peer in mesh.peers}
            outgoing = {peer: [payload(mesh.me, peer, number)] for peer in mesh.peers}
            got = mesh.exchange(Kind.OPENING, outgoing, incoming)
            assert got == {peer: payload(peer, mesh.me, number) for peer in mesh.peers}
        # One way: to a party that sends nothing, and frames that come before they are asked for.
        if mesh.me == DEALER:
            for number in range(30):
                mesh.send(A, Kind.CORRECTION, payload(DEALER, A, number))
            mesh.send(B, Kind.CORRECTION, b"early")
        if mesh.me == A:
            for number in range(30):
                assert mesh.receive(DEALER, Kind.CORRECTION) == payload(DEALER, A, number)
        if mesh.me == B:
            mesh.send_json(A, "and the other way")
            assert mesh.receive(DEALER, Kind.CORRECTION) == b"early"
        return mesh.me != A or mesh.receive_json(B) == "and the other way"

    assert all(returned(result) for result in together({m.me: lambda m=m: talk(m) for m in meshes}, 60).values())
    assert len(set(switched)) == 6, "each direction of each link"
    assert all(switched.count(sock) > 10 for sock in set(switched))


def test_a_party_leaves_well_after_a_renewal(town: Town, small_keys, switched):
    a, b = prepared(town, (A, B), 5)
    b.send(A, Kind.SHARE, bytes(KEY))
    b.send(A, Kind.SHARE, b"last")
    b.close()
    assert a.receive(B, Kind.SHARE, KEY) == bytes(KEY) and a.receive(B, Kind.SHARE) == b"last"
    assert len(switched) == 1
    with pytest.raises(PeerLostError, match="hospital_b left the session"):
        a.receive(B, Kind.SHARE)


def test_a_key_is_worn_by_small_frames_too(town: Town, small_keys, switched):
    a, b = prepared(town, (A, B), 5)
    for _ in range(KEY // tls._WRITE_OCTETS):
        a.exchange(Kind.OPENING, {B: [b"12345678"]}, {})
    assert len(switched) == 1


def test_no_key_protects_more_than_its_limit(town: Town, small_keys, monkeypatch):
    """Where all successors are used up the sender stops before the limit, and its peer is told why."""
    monkeypatch.setattr(tls, "LIMIT_OCTETS", 2 * KEY)
    a, b = prepared(town, (A, B), 1)
    most = 0

    def send() -> None:
        nonlocal most
        for _ in range(100):
            a.send(B, Kind.SHARE, bytes(KEY // 4))
            most += KEY // 4

    def receive() -> None:
        while True:
            b.receive(A, Kind.SHARE)

    results = together({A: send, B: receive})
    message = str(results[A])
    assert isinstance(results[A], TransportError) and "hospital_a stops at step" in message, message
    assert "the last TLS key made ready with hospital_b" in message
    assert isinstance(results[B], PeerLostError) and message in str(results[B])
    assert 2 * KEY < most <= 3.5 * KEY


def test_a_sender_that_never_renews_is_refused(town: Town, monkeypatch):
    monkeypatch.setattr(tls, "LIMIT_OCTETS", KEY)
    mesh, raw = town.mesh_and_raw()
    raw.send(Kind.SHARE, bytes(KEY - 1000))
    mesh.receive(B, Kind.SHARE)
    raw.send(Kind.SHARE, bytes(1000))
    with pytest.raises(FrameError, match="frame from hospital_b to hospital_a, step 3: more than one TLS key may"):
        mesh.receive(B, Kind.SHARE)


# A party with a valid certificate that breaks the renewal.


class Cheat:
    """B's side of a renewal, by hand: raw frames, and handshakes with whatever certificate."""

    def __init__(self, town: Town, raw: RawPeer, name: str = B) -> None:
        self.raw, self.step = raw, 2
        context = Credentials(town.folder / name).context(server_side=False)
        context.verify_mode = ssl.CERT_NONE
        self.successors = [tls.Successor(context, server_side=False)]

    def hear(self) -> bytes:
        kind, _, data = self.raw.receive(self.step, self.raw.session)
        self.step += 1
        assert kind is Kind.HANDSHAKE
        return data

    def say(self, flight: bytes, **changes) -> None:
        self.raw.send(Kind.HANDSHAKE, len(flight).to_bytes(2, "big") + flight, **changes)

    def handshake(self, **changes) -> tuple[bytes, bytes]:
        """All of it; the flights that were said."""
        (own,) = self.successors
        assert self.hear() == (1).to_bytes(4, "big")
        first = own.handshake(b"")
        self.say(first)
        second = own.handshake(self.hear()[2:])
        self.say(second, **changes)
        return first, second


def cheated(town: Town, act, certificate: str = B, then=lambda mesh: None, **changes) -> TransportError:
    """The error of an honest A against ``act``, which gets a `Cheat`, when A makes one successor ready, or ``then``."""
    mesh, raw = town.mesh_and_raw(**changes)
    cheat = Cheat(town, raw, certificate)
    results = together({A: lambda: (mesh.prepare({B: 1}), then(mesh)), B: lambda: act(cheat)})
    returned(results[B])
    assert isinstance(results[A], TransportError), results[A]
    with pytest.raises(TransportError, match="session of hospital_a has ended"):
        mesh.receive(B, Kind.SHARE)
    return results[A]


def refused(error: TransportError, problem: str, step: int) -> None:
    assert isinstance(error, FrameError) and (error.sender, error.step) == (B, step), error
    assert re.search(problem, str(error)), error


def test_another_party_takes_the_place(town: Town):
    """The intruder has a certificate of the same authority, and B lets it take part in B's session."""
    error = cheated(town, Cheat.handshake, certificate="intruder")
    refused(error, "certificate of a further TLS connection is not the one of the first", 3)


def test_a_stranger_takes_the_place(town: Town, tmp_path):
    stranger = Town(certificates(tmp_path / "elsewhere"))
    error = cheated(town, lambda cheat: Cheat(stranger, cheat.raw).handshake())
    refused(error, "handshake of a further TLS connection failed: .*self-signed", 3)


def test_a_handshake_of_another_session(town: Town):
    refused(cheated(town, lambda cheat: cheat.handshake(session=b"x" * 16)), "it belongs to another session", 3)


def test_a_replayed_frame(town: Town):
    refused(cheated(town, lambda cheat: cheat.handshake(step=2)), r"it was sent before \(a replay\)", 3)


def test_a_replayed_handshake(town: Town):
    """What was recorded in one session is of no use in another: the flights are bound to fresh keys of both."""
    mesh, raw = town.mesh_and_raw()
    cheat = Cheat(town, raw)
    recorded = together({A: lambda: mesh.prepare({B: 1}), B: cheat.handshake})
    returned(recorded[A])

    def replay(cheat: Cheat) -> None:
        cheat.hear()
        cheat.say(recorded[B][0])
        cheat.hear()
        cheat.say(recorded[B][1])

    other = Town(town.folder)
    try:
        refused(cheated(other, replay), "the handshake of a further TLS connection failed", 3)
    finally:
        other.close()


@pytest.mark.parametrize(
    ("flight", "problem"),
    [
        (b"\x00\x05hello", "the handshake of a further TLS connection failed"),
        (b"", "no flights of 1 TLS handshakes"),
        (b"\x00\x00", "no flights of 1 TLS handshakes"),
        (b"\xff\xffx", "no flights of 1 TLS handshakes"),
        (b"\x00\x01xy", "no flights of 1 TLS handshakes"),
        (bytes(20_000), "20000 bytes announced, at most 16386 allowed"),
    ],
)
def test_no_handshake_at_all(town: Town, flight: bytes, problem: str):
    refused(cheated(town, lambda cheat: (cheat.hear(), cheat.raw.send(Kind.HANDSHAKE, flight))), problem, 2)


def test_a_handshake_that_is_never_completed(town: Town):
    def half(cheat: Cheat) -> None:
        cheat.hear()
        cheat.say(cheat.successors[0].handshake(b""))
        cheat.hear()

    error = cheated(town, half, timeout_s=0.3)
    assert isinstance(error, PeerLostError) and "in vain for hospital_b (step 3: nothing came)" in str(error)


def test_more_connections_than_anybody_makes(town: Town):
    mesh, raw = town.mesh_and_raw()
    raw.send(Kind.HANDSHAKE, (1 << 31).to_bytes(4, "big"))
    with pytest.raises(FrameError, match="step 2: 2147483648 further TLS connections wanted, at most 1024 are made"):
        mesh.prepare({B: None})


def test_a_switch_to_nothing(town: Town):
    mesh, raw = town.mesh_and_raw()
    raw.send(Kind.SWITCH)
    with pytest.raises(FrameError, match="step 2: SWITCH, but no TLS connection was made ready"):
        mesh.receive(B, Kind.SHARE)


def test_a_switch_with_a_payload(town: Town):
    def act(cheat: Cheat) -> None:
        cheat.handshake()
        cheat.raw.send(Kind.SWITCH, b"more")

    refused(cheated(town, act, then=lambda mesh: mesh.receive(B, Kind.SHARE)), "SWITCH with 4 trailing bytes", 4)


def test_bytes_behind_a_switch_under_the_old_key(town: Town):
    def in_one_record(cheat: Cheat) -> None:
        cheat.handshake()
        frames = [encode(kind, cheat.raw.session, step, 0) for step, kind in ((4, Kind.SWITCH), (5, Kind.SHARE))]
        cheat.raw.sock.sendall(b"".join(frames))

    refused(cheated(town, in_one_record, then=lambda mesh: mesh.receive(B, Kind.SHARE)), "under the old key", 4)


@pytest.mark.parametrize("count", [1, 2])
def test_going_on_under_the_old_key(town: Town, count: int):
    """After SWITCH the old key opens nothing any more: neither a frame nor a second SWITCH."""

    def go_on(cheat: Cheat) -> None:
        cheat.handshake()
        for _ in range(count):
            cheat.raw.send(Kind.SWITCH)
        cheat.raw.send(Kind.SHARE, b"12345678")

    error = cheated(town, go_on, then=lambda mesh: mesh.receive(B, Kind.SHARE, 8))
    assert isinstance(error, PeerLostError) and "hospital_a lost hospital_b at step 5" in str(error), error
    assert isinstance(error.__cause__, ssl.SSLError)


def test_going_on_under_the_new_key(town: Town):
    """What the attacks above do wrong, done right by the same hand."""
    mesh, raw = town.mesh_and_raw()
    cheat = Cheat(town, raw)

    def right() -> None:
        cheat.handshake()
        raw.send(Kind.SWITCH)
        (own,) = cheat.successors
        own.ssl.write(encode(Kind.SHARE, raw.session, 5, 8) + b"12345678")
        with socket.socket(fileno=socket.dup(raw.sock.fileno())) as below:
            below.sendall(own.outgoing.read())

    results = together({A: lambda: (mesh.prepare({B: 1}), mesh.receive(B, Kind.SHARE, 8))[1], B: right})
    returned(results[B])
    assert returned(results[A]) == b"12345678"


def test_how_many_are_made(small_keys):
    assert [renewal.spares(octets) for octets in (0, KEY // 2, KEY, 10 * KEY)] == [0, 0, 1, 12]
    renewal.check_spares({A: 800 * KEY, B: 10})
    with pytest.raises(ConfigError, match="the link with hospital_b would carry") as caught:
        renewal.check_spares({A: 800 * KEY, B: 900 * KEY})
    assert len(caught.value.problems) == 1


def test_what_a_key_may_protect():
    """2^24.5 full records (RFC 8446, section 5.5), and the largest frame fits between the mark and the limit."""
    assert tls.LIMIT_OCTETS <= 2**24.5 * 2**14
    assert tls.LIMIT_OCTETS - tls.KEY_OCTETS > 2 * (1 << 32)
