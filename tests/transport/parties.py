"""Parties for the tests: real sockets and certificates, each party in a thread or a process; and one that cheats."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mpc_imaging.transport import Credentials, Kind, Mesh
from mpc_imaging.transport.certificates import make_local
from mpc_imaging.transport.frames import HEADER_SIZE, NO_SESSION, decode, encode

NAMES = ("hospital_a", "hospital_b", "dealer", "owner", "receiver", "intruder")
A, B, DEALER = NAMES[:3]


def certificates(folder: Path) -> Path:
    """Certificates of all `NAMES`, under one authority."""
    make_local(folder, NAMES)
    return folder


class Town:
    """The parties of one test: ports, and meshes that are closed at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listeners: dict[str, socket.socket] = {}
        self.opened: list[Any] = []

    def listen(self, names: Sequence[str]) -> dict[str, tuple[str, int]]:
        """A listening socket for each party; returns the addresses."""
        for name in names:
            self.listeners[name] = socket.create_server(("127.0.0.1", 0))
        return {name: self.listeners[name].getsockname() for name in names}

    def join(self, me: str, order: Sequence[str], addresses: Mapping[str, tuple[str, int]], **changes: Any) -> Mesh:
        """`Mesh.connect` with the timeouts of a test; linked to everybody unless told otherwise."""
        arguments = {
            "links": [name for name in order if name != me],
            "credentials": Credentials(self.folder / me),
            "listener": self.listeners.get(me),
            "connect_timeout_s": 5.0,
            "timeout_s": 5.0,
            "leader": order[0],
        }
        mesh = Mesh.connect(me=me, order=order, addresses=addresses, **(arguments | changes))
        self.opened.append(mesh)
        return mesh

    def meshes(self, order: Sequence[str], **changes: Any) -> list[Mesh]:
        """A mesh for each party in ``order``, all connected. A change that is a function gets the party's name."""
        addresses = self.listen(order)

        def mine(name: str) -> dict[str, Any]:
            return {key: value(name) if callable(value) else value for key, value in changes.items()}

        results = together({name: lambda name=name: self.join(name, order, addresses, **mine(name)) for name in order})
        return [returned(results[name]) for name in order]

    def raw(self, name: str, address: tuple[str, int], **context_changes: Any) -> RawPeer:
        """A party that dials ``address`` with valid certificates and then says what the test wants."""
        peer = RawPeer(self.folder / name, address, **context_changes)
        self.opened.append(peer)
        return peer

    def mesh_and_raw(self, **changes: Any) -> tuple[Mesh, RawPeer]:
        """A real hospital_a in session with a raw hospital_b."""
        addresses = self.listen([A])
        addresses[B] = ("127.0.0.1", 1)

        def be_b() -> RawPeer:
            raw = self.raw(B, addresses[A])
            raw.enter_session()
            return raw

        results = together({A: lambda: self.join(A, [A, B], addresses, **changes), B: be_b})
        return returned(results[A]), returned(results[B])

    def close(self) -> None:
        """Close whatever a test left open."""
        for item in [*self.opened, *self.listeners.values()]:
            item.close()


class RawPeer:
    """Speaks the frame protocol over an ordinary TLS socket, right or wrong."""

    def __init__(self, folder: Path, address: tuple[str, int], version: ssl.TLSVersion | None = None) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(folder / "ca.crt")
        context.load_cert_chain(folder / "party.crt", folder / "party.key")
        if version is not None:
            context.maximum_version = version
        plain = socket.create_connection(address, timeout=5)
        try:
            self.sock = context.wrap_socket(plain)
        except BaseException:
            plain.close()
            raise
        self.session = NO_SESSION
        self.step = 0

    def send(self, kind: int, payload: bytes = b"", **changes: Any) -> None:
        """Send a frame whose header may be changed: session, step, length, or a whole ``header``."""
        header = encode(
            kind,
            changes.get("session", self.session),
            changes.get("step", self.step),
            changes.get("length", len(payload)),
        )
        self.step += 1
        self.sock.sendall(changes.get("header", header) + payload)

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes; EOFError when the connection ends first."""
        data = b""
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def receive(self, step: int, session: bytes | None = None) -> tuple[Kind, bytes, bytes]:
        """Kind, session and payload of the next frame."""
        header = decode(self.read(HEADER_SIZE), sender=A, receiver=B, session=session, step=step)
        return header.kind, header.session, self.read(header.length)

    def enter_session(self) -> None:
        """Both HELLOs, as a party that is not the leader."""
        self.send(Kind.HELLO)
        self.receive(0)
        _, self.session, _ = self.receive(1)
        self.send(Kind.HELLO)

    def close(self) -> None:
        """Close without a word."""
        self.sock.close()


class CountingPoll:
    """`select.poll` that tells how often a party woke up: waiting must not be busy waiting."""

    def __init__(self) -> None:
        self.calls = 0
        self.real = select.poll()
        self.register, self.unregister = self.real.register, self.real.unregister

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        self.calls += 1
        return self.real.poll(timeout)


def together(jobs: Mapping[str, Callable[[], Any]], timeout_s: float = 20.0) -> dict[str, Any]:
    """Run every job in a thread of its own; what each returned or raised."""
    results: dict[str, Any] = {}

    def run(name: str, job: Callable[[], Any]) -> None:
        try:
            results[name] = job()
        except BaseException as error:
            results[name] = error

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in jobs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout_s)
    unfinished = jobs.keys() - results.keys()
    assert not unfinished, f"still running after {timeout_s} s: {unfinished}"
    return results


def returned(result: Any) -> Any:
    """A result of `together` that must not be an error."""
    if isinstance(result, BaseException):
        raise result
    return result
