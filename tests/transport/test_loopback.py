"""What the loop-back mesh counts is what a real mesh counts."""

import numpy as np
import pytest

from mpc_imaging.errors import TransportError
from mpc_imaging.transport import Kind
from mpc_imaging.transport.loopback import LoopbackMesh, LoopbackTraffic
from tests.transport.parties import DEALER, A, B, Town, certificates, together


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return certificates(tmp_path_factory.mktemp("certificates"))


def _first(mesh):
    """What A does, with peers that do the same with A, or with nobody."""
    mesh.exchange(Kind.OPENING, {B: [np.zeros(5, np.int64), b"abc"]}, {B: 43})
    mesh.exchange(Kind.OPENING, {B: []}, {B: 0})
    mesh.exchange(Kind.REVEAL, {B: [bytes(7)]}, {})
    mesh.exchange(Kind.REVEAL, {}, {B: 9})
    mesh.send(DEALER, Kind.REQUEST, b"[1]")
    assert mesh.receive(DEALER, Kind.CORRECTION, 100) == bytearray(100)
    mesh.send_json(B, {"a": [1, 2]})
    mesh.receive_json(B)


def _others(mesh):
    if mesh.me == B:
        mesh.exchange(Kind.OPENING, {A: [bytes(43)]}, {A: 43})
        mesh.exchange(Kind.OPENING, {A: []}, {A: 0})
        mesh.receive(A, Kind.REVEAL, 7)
        mesh.send(A, Kind.REVEAL, bytes(9))
        mesh.send_json(A, None)
        mesh.receive_json(A)
    else:
        mesh.receive(A, Kind.REQUEST, limit=10)
        mesh.send(A, Kind.CORRECTION, bytes(100))


def test_it_counts_as_a_real_mesh(folder):
    town = Town(folder)
    try:
        meshes = {mesh.me: mesh for mesh in town.meshes([A, B, DEALER])}
        before = meshes[A].traffic.snapshot()
        together({name: lambda m=mesh: (_first if m.me == A else _others)(m) for name, mesh in meshes.items()})
        real = meshes[A].traffic.snapshot() - before
    finally:
        town.close()
    loopback = LoopbackMesh(A, [B, DEALER], bytes(16))
    _first(loopback)
    counted = loopback.traffic.snapshot()
    for counters in real.cells.values():
        counters.wait_s = 0.0
    assert counted.cells == real.cells and counted.rounds_by_kind == real.rounds_by_kind


def test_payloads_are_fresh_zeros():
    mesh = LoopbackMesh(A, [B], bytes(16))
    received = mesh.exchange(Kind.OPENING, {B: [bytes(8)]}, {B: 8})[B]
    received[0] = 1
    assert mesh.exchange(Kind.OPENING, {B: [bytes(8)]}, {B: 8})[B] == bytearray(8)


def test_past_traffic_counts_again():
    traffic = LoopbackTraffic()
    traffic.sent(B, Kind.OPENING, 10)
    traffic.round(Kind.OPENING, [B])
    past = traffic.snapshot()
    traffic.add(past)
    now = traffic.snapshot()
    assert now.kind(Kind.OPENING).sent_wire_bytes == 2 * past.kind(Kind.OPENING).sent_wire_bytes
    assert (now.rounds, now.peer(B).sent_frames, past.rounds) == (2, 2, 1)


def test_strangers_and_calls_after_the_end():
    mesh = LoopbackMesh(A, [B], bytes(16))
    with pytest.raises(ValueError, match="no link to 'dealer', only to hospital_b"):
        mesh.send(DEALER, Kind.REQUEST, b"")
    mesh.close()
    mesh.abort("too late")
    with pytest.raises(TransportError, match="hospital_a has ended: it was closed"):
        mesh.exchange(Kind.OPENING, {B: []}, {B: 0})
