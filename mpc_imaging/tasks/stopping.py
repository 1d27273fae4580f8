"""Which epoch was best: decided on shares by a metric of the validation split, and its weights kept without looking.

Nothing is opened for that. Where the policy opens ``epoch``, its number is opened in the end; and with
``early_stopping.patience`` one bit after each epoch: whether to stop. All parties must stop together, so the compute
parties, whom the policy must name, pass that bit on: it is public to the session.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mpc_imaging import strict_json
from mpc_imaging.errors import SessionError
from mpc_imaging.parties.session import PATIENT_S
from mpc_imaging.settings import StopMetric
from mpc_imaging.tasks.job import Job

EPOCH = "epoch"
# After the weights in one tensor: the best value so far, the number of its epoch, and how many epochs came after it.
_EXTRA = 3


def validation_score(job: Job, logits: torch.Tensor | None, labels: torch.Tensor | None) -> torch.Tensor | None:
    """Share of what decides, higher being better: an int64 scalar; None where nothing is computed.

    It is the AUC, the number of right predictions, or the loss summed over the images, negative. logits, labels: shares
    (N, K), or logits (N, 1, H, W) and masks (N, H, W), of the validation split.
    """
    if logits is None:
        return None
    from mpc_imaging.engine import scores

    task, data = job.settings.task, job.settings.data
    if task.early_stopping.metric is StopMetric.auc:
        return job.auc(logits, labels)
    if task.early_stopping.metric is StopMetric.accuracy:
        return scores.hits(logits, labels, data.multi_label, job.segment)
    # Masks as rows: so many of them are handled together as have few pixels.
    return -scores.loss(task.loss, logits.flatten(1), labels.flatten(1), job.segment)


class BestEpoch:
    """The best epoch so far: its weights, value and number, and how many epochs were no better since; all on shares.

    All parties make one and call the same methods in the same order, outside of every segment of the job; ``model`` is
    None at those that do not compute.
    """

    def __init__(self, job: Job, model: Any) -> None:
        self._job, self._model = job, model
        self._patience = job.settings.task.early_stopping.patience
        self._state: torch.Tensor | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """For a checkpoint: shares by name, none before the first epoch has ended."""
        return {} if self._state is None else {"state": self._state}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self._state = tensors.get("state")

    def update(self, number: int, value: torch.Tensor | None) -> bool:
        """Epoch ``number`` (from 1) has ended with this `validation_score`; whether to stop, which is public.

        Of equal epochs the first is kept. Three rounds; three more, and an opening, where training may stop early.
        """
        if self._model is not None:
            self._keep(number, value)
        return self._job.settings.stops_early() and self._open_stop(number)

    def finish(self) -> int | None:
        """Give the model the best weights; the number of their epoch, where the policy opens it to this party."""
        number = None
        if self._model is not None:
            *parts, extra = self._state.split([*self._sizes(), _EXTRA])
            for parameter, part in zip(self._parameters(), parts, strict=True):
                parameter.share = part.reshape(parameter.size()).clone()
            number = extra[1]
        opened = self._job.open(EPOCH, number, (), bits=0)
        return None if opened is None else int(opened.item())

    def _parameters(self) -> list[Any]:
        return [self._model.parameters[name] for name in sorted(self._model.trainable())]

    def _sizes(self) -> list[int]:
        return [parameter.share.numel() for parameter in self._parameters()]

    def _keep(self, number: int, value: torch.Tensor) -> None:
        """Select between the old state and the new one: a comparison, and one product for all of the state."""
        from mpc_imaging.engine.scores import negative
        from mpc_imaging.engine.tensors import from_share, no_grad, share_of

        with no_grad():
            public = torch.tensor([number, 0])
            known = share_of(from_share(torch.zeros(2, dtype=torch.int64), 0) + public)
            weights = [parameter.share.reshape(-1) for parameter in self._parameters()]
            new = torch.cat([*weights, value.reshape(1), known])
            if self._state is None:
                self._state = new
                return
            older = torch.zeros_like(new)
            older[-1] = share_of(from_share(older[:1], 0) + 1)[0]
            old = self._state + older
            better = negative(old[-_EXTRA:][:1] - value.reshape(1))
            self._state = old + share_of(from_share(better, 0) * from_share(new - old, 0))

    def _open_stop(self, number: int) -> bool:
        """Whether the last ``patience`` epochs were no better than one before; never after the very last epoch."""
        job, bit = self._job, None
        if self._model is not None:
            from mpc_imaging.engine.scores import negative
            from mpc_imaging.engine.tensors import from_share, share_of

            fewer = negative(share_of(from_share(self._state[-1:], 0) - self._patience))
            bit = share_of(1 - from_share(fewer, 0)).reshape(())
            if number == job.settings.task.epochs:
                bit = bit * 0  # nobody needs it; opened all the same, since all epochs are planned alike
        opened = job.open(EPOCH, bit, (), bits=0)
        return self._told(None if opened is None else opened.item() == 1)

    def _told(self, stop: bool | None) -> bool:
        """The bit at every party: the first compute party tells those who wait for results and did not get it."""
        session, settings = self._job.session, self._job.settings
        if session.first:
            for name in settings.receivers():
                if name not in session.compute and name not in settings.recipients(EPOCH):
                    session.mesh.send_json(name, {"stop": stop})
        if stop is not None:
            return stop
        leader = session.compute[0]
        message = session.mesh.receive_json(leader, wait_s=PATIENT_S)
        try:
            return strict_json.truth(strict_json.entries(message, ["stop"])["stop"])
        except strict_json.JsonError:
            what = f"{leader} did not tell {session.me} whether to stop; update it or {session.me}"
            raise SessionError(what) from None
