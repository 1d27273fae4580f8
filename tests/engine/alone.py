"""CrypTen installed in this process, for one compute party: tests what `install` replaces, without other processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from mpc_imaging.engine.communicator import MeshCommunicator
from mpc_imaging.engine.install import install, uninstall
from mpc_imaging.protocols.context import Context
from mpc_imaging.randomness.provider import SimulatedProvider
from mpc_imaging.randomness.streams import Stream, fresh_key


class EmptyMesh:
    """A mesh without peers: an exchange brings nothing."""

    me = "alone"

    def exchange(self, kind: Any, outgoing: Mapping[str, Any], incoming: Mapping[str, int]) -> dict[str, bytearray]:
        assert not outgoing and not incoming
        return {}


@contextlib.contextmanager
def alone(sealed: bool = False, fraction_bits: int = 16) -> Iterator[None]:
    """CrypTen on this package's protocols inside, as it came afterwards."""
    communicator = MeshCommunicator(EmptyMesh(), ["alone"])
    context = Context(communicator, SimulatedProvider(0, 1, [fresh_key()]))
    streams = {name: Stream(fresh_key()) for name in ("prev", "next", "local", "global")}
    try:
        install(context, communicator, streams, fraction_bits, sealed)
        yield
    finally:
        uninstall()
