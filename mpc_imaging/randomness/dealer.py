"""The dealer and its client: correlated randomness over the mesh. The dealer sees neither data, shares nor openings."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence

import numpy as np

from mpc_imaging.errors import RandomnessError, SessionError
from mpc_imaging.randomness import correlations
from mpc_imaging.randomness.correlations import Demand
from mpc_imaging.randomness.provider import DemandLog
from mpc_imaging.randomness.streams import Stream
from mpc_imaging.transport.frames import Kind
from mpc_imaging.transport.mesh import Mesh

REQUEST_LIMIT = 1 << 16  # bytes; a demand is a short list


def serve(mesh: Mesh, compute: Sequence[str], streams: Sequence[Stream]) -> DemandLog:
    """Answer demands until the holder (the last of `compute`) has no more; then check that all parties used the same.

    `streams[i]` is the keystream shared with compute party i alone. Returns the log of the demands served, after all
    parties were told that they agree. Raises `RandomnessError` for a request that is no demand, `SessionError` if the
    parties used different randomness, `PeerLostError` if one of them leaves before its end.
    """
    holder = len(compute) - 1
    log = DemandLog()
    while True:
        payload = mesh.receive(compute[holder], Kind.REQUEST, limit=REQUEST_LIMIT, wait_s=math.inf)
        try:
            request = json.loads(bytes(payload))
        except (ValueError, RecursionError):
            raise RandomnessError(f"{compute[holder]} sent {mesh.me} a request that is not JSON") from None
        if request is None:
            break
        demand = correlations.from_json(request)
        log.add(demand)
        correction = correlations.correct(demand, streams, holder)
        mesh.send(compute[holder], Kind.CORRECTION, correlations.pack(correction))
    for party in compute:
        if mesh.receive_json(party, wait_s=math.inf) != log.summary():
            raise SessionError(
                f"{party} used other randomness than {mesh.me} served; run all parties from the same version"
            )
    for party in compute:
        mesh.send_json(party, "same")
    return log


class DealerClient:
    """Asks the dealer at the moment of need. Only the holder, the last compute party, talks to it for each demand."""

    def __init__(self, mesh: Mesh, dealer: str, stream: Stream, holder: bool) -> None:
        self._mesh, self._dealer, self._stream, self._holder = mesh, dealer, stream, holder
        self.log = DemandLog()
        self.waited_s = 0.0

    def get(self, demand: Demand) -> list[np.ndarray]:
        """This party's shares; the holder waits for the dealer's correction."""
        self.log.add(demand)
        correction = None
        if self._holder:
            self._mesh.send(self._dealer, Kind.REQUEST, json.dumps(correlations.to_json(demand)).encode())
            start = time.perf_counter()
            payload = self._mesh.receive(self._dealer, Kind.CORRECTION, correlations.correction_octets(demand))
            self.waited_s += time.perf_counter() - start
            correction = correlations.unpack(demand, payload)
        return correlations.draw(demand, self._stream, correction, self._holder)

    def finish(self) -> None:
        """Tell the dealer that no more is needed, and wait until it has compared what all parties used.

        Raises `PeerLostError` with the dealer's cause if that was not the same.
        """
        if self._holder:
            self._mesh.send(self._dealer, Kind.REQUEST, b"null")
        self._mesh.send_json(self._dealer, self.log.summary())
        self._mesh.receive_json(self._dealer, wait_s=math.inf)
