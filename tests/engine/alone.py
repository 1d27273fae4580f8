"""CrypTen installed in this process, for one compute party: tests what `install` replaces, without other processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from mpc_imaging.engine import install, uninstall
from mpc_imaging.engine.communicator import MeshCommunicator
from mpc_imaging.protocols.context import Context
from mpc_imaging.randomness.provider import SimulatedProvider
from mpc_imaging.randomness.streams import Stream, fresh_key


class SilentMesh:
    """A mesh whose peers send zeros: enough for what does not depend on the results."""

    me = "first"

    def exchange(self, kind: Any, outgoing: Mapping[str, Any], incoming: Mapping[str, int]) -> dict[str, bytearray]:
        """Nothing is sent, and zeros arrive."""
        return {peer: bytearray(size) for peer, size in incoming.items()}


class Recorder(SimulatedProvider):
    """Keeps the names of all demands."""

    def __init__(self, parties: int) -> None:
        super().__init__(0, parties, [fresh_key() for _ in range(parties)])
        self.demands: list[str] = []

    def get(self, demand: Any) -> Any:
        """See `SimulatedProvider`."""
        self.demands.append(demand.name)
        return super().get(demand)


@contextlib.contextmanager
def alone(
    parties: int = 1,
    sealed: bool = False,
    fraction_bits: int = 16,
    keys: Mapping[str, bytes] | None = None,
    mesh: Any = None,
) -> Iterator[list[str]]:
    """CrypTen on this package's protocols inside, as it came afterwards; yields the names of all demands so far.

    One party computes what all would. The first of several computes with peers that send zeros (or with `mesh`).
    """
    if keys is None:
        keys = {name: fresh_key() for name in ("prev", "next", "local", "global")}
        if parties == 1:
            keys["next"] = keys["prev"]  # the only party is its own neighbour
    communicator = MeshCommunicator(mesh or SilentMesh(), ["first", "second", "third"][:parties])
    provider = Recorder(parties)
    try:
        streams = {name: Stream(key) for name, key in keys.items()}
        install(Context(communicator, provider), communicator, streams, fraction_bits, sealed)
        yield provider.demands
    finally:
        uninstall()
