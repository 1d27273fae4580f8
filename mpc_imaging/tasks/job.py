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
from mpc_imaging.parties.policy import RANGE_LAYER, RANGE_OK, allowed_rows
from mpc_imaging.parties.reveal import reveal
from mpc_imaging.parties.session import Session
from mpc_imaging.report.metrics import (
    UNKNOWN_LABEL,
    metrics_from_confusion,
    metrics_from_label_counts,
    undefined_metrics,
)
from mpc_imaging.report.predictions import write_json, write_predictions
from mpc_imaging.settings import Settings
from mpc_imaging.tasks import masks
from mpc_imaging.tasks.checkpoints import Checkpoints, Start
from mpc_imaging.tasks.counts import confusion, label_counts, predicted_classes, predicted_labels
from mpc_imaging.tasks.inputs import Catalogue, announce_ids
from mpc_imaging.tasks.privacy import Budget
from mpc_imaging.tasks.progress import Progress
from mpc_imaging.tasks.results import write_own

if TYPE_CHECKING:
    from mpc_imaging.data import Split
    from mpc_imaging.tasks.feed import Feed


ONLY_AUC = "needs counts; only the AUC was revealed"
NO_AUC = "a class has no images, or all of them"


def same_phase(end: bool) -> None:
    """Nothing: how a session goes on that has one plan, or none."""


# Layers that an error names: those whose values came first.
SHOWN = 4


def once(key: Hashable, body: Callable[..., Any], *args: Any) -> Any:
    """``body(*args)``: how a session runs a segment."""
    return body(*args)


@dataclass
class Job:
    """What a party knows while a task runs; compute parties also hold shares.

    ``segment(key, body, *args)`` runs what a task does again and again, such as a batch or an epoch. A rehearsal runs
    the bodies of one key only until two in a row demand the same, and counts the others without running them: what
    they compute must reach the rest of the task by their result, or be overwritten by the next one. ``phase(end)``
    begins a new phase, or the last one: what follows has a plan of its own, so that what was planned for other phases
    may be left out. It is called outside of every segment, and only where `Settings.stops_early`. ``start``: where the
    task begins. ``checkpoints``: of a compute party that trains; None in a rehearsal, which leaves no files.
    ``budget``: of private training. ``best_epoch``: the one that early stopping chose, where it is opened.
    ``quality``: what `data.quality` found in this party's images, and `tasks.duplicates` at other owners. ``feed``:
    where task=stream takes its steps from; ``stream``: what came of it. ``complete``: whether all that was planned was
    done.
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
    phase: Callable[[bool], None] = same_phase
    start: Start = field(default_factory=Start)
    checkpoints: Checkpoints | None = None
    budget: Budget | None = None
    best_epoch: int | None = None
    quality: list[dict[str, Any]] = field(default_factory=list)
    feed: Feed | None = None
    stream: dict[str, Any] | None = None
    complete: bool = True

    @property
    def settings(self) -> Settings:
        """The session's settings."""
        return self.session.settings

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.settings.data.class_names)

    @property
    def unknown_label(self) -> int | list[int]:
        """What stands for the label of an image of another owner."""
        return [UNKNOWN_LABEL] * self.classes if self.settings.data.multi_label else UNKNOWN_LABEL

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

    def watch_gradients(self, model: Any) -> None:
        """After a backward pass: note the parameters' gradients for `check_step`, those of the last layer first."""
        from mpc_imaging.engine import gates

        for name in reversed(model.trainable()):
            if model.parameters[name].grad is not None:
                gates.watch_parameter(model.parameters[name].grad, f"{name} (gradient)")

    def check_step(self, model: Any, step: int, epoch: int) -> None:
        """After a step of training (both count from 1): open whether all of its values were in range.

        These are the results of layers, the gradients that were watched, and the updated parameters. Does nothing where
        ranges are not checked. Raises `RangeError` at all compute parties if a value was out of range; it
        names the layers if the policy lists `range_layer`.
        """
        from mpc_imaging.engine import gates

        if not gates.watching():
            return
        with model.observer("range check", ""):
            for name in model.trainable():
                gates.watch_parameter(model.parameters[name], name)
            self._require_range(f"step {step} (epoch {epoch}): ")

    def check_range(self) -> None:
        """Open to the compute parties whether what was compared since the last opening was in range, as `open` does."""
        if self.session.rank is not None:
            self._require_range()

    def _require_range(self, step: str = "") -> None:
        """Open to the compute parties whether all values were in range, if that is to be checked.

        step: of training, with which the error begins. Raises `RangeError` if one was not, before what depends on it is
        opened.
        """
        layers = self._layers_out_of_range()
        if layers is None:
            return
        hints, protocol = ["lower task.lr", "clip gradients (task.clip_norm)"] if step else [], self.settings.protocol
        if self.settings.compares_narrowly():
            hints.append(f"write more bits than protocol.comparison_bits={protocol.comparison_bits}, or null for all")
        hints.append(f"lower protocol.fraction_bits={protocol.fraction_bits}")
        if not step:
            hints.append("scale images or weights down")
        text = "{}values left the range {}; nothing that depends on them was opened; {}"
        public = text.format(step, "that the protocol can compute with", ", or ".join(hints))
        raise RangeError(text.format(step, f"in layer {layers}", ", or ".join(hints)) if layers else public, public)

    def _layers_out_of_range(self) -> str | None:
        """None if all values watched since the last time were in range; else the layers, if the policy opens those."""
        from mpc_imaging.engine import gates

        verdict = gates.range_verdict()
        if verdict is None or self._in_range(reveal(self.session, RANGE_OK, verdict.bits[:1], torch.Size([1]))):
            return None
        opened = reveal(self.session, RANGE_LAYER, verdict.bits[1:], torch.Size([len(verdict.places)]))
        bad = [] if opened is None else [place for place, ok in zip(verdict.places, opened, strict=True) if not ok]
        return ", ".join(bad[:SHOWN]) + (f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else "")

    def _in_range(self, opened: torch.Tensor | None) -> bool:
        return opened is not None and opened.item() == 1

    def local(self, body: Callable[[], torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
        """What this party makes by itself, a tensor of ``shape``: of its data in the clear, or noise."""
        return body()

    def leave(self, write: Callable[..., None], *args: Any) -> None:
        """Write results: ``write(*args)``. A rehearsal leaves none, and says nothing of them."""
        write(*args)

    def wanted(self, value: str) -> bool:
        """Whether the policy opens ``value`` to anyone."""
        undefined = self.settings.data.masks and value == "auc"
        return bool(self.settings.recipients(value)) and not undefined

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

        logits, labels: shares (N, K), the labels of 0 and 1; None where nothing is computed. Masks: see `masks`.
        """
        if self.settings.data.masks:
            return masks.open_overlap(self, split, masks.predicted_masks(self, logits), labels)
        return self._open_counts(split, self._predicted(logits), labels)

    def _predicted(self, logits: torch.Tensor | None) -> torch.Tensor | None:
        return (predicted_labels if self.settings.data.multi_label else predicted_classes)(logits)

    def _open_counts(
        self, split: str, predicted: torch.Tensor | None, labels: torch.Tensor | None
    ) -> dict[str, Any] | None:
        several = self.settings.data.multi_label
        counts = None if predicted is None else (label_counts if several else confusion)(predicted, labels)
        opened = self.open("metrics", counts, (self.classes, 3 if several else self.classes))
        if opened is None:
            return None
        whole = opened.round().long().numpy()
        if several:
            return metrics_from_label_counts(whole, self.catalogue.total(split))
        return metrics_from_confusion(whole, self.settings.data.positive_class)

    def open_auc(
        self, logits: torch.Tensor | None, labels: torch.Tensor | None, share: torch.Tensor | None = None
    ) -> tuple[float | None, str] | None:
        """The AUC of a split at those whom the policy names, found on shares; else None.

        It is (None, reason) where it is undefined. logits, labels: as in `open_confusion`. share: of it, if known.
        """
        if not self.wanted("auc"):
            return None
        if share is None and logits is not None:
            share = self.auc(logits, labels)
        opened = self.open("auc", share, ())
        if opened is None:
            return None
        # What stands for an undefined AUC is -1 (`engine.scores`), and rounding is far smaller than one half.
        return (None, NO_AUC) if opened.item() < -0.5 else (min(1.0, max(0.0, opened.item())), "")

    def auc(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Share of the AUC (see `engine.scores.auc`). Nothing is opened."""
        from mpc_imaging.engine import scores

        data, bins = self.settings.data, self.settings.task.auc_bins
        return scores.auc(logits, labels, bins, data.positive_class, data.multi_label, self.segment)

    def open_outputs(self, split: str, logits: torch.Tensor | None, labels: torch.Tensor | None) -> None:
        """Open what the policy lists of a split's outputs, and write what this party gets.

        logits, labels: shares (N, K), the labels of 0 and 1; None where nothing is computed. Masks: see `masks`.
        """
        if self.settings.data.masks:
            masks.open_masks(self, split, logits, labels)
            return
        total, spans = self.catalogue.total(split), self.catalogue.spans(split)
        with_logits, with_predictions = self._rows("logits", split), self._rows("predictions", split)
        compared = self.compares(total, spans)
        opened, predicted, onehot = self.open_rows(logits, total, spans, compared, self.wanted("metrics"))
        if self.wanted("metrics"):
            self.metrics = self._open_counts(split, onehot, labels)
        self.metrics = with_auc(self.metrics, self.open_auc(logits, labels))
        me = self.session.me
        if predicted is not None and not _covers(with_logits.get(me), with_predictions[me]):
            # The file has scores for all of its rows or for none: this party sees more rows than it has logits of.
            self.leave(self._write, split, "predictions", None, predicted)
        elif opened is not None:
            several = self.settings.data.multi_label
            found = (opened > 0).long() if several else opened.argmax(1)
            self.leave(self._write, split, "logits", opened.float(), found)

    def open_rows(
        self,
        logits: torch.Tensor | None,
        total: int,
        spans: Mapping[str, slice],
        compared: bool,
        counted: bool = False,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Open logits and predictions of the first ``total`` rows, of the owners in ``spans``, as the policy says.

        logits: shares (N, K), with as many rows or more, or None. Returns what this party may see of both, or None, and
        shares of all rows' predictions (see `counts`): None unless they are ``compared`` (see `compares`) or to be
        ``counted``.
        """
        opened = self.open("logits", None if logits is None else logits[:total], (total, self.classes), spans)
        onehot = self._predicted(logits) if compared or counted else None
        predicted = None
        if compared:
            predicted = self._open_predictions(None if onehot is None else onehot[:total], total, spans)
        return opened, predicted, onehot

    def compares(self, total: int, spans: Mapping[str, slice]) -> bool:
        """Whether predictions are found on shares: whoever gets the logits of a row has its prediction without that."""
        with_logits, with_predictions = (
            allowed_rows(self.settings, value, spans, total) for value in ("logits", "predictions")
        )
        return any(not _covers(with_logits.get(party), rows) for party, rows in with_predictions.items())

    def open_weights(self, shapes: Mapping[str, torch.Size], shares: Mapping[str, torch.Tensor] | None) -> None:
        """Open trained weights to those whom the policy names, and write them there (weights.safetensors)."""
        sizes = [shape.numel() for shape in shapes.values()]
        flat = None if shares is None else torch.cat([shares[name].flatten() for name in shapes])
        opened = self.open("weights", flat, (sum(sizes),))
        if opened is not None:
            parts = opened.float().split(sizes)
            state = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
            self.leave(save_weights, state, self.folder / "weights.safetensors")

    def _rows(self, value: str, split: str) -> dict[str, slice]:
        return allowed_rows(self.settings, value, self.catalogue.spans(split), self.catalogue.total(split))

    def _open_predictions(
        self, predicted: torch.Tensor | None, total: int, spans: Mapping[str, slice]
    ) -> torch.Tensor | None:
        if self.settings.data.multi_label:
            opened = self.open("predictions", predicted, (total, self.classes), spans, bits=0)
        else:
            index = None if predicted is None else (predicted * torch.arange(self.classes)).sum(1)
            opened = self.open("predictions", index, (total,), spans, bits=0)
        return None if opened is None else opened.long()

    def _write(self, split: str, value: str, logits: torch.Tensor | None, predicted: torch.Tensor) -> None:
        me = self.session.me
        spans, rows = self.catalogue.spans(split), self._rows(value, split)[me]
        ids, labels, own = [], [], None
        for owner, span in spans.items():
            part = slice(max(span.start, rows.start) - span.start, max(0, min(span.stop, rows.stop) - span.start))
            mine = self.own[split] if owner == me else None
            names = mine.ids if mine is not None else self.ids.get(owner, [])
            if mine is not None:
                own = (part, slice(len(ids), len(ids) + len(names[part])))
            ids += names[part]
            labels += mine.labels[part].tolist() if mine is not None else [self.unknown_label] * len(names[part])
        scores = None if logits is None else logits.numpy()
        write_predictions(self.folder, ids, labels, scores, predicted.numpy(), self.settings.data.class_names)
        if self.settings.data.dicom_results and own is not None:
            part, shown = own
            rows = range(part.start, part.stop)
            write_own(self, self.own[split], rows, None if logits is None else logits[shown], predicted[shown])

    def finish(self, cost: dict[str, float] | None, layers: list[dict[str, Any]]) -> None:
        """Write result.json, the last of this party's files; ``cost`` and ``layers`` are those of the `Meter`."""
        party = self.settings.topology.parties[self.session.me]
        result = {
            "party": self.session.me,
            "roles": [role.value for role in party.roles],
            "counts": {owner: dict(counts) for owner, counts in self.catalogue.counts.items()},
            "history": self.history,
            "best_epoch": self.best_epoch,
            "metrics": self.metrics,
            "privacy": None if self.budget is None else self.budget.entry(len(self.history)),
            "quality": self.quality,
            "stream": self.stream,
            "cost": cost,
            "layers": layers,
        }
        write_json(self.folder / "result.json", result)


def with_auc(metrics: dict[str, Any] | None, auc: tuple[float | None, str] | None) -> dict[str, Any] | None:
    """Metrics from counts, or of none where there are none, with what `Job.open_auc` gave."""
    if auc is None:
        return metrics
    metrics = undefined_metrics(ONLY_AUC) if metrics is None else metrics
    value, reason = auc
    reasons = {name: text for name, text in metrics["reasons"].items() if name != "auc"}
    return metrics | {"auc": value, "reasons": reasons | ({"auc": reason} if reason else {})}


def _covers(outer: slice | None, inner: slice) -> bool:
    """Whether all rows of ``inner`` are also in ``outer``."""
    return outer is not None and outer.start <= inner.start and inner.stop <= outer.stop
