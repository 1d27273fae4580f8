"""What a segmentation opens: each owner's own masks, and over all images how they overlap with the true ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from mpc_imaging.report.masks import write_masks
from mpc_imaging.report.overlap import metrics_from_overlap
from mpc_imaging.tasks.compute import batches
from mpc_imaging.tasks.counts import label_counts, predicted_labels
from mpc_imaging.tasks.features import label_shape
from mpc_imaging.tasks.results import write_own_masks

if TYPE_CHECKING:
    from mpc_imaging.tasks.job import Job

# Pixels that are compared together.
CHUNK = 1 << 18


def open_masks(job: Job, split: str, logits: torch.Tensor | None, labels: torch.Tensor | None) -> None:
    """Open what the policy lists of a split's masks, and write what this party gets.

    logits: share (N, 1, H, W); labels: share (N, H, W) of the true masks; None where nothing is computed. Logits and
    masks go to each image's owner, counts of pixels over all images to those whom the policy names for ``metrics``.
    """
    shape, spans = (job.catalogue.total(split), *label_shape(job.settings)), job.catalogue.spans(split)
    opened = job.open("logits", None if logits is None else logits.flatten(1, 2), shape, spans)
    individually = job.compares(shape[0], spans)
    predicted = predicted_masks(job, logits) if individually or job.wanted("metrics") else None
    masks = job.open("predictions", predicted, shape, spans, bits=0) if individually else None
    if job.wanted("metrics"):
        job.metrics = open_overlap(job, split, predicted, labels)
    if masks is None and opened is not None:
        masks = opened > 0
    if masks is not None and job.own is not None:
        own = job.own[split]
        shown = None if opened is None else opened.numpy()
        job.leave(write_masks, job.folder, own.ids, own.labels.numpy(), masks.numpy(), shown)
        if job.settings.data.dicom_results:
            job.leave(write_own_masks, job, own, range(len(own)), masks.numpy())


def predicted_masks(job: Job, logits: torch.Tensor | None) -> torch.Tensor | None:
    """Share (N, H, W) of whether each logit (N, 1, H, W) is above 0, as integers; None where nothing is computed."""
    if logits is None:
        return None
    flat = logits.flatten(1, 2)
    return torch.cat([job.segment(("masks", rows.stop - rows.start), _above, flat[rows]) for rows in _chunks(flat)])


def _chunks(masks: torch.Tensor) -> Iterator[slice]:
    return batches(len(masks), max(1, CHUNK // masks[0].numel()))


def _above(logits: torch.Tensor) -> torch.Tensor:
    from mpc_imaging.engine import gates

    predicted = predicted_labels(logits)
    gates.settle_ranges()
    return predicted


def open_overlap(
    job: Job, split: str, predicted: torch.Tensor | None, labels: torch.Tensor | None
) -> dict[str, Any] | None:
    """Metrics of a split's masks at those whom the policy names, from counts of pixels over all images together.

    predicted: as `predicted_masks`; labels: share (N, H, W) of the true masks; None where nothing is computed.
    """
    counts = None if predicted is None else sum(_counts(job, predicted, labels))
    opened = job.open("metrics", counts, (1, 3))
    if opened is None:
        return None
    height, width = label_shape(job.settings)
    return metrics_from_overlap(opened.round().long().flatten().tolist(), job.catalogue.total(split) * height * width)


def _counts(job: Job, predicted: torch.Tensor, labels: torch.Tensor) -> Iterator[torch.Tensor]:
    """Of a few images each, so that no product is as large as all of them."""
    for rows in _chunks(predicted):
        key = ("overlap", rows.stop - rows.start)
        yield job.segment(key, label_counts, predicted[rows].reshape(-1, 1), labels[rows].reshape(-1, 1))
