"""CrypTen as it came, over gloo and with its trusted first party: fast to compare with, and not secure.

Rank 0 knows every mask, nothing is encrypted between the compute parties, and torch's generator makes the masks. Only
``protocol=insecure_simulation`` comes here; the run warns and its report is marked.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence

from mpc_imaging import strict_json
from mpc_imaging.engine import compat
from mpc_imaging.errors import TransportError
from mpc_imaging.transport.mesh import Mesh

crypten = compat.load()


def _port(mesh: Mesh, leader: str) -> int:
    try:
        return strict_json.whole(strict_json.entries(mesh.receive_json(leader), ["port"])["port"], 1, 65535)
    except strict_json.JsonError:
        raise TransportError(f"{leader} told {mesh.me} no port to meet at") from None


@contextlib.contextmanager
def gloo(mesh: Mesh, compute: Sequence[str], fraction_bits: int) -> Iterator[None]:
    """Initialise CrypTen among the compute parties on this machine; they find each other through the mesh.

    Raises `TransportError` if the first party names no port.
    """
    rank = list(compute).index(mesh.me)
    if rank == 0:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for name in compute[1:]:
            mesh.send_json(name, {"port": port})
    else:
        port = _port(mesh, compute[0])
    # CrypTen reads these four from the environment and from nowhere else.
    os.environ |= {
        "RENDEZVOUS": f"tcp://127.0.0.1:{port}",
        "WORLD_SIZE": str(len(compute)),
        "RANK": str(rank),
        "DISTRIBUTED_BACKEND": "gloo",
    }
    before = crypten.cfg.config.copy()
    crypten.cfg.encoder.precision_bits = fraction_bits
    crypten.init()
    try:
        yield
    finally:
        crypten.cfg.config = before
        crypten.uninit()
