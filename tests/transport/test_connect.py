from __future__ import annotations

import socket
import ssl
import time

import pytest

from mpc_imaging.errors import ConfigError, PeerLostError, TransportError
from mpc_imaging.transport import CertificateError, Credentials, FrameError, Kind, PeerAbortedError, make_local
from mpc_imaging.transport.frames import HEADER_SIZE
from tests.transport.parties import DEALER, A, B, RawPeer, Town, returned, together

SHORT = {"connect_timeout_s": 0.4}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_everybody_meets_in_one_session(town: Town, count: int):
    order = (A, B, DEALER, "owner", "receiver")[:count]
    meshes = town.meshes(order)
    assert len({mesh.session_id for mesh in meshes}) == 1
    assert len(meshes[0].session_id) == 16 and any(meshes[0].session_id)
    for me, mesh in zip(order, meshes, strict=True):
        assert mesh.me == me and set(mesh.peers) == set(order) - {me}


def test_links_may_be_a_part_of_the_mesh(town: Town):
    # An outsourced topology: owners talk to the compute parties only, and the leader is neither first nor last.
    order = ("owner", "receiver", A, B, DEALER)
    links = {
        "owner": [A, B],
        "receiver": [A, B],
        A: ["owner", "receiver", B, DEALER],
        B: ["owner", "receiver", A, DEALER],
        DEALER: [A, B],
    }
    meshes = town.meshes(order, links=lambda name: links[name], leader=A)
    assert {mesh.me: list(mesh.peers) for mesh in meshes} == links
    assert len({mesh.session_id for mesh in meshes}) == 1


def test_meshes_side_by_side_are_different_sessions(town: Town, certificates):
    other = Town(certificates)
    try:
        results = together({"one": lambda: town.meshes([A, B]), "two": lambda: other.meshes([A, B])})
        one, two = returned(results["one"]), returned(results["two"])
        assert one[0].session_id == one[1].session_id != two[0].session_id == two[1].session_id
    finally:
        other.close()


def test_a_party_can_open_its_own_port(town: Town):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = probe.getsockname()
    addresses = {A: address, B: ("127.0.0.1", 1)}
    results = together({name: lambda name=name: town.join(name, [A, B], addresses) for name in (A, B)})
    assert returned(results[A]).session_id == returned(results[B]).session_id


def test_a_port_in_use_is_named(town: Town):
    addresses = town.listen([A]) | {B: ("127.0.0.1", 1)}
    with pytest.raises(TransportError, match=f"cannot listen on 127.0.0.1:{addresses[A][1]}.*in use"):
        town.join(A, [A, B], addresses, listener=None)


def test_every_missing_peer_is_named_at_once_and_the_others_are_told(town: Town):
    order = (A, "owner", B, DEALER)
    addresses = town.listen(order)
    town.listeners.pop("owner").close()
    jobs = {name: lambda name=name: town.join(name, order, addresses, connect_timeout_s=0.8) for name in (A, B)}
    started = time.monotonic()
    results = together(jobs)
    assert time.monotonic() - started < 4
    assert all(isinstance(error, PeerLostError) for error in results.values())
    first = next(error for error in results.values() if not isinstance(error, PeerAbortedError))
    assert "owner" in str(first) and "dealer (it never connected to hospital_" in str(first)
    assert "within 0.8 s" in str(first)
    for error in results.values():
        if isinstance(error, PeerAbortedError):
            assert error.cause == str(first)


def test_a_dialer_says_where_it_knocked(town: Town):
    addresses = town.listen([A, B])
    town.listeners.pop(A).close()
    with pytest.raises(PeerLostError, match=f"hospital_a at 127.0.0.1:{addresses[A][1]} .Connection refused"):
        town.join(B, [A, B], addresses, **SHORT)


def test_an_unknown_host_is_named(town: Town):
    addresses = {A: ("no-such-host.invalid", 1234), B: ("127.0.0.1", 1)}
    with pytest.raises(PeerLostError, match="hospital_a at no-such-host.invalid:1234"):
        town.join(B, [A, B], addresses, **SHORT)


def test_certificates_of_another_authority_are_refused(town: Town, tmp_path, caplog):
    make_local(tmp_path, [B])
    stranger = Credentials(tmp_path / B)
    addresses = town.listen([A, B])
    jobs = {
        A: lambda: town.join(A, [A, B], addresses, **SHORT),
        B: lambda: town.join(B, [A, B], addresses, credentials=stranger, **SHORT),
    }
    results = together(jobs)
    assert isinstance(results[A], PeerLostError) and "hospital_b (it never connected" in str(results[A])
    assert isinstance(results[B], PeerLostError)
    assert "hospital_b closed the connection to hospital_a at 127.0.0.1:" in caplog.text
    assert "its certificate does not pass this party's ca.crt" in caplog.text


def test_a_dialer_without_the_right_authority_is_refused_by_the_listener(town: Town, tmp_path, caplog):
    make_local(tmp_path, [B])
    (tmp_path / B / "ca.crt").write_bytes((town.folder / B / "ca.crt").read_bytes())  # it trusts us, we do not trust it
    addresses = town.listen([A])

    def knock() -> RawPeer:
        raw = RawPeer(tmp_path / B, addresses[A])
        town.opened.append(raw)
        with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
            raw.receive(0)
        return raw

    addresses[B] = ("127.0.0.1", 1)
    results = together({A: lambda: town.join(A, [A, B], addresses, **SHORT), B: knock})
    returned(results[B])
    assert isinstance(results[A], PeerLostError)
    assert "hospital_a closed a connection from 127.0.0.1: its certificate does not pass" in caplog.text


def test_the_listener_waits_on_for_the_rightful_one(town: Town, caplog):
    """Impostors, old TLS, no certificate, plain text, and connections that stall come first, and cost no time."""
    addresses = town.listen([A, B])
    stalled = [socket.create_connection(addresses[A]) for _ in range(3)]
    stalled[1].sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a ClientHello
    plain = socket.create_connection(addresses[A])
    plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
    town.opened += [*stalled, plain]

    def rogues_then_b() -> float:
        intruder = town.raw("intruder", addresses[A])
        with pytest.raises((OSError, EOFError)):
            intruder.receive(0)
        with pytest.raises(ssl.SSLError):
            town.raw(B, addresses[A], version=ssl.TLSVersion.TLSv1_2)
        with pytest.raises((OSError, EOFError)):
            nameless(addresses[A])
        started = time.monotonic()
        town.join(B, [A, B], addresses)
        return time.monotonic() - started

    results = together({A: lambda: town.join(A, [A, B], addresses), B: rogues_then_b})
    returned(results[A])
    assert returned(results[B]) < 2
    assert plain.recv(100) in (b"", b"\x15\x03\x01\x00\x02\x02F", b"\x15\x03\x03\x00\x02\x02F")
    assert "its certificate is for intruder, which is no party that connects to hospital_a" in caplog.text
    assert "TLS: unsupported protocol" in caplog.text
    assert "TLS: peer did not return a certificate" in caplog.text
    assert "TLS: http request" in caplog.text


def nameless(address: tuple[str, int]) -> None:
    """Dial without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(address, timeout=5) as plain, context.wrap_socket(plain) as sock:
        if not sock.recv(HEADER_SIZE):
            raise EOFError


def test_a_flood_of_stalled_connections_is_bounded(town: Town, monkeypatch):
    monkeypatch.setattr("mpc_imaging.transport.connect.HANDSHAKE_TIMEOUT_S", 0.2)
    monkeypatch.setattr("mpc_imaging.transport.connect._MAX_STRANGERS", 4)
    addresses = town.listen([A, B])
    town.opened += [socket.create_connection(addresses[A]) for _ in range(12)]
    results = together({name: lambda name=name: town.join(name, [A, B], addresses) for name in (A, B)})
    assert returned(results[A]).session_id == returned(results[B]).session_id


def test_another_party_at_the_address_is_refused_by_name(town: Town, caplog):
    # B dials where it believes hospital_a to be, and finds the dealer, with a valid certificate of its own.
    addresses = town.listen([DEALER, B])
    jobs = {
        DEALER: lambda: town.join(DEALER, [DEALER, B], addresses, **SHORT),
        B: lambda: town.join(B, [A, B], addresses | {A: addresses[DEALER]}, **SHORT),
    }
    results = together(jobs)
    assert "the certificate there is for dealer, not hospital_a" in str(results[B])
    assert "the certificate there is for dealer, not hospital_a" in caplog.text
    assert isinstance(results[DEALER], PeerLostError)


def test_a_second_connection_of_a_name_is_refused(town: Town, caplog):
    addresses = town.listen([A]) | {B: ("127.0.0.1", 1), DEALER: ("127.0.0.1", 1)}

    def first_and_second() -> None:
        first = town.raw(B, addresses[A])
        first.send(Kind.HELLO)
        first.receive(0)
        second = town.raw(B, addresses[A])
        with pytest.raises((OSError, EOFError)):
            second.receive(0)
        third = town.raw(DEALER, addresses[A])
        third.send(Kind.HELLO)
        third.receive(0)
        for raw in (first, third):
            _, raw.session, _ = raw.receive(1)
            raw.send(Kind.HELLO)

    results = together({A: lambda: town.join(A, [A, B, DEALER], addresses), "others": first_and_second})
    returned(results["others"])
    assert set(returned(results[A]).peers) == {B, DEALER}
    assert "a second connection of hospital_b" in caplog.text


def test_a_party_that_starts_again_before_the_session_is_taken_back(town: Town):
    addresses = town.listen([A, B, DEALER])
    mesh_of_a = {A: lambda: town.join(A, [A, B, DEALER], addresses)}

    def fall_and_come_back():
        fallen = town.raw(B, addresses[A])
        fallen.send(Kind.HELLO)
        fallen.receive(0)
        fallen.close()
        return together({name: lambda name=name: town.join(name, [A, B, DEALER], addresses) for name in (B, DEALER)})

    results = together(mesh_of_a | {"others": fall_and_come_back})
    sessions = {returned(mesh).session_id for mesh in [results[A], *returned(results["others"]).values()]}
    assert len(sessions) == 1


@pytest.mark.parametrize("answer", [b"\x01" * 16, bytes(16)])
def test_a_peer_of_another_session_is_refused(town: Town, answer: bytes):
    addresses = town.listen([A]) | {B: ("127.0.0.1", 1)}

    def wrong_session() -> None:
        raw = town.raw(B, addresses[A])
        raw.send(Kind.HELLO)
        raw.receive(0)
        raw.receive(1)
        raw.send(Kind.HELLO, session=answer)

    results = together({A: lambda: town.join(A, [A, B], addresses), B: wrong_session})
    assert isinstance(results[A], FrameError)
    assert str(results[A]) == "frame from hospital_b to hospital_a, step 1: it belongs to another session"


def test_a_peer_that_is_connected_but_never_ready_is_named(town: Town):
    addresses = town.listen([A]) | {B: ("127.0.0.1", 1)}

    def never_ready() -> None:
        raw = town.raw(B, addresses[A])
        raw.send(Kind.HELLO)
        raw.receive(0)

    results = together({A: lambda: town.join(A, [A, B], addresses, **SHORT), B: never_ready})
    assert isinstance(results[A], PeerLostError)
    assert "hospital_a waited 0.4 s for hospital_b: connected" in str(results[A])


def test_an_impossible_topology_is_refused_with_all_its_problems(town: Town):
    with pytest.raises(ConfigError) as caught:
        town.join(A, [A, B, B], {A: ("127.0.0.1", 1)}, links=[B, "nobody"], leader=DEALER)
    problems = "\n".join(caught.value.problems)
    for part in ("twice", "nobody is not in the order", "hospital_b has no address", "no link to the leader dealer"):
        assert part in problems


def test_the_certificate_must_be_ones_own(town: Town):
    with pytest.raises(CertificateError, match="for hospital_b, not hospital_a"):
        town.join(A, [A, B], town.listen([A, B]), credentials=Credentials(town.folder / B))
