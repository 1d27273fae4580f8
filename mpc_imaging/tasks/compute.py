"""What a compute party runs: the engine for the length of a session, and passes of a model over shared images."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mpc_imaging.parties.session import Session
from mpc_imaging.randomness.streams import Stream, fresh_key
from mpc_imaging.settings import ProtocolName, RandomnessMode
from mpc_imaging.tasks import stored
from mpc_imaging.transport.frames import Kind

if TYPE_CHECKING:
    from mpc_imaging.protocols.coins import TossedCoins
    from mpc_imaging.protocols.context import Channel
    from mpc_imaging.protocols.ranges import Margins, RangeCheck
    from mpc_imaging.protocols.sign import Comparison
    from mpc_imaging.randomness.phases import Phases
    from mpc_imaging.randomness.plan import Plan
    from mpc_imaging.randomness.store import StoredSession


@dataclass
class Meter:
    """Cost of a session at one compute party, in total and per layer."""

    session: Session
    provider: Any
    check: RangeCheck | None = None
    layers: dict[tuple[str, str], dict[str, float]] = field(
        default_factory=lambda: defaultdict(lambda: dict.fromkeys(("rounds", "sent_bytes", "seconds"), 0))
    )

    def start(self) -> None:
        """Inputs are shared, and what was prefetched is there: the clock starts."""
        self._started, self._waited = time.perf_counter(), self._offline()
        self._traffic = self.session.mesh.traffic.snapshot()

    def _offline(self) -> float:
        return self.provider.waited_s if self.provider is not None else 0.0

    def _exchanged(self) -> tuple[int, int]:
        traffic = self.session.mesh.traffic.snapshot()
        return traffic.rounds, traffic.peer(*self.session.others).sent_wire_bytes

    def cost(self) -> dict[str, float]:
        """Seconds, rounds and bytes since `start`.

        ``offline_s``, the wait for the dealer, and ``dealer_bytes`` are those of the whole session: much comes before.
        """
        elapsed = time.perf_counter() - self._started
        now = self.session.mesh.traffic.snapshot()
        traffic = now - self._traffic
        return {
            "online_s": elapsed - (self._offline() - self._waited),
            "offline_s": self._offline(),
            "rounds": traffic.rounds,
            "sent_bytes": traffic.kind(Kind.OPENING, Kind.REVEAL).sent_wire_bytes,
            "dealer_bytes": now.kind(Kind.CORRECTION).received_wire_bytes,
        }

    @contextlib.contextmanager
    def layer(self, name: str, op: str) -> Iterator[None]:
        """Attributes what happens inside to a layer; the dealer's time is not the layer's."""
        if self.check is not None:
            self.check.place = name
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
def engine(session: Session, provider: Any, coins: type[TossedCoins] | None = None) -> Iterator[Meter]:
    """CrypTen on this session's mesh and a provider of correlated randomness; yields the meter.

    ``provider`` is None for stock CrypTen (``protocol=insecure_simulation``). coins: of the range check, if not those
    that the compute parties toss.
    Raises `TransportError` if the session ends meanwhile.
    """
    if provider is None:
        from mpc_imaging.engine import simulation

        with simulation.gloo(session.mesh, session.compute, session.settings.protocol.fraction_bits):
            yield Meter(session, None)
        return
    # Imported here: the dealer and parties that only share or receive run without CrypTen.
    from mpc_imaging.engine import install, uninstall
    from mpc_imaging.engine.communicator import MeshCommunicator
    from mpc_imaging.protocols.context import Context

    communicator = MeshCommunicator(session.mesh, session.compute)
    check = _range_check(session, communicator, coins) if session.settings.checks_range() else None
    install(
        Context(communicator, provider, comparison(session), check=check),
        communicator,
        _crypten_streams(session),
        session.settings.protocol.fraction_bits,
    )
    try:
        yield Meter(session, provider, check)
    finally:
        uninstall()


@contextlib.contextmanager
def randomness(session: Session, plan: Plan | Phases | None, taken: StoredSession | None) -> Iterator[Any]:
    """The session's provider of correlated randomness, as ``randomness.mode`` says; None if it needs none.

    plan: of the whole session, or of its phases, unless the mode is on_demand. taken: what `stored.begin` took. At the
    end it checks that all was used as planned.
    Raises `RandomnessError` or `SessionError` if not, and for a store that cannot be used.
    """
    settings, rank = session.settings, session.rank
    if settings.protocol.name is ProtocolName.insecure_simulation:
        yield None
        return
    if settings.randomness.mode is RandomnessMode.stored:
        with stored.provider(session, plan, taken) as provider:
            yield provider
        return
    from mpc_imaging.randomness import phases
    from mpc_imaging.randomness.dealer import PhasedClient, PlannedClient, RequestingClient

    dealer, limit = settings.dealer(), settings.randomness.buffer_mb << 20
    key = session.key(dealer, "correlations")
    if isinstance(plan, phases.Phases):
        keys = lambda number: session.key(dealer, phases.purpose(number))  # noqa: E731
        provider = PhasedClient(session.mesh, dealer, keys, rank, plan, limit)
    elif settings.randomness.mode is RandomnessMode.stream:
        provider = PlannedClient(session.mesh, dealer, key, rank, plan)
        provider.prefetch(limit)
    else:
        provider = RequestingClient(session.mesh, dealer, key, rank, len(session.compute))
    yield provider
    provider.finish()


def begin_phase(provider: Any, end: bool) -> None:
    """`Job.phase` with a `PhasedClient`, while the engine is installed."""
    from mpc_imaging.engine import gates

    # A mask's number is that of a demand of the plan that ends here: none may be found again.
    gates.context().masks.forget()
    provider.next(end)


def comparison(session: Session) -> Comparison:
    """How the compute parties compare."""
    from mpc_imaging.protocols.fss import KeyComparison
    from mpc_imaging.protocols.tables import TableComparison

    protocol = session.settings.protocol
    if protocol.name is not ProtocolName.fss:
        return TableComparison()
    if protocol.comparison_bits is None:
        return KeyComparison()
    return KeyComparison(protocol.comparison_bits, protocol.range_check)


def _range_check(session: Session, channel: Channel, coins: type[TossedCoins] | None) -> RangeCheck:
    """What watches the range of values; the parties commit to its first coins, in one round."""
    from mpc_imaging.protocols.coins import TossedCoins
    from mpc_imaging.protocols.ranges import RangeCheck

    tossed = (coins or TossedCoins)(session.mesh.session_id)
    tossed.begin(channel)
    return RangeCheck(tossed)


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


def forward(model: Any, images: torch.Tensor, batch_size: int, tick: Any, segment: Any) -> torch.Tensor:
    """Share of the logits (N, K) of shared images (N, C, H, W), both int64; calls ``tick(rows)`` after each batch.

    segment: see `Job`.
    """
    from mpc_imaging.engine import gates

    results = []
    for rows in batches(len(images), batch_size):
        logits, margins = segment(("forward", rows.stop - rows.start), _forward, model, images[rows])
        # Compared once for all batches: few values, and a comparison has as many rounds for few as for many.
        gates.give_margins(margins)
        results.append(logits)
        tick(rows.stop - rows.start)
    return torch.cat(results)


def _forward(model: Any, images: torch.Tensor) -> tuple[torch.Tensor, Margins]:
    from mpc_imaging.engine import gates, tensors

    with tensors.no_grad():
        logits = tensors.share_of(tensors.rescaled(model(tensors.from_share(images))))
    return logits, gates.take_margins()
