"""Frames from a party with a valid certificate that breaks the protocol."""

from __future__ import annotations

import contextlib
import re
import select
import socket

import pytest

from mpc_imaging.errors import PeerLostError, TransportError
from mpc_imaging.transport import FrameError, Kind, PeerAbortedError, PeerLeftError
from mpc_imaging.transport.frames import encode
from tests.transport.parties import A, B, CountingPoll, Town, returned, together

WHERE = "frame from hospital_b to hospital_a, step 2: "


def refused(mesh, problem: str, kind: Kind = Kind.SHARE, size: int | None = 8) -> FrameError:
    with pytest.raises(FrameError, match=re.escape(problem)) as caught:
        mesh.receive(B, kind, size)
    with pytest.raises(TransportError, match="session of hospital_a has ended"):
        mesh.receive(B, kind, size)
    return caught.value


def test_a_right_frame_is_taken(town: Town):
    mesh, raw = town.mesh_and_raw()
    raw.send(Kind.SHARE, b"12345678")
    assert mesh.receive(B, Kind.SHARE, 8) == b"12345678"
    mesh.send(B, Kind.SHARE, [b"87", b"65"])
    assert raw.receive(2, mesh.session_id) == (Kind.SHARE, mesh.session_id, b"8765")


def test_replay(town: Town):
    mesh, raw = town.mesh_and_raw()
    raw.send(Kind.SHARE, b"12345678")
    raw.send(Kind.SHARE, b"12345678", step=2)
    mesh.receive(B, Kind.SHARE, 8)
    error = refused(
        mesh, "frame from hospital_b to hospital_a, step 3: it carries step 2: it was sent before (a replay)"
    )
    assert (error.sender, error.receiver, error.step) == (B, A, 3)
    kind, _, cause = raw.receive(2)
    assert kind is Kind.ABORT and cause.decode() == f"hospital_a: {error}"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"step": 3}, "it carries step 3: frames before it are missing"),
        ({"session": b"x" * 16}, "it belongs to another session"),
        ({"session": bytes(16)}, "it belongs to another session"),
        ({"payload": b"123456789"}, "SHARE of 9 bytes where 8 were due (1 trailing)"),
        ({"payload": b"1234567"}, "SHARE of 7 bytes where 8 were due (1 missing)"),
        ({"kind": Kind.OPENING}, "OPENING came where SHARE was due"),
        ({"kind": Kind.HELLO}, "HELLO came where SHARE was due"),
        ({"kind": 77}, "unknown kind 77"),
        ({"length": 1 << 40}, "1099511627776 bytes announced, at most 4294967296 allowed"),
        ({"header": b"\x09" + bytes(33)}, "version 9 instead of 1"),
        ({"kind": Kind.BYE, "payload": b"and"}, "BYE with 3 trailing bytes"),
        ({"kind": Kind.ABORT, "payload": b"x" * 5000}, "a cause of 5000 bytes"),
    ],
)
def test_altered_frames_are_refused(town: Town, changes: dict, problem: str):
    mesh, raw = town.mesh_and_raw()
    changes = {"kind": Kind.SHARE, "payload": b"12345678"} | changes
    raw.send(changes.pop("kind"), changes.pop("payload"), **changes)
    refused(mesh, WHERE + problem)


def test_a_limit_holds_where_the_size_is_open(town: Town):
    mesh, raw = town.mesh_and_raw()
    raw.send(Kind.CONTROL, b"x" * 11)
    with pytest.raises(FrameError, match="11 bytes announced, at most 10 allowed"):
        mesh.receive(B, Kind.CONTROL, limit=10)


@pytest.mark.parametrize("payload", [b"{", b"\xff\xfe", b'{"x": NaN}', b"[" * 100_000, b""])
def test_control_must_be_strict_json(town: Town, payload: bytes):
    mesh, raw = town.mesh_and_raw()
    raw.send(Kind.CONTROL, payload)
    with pytest.raises(FrameError, match=r"step 2: CONTROL cannot be read \((no JSON|a number|lists more)"):
        mesh.receive_json(B)


def test_a_reveal_is_never_delivered_in_part(town: Town):
    mesh, raw = town.mesh_and_raw()
    seen = []
    mesh.observers.append(lambda *frame: seen.append(frame))
    raw.sock.sendall(encode(Kind.REVEAL, raw.session, 2, 100_000) + bytes(99_999))
    raw.close()
    with pytest.raises(PeerLostError, match="hospital_a lost hospital_b at step 2: the connection ended"):
        mesh.exchange(Kind.REVEAL, {}, {B: 100_000})
    assert seen == []
    assert mesh.traffic.snapshot().received_bytes == 0


def test_a_cause_cannot_write_to_the_terminal(town: Town):
    mesh, raw = town.mesh_and_raw()
    raw.send(Kind.ABORT, "disk full\x1b[2J\r\nINFO all is well\u202e\xe9".encode())
    with pytest.raises(PeerAbortedError) as caught:
        mesh.receive(B, Kind.SHARE, 8)
    assert caught.value.cause == "disk full [2J INFO all is well \xe9"
    assert "hospital_a stops at step 2 because hospital_b ended the session: disk full" in str(caught.value)


def test_an_empty_cause_is_said_to_be_empty(town: Town):
    mesh, raw = town.mesh_and_raw()
    raw.send(Kind.ABORT, b"\x00")
    with pytest.raises(PeerAbortedError, match="no cause given"):
        mesh.receive(B, Kind.SHARE, 8)


def test_goodbye_where_a_frame_was_due(town: Town):
    mesh, raw = town.mesh_and_raw()
    raw.send(Kind.BYE)
    with pytest.raises(PeerLeftError, match="hospital_b left the session at step 2"):
        mesh.receive(B, Kind.SHARE, 8)


def test_reset_connections_and_spoilt_records_are_a_lost_peer(town: Town):
    mesh, raw = town.mesh_and_raw()
    with socket.socket(fileno=raw.sock.detach()) as below:
        below.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))  # a TLS record that no key made
        with pytest.raises(PeerLostError, match="hospital_a lost hospital_b at step 2"):
            mesh.receive(B, Kind.SHARE, 8)


def test_byte_by_byte_is_slow_but_right(town: Town):
    mesh, raw = town.mesh_and_raw()
    frame = encode(Kind.SHARE, raw.session, 2, 6) + b"slowly"
    for place in range(len(frame)):
        raw.sock.sendall(frame[place : place + 1])
    assert mesh.receive(B, Kind.SHARE, 6) == b"slowly"


def test_waiting_does_not_spin_on_frames_that_came_early(town: Town):
    # hospital_a waits for room to send while a large frame of hospital_b, not asked for yet, lies there.
    mesh, raw = town.mesh_and_raw(timeout_s=0.3)
    mesh._poll = poll = CountingPoll()

    def too_early() -> None:
        with contextlib.suppress(OSError):
            raw.send(Kind.SHARE, bytes(8 << 20))

    def wait() -> None:
        select.select([mesh._channels[B].fileno()], [], [], 5)
        with pytest.raises(PeerLostError, match="it takes nothing"):
            mesh.send(B, Kind.SHARE, bytes(32 << 20))

    returned(together({B: too_early, A: wait})[A])
    assert 0 < poll.calls < 100
