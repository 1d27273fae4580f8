"""Differential privacy of a training run: its gradients, its budget, and what is said about both.

An image is adjacent to nothing in its place: data sets differ in one image's contribution, which may be zero. Replacing
one image by another moves a sum twice as far, which costs about what half the noise would. The budget holds against the
insiders: all compute parties but one, to whom one party's noise is left. Outsiders see the noise of all parties.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from mpc_imaging.baselines.accounting import Mechanism, epsilon
from mpc_imaging.baselines.private import PrivateGradients
from mpc_imaging.errors import PrivacyError
from mpc_imaging.protocols import noise
from mpc_imaging.settings import Method, PrivacyName, Settings, TaskKind, WeightsSource

if TYPE_CHECKING:
    from mpc_imaging.engine.clipping import ClippedGradients, HeadGradients
    from mpc_imaging.parties.session import Session
    from mpc_imaging.tasks.checkpoints import Start
    from mpc_imaging.tasks.job import Job

GAUSSIAN = "discrete Gaussian"
ADJACENCY = {
    Method.joint: "one image's contribution replaced by zero (replacing an image by another: twice the sensitivity)",
    Method.federated: "one owner's updates replaced by zero (replacing an owner by another: twice the sensitivity)",
}
# Beside the noisy sums: what an entry says of that.
INPUTS = "inputs are clipped by their owner: one that does not weakens the guarantee for its own images only"


def is_private(settings: Settings) -> bool:
    """Whether training adds noise."""
    return settings.privacy.name is PrivacyName.dp and settings.task.kind is TaskKind.train


def gradient_sum(settings: Settings, shapes: Mapping[str, torch.Size]) -> noise.ClippedSum | noise.HeadSum:
    """What is known of the sum of a batch's gradients; ``shapes``: of the trained parameters."""
    private = settings.privacy
    kernels = [shape for shape in shapes.values() if len(shape) > 1]
    if private.input_norm is not None:
        classes, features = len(settings.data.class_names), max(shape[1:].numel() for shape in kernels)
        return noise.HeadSum(private.input_norm, features, classes, settings.protocol.fraction_bits)
    linear = sum(len(shape) == 2 for shape in kernels)
    return noise.ClippedSum(private.clip, private.micro_batch, linear, linear < len(kernels))


def private_gradients(job: Job, model: Any) -> HeadGradients | ClippedGradients | None:
    """What a compute party calls in place of ``logits.backward(gradient)``; None without privacy.

    model: the secure module, whose trainable parameters require gradients.
    Raises `PrivacyError` if the sampler is missing.
    """
    settings = job.settings
    if not is_private(settings):
        return None
    from mpc_imaging.engine import gates
    from mpc_imaging.engine.clipping import ClippedGradients, HeadGradients
    from mpc_imaging.randomness.recording import RecordingProvider
    from mpc_imaging.randomness.streams import Stream, derive_key

    # Noise is local: a rehearsal, which may run where no sampler is installed, has nothing to learn from it.
    rehearsed = isinstance(gates.context().provider, RecordingProvider)
    if not rehearsed:
        noise.require_sampler()
    draw = _nothing if rehearsed else noise.NoiseAhead()
    parameters = {name: model.parameters[name] for name in model.trainable()}
    total = gradient_sum(settings, {name: p.share.shape for name, p in parameters.items()})
    multiplier = settings.privacy.noise_multiplier
    if isinstance(total, noise.HeadSum):
        return HeadGradients(parameters, total, multiplier, draw)
    # Public coins, known to all before the inputs, which do not depend on them.
    coins = Stream(derive_key(job.session.mesh.session_id, b"", "gradient projections"))
    return ClippedGradients(parameters, total, multiplier, coins, draw)


def _nothing(count: int, scale: float) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64)


def plaintext_gradients(settings: Settings, module: torch.nn.Module) -> PrivateGradients | None:
    """What the plaintext baseline does in place of its backward pass, with as much noise as all parties add."""
    if not is_private(settings) or settings.task.method is Method.federated:
        return None
    private = settings.privacy
    total = gradient_sum(settings, {name: p.shape for name, p in module.named_parameters() if p.requires_grad})
    deviation = private.noise_multiplier * total.sensitivity * math.sqrt(len(settings.compute_parties()))
    head = private.input_norm is not None
    return PrivateGradients(private.clip, private.micro_batch, head, deviation, settings.seed)


def session_budget(session: Session, start: Start) -> Budget | None:
    """A compute party's account before training: earlier sessions are those of the shares that it starts from.

    A session that is resumed may have trained beyond its last checkpoint, and shown what it found: what is left to
    train counts twice. None at other parties, and without privacy. Raises `PrivacyError` if the task would take more
    than ``privacy.epsilon``, `DataError` for share files that cannot be read.
    """
    settings = session.settings
    if not is_private(settings) or session.rank is None:
        return None
    earlier: Sequence[Mapping[str, Any]] | None = ()
    if start.resumed:
        again = Budget(settings).record(settings.task.epochs - start.point.epoch)
        earlier = [*(start.privacy or []), *again]
    elif settings.model.weights.source is WeightsSource.shares:
        from mpc_imaging.tasks.weights import read_share_file  # which reads features, which are bounded as told here

        earlier = read_share_file(settings, session.me)[1].get("privacy")
    budget, limit, epochs = Budget(settings, earlier), settings.privacy.epsilon, settings.task.epochs
    if start.resumed and limit is not None and budget.epsilon(epochs) > limit:
        raise PrivacyError(
            f"going on takes epsilon {budget.epsilon(epochs):.2f} of privacy.epsilon={limit:g}, since what came after "
            "the checkpoint may have been shown; write a larger privacy.epsilon, with which a run may be resumed"
        )
    budget.require(epochs)
    return budget


class Budget:
    """What training has spent and will spend, by the same accounting at all parties.

    earlier: entries of `record` of the sessions that trained the weights before, as their share files list them; None
    for weights that were trained without noise.
    """

    def __init__(self, settings: Settings, earlier: Sequence[Mapping[str, Any]] | None = ()) -> None:
        if earlier is None:
            raise PrivacyError(
                "model.weights.path: these shares were trained without noise, which no budget can hold; begin with "
                "weights of the seed, or write privacy=none"
            )
        self._settings, self.earlier = settings, list(earlier)

    def require(self, epochs: int) -> None:
        """Raises `PrivacyError` if so many epochs would take more than ``privacy.epsilon``, for the insiders."""
        limit = self._settings.privacy.epsilon
        if limit is None or self.epsilon(epochs) <= limit:
            return
        most = next((n for n in range(epochs - 1, 0, -1) if self.epsilon(n) <= limit), 0)
        spent = f"{self.epsilon(0):.2f} of them by earlier sessions, " if self.earlier else ""
        remedy = f"write task.epochs={most}" if most else "none is left"
        raise PrivacyError(
            f"{epochs} epochs take epsilon {self.epsilon(epochs):.2f}, {spent}of privacy.epsilon={limit:g}; {remedy}, "
            "or a larger privacy.noise_multiplier"
        )

    def epsilon(self, epochs: int, outsiders: bool = False) -> float:
        """Epsilon at ``privacy.delta`` after so many epochs of this session and all earlier ones."""
        entries = [*self.earlier, self._mechanism(epochs)]
        method = self._settings.task.method
        return epsilon([_mechanism(entry, method, outsiders) for entry in entries], self._settings.privacy.delta)

    def _mechanism(self, epochs: int) -> dict[str, Any]:
        """This session's noise, as share files list it."""
        head = self._settings.privacy.input_norm is not None or self._settings.task.method is Method.federated
        return {
            "mechanism": GAUSSIAN,
            "method": self._settings.task.method.value,
            "noise_multiplier": self._settings.privacy.noise_multiplier,
            "epochs": epochs,
            "parties": len(self._settings.compute_parties()),
            "slack": 0.0 if head else epochs * 2.0**-noise.PROJECTIONS,
        }

    def record(self, epochs: int) -> list[dict[str, Any]]:
        """What the next session must know: earlier sessions, and so many epochs of this one."""
        return [*map(dict, self.earlier), self._mechanism(epochs)]

    def entry(self, epochs: int, total: noise.ClippedSum | noise.HeadSum | None = None) -> dict[str, Any]:
        """For result.json and the report, after so many epochs; JSON has no infinity, so that is None.

        total: at parties that know the model's sum of gradients.
        """
        private, settings = self._settings.privacy, self._settings
        values = {
            "mechanism": GAUSSIAN,
            "noise_multiplier": private.noise_multiplier,
            "epochs": epochs,
            "earlier_sessions": len(self.earlier),
            "amplification": "none: the batch schedule is public",
            "adjacency": ADJACENCY[settings.task.method],
            "delta": private.delta,
            "epsilon_insiders": _finite(self.epsilon(epochs)),
            "epsilon_outsiders": _finite(self.epsilon(epochs, outsiders=True)),
            "epsilon_budget": private.epsilon,
            "outside": list(private.outside),
        }
        if total is not None:
            values |= {"sensitivity": total.sensitivity, "clipping_error": total.error}
        if private.input_norm is not None:
            values["inputs"] = INPUTS
        return values


def _mechanism(entry: Mapping[str, Any], method: Method, outsiders: bool) -> Mechanism:
    """An entry as it counts for training by ``method``: one image more or less may turn an owner's update into any
    other, which is twice as far as to zero; what was counted for images says nothing of owners.
    """
    try:
        made, sigma, epochs = Method[entry["method"]], float(entry["noise_multiplier"]), int(entry["epochs"])
        parties, slack = int(entry["parties"]), float(entry["slack"])
    except (KeyError, TypeError, ValueError):
        raise PrivacyError("model.weights.path: the share file's list of earlier noise cannot be read") from None
    if made is not method:
        sigma = sigma / 2 if made is Method.federated else 0.0
    return Mechanism(sigma * math.sqrt(parties) if outsiders else sigma, epochs, slack)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
