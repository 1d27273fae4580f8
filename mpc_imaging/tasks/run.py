"""Runs one party of a session, whatever its roles, from its settings to its result files."""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mpc_imaging.parties.session import Session
from mpc_imaging.settings import Method, ProtocolName, RandomnessMode, Settings, StopMetric, TaskKind, WeightsSource
from mpc_imaging.tasks import links

log = logging.getLogger("mpc_imaging.party")


def run_party(
    settings: Settings,
    party: str,
    folder: Path,
    certificates: Path,
    listener: socket.socket | None,
    progress: bool,
    one_machine: bool = False,
) -> None:
    """Take part as ``party``, or as the dealer.

    folder: parties/<name> of the run, which gets the ledger and the results. certificates: ca.crt, party.crt and
    party.key. listener: where peers connect, if not at the party's address in the topology. one_machine: whether all
    parties run on this machine, as the launcher alone knows.
    Raises any `MPCImagingError`; the peers are then told a cause that names no file.
    """
    if party == settings.dealer():
        with Session.open(settings, party, folder, certificates, listener, one_machine) as session:
            _deal(session)
    else:
        _take_part(settings, party, folder, certificates, listener, progress, one_machine)


def _deal(session: Session) -> None:
    # Imported where it runs: the dealer needs neither data nor models, the others not the dealer.
    from mpc_imaging.randomness import phases
    from mpc_imaging.randomness.dealer import serve_requests, stream_phases, stream_plan

    summary: dict[str, Any]
    settings = session.settings
    if settings.protocol.name is ProtocolName.insecure_simulation:
        return
    links.make_ready(session, None)
    keys = [session.key(name, "correlations") for name in session.compute]
    if has_plan(settings) and settings.stops_early():
        plans = stream_phases(
            session.mesh,
            session.compute,
            lambda number: [session.key(name, phases.purpose(number)) for name in session.compute],
            _workers(session),
        )
        summary = {"demands": sum(plan.count for plan in plans), "digest": phases.digest(plans)}
    elif has_plan(settings):
        plan = stream_plan(session.mesh, session.compute, keys, _workers(session))
        summary = {"demands": plan.count, "digest": plan.digest}
    else:
        summary = serve_requests(session.mesh, session.compute, keys).summary()
    log.info("served %d demands", summary["demands"])
    session.ledger.write("served", session=session.mesh.session_id.hex(), **summary)


def _workers(session: Session) -> int:
    """Workers of the dealer's pool: all cores it may use, unless it shares them with the parties."""
    from mpc_imaging.randomness.pool import cores

    return 1 if session.one_machine else cores()


def needed_splits(settings: Settings) -> list[str]:
    """Splits whose images the owners need."""
    if settings.task.kind is not TaskKind.train:
        return [settings.task.split]
    shown = any(settings.recipients(value) for value in ("metrics", "auc") if value in settings.produced())
    chosen = settings.task.early_stopping.metric is not StopMetric.none
    validate = chosen or (settings.task.evaluate_each_epoch and shown)
    return list(dict.fromkeys(["train", *(["val"] if validate else []), settings.task.split]))


def shared_splits(settings: Settings) -> list[str]:
    """Those of them whose images the owners share at the start.

    In federated training not those that they only train on; in a stream none, since frames are shared one by one.
    """
    task = settings.task
    if task.kind is TaskKind.stream:
        return []
    federated = task.method is Method.federated and task.kind is TaskKind.train
    return [s for s in needed_splits(settings) if not federated or s != "train" or s == task.split]


def _take_part(
    settings: Settings,
    party: str,
    folder: Path,
    certificates: Path,
    listener: socket.socket | None,
    progress: bool,
    one_machine: bool,
) -> None:
    from mpc_imaging.data import load_party
    from mpc_imaging.parties.sealed import sealing_key
    from mpc_imaging.tasks import duplicates, inputs, stored, weights
    from mpc_imaging.tasks.checkpoints import WEIGHTS, Checkpoints, starting_point
    from mpc_imaging.tasks.features import own_inputs
    from mpc_imaging.tasks.feed import SessionFeed
    from mpc_imaging.tasks.job import Job
    from mpc_imaging.tasks.privacy import session_budget
    from mpc_imaging.tasks.progress import Progress

    splits = needed_splits(settings)
    training = settings.task.kind is TaskKind.train and party in settings.compute_parties()
    if training:
        # Which a training party needs in the end: told before anybody is met.
        sealing_key(settings, folder, one_machine)
    # First of all the session: peers then wait patiently while this party reads its images, and are told at once if it
    # cannot. Nothing is shared before all have announced that they are ready.
    opened = Session.open(settings, party, folder, certificates, listener, one_machine)
    with opened as session, contextlib.ExitStack() as stack:
        stored.check(session)
        streaming = settings.task.kind is TaskKind.stream
        checkpoints = Checkpoints(session, folder) if training else None
        bar = Progress(progress, session.mesh.traffic)
        own, loaded, backbone, noted, twice, prefetcher = None, None, None, {}, [], None

        def record(event: str, **details: Any) -> None:
            session.ledger.write(event, **details)
            noted[event] = details

        if streaming and party in settings.data_owners():
            own, prefetcher = _own_cine(settings, party, folder, record)
        elif party in settings.data_owners():
            loaded = load_party(settings, party, folder, splits, record)
            own, backbone = own_inputs(settings, loaded, bar)
        module = _owner_module(settings, folder, bar) if party == settings.model_owner() else None
        prepared = weights.prepared_module(settings, module)
        if module is not None:
            weights.check_bounds(settings, prepared)  # before anything of it is shared
        catalogue = inputs.announce(session, splits, own, backbone)
        if settings.finds_duplicates():
            twice = [] if loaded is None else duplicates.check(session, loaded, catalogue.counts)
            inputs.confirm(session, catalogue)
        start = starting_point(session, checkpoints, catalogue.counts)
        plan = _plan(session, catalogue, prepared, start)
        taken = stack.enter_context(stored.begin(session, plan))
        if checkpoints is not None and plan is not None:
            checkpoints.plan = plan.digest
        budget = session_budget(session, start)
        job = Job(session, folder, catalogue, own, bar, start=start, checkpoints=checkpoints, budget=budget)
        job.quality = noted.get("quality", {}).get("findings", []) + twice
        if streaming:
            job.feed = SessionFeed(session, catalogue, prefetcher)
        job.exchange_ids()
        state = start.part(WEIGHTS) if start.resumed else weights.share_weights(session, prepared)
        bounds = weights.share_bounds(session, prepared)
        data = _share_data(session, catalogue, shared_splits(settings), own)
        if session.rank is not None:
            _compute(job, plan, taken, prepared, state, bounds, data)
            return
        if job.expects_results() or prefetcher is not None:
            perform(job, prepared, None, data)
        else:
            log.info("shared its inputs and leaves")
        job.finish(None, [])


def _own_cine(settings: Settings, party: str, folder: Path, record: Callable[..., None]) -> tuple[dict[str, Any], Any]:
    """The party's frames without their pixels, and what will read those."""
    from mpc_imaging.data.cine import open_cine
    from mpc_imaging.data.prefetch import Prefetcher

    task = settings.task
    cine = open_cine(settings, party, folder, record)
    return {task.split: cine.split()}, Prefetcher(cine, task.stream.queue, task.stream.fps)


def _plan(session: Session, catalogue: Any, prepared: torch.fx.GraphModule, start: Any) -> Any:
    """The plan on which the compute parties agree; None at other parties, and where there is no plan.

    Then all links are ready for what the session will carry.
    """
    rehearsal = None
    if has_plan(session.settings):
        if session.rank is not None:
            from mpc_imaging.tasks.rehearsal import rehearse

            rehearsal = rehearse(session.settings, catalogue.counts, session.rank, prepared, start.blank())
        session.agree_on_plan(None if rehearsal is None else rehearsal.plan.digest)
    if session.settings.protocol.name is not ProtocolName.insecure_simulation:
        links.make_ready(session, None if rehearsal is None else rehearsal.links)
    return None if rehearsal is None else rehearsal.plan


def has_plan(settings: Settings) -> bool:
    """Whether what the compute parties demand of the dealer is known before they begin."""
    simulated = settings.protocol.name is ProtocolName.insecure_simulation
    return not simulated and settings.randomness.mode is not RandomnessMode.on_demand


def _owner_module(settings: Settings, folder: Path, bar: Any) -> torch.nn.Module:
    from mpc_imaging.tasks import weights

    if settings.model.weights.source is not WeightsSource.pretrain:
        return weights.owner_module(settings, folder)
    with bar.stage("plaintext pre-training", settings.model.pretrain.epochs):
        return weights.owner_module(settings, folder, lambda epoch, epochs: bar.advance())


def _share_data(session: Session, catalogue: Any, splits: list[str], own: Mapping[str, Any] | None) -> dict[str, tuple]:
    from mpc_imaging.tasks import inputs

    settings = session.settings
    labels = settings.needs_labels()
    return {
        split: inputs.share_images(session, catalogue, split, None if own is None else own[split], labels)
        for split in splits
    }


def _compute(
    job: Any,
    plan: Any,
    taken: Any,
    prepared: torch.fx.GraphModule,
    state: Mapping[str, torch.Tensor],
    bounds: Mapping[str, Any],
    data: dict[str, tuple],
) -> None:
    from mpc_imaging.randomness.phases import Phases
    from mpc_imaging.tasks import compute

    with compute.randomness(job.session, plan, taken) as provider, compute.engine(job.session, provider) as meter:
        model = secure_model(prepared, state, meter.layer)
        model.bounds = bounds
        if isinstance(plan, Phases):
            job.phase = functools.partial(compute.begin_phase, provider)
        meter.start()
        perform(job, prepared, model, data)
        cost = meter.cost()
        if plan is not None and not job.complete:
            job.session.ledger.write("discarded", demands=provider.discard())
    job.finish(cost, meter.layer_rows())


def secure_model(prepared: torch.fx.GraphModule, state: Mapping[str, torch.Tensor], observer: Any) -> Any:
    """The model on shares, ready to run while the engine is installed; ``observer``: see `SecureModule`."""
    from mpc_imaging.engine import layers
    from mpc_imaging.engine.tensors import from_share
    from mpc_imaging.models.convert import SecureModule

    model = SecureModule(prepared, layers)
    model.load({k: v if v.is_floating_point() else from_share(v) for k, v in state.items()})
    model.observer = observer
    return model


def perform(job: Any, prepared: torch.fx.GraphModule, model: Any, data: dict[str, tuple]) -> None:
    """The whole task, after all inputs are shared; ``model`` is None at parties that do not compute."""
    from mpc_imaging.tasks.federated import Federation
    from mpc_imaging.tasks.infer import infer
    from mpc_imaging.tasks.stream import stream
    from mpc_imaging.tasks.train import train

    task, federation = job.settings.task, None
    if task.kind is TaskKind.stream:
        stream(job, model)
        return
    if task.kind is TaskKind.train and task.method is Method.federated:
        federation = Federation(job, prepared, model)
        federation.train(data)
    elif task.kind is TaskKind.train:
        train(job, model, data)
    infer(job, model, *data[task.split])
    if federation is not None:
        federation.finish()
    if task.kind is TaskKind.train:
        _keep_weights(job, prepared, model)


def _keep_weights(job: Any, prepared: torch.fx.GraphModule, model: Any) -> None:
    """Trained weights stay as each compute party's share file, and are opened where the policy says so."""
    from mpc_imaging.tasks import weights
    from mpc_imaging.tasks.train import total_steps

    shapes = {name: value.shape for name, value in weights.floating_state(prepared).items()}
    shares = None
    if model is not None:
        from mpc_imaging.engine.tensors import share_of

        shares = {name: share_of(model.parameters[name]) for name in shapes}
        if job.checkpoints is not None:
            spent = {} if job.budget is None else {"privacy": job.budget.record(job.settings.task.epochs)}
            weights.write_shares(job.session, shares, job.folder, total_steps(job), spent)
    job.open_weights(shapes, shares)
