"""Sessions whose parties write down every frame: the program of `mpc_imaging.party`, with an observer on its mesh.

Each party is a process of its own, forked from a server that has imported everything: starting all of them by their own
command line, as `mpc_imaging.parties.launcher` does, takes a minute more.
"""

import contextlib
import copy
import os
import socket
import struct
from pathlib import Path

import numpy as np

from mpc_imaging import party, settings as config
from mpc_imaging.randomness.streams import Stream
from mpc_imaging.transport.certificates import make_local
from mpc_imaging.transport.frames import Kind
from mpc_imaging.transport.mesh import Mesh
from tests.engine.parties import fork_server

HEAD = struct.Struct("!BBHQ")
DIRECTIONS = ("sent", "received")


def _record(mesh: Mesh, folder: Path) -> None:
    file = (folder / f"{mesh.me}.frames").open("wb")

    def write(direction: str, peer: str, kind: Kind, payload: bytes) -> None:
        name = peer.encode()
        file.write(HEAD.pack(DIRECTIONS.index(direction), kind, len(name), len(payload)) + name + payload)
        file.flush()

    mesh.observers.append(write)


def frames(folder: Path, name: str) -> list[tuple[str, str, Kind, bytes]]:
    """(direction, peer, kind, payload) of every frame that a party saw, in order."""
    data, position, result = (folder / f"{name}.frames").read_bytes(), 0, []
    while position < len(data):
        direction, kind, name_size, size = HEAD.unpack_from(data, position)
        position += HEAD.size
        peer = data[position : position + name_size].decode()
        position += name_size
        result.append((DIRECTIONS[direction], peer, Kind(kind), data[position : position + size]))
        position += size
    return result


def _party(name: str, folder: Path, listener: socket.socket, masks_off: bool) -> None:
    connect = Mesh.connect.__func__

    def recorded(cls, *args, **kwargs):
        mesh = connect(cls, *args, **kwargs)
        _record(mesh, folder)
        return mesh

    Mesh.connect = classmethod(recorded)
    if masks_off:
        Stream.octets = lambda self, count: np.zeros(count, np.uint8)
    os._exit(
        party.main([
            f"party={name}", "--config-file", str(folder / "settings.yaml"), "--run-dir", str(folder),
            "--certificates", str(folder / name), "--listen-fd", str(listener.detach()), "--one-machine",
        ])
    )  # fmt: skip


def run(folder: Path, settings: config.Settings, masks_off: bool = False) -> None:
    """A session on this machine; each party's frames are then in `folder`. With `masks_off` keystreams give zeros."""
    settings, names = copy.deepcopy(settings), list(settings.topology.parties)
    make_local(folder, names)
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        for name, listener in zip(names, listeners, strict=True):
            settings.topology.parties[name].address = "{}:{}".format(*listener.getsockname())
        config.save(settings, folder / "settings.yaml")
        processes = [
            fork_server().Process(target=_party, args=(name, folder, listener, masks_off), daemon=True)
            for name, listener in zip(names, listeners, strict=True)
        ]
        for process in processes:
            process.start()
    for name, process in zip(names, processes, strict=True):
        process.join(120)
        if process.exitcode != 0:
            process.kill()
            log = folder / "parties" / name / "log.txt"
            raise AssertionError(f"{name} ended with {process.exitcode}: {log.read_text() if log.exists() else ''}")
