"""What a compute party runs: the engine for the length of a session, and passes of a model over shared images."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from mpc_imaging.errors import ConfigError
from mpc_imaging.parties.session import Session
from mpc_imaging.randomness.streams import Stream, fresh_key
from mpc_imaging.settings import ProtocolName, RandomnessMode
from mpc_imaging.transport.frames import Kind


@dataclass
class Meter:
    """Cost of a session at one compute party, in total and per layer."""

    session: Session
    provider: Any
    layers: dict[tuple[str, str], dict[str, float]] = field(
        default_factory=lambda: defaultdict(lambda: dict.fromkeys(("rounds", "sent_bytes", "seconds"), 0))
    )

    def start(self) -> None:
        """Inputs are shared: the clock starts."""
        self._started, self._waited = time.perf_counter(), self._offline()
        self._traffic = self.session.mesh.traffic.snapshot()

    def _offline(self) -> float:
        return self.provider.waited_s if self.provider is not None else 0.0

    def _exchanged(self) -> tuple[int, int]:
        traffic = self.session.mesh.traffic.snapshot()
        peers = [name for name in self.session.compute if name != self.session.me]
        return traffic.rounds, traffic.peer(*peers).sent_wire_bytes

    def cost(self) -> dict[str, float]:
        """Seconds, rounds and bytes since `start`; ``online_s`` leaves out ``offline_s``, the wait for the dealer."""
        elapsed = time.perf_counter() - self._started
        offline = self._offline() - self._waited
        traffic = self.session.mesh.traffic.snapshot() - self._traffic
        return {
            "online_s": elapsed - offline,
            "offline_s": offline,
            "rounds": traffic.rounds,
            "sent_bytes": traffic.kind(Kind.OPENING, Kind.REVEAL).sent_wire_bytes,
            "dealer_bytes": traffic.kind(Kind.CORRECTION).received_wire_bytes,
        }

    @contextlib.contextmanager
    def layer(self, name: str, op: str) -> Iterator[None]:
        """Attributes what happens inside to a layer; the dealer's time is not the layer's."""
        start, waited, before = time.perf_counter(), self._offline(), self._exchanged()
        yield
        after = self._exchanged()
        entry = self.layers[name, op]
        entry["seconds"] += time.perf_counter() - start - (self._offline() - waited)
        entry["rounds"] += after[0] - before[0]
        entry["sent_bytes"] += after[1] - before[1]

    def layer_rows(self) -> list[dict[str, Any]]:
        """Totals of each layer, in the order of their first use."""
        return [{"name": name, "op": op, **values} for (name, op), values in self.layers.items()]


@contextlib.contextmanager
def engine(session: Session) -> Iterator[Meter]:
    """CrypTen on this session's mesh and dealer; yields the meter.

    At the end the dealer compares what all parties used; this waits for its word.
    Raises `ConfigError` for a mode of randomness that is not built, `TransportError` if the session ends meanwhile.
    """
    if session.settings.protocol.name is ProtocolName.insecure_simulation:
        from mpc_imaging.engine import simulation

        with simulation.gloo(session.mesh, session.compute, session.settings.protocol.fraction_bits):
            yield Meter(session, None)
        return
    # Imported here: the dealer and parties that only share or receive run without CrypTen.
    from mpc_imaging.engine.communicator import MeshCommunicator
    from mpc_imaging.engine.install import install, uninstall
    from mpc_imaging.protocols.context import Context
    from mpc_imaging.randomness.dealer import DealerClient

    if session.settings.randomness.mode is not RandomnessMode.on_demand:
        raise ConfigError([f"randomness.mode={session.settings.randomness.mode.value} is not built; write on_demand"])
    dealer = session.settings.dealer()
    last = session.me == session.compute[-1]
    provider = DealerClient(session.mesh, dealer, session.stream(dealer, "correlations"), holder=last)
    communicator = MeshCommunicator(session.mesh, session.compute)
    install(
        Context(communicator, provider),
        communicator,
        _crypten_streams(session),
        session.settings.protocol.fraction_bits,
    )
    try:
        yield Meter(session, provider)
        provider.finish()
    finally:
        uninstall()


def _crypten_streams(session: Session) -> dict[str, Stream]:
    """CrypTen's four generators; ``prev`` and ``next`` are shared with the neighbours in the ring of ranks."""
    count, rank = len(session.compute), session.rank
    after, before = session.compute[(rank + 1) % count], session.compute[(rank - 1) % count]
    return {
        "prev": session.stream(before, f"crypten {before}"),
        "next": session.stream(after, f"crypten {session.me}"),
        "local": Stream(fresh_key()),
        # Known to all compute parties: for public randomness only.
        "global": Stream(session.mesh.session_id * 2),
    }


def batches(total: int, size: int) -> Iterator[slice]:
    """Consecutive rows, ``size`` at a time."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def forward(model: Any, images: torch.Tensor, batch_size: int, tick: Any) -> torch.Tensor:
    """Share of the logits (N, K) of shared images (N, C, H, W), both int64; calls ``tick(rows)`` after each batch."""
    from mpc_imaging.engine import tensors

    results = []
    with tensors.no_grad():
        for rows in batches(len(images), batch_size):
            results.append(tensors.share_of(tensors.rescaled(model(tensors.from_share(images[rows])))))
            tick(rows.stop - rows.start)
    return torch.cat(results)
