"""Federated averaging with secure aggregation: owners train alone, and only the sum of their updates is opened.

The global weights are public to the data owners. In each round (`task.epochs` of them) an owner trains from them in
plaintext, on its own images, and shares what that changed. The compute parties scale each update to a length at most
and add them up, weighted by the owners' public numbers of images; the policy opens the sum as `update`. With two owners
each can tell the other's update from it, against which only privacy=dp helps: every compute party then adds noise to
the sum, for an adjacency of whole owners.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from mpc_imaging import strict_json
from mpc_imaging.baselines.federated import flat_weights, load_flat, local_update, update_limit
from mpc_imaging.engine.encoding import decode, encode
from mpc_imaging.errors import EncodingError, SessionError
from mpc_imaging.models.weights import save_weights
from mpc_imaging.parties import sharing
from mpc_imaging.parties.session import PATIENT_S
from mpc_imaging.protocols.noise import UpdateSum, gaussian, integer_sensitivity
from mpc_imaging.randomness.ring import from_octets, octets, size_of
from mpc_imaging.settings import WeightsSource
from mpc_imaging.tasks.compute import forward
from mpc_imaging.tasks.job import Job, with_auc
from mpc_imaging.tasks.privacy import is_private
from mpc_imaging.tasks.weights import floating_state
from mpc_imaging.transport.frames import Kind

Shares = Mapping[str, tuple[torch.Tensor | None, torch.Tensor | None]]


class Federation:
    """One party's side of federated training.

    ``model``: the secure module, None at parties that do not compute. Owners hold the global weights; where all compute
    parties are owners, these run the model with public weights, else with shares that the first owner makes.
    """

    def __init__(self, job: Job, prepared: fx.GraphModule, model: Any) -> None:
        """prepared: the traced module, at the model owner with its weights. Every party of the session does this."""
        settings = job.settings
        self._job, self._session, self._model = job, job.session, model
        self._module = copy.deepcopy(prepared)
        trained = {name: p.shape for name, p in prepared.named_parameters() if p.requires_grad}
        self._shapes, self._size = trained, sum(shape.numel() for shape in trained.values())
        self._owners = settings.data_owners()
        self._counts = {owner: n for owner in self._owners if (n := job.catalogue.counts[owner]["train"])}
        self._public = set(self._session.compute) <= set(self._owners)
        self._limit = update_limit(settings)
        self._weights: torch.Tensor | None = None
        start = self._starting_state()
        if self._session.me in self._owners:
            self._module.load_state_dict(start, strict=False)
            self._weights = flat_weights(self._module)

    def train(self, data: Shares) -> None:
        """All rounds. data: for each split but train, as in `train.train`.

        Each round opens its mean loss (``loss``), and of the validation split counts (``metrics``) and ``auc``, where
        the policy lists them, and adds an entry to the history. Raises `EncodingError` if an owner's training diverges.
        """
        job, epochs = self._job, self._job.settings.task.epochs
        for number in range(epochs):
            started = time.perf_counter()
            loss, counts = job.segment("round", self._round, number, data)
            seconds = time.perf_counter() - started
            job.history.append({"epoch": number + 1, "loss": loss, "val": counts, "seconds": seconds})
        self._load_model()

    def finish(self) -> None:
        """Owners write weights.safetensors; the model's public weights become shares, as those of other training."""
        if self._weights is not None:
            load_flat(self._module, self._weights)
            self._job.leave(save_weights, self._module.state_dict(), self._job.folder / "weights.safetensors")
        if self._model is None:
            return
        from mpc_imaging.engine.tensors import from_share

        def shared(value: torch.Tensor) -> torch.Tensor:
            share = self._session.zero_share(value.shape)
            return share + encode(value, self._bits) if self._session.first else share

        parameters = self._model.parameters.items()
        self._model.load({k: from_share(shared(v)) if isinstance(v, torch.Tensor) else v for k, v in parameters})

    @property
    def _bits(self) -> int:
        return self._job.settings.protocol.fraction_bits

    def _starting_state(self) -> dict[str, torch.Tensor]:
        """The public weights to start from, at the data owners; at others what they need not know may be old."""
        state, session = floating_state(self._module), self._session
        source, owner = session.settings.model.weights.source, session.settings.model_owner()
        if source is WeightsSource.seed:
            return state
        if self._model is not None:
            state = dict(self._model.parameters)
        elif session.me == owner:
            # As the compute parties hold them.
            state = {k: decode(encode(v, self._bits), self._bits, torch.float32) for k, v in state.items()}
        leader, flat = session.compute[0], None
        if session.me == leader:
            flat = torch.cat([encode(value, self._bits).flatten() for value in state.values()])
        sizes = [value.numel() for value in state.values()]
        for name in self._owners:
            if name in (*session.compute, owner):
                continue
            if session.me == leader:
                session.ledger.write("public", value="weights", owner=owner, shape=[sum(sizes)])
                session.mesh.send(name, Kind.SHARE, octets(flat), wait_s=PATIENT_S)
            elif session.me == name:
                session.ledger.write("public", value="weights", owner=owner, shape=[sum(sizes)])
                payload = session.mesh.receive(leader, Kind.SHARE, size_of((sum(sizes),)), wait_s=PATIENT_S)
                parts = decode(from_octets(payload, (sum(sizes),)), self._bits, torch.float32).split(sizes)
                state = {k: part.view(v.shape) for (k, v), part in zip(state.items(), parts, strict=True)}
        return state

    def _round(self, number: int, data: Shares) -> tuple[float | None, dict[str, Any] | None]:
        """One round; then its mean loss and the metrics on the validation split, if they are opened here."""
        job, task = self._job, self._job.settings.task
        with job.progress.stage(f"round {number + 1} of {task.epochs}", len(self._counts)):
            mine = None
            if self._session.me in self._counts:
                mine = encode(job.local(lambda: self._train(number), (self._length,)), self._bits)
            self._meet()
            parts = self._share(mine)
        images, total, loss = sum(self._counts.values()), None, None
        if parts is not None:
            total, loss = self._added(parts)
        opened = job.open("update", total, (self._size,))
        if self._weights is not None:
            self._weights = self._weights + opened * ((self._limit or 1.0) / images)
        mean = job.open("loss", loss, ())
        return None if mean is None else mean.item() / images, self._validated(data)

    @property
    def _length(self) -> int:
        """Entries of what an owner shares in a round: its update, and its loss if the policy opens the mean."""
        return self._size + self._job.wanted("loss")

    def _train(self, number: int) -> torch.Tensor:
        """This owner's update (D,) in units of the length allowed, and its mean loss if that is opened; float64."""
        from mpc_imaging.engine.updates import fitting

        me = self._session.me
        update = local_update(
            self._job.settings, self._module, self._weights, self._job.own["train"], number, self._owners.index(me)
        )
        change = update.change if self._limit is None else fitting(update.change / self._limit)
        # Counted as often as there are images, the sum of all must fit into the ring.
        most = 2.0 ** (62 - self._bits) / sum(self._counts.values())
        if not bool((change.abs() < most).all()) or not abs(update.loss) < most:
            raise EncodingError(f"the training of {me} diverged in round {number + 1}: write a smaller task.lr")
        return torch.cat([change, torch.tensor([update.loss], dtype=torch.float64)])[: self._length]

    def _meet(self) -> None:
        """Wait until all owners have trained, which may take them long."""
        session = self._session
        if session.me in self._counts:
            for name in session.compute:
                if name != session.me:
                    session.mesh.send_json(name, {"trained": True})
        if session.rank is not None:
            for owner in self._counts:
                if owner != session.me:
                    said = session.mesh.receive_json(owner, wait_s=PATIENT_S)
                    # None: nobody says anything in a rehearsal.
                    if said is not None and not strict_json.same(said, {"trained": True}):
                        raise SessionError(f"{owner} did not tell {session.me} that it has trained; update one of them")

    def _share(self, mine: torch.Tensor | None) -> list[torch.Tensor] | None:
        """At a compute party its shares of what each owner shares in a round; elsewhere None."""
        session, parts = self._session, []
        for owner in self._counts:
            if owner == session.me:
                parts.append(sharing.share(session, "update", mine))
            elif session.rank is not None:
                parts.append(sharing.receive(session, owner, "update", (self._length,)))
            self._job.progress.advance()
        return parts if session.rank is not None else None

    def _added(self, parts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Shares of the sum of updates (D,), and of that of the losses, if the policy opens it."""
        from mpc_imaging.engine import gates
        from mpc_imaging.engine.updates import weighted_sum

        counts = list(self._counts.values())
        with self._model.observer("updates", "clipping"):
            updates = [part[: self._size].clone() for part in parts]
            total = weighted_sum(updates, counts, self._limit is not None)
        if is_private(self._job.settings):
            total = total + self._job.local(lambda: self._noise(counts), total.shape).long()
        gates.settle_ranges()
        if not self._job.wanted("loss"):
            return total, None
        return total, sum(part[self._size] * count for part, count in zip(parts, counts, strict=True))

    def _noise(self, counts: Sequence[int]) -> torch.Tensor:
        """This compute party's noise, all that the guarantee needs: int64 (D,)."""
        unit = integer_sensitivity(UpdateSum(tuple(counts), self._size, self._bits).sensitivity, self._bits)
        return gaussian(self._size, self._job.settings.privacy.noise_multiplier * unit)

    def _validated(self, data: Shares) -> dict[str, Any] | None:
        job, task = self._job, self._job.settings.task
        shown = [value for value in ("metrics", "auc") if task.evaluate_each_epoch and job.wanted(value)]
        if not shown:
            return None
        self._load_model()
        images, labels = data["val"]
        logits = None
        if self._model is not None:
            logits = forward(self._model, images, task.eval_batch_size, lambda rows: None, job.segment)
        val = job.open_confusion("val", logits, labels) if "metrics" in shown else None
        return with_auc(val, job.open_auc(logits, labels)) if "auc" in shown else val

    def _load_model(self) -> None:
        """Give the secure module the global weights: public ones, or shares that the first owner makes."""
        session, model = self._session, self._model
        if self._public:
            if model is not None:
                load_flat(self._module, self._weights)
                model.load({name: value.clone() for name, value in floating_state(self._module).items()})
            return
        first, flat = self._owners[0], None
        if session.me == first:
            flat = sharing.share(session, "weights", encode(self._weights, self._bits))
        elif session.rank is not None:
            flat = sharing.receive(session, first, "weights", (self._size,))
        if model is None:
            return
        from mpc_imaging.engine.tensors import from_share

        parts = flat.split([shape.numel() for shape in self._shapes.values()])
        trained = {
            name: from_share(part.reshape(shape).clone())
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }
        model.load(model.parameters | trained)
