"""A session rehearsed at one compute party, with nobody and on zero shares: its plan, and what it will cost.

The code is that of a real session, down to the reveals. So the demands, rounds and bytes are exact; only results and
seconds mean nothing. What a task repeats is run until two runs in a row are alike, and then only counted.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from mpc_imaging.data import Split
from mpc_imaging.errors import ConfigError
from mpc_imaging.parties.session import Session
from mpc_imaging.protocols.coins import UncheckedCoins
from mpc_imaging.randomness.phases import Phases
from mpc_imaging.randomness.plan import Labels, Plan, Tally
from mpc_imaging.randomness.recording import RecordingProvider
from mpc_imaging.settings import ProtocolName, RandomnessMode, Settings, TaskKind, WeightsSource
from mpc_imaging.tasks import compute, links, run, weights
from mpc_imaging.tasks.checkpoints import Start
from mpc_imaging.tasks.features import label_shape, sample_shape
from mpc_imaging.tasks.feed import RehearsedFeed
from mpc_imaging.tasks.inputs import Catalogue
from mpc_imaging.tasks.job import Job
from mpc_imaging.tasks.progress import Progress
from mpc_imaging.transport.frames import HEADER_SIZE, SESSION_SIZE
from mpc_imaging.transport.loopback import LoopbackMesh
from mpc_imaging.transport.renewal import check_spares
from mpc_imaging.transport.traffic import Counters, TrafficSnapshot

Counts = Mapping[str, Mapping[str, int]]

# What happens outside of the model's layers: opening outputs, and finding the predicted classes.
OUTPUTS = ("outputs", "")


@dataclass(frozen=True)
class Rehearsal:
    """What a session will demand, and what it costs the party that rehearsed it.

    plan: of the whole session, or where it may end early, of each of its phases; the cost is that of all of them.
    cost: rounds, sent_bytes and dealer_bytes as in result.json; key_bytes (dealer_bytes without headers of frames),
    comparisons, levels, truncations and macs (see `Tally`).
    layers: name, op and the same numbers, of each layer in the order of first use; they add up to ``cost``.
    links: bytes, at most, that each link of the party carries in its busier direction, by the name of its peer.
    """

    plan: Plan | Phases
    cost: dict[str, int]
    layers: list[dict[str, Any]]
    links: dict[str, int]


def rehearse(
    settings: Settings,
    counts: Counts,
    rank: int = 0,
    prepared: fx.GraphModule | None = None,
    start: Start | None = None,
) -> Rehearsal:
    """Rehearse the task at the compute party of this rank; the plan is the same for all ranks.

    counts: how many images each owner has of each split that the task needs (`run.needed_splits`). prepared: the traced
    module, if it is there already, with whatever weights. start: where a resumed task begins, with zeros for shares.
    Raises `ConfigError` for a protocol that takes nothing from a dealer, and for more traffic than one session's TLS
    keys may protect; `ModelError` as `weights.prepared_module`.
    """
    if settings.protocol.name is ProtocolName.insecure_simulation:
        raise ConfigError(["protocol=insecure_simulation has no plan; choose another protocol"])
    me, parties = settings.compute_parties()[rank], list(settings.topology.parties)
    mesh = LoopbackMesh(me, [name for name in parties if name != me], bytes(SESSION_SIZE))
    provider = RecordingProvider(rank, len(settings.compute_parties()))
    prepared = weights.prepared_module(settings) if prepared is None else prepared
    with (
        Session.rehearsal(settings, mesh) as session,
        tempfile.TemporaryDirectory() as folder,
        compute.engine(session, provider, UncheckedCoins) as meter,
    ):
        repeats = _Repeats(meter, provider)
        job = _job(session, Path(folder), counts, repeats)
        job.start = start or Start()
        job.feed = RehearsedFeed(session, job.catalogue) if settings.task.kind is TaskKind.stream else None
        model = run.secure_model(prepared, _zero_state(settings, prepared), repeats.layer)
        model.bounds = weights.no_bounds(settings, prepared)
        data = {split: _zero_shares(job, split) for split in run.shared_splits(settings)}
        meter.start()
        run.perform(job, prepared, model, data)
        cost = meter.cost()
        traffic = mesh.traffic.snapshot()
        phases = repeats.phases()
    plan = Phases(tuple(phase.plan for phase in phases)) if settings.stops_early() else phases[0].plan
    tallies = _tallies(phases, rank)
    on_wire = settings.randomness.mode is not RandomnessMode.stored
    layers = [
        {"name": key[0], "op": key[1], **_numbers(entry, tallies.get(key, Tally()), on_wire)}
        for key, entry in meter.layers.items()
    ]
    total = _numbers(cost, plan.tally(rank), on_wire)
    rest = {name: value - sum(layer[name] for layer in layers) for name, value in total.items()}
    if any(rest.values()):
        layers.append({"name": OUTPUTS[0], "op": OUTPUTS[1], **rest})
    image = math.prod(sample_shape(settings)) + math.prod(label_shape(settings))
    values = sum(x.numel() for x in prepared.state_dict().values())
    dealt = plan.tally(rank) if on_wire else Tally()
    carried = links.carried(settings, me, counts, image, values, traffic, dealt)
    check_spares(carried)
    return Rehearsal(plan, total, layers, carried)


def _tallies(phases: Sequence[_Phase], rank: int) -> dict[Hashable, Tally]:
    totals: dict[Hashable, Tally] = {}
    for phase in phases:
        for label, tally in phase.plan.tallies(rank, phase.labels).items():
            totals[label] = totals.get(label, Tally()).plus(tally)
    return totals


def _numbers(measured: Mapping[str, Any], tally: Tally, on_wire: bool) -> dict[str, int]:
    return {
        "rounds": measured["rounds"],
        "sent_bytes": measured["sent_bytes"],
        "dealer_bytes": tally.octets + HEADER_SIZE * tally.messages if on_wire else 0,
        "key_bytes": tally.octets,
        "comparisons": tally.comparisons,
        "levels": tally.levels,
        "truncations": tally.truncations,
        "macs": tally.macs,
    }


class _Job(Job):
    def _in_range(self, opened: torch.Tensor | None) -> bool:
        return True  # of zeros nothing is known

    def open(self, *args: Any, **options: Any) -> torch.Tensor | None:
        # What comes out has no meaning, not even that of a count or a class.
        opened = super().open(*args, **options)
        return None if opened is None else torch.zeros_like(opened)

    def local(self, body: Callable[[], torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
        return torch.zeros(tuple(shape))

    def leave(self, write: Callable[..., None], *args: Any) -> None:
        pass


def _job(session: Session, folder: Path, counts: Counts, repeats: _Repeats) -> Job:
    """The party's job, with as many images as in the session, all black."""
    catalogue = Catalogue(counts, sample_shape(session.settings))
    ids = {owner: [f"{owner}-{row}" for row in range(max(mine.values()))] for owner, mine in counts.items()}
    own = None
    data = session.settings.data
    several = label_shape(session.settings) if data.multi_label or data.masks else ()
    if session.me in counts:
        own = {
            split: Split(
                torch.zeros(count, *catalogue.image_shape),
                torch.zeros((count, *several), dtype=torch.int64),
                ids[session.me][:count],
            )
            for split, count in counts[session.me].items()
        }
    return _Job(
        session, folder, catalogue, own, Progress(shown=False), ids=ids, segment=repeats.segment, phase=repeats.phase
    )


def _zero_state(settings: Settings, prepared: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights as `weights.share_weights` gives them."""
    from_owner = settings.model.weights.source not in (WeightsSource.seed, WeightsSource.shares)
    public = from_owner and not settings.model.weights.secret and not weights.trained_on_shares(settings)
    dtype = torch.float32 if public else torch.int64
    return {name: torch.zeros(x.shape, dtype=dtype) for name, x in weights.floating_state(prepared).items()}


def _zero_shares(job: Job, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    total = job.catalogue.total(split)
    images = torch.zeros(total, *job.catalogue.image_shape, dtype=torch.int64)
    return images, torch.zeros(total, *label_shape(job.settings), dtype=torch.int64)


@dataclass(frozen=True)
class _Spent:
    """What a segment sent, in total and in each layer."""

    cells: dict[Any, Counters]
    rounds: dict[Any, int]
    layers: dict[tuple[str, str], dict[str, float]]


@dataclass(frozen=True)
class _Past:
    """A segment's last run; ``settled``: the one before was like it."""

    number: int | None
    spent: _Spent
    result: Any
    settled: bool


@dataclass(frozen=True)
class _Phase:
    """A phase's plan, the labels of its demands, and the last runs of its segments."""

    plan: Plan
    labels: Labels
    past: dict[Hashable, _Past]


class _Repeats:
    """`Job.segment` and `Job.phase` of a rehearsal, and the observer of the model's layers."""

    def __init__(self, meter: compute.Meter, provider: RecordingProvider) -> None:
        self._meter, self._provider = meter, provider
        self._traffic = meter.session.mesh.traffic
        # Inside of a segment others begin anew: what they find there depends on what the segment did before.
        self._scopes: list[dict[Hashable, _Past]] = [{}]
        self._phases: list[_Phase] = []
        self._known: _Phase | None = None  # the present phase, if it is like the two before

    def phase(self, end: bool) -> None:
        """See `Job`. Of two phases in a row that demand the same, it is taken that all do so until the end."""
        from mpc_imaging.engine import gates

        self._close()
        alike = len(self._phases) > 1 and self._phases[-1].plan == self._phases[-2].plan
        self._known = self._phases[-1] if alike and not end else None
        gates.context().masks.forget()

    def phases(self) -> list[_Phase]:
        """All of them, when the task is done."""
        self._close()
        return self._phases

    def _close(self) -> None:
        self._phases.append(self._known or _Phase(*self._provider.plan(), self._scopes[0]))
        self._scopes = [{}]
        self._provider.restart()

    def segment(self, key: Hashable, body: Callable[..., Any], *args: Any) -> Any:
        """The result of the body, or zeros in its place if it is known what it costs."""
        if self._known is not None and key not in self._known.past:
            # An epoch with other rates, before anything of its phase was left out: epochs are all that phases have.
            self._known = None
        if self._known is not None:
            past = self._known.past[key]
            self._count(past.spent)
            return _fresh(past.result)
        past = self._scopes[-1].get(key)
        if past is not None and past.settled:
            self._again(past)
            return _fresh(past.result)
        traffic, layers = self._traffic.snapshot(), self._layers()
        self._scopes.append({})
        self._provider.begin()
        result = body(*args)
        number = self._provider.end(key)
        self._scopes.pop()
        spent = self._spent(traffic, layers)
        settled = past is not None and (past.number, past.spent) == (number, spent)
        self._scopes[-1][key] = _Past(number, spent, result, settled)
        return result

    @contextlib.contextmanager
    def layer(self, name: str, op: str) -> Iterator[None]:
        """As `Meter.layer`; demands are labelled too."""
        with self._meter.layer(name, op):
            before, self._provider.label = self._provider.label, (name, op)
            yield
            self._provider.label = before

    def _layers(self) -> dict[tuple[str, str], dict[str, float]]:
        return {
            key: {name: value for name, value in entry.items() if name != "seconds"}
            for key, entry in self._meter.layers.items()
        }

    def _spent(self, traffic: TrafficSnapshot, layers: dict[tuple[str, str], dict[str, float]]) -> _Spent:
        since = self._traffic.snapshot() - traffic
        cells = {key: counters for key, counters in since.cells.items() if counters != Counters()}
        rounds = {kind: count for kind, count in since.rounds_by_kind.items() if count}
        spent = {}
        for key, entry in self._layers().items():
            before = layers.get(key, {})
            spent[key] = {name: value - before.get(name, 0) for name, value in entry.items()}
        return _Spent(cells, rounds, {key: entry for key, entry in spent.items() if any(entry.values())})

    def _again(self, past: _Past) -> None:
        self._provider.repeat(past.number)
        self._count(past.spent)

    def _count(self, spent: _Spent) -> None:
        self._traffic.add(TrafficSnapshot(spent.cells, spent.rounds))
        for key, entry in spent.layers.items():
            for name, value in entry.items():
                self._meter.layers[key][name] += value


def _fresh(result: Any) -> Any:
    """The same with tensors of its own: values that are new in a session must not be taken for old ones."""
    if isinstance(result, torch.Tensor):
        return result.clone()
    if isinstance(result, dict):
        return {key: _fresh(value) for key, value in result.items()}
    return type(result)(map(_fresh, result)) if isinstance(result, tuple) else result
