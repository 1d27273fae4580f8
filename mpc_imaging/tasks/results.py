"""An owner's own results as DICOM objects, in its private folder ``results/``."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

import mpc_imaging

if TYPE_CHECKING:
    from mpc_imaging.data import Split
    from mpc_imaging.data.row_images import Source
    from mpc_imaging.report.result_objects import ModelIdentity
    from mpc_imaging.tasks.job import Job

log = logging.getLogger("mpc_imaging.party")


def _source(split: Split, row: int) -> Source | None:
    return split.sources[row] if split.sources else None


def _referred(source: Source | None) -> tuple[Path | list[Path] | None, int | None]:
    """The file and frame that a report refers to; of a volume, the files of its slices, or the one that has them all.

    Of a multi-frame file the report then names all frames: the slices are chosen evenly from them.
    """
    if source is None or isinstance(source, tuple):
        return source or (None, None)
    paths = list(dict.fromkeys(path for path, _ in source))
    return (paths[0] if len(paths) == 1 else paths), None


def write_own(
    job: Job, split: Split, rows: Sequence[int], logits: torch.Tensor | None, predicted: torch.Tensor
) -> None:
    """A report for each of these rows of the owner's split, and results.csv; how many, and why not, goes to the log.

    logits: (N, K) of the rows, if they are revealed; predicted: (N,). Raises as `write_results`.
    """
    # Imported where it is asked for: it takes a second.
    from mpc_imaging.report.dicom_results import ResultRow, write_results

    names = job.settings.data.class_names
    scores = [None] * len(predicted) if logits is None else logits.double().softmax(1).tolist()
    results = [
        ResultRow(
            split.ids[k], *_referred(_source(split, k)), names[label], score and dict(zip(names, score, strict=True))
        )
        for k, label, score in zip(rows, predicted.tolist(), scores, strict=True)
    ]
    with job.progress.stage("results", len(results)):
        outcome = write_results(job.folder, results, _identity(job), names, advance=job.progress.advance)
    without = len(outcome.refused) + len(outcome.without_source)
    log.info("wrote %d DICOM reports; %d rows are in results.csv only, with the reason", len(outcome.written), without)


def write_own_masks(job: Job, split: Split, rows: Sequence[int], masks: np.ndarray) -> None:
    """DICOM segmentations of these rows of the owner's split, and masks.csv; how many, and why not, goes to the log.

    masks: uint8 (n, H, W) of 0 and 1, of the rows in their order, as large as the model's images. Images that are not
    from DICOM files get none. Raises as `write_masks`.
    """
    from mpc_imaging.report.mask_results import MaskRow, write_masks

    results = [
        MaskRow(split.ids[k], *(_source(split, k) or (None, 0)), mask) for k, mask in zip(rows, masks, strict=True)
    ]
    structure = job.settings.data.class_names[1]
    with job.progress.stage("results", len(results)):
        outcome = write_masks(job.folder, results, structure, _identity(job), advance=job.progress.advance)
    without = len(outcome.refused) + len(outcome.without_source)
    files = len(set(outcome.written.values()))
    log.info(
        "wrote %d masks into %d DICOM segmentations; %d have none, masks.csv says why",
        len(outcome.written),
        files,
        without,
    )


def _identity(job: Job) -> ModelIdentity:
    """What results say of the model, from what is public: a digest of secret weights would confirm a guess of them."""
    from mpc_imaging.report.result_objects import ModelIdentity

    model = job.settings.model
    made = [model._target_, model.kwargs, job.session.mesh.session_id.hex()]
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
    return ModelIdentity(model.name, digest, mpc_imaging.__version__)
