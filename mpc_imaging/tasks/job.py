"""One party's part in a task, from its own data to its result files: the steps that all parties follow together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mpc_imaging.engine.encoding import decode
from mpc_imaging.errors import RangeError
from mpc_imaging.models.weights import save_weights
from mpc_imaging.parties.policy import RANGE_OK, allowed_rows
from mpc_imaging.parties.reveal import reveal
from mpc_imaging.parties.session import Session
from mpc_imaging.report.metrics import UNKNOWN_LABEL, metrics_from_confusion
from mpc_imaging.report.predictions import write_json, write_predictions
from mpc_imaging.settings import Settings
from mpc_imaging.tasks.inputs import Catalogue, announce_ids
from mpc_imaging.tasks.progress import Progress

if TYPE_CHECKING:
    from mpc_imaging.data import Split


def once(key: Hashable, body: Callable[..., Any], *args: Any) -> Any:
    """``body(*args)``: how a session runs a segment."""
    return body(*args)


@dataclass
class Job:
    """What a party knows while a task runs; compute parties also hold shares.

    ``segment(key, body, *args)`` runs what a task does again and again, such as a batch or an epoch. A rehearsal runs
    the bodies of one key only until two in a row demand the same, and counts the others without running them: what
    they compute must reach the rest of the task by their result, or be overwritten by the next one.
    """

    session: Session
    folder: Path
    catalogue: Catalogue
    own: Mapping[str, Split] | None
    progress: Progress
    metrics: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    ids: dict[str, list[str]] = field(default_factory=dict)
    segment: Callable[..., Any] = once

    @property
    def settings(self) -> Settings:
        """The session's settings."""
        return self.session.settings

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.settings.data.class_names)

    def open(
        self,
        value: str,
        share: torch.Tensor | None,
        shape: Sequence[int],
        spans: Mapping[str, slice] | None = None,
        bits: int | None = None,
    ) -> torch.Tensor | None:
        """Open a value of ``shape`` to those whom the policy names; ``share`` is None where nothing is computed.

        Returns the decoded rows that this party may see, float64, or None. ``bits``: of fraction, if not those of the
        protocol. Raises as `reveal`, and `RangeError`.
        """
        if share is not None and self.wanted(value):
            self._require_range()
        opened = reveal(self.session, value, share, torch.Size(shape), spans)
        return (
            None if opened is None else decode(opened, self.settings.protocol.fraction_bits if bits is None else bits)
        )

    def _require_range(self) -> None:
        """Open to the compute parties whether all values were in range, if that is to be checked.

        Raises `RangeError` if one was not, before what depends on it is opened.
        """
        from mpc_imaging.engine import gates

        bit = gates.range_bit()
        if bit is not None and not self._in_range(reveal(self.session, RANGE_OK, bit, bit.shape)):
            raise RangeError(
                f"a value was too large for protocol.comparison_bits={self.settings.protocol.comparison_bits}; nothing "
                "that depends on it was opened; write more bits, or null for all"
            )

    def _in_range(self, opened: torch.Tensor | None) -> bool:
        return opened is not None and opened.item() == 1

    def wanted(self, value: str) -> bool:
        """Whether the policy opens ``value`` to anyone."""
        return bool(self.settings.recipients(value))

    def expects_results(self) -> bool:
        """Whether the policy opens anything of this task to this party: if not, an owner leaves after sharing."""
        return self.session.me in self.settings.receivers()

    def exchange_ids(self) -> None:
        """Those who will see outputs of images that are not theirs learn the pseudonyms; before any owner leaves."""
        split = self.settings.task.split
        spans = self.catalogue.spans(split)
        strangers = {
            party
            for value in ("logits", "predictions")
            for party, rows in self._rows(value, split).items()
            if rows != spans.get(party)
        }
        own = None if self.own is None else self.own[split]
        self.ids = announce_ids(self.session, self.catalogue, split, own, sorted(strangers))

    def open_confusion(
        self, split: str, logits: torch.Tensor | None, labels: torch.Tensor | None
    ) -> dict[str, Any] | None:
        """Metrics of a split at those whom the policy names, from confusion counts that are added up on shares.

        logits, labels: shares (N, K), the labels one-hot; None where nothing is computed.
        """
        return self._open_counts(_predicted_classes(logits), labels)

    def _open_counts(self, predicted: torch.Tensor | None, labels: torch.Tensor | None) -> dict[str, Any] | None:
        counts = None
        if predicted is not None:
            from mpc_imaging.engine.tensors import from_share, no_grad, share_of

            with no_grad():
                counts = share_of(from_share(labels).transpose(0, 1).matmul(from_share(predicted, 0)))
        opened = self.open("metrics", counts, (self.classes, self.classes))
        if opened is None:
            return None
        return metrics_from_confusion(opened.round().long().numpy(), self.settings.data.positive_class)

    def open_outputs(self, split: str, logits: torch.Tensor | None, labels: torch.Tensor | None) -> None:
        """Open what the policy lists of logits, predictions and metrics for a split, and write what this party gets.

        logits, labels: shares (N, K), the labels one-hot; None where nothing is computed.
        """
        total, spans = self.catalogue.total(split), self.catalogue.spans(split)
        with_logits, with_predictions = self._rows("logits", split), self._rows("predictions", split)
        opened = self.open("logits", logits, (total, self.classes), spans)
        predicted = None
        # Whoever gets the logits of a row has its prediction; only other rows are worth the comparisons.
        individually = any(not _covers(with_logits.get(party), rows) for party, rows in with_predictions.items())
        onehot = _predicted_classes(logits) if individually or self.wanted("metrics") else None
        if individually:
            predicted = self._open_predictions(onehot, total, spans)
        if self.wanted("metrics"):
            self.metrics = self._open_counts(onehot, labels)
        me = self.session.me
        if predicted is not None and not _covers(with_logits.get(me), with_predictions[me]):
            # The file has scores for all of its rows or for none: this party sees more rows than it has logits of.
            self._write(split, "predictions", None, predicted)
        elif opened is not None:
            self._write(split, "logits", opened.float(), opened.argmax(1))

    def open_weights(self, shapes: Mapping[str, torch.Size], shares: Mapping[str, torch.Tensor] | None) -> None:
        """Open trained weights to those whom the policy names, and write them there (weights.safetensors)."""
        sizes = [shape.numel() for shape in shapes.values()]
        flat = None if shares is None else torch.cat([shares[name].flatten() for name in shapes])
        opened = self.open("weights", flat, (sum(sizes),))
        if opened is not None:
            parts = opened.float().split(sizes)
            state = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
            save_weights(state, self.folder / "weights.safetensors")

    def _rows(self, value: str, split: str) -> dict[str, slice]:
        return allowed_rows(self.settings, value, self.catalogue.spans(split), self.catalogue.total(split))

    def _open_predictions(
        self, predicted: torch.Tensor | None, total: int, spans: Mapping[str, slice]
    ) -> torch.Tensor | None:
        index = None if predicted is None else (predicted * torch.arange(self.classes)).sum(1)
        opened = self.open("predictions", index, (total,), spans, bits=0)
        return None if opened is None else opened.long()

    def _write(self, split: str, value: str, logits: torch.Tensor | None, predicted: torch.Tensor) -> None:
        spans, rows = self.catalogue.spans(split), self._rows(value, split)[self.session.me]
        ids, labels = [], []
        for owner, span in spans.items():
            part = slice(max(span.start, rows.start) - span.start, max(0, min(span.stop, rows.stop) - span.start))
            mine = self.own[split] if owner == self.session.me else None
            names = mine.ids if mine is not None else self.ids.get(owner, [])
            ids += names[part]
            labels += mine.labels[part].tolist() if mine is not None else [UNKNOWN_LABEL] * len(names[part])
        scores = None if logits is None else logits.numpy()
        write_predictions(self.folder, ids, labels, scores, predicted.numpy(), self.settings.data.class_names)

    def finish(self, cost: dict[str, float] | None, layers: list[dict[str, Any]]) -> None:
        """Write result.json, the last of this party's files; ``cost`` and ``layers`` are those of the `Meter`."""
        party = self.settings.topology.parties[self.session.me]
        result = {
            "party": self.session.me,
            "roles": [role.value for role in party.roles],
            "counts": {owner: dict(counts) for owner, counts in self.catalogue.counts.items()},
            "history": self.history,
            "metrics": self.metrics,
            "cost": cost,
            "layers": layers,
        }
        write_json(self.folder / "result.json", result)


def _predicted_classes(logits: torch.Tensor | None) -> torch.Tensor | None:
    """Share (N, K) of the one-hot of each row's largest logit, as integers; None where nothing is computed."""
    if logits is None:
        return None
    from mpc_imaging.engine.tensors import argmax_onehot, from_share, no_grad, share_of

    with no_grad():
        return share_of(argmax_onehot(from_share(logits)))


def _covers(outer: slice | None, inner: slice) -> bool:
    """Whether all rows of ``inner`` are also in ``outer``."""
    return outer is not None and outer.start <= inner.start and inner.stop <= outer.stop
