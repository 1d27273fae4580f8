"""One party of this package, or its dealer: the components that a real run uses, over mutual TLS on loopback.

Each repetition is a session of its own, so that nothing of it is prepared while another clock runs. Set-up begins
when the session stands (connecting and shaking hands are left out, as `crypten.init` is) and ends when all is
shared, and the weights opened where the protocol does that. Results are not opened: `measure` adds up the shares.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.cases import LEARNING_RATE, LOSS_VALUE, Case, Job, Workload, workload
from benchmarks.processes import DEALER, PARTIES
from mpc_imaging.engine.encoding import encode
from mpc_imaging.models.convert import SecureModule, prepare
from mpc_imaging.parties import sharing
from mpc_imaging.parties.session import Session
from mpc_imaging.randomness.plan import Plan
from mpc_imaging.settings import (
    Loss,
    PartySettings,
    ProtocolName,
    ProtocolSettings,
    RandomnessSettings,
    Role,
    Settings,
    TaskSettings,
    TopologySettings,
    TransportSettings,
)
from mpc_imaging.tasks import links
from mpc_imaging.tasks.run import run_party
from mpc_imaging.transport.frames import SESSION_SIZE, Kind

if TYPE_CHECKING:
    from crypten.mpc import MPCTensor

# Long enough for the longest local computation between two messages on a busy machine.
TIMEOUT_S = 300.0
# More than any case needs: all correlated randomness is there before the online phase begins.
ALL = 1 << 40
# Ends the name of the tensor with a result's bits of fraction.
BITS = ".bits"


def settings(protocol: str, comparison_bits: int | None, addresses: dict[str, str]) -> Settings:
    """Two parties that compute, of which the first owns the data and the second the model, and a dealer."""
    roles = {
        PARTIES[0]: [Role.data_owner, Role.compute, Role.receiver],
        PARTIES[1]: [Role.model_owner, Role.compute],
        DEALER: [Role.dealer],
    }
    return Settings(
        name="benchmark",
        topology=TopologySettings(
            "benchmark", {name: PartySettings(roles[name], addresses[name]) for name in (*PARTIES, DEALER)}
        ),
        protocol=ProtocolSettings(ProtocolName[protocol], comparison_bits=comparison_bits, range_check=False),
        # Nothing before the session stands, so that the wait for it is measured apart.
        randomness=RandomnessSettings(buffer_mb=0),
        transport=TransportSettings(timeout_s=TIMEOUT_S),
    )


class OurParty:
    """A compute party or the dealer. Call `run` once for each repetition, at all three together."""

    def __init__(self, folder: Path, name: str, case: Case, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._name, self._folder, self._listener = name, folder / name, listener
        self._job = None if name == DEALER else _prepare(workload(case))
        # Public, made once, and good for every session.
        self._plan = None if self._job is None else _rehearse(self._settings, name, self._job)

    def run(self) -> tuple[dict[str, dict[str, float]], dict[str, torch.Tensor]]:
        """One session: the meter's cost of ``setup`` and ``compute``, and this party's shares of the results (int64).

        Beside each result stand its bits of fraction: where a task would go on to reveal, a last product is not yet
        truncated. The dealer has neither.
        """
        # A session closes its listener; peers of the next one may call before this party is ready.
        listener = self._listener.dup()
        if self._job is None:
            run_party(
                self._settings, self._name, self._folder, self._folder, listener, progress=False, one_machine=True
            )
            return {}, {}
        from mpc_imaging.tasks.compute import engine, randomness

        with (
            Session.open(self._settings, self._name, self._folder, self._folder, listener, one_machine=True) as session,
            _ready_for(session),
            randomness(session, self._plan, None) as provider,
            engine(session, provider) as meter,
        ):
            _meet(session)
            meter.start()
            before = session.mesh.traffic.snapshot()
            self._job.share(session)
            setup = meter.cost()
            setup["sent_bytes"] += (session.mesh.traffic.snapshot() - before).kind(Kind.SHARE).sent_wire_bytes
            _meet(session)
            provider.prefetch(ALL)
            _meet(session)
            meter.start()
            result = self._job.compute()
            cost = meter.cost()
            shares = {name: value.share for name, value in result.items()}
            bits = {f"{name}{BITS}": torch.tensor(value.encoder._precision_bits) for name, value in result.items()}
            return {"setup": setup, "compute": cost}, shares | bits


@contextlib.contextmanager
def _ready_for(session: Session) -> Iterator[None]:
    """What every party of a session does before inputs are shared."""
    links.make_ready(session, dict.fromkeys(session.mesh.peers, 0))
    yield


def _rehearse(settings: Settings, name: str, job: _Job) -> Plan:
    """What a session of the case demands, from its own code on zeros."""
    from mpc_imaging.randomness.recording import RecordingProvider
    from mpc_imaging.tasks.compute import engine
    from mpc_imaging.transport.loopback import LoopbackMesh

    mesh = LoopbackMesh(name, [other for other in settings.topology.parties if other != name], bytes(SESSION_SIZE))
    session = Session.rehearsal(settings, mesh)
    provider = RecordingProvider(session.rank, len(session.compute))
    with engine(session, provider):
        job.share(session)
        job.compute()
    return provider.plan()[0]


def _meet(session: Session) -> None:
    """Both compute parties begin together."""
    (peer,) = (name for name in session.compute if name != session.me)
    session.mesh.send_json(peer, {})
    session.mesh.receive_json(peer)


class _Job:
    """A case at a compute party: secrets go in by `share`, `compute` returns its shares of the results by name."""

    def __init__(self, work: Workload) -> None:
        self.work = work

    def share(self, session: Session) -> None:
        """Party 0 shares its tensor, and party 1 its own."""
        self.first = _share(session, PARTIES[0], "first", self.work.first)
        self.second = None if self.work.second is None else _share(session, PARTIES[1], "second", self.work.second)

    def compute(self) -> dict[str, MPCTensor]:
        """ReLU, or the product of two matrices."""
        from mpc_imaging.engine import layers, tensors

        x = tensors.from_share(self.first)
        with tensors.no_grad():
            y = layers.relu(x) if self.second is None else layers.matmul(x, tensors.from_share(self.second))
        return {"output": y}


class _Inference(_Job):
    training = False

    def __init__(self, work: Workload) -> None:
        from mpc_imaging.engine import layers

        super().__init__(work)
        prepared = prepare(work.module, self.training)
        self.state = prepared.state_dict()
        self.model = SecureModule(prepared, layers)

    def share(self, session: Session) -> None:
        from mpc_imaging.engine.tensors import from_share

        super().share(session)
        shares = {
            name: _share(session, PARTIES[1], f"weights {name}", self.state[name])
            for name in self.model.parameter_shapes()
        }
        self.model.load({name: from_share(share) for name, share in shares.items()})
        if not self.training:
            self.model.open_weights()

    def compute(self) -> dict[str, MPCTensor]:
        from mpc_imaging.engine import tensors

        with tensors.no_grad():
            return {"output": self.model(tensors.from_share(self.first))}


class _Training(_Inference):
    training = True

    def share(self, session: Session) -> None:
        from mpc_imaging.engine.optimiser import make

        super().share(session)
        self.labels = _share(session, PARTIES[0], "labels", self.work.labels)
        parameters = {name: self.model.parameters[name] for name in self.model.trainable()}
        for parameter in parameters.values():
            parameter.requires_grad = True
        self.optimiser = make(parameters, TaskSettings(momentum=0.0))

    def compute(self) -> dict[str, MPCTensor]:
        """One step, as `tasks.train` does it; returns the new parameters."""
        from mpc_imaging.engine.losses import loss_and_gradient
        from mpc_imaging.engine.tensors import from_share, no_grad

        logits = self.model(from_share(self.first))
        with no_grad():
            _, gradient = loss_and_gradient(Loss.cross_entropy, logits.detach(), from_share(self.labels), LOSS_VALUE)
        logits.backward(gradient)
        self.optimiser.step(len(self.first), LEARNING_RATE)
        return {name: self.model.parameters[name] for name in self.model.trainable()}


def _prepare(work: Workload) -> _Job:
    return {Job.infer: _Inference, Job.train: _Training}.get(work.case.job, _Job)(work)


def _share(session: Session, owner: str, name: str, value: torch.Tensor) -> torch.Tensor:
    """This party's share of a float tensor that `owner`, one of the two, knows."""
    if session.me != owner:
        return sharing.receive(session, owner, name, value.shape)
    return sharing.share(session, name, encode(value, session.settings.protocol.fraction_bits))
