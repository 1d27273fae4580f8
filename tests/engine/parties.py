"""Compute parties as real processes on a real mesh, with a simulated dealer: they live as long as the test session.

`Parties.run(function, *inputs)` shares each float tensor, calls ``function(*tensors)`` with CrypTen tensors at every
party, and adds up the shares of what it returns (tensors, or tuples and dicts of them; anything else comes from the
first party as it is).
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

BITS = 16


PRELOADED = [
    "pytest", "torch._dynamo", "torch._meta_registrations", "mpc_imaging.data", "mpc_imaging.party",
    "mpc_imaging.engine.installation", "mpc_imaging.engine.layers", "mpc_imaging.models.convert",
    "mpc_imaging.report.metrics", "mpc_imaging.randomness.dealer", "mpc_imaging.tasks.run", "mpc_imaging.tasks.infer",
    "mpc_imaging.tasks.job", "mpc_imaging.tasks.weights", __name__,
]  # fmt: skip


def fork_server() -> Any:
    """Starts processes that have torch and CrypTen imported: once, in the server that they are forked from."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _worker(
    pipe: Any, name: str, names: list[str], ports: list[int], folder: Path, keys: list[bytes], bits: int
) -> None:
    torch.set_num_threads(1)
    from mpc_imaging.engine import install
    from mpc_imaging.engine.communicator import MeshCommunicator
    from mpc_imaging.protocols.context import Context
    from mpc_imaging.protocols.fss import KeyComparison
    from mpc_imaging.protocols.tables import TableComparison
    from mpc_imaging.randomness.provider import SimulatedProvider
    from mpc_imaging.randomness.streams import Stream, derive_key, fresh_key
    from mpc_imaging.transport.certificates import Credentials
    from mpc_imaging.transport.mesh import Mesh

    addresses = {n: ("127.0.0.1", port) for n, port in zip(names, ports, strict=True)}
    mesh = Mesh.connect(
        me=name, order=names, links=[n for n in names if n != name], addresses=addresses,
        credentials=Credentials(folder / name), listener=None, connect_timeout_s=60, timeout_s=60, leader=names[0],
    )  # fmt: skip
    rank, count = names.index(name), len(names)
    communicator = MeshCommunicator(mesh, names)
    edge = lambda i: Stream(derive_key(keys[0], b"", f"edge {i % count}"))  # noqa: E731
    streams = {"prev": edge(rank - 1), "next": edge(rank), "local": Stream(fresh_key()), "global": Stream(keys[0])}
    # Two parties compare with keys, more with tables.
    comparison = KeyComparison() if count == 2 else TableComparison()
    context = Context(communicator, SimulatedProvider(rank, count, keys), comparison)
    install(context, communicator, streams, bits, sealed=False)
    while (job := pipe.recv()) is not None:
        try:
            pipe.send((True, _call(mesh, *job)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


def _call(mesh: Any, function: Callable[..., Any], shares: list[torch.Tensor], options: dict[str, Any]) -> Any:
    from mpc_imaging.engine.tensors import from_share

    before = mesh.traffic.snapshot()
    requires_grad = options.pop("requires_grad", False)
    result = function(*(from_share(share, requires_grad=requires_grad) for share in shares), **options)
    return _plain(result), (mesh.traffic.snapshot() - before).rounds


def _plain(value: Any) -> Any:
    from mpc_imaging.engine import compat

    compat.load()
    from crypten.mpc import MPCTensor

    if isinstance(value, MPCTensor):
        return (value.share, value.encoder._precision_bits)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    return value


def _joined(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, tuple):
        return sum((p[0] for p in parts[1:]), first[0]).double() / 2.0 ** first[1]
    if isinstance(first, dict):
        return {key: _joined([p[key] for p in parts]) for key in first}
    if isinstance(first, list):
        return [_joined([p[i] for p in parts]) for i in range(len(first))]
    return first


class Parties:
    """A group of `count` compute parties, with so many bits of fraction."""

    def __init__(self, count: int, folder: Path, bits: int = BITS) -> None:
        import socket

        from mpc_imaging.randomness.streams import fresh_key
        from mpc_imaging.transport.certificates import make_local

        names = [f"party_{i}" for i in range(count)]
        make_local(folder, names)
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
        ports = [s.getsockname()[1] for s in sockets]
        for s in sockets:
            s.close()
        keys = [fresh_key() for _ in names]
        server = fork_server()
        self._pipes, self._processes, self.rounds, self.bits = [], [], 0, bits
        for name in names:
            mine, theirs = server.Pipe()
            process = server.Process(target=_worker, args=(theirs, name, names, ports, folder, keys, bits), daemon=True)
            process.start()
            self._pipes.append(mine)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *inputs: torch.Tensor, **options: Any) -> Any:
        """See the module's docstring; `rounds` then holds the number of exchanges."""
        from mpc_imaging.engine.encoding import encode
        from tests.protocols.parties import share

        shares = [share(encode(x, self.bits), len(self._pipes)) for x in inputs]
        for i, pipe in enumerate(self._pipes):
            pipe.send((function, [s[i] for s in shares], dict(options)))
        answers = [pipe.recv() if pipe.poll(120) else (False, "no answer in 120 s") for pipe in self._pipes]
        failed = [answer for ok, answer in answers if not ok]
        if failed:
            raise AssertionError("a party failed:\n" + "\n".join(failed))
        self.rounds = answers[0][1][1]
        return _joined([answer[0] for _, answer in answers])

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(None)
            process.join(10)
            process.kill()
