"""Settings of masks and of .npz files that cannot run: checks in the manner of `validation`."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mpc_imaging.choices import (
    IMAGE_OWNER,
    DataKind,
    Loss,
    Method,
    PartitionKind,
    PrivacyName,
    StopMetric,
    TaskKind,
)
from mpc_imaging.reading import Problem
from mpc_imaging.settings import SPLITS, Settings

WITH_MASKS = (DataKind.arrays, DataKind.dicom)


def arrays(settings: Settings, party: str | None) -> Iterator[Problem]:
    """Of how the images of an .npz file are divided into splits."""
    fractions = {split: getattr(settings.data.arrays, split) for split in SPLITS}
    for split, value in fractions.items():
        if not 0 <= value <= 1:
            yield Problem(f"data.arrays.{split}", f"{value} is no share of the images; write a number from 0 to 1")
    if not math.isclose(sum(fractions.values()), 1, abs_tol=1e-6):
        yield Problem("data.arrays", f"the shares add up to {sum(fractions.values()):g}; make them add up to 1")


def masks(settings: Settings, party: str | None) -> Iterator[Problem]:
    """Of labels that are masks: what takes one class for each image has no meaning for them."""
    data, task = settings.data, settings.task
    if not 1 <= data.mask_segment <= 65535:
        yield Problem("data.mask_segment", f"{data.mask_segment} is no segment's number; write 1 to 65535")
    if not data.masks:
        return
    if data.kind not in WITH_MASKS:
        yield Problem("data.masks", f"{data.kind.name} have no masks; write data=nuclei or data=dicom, or false")
    if len(data.class_names) != 2:
        what = f"{len(data.class_names)} classes; with data.masks name two: what lies around, and what is marked"
        yield Problem("data.class_names", what)
    elif data.positive_class not in (None, 1):
        yield Problem("data.positive_class", "masks mark class 1; write 1, and swap data.class_names")
    if data.slices is not None:
        yield Problem("data.slices", "masks are of images, not of volumes; write null with data.masks")
    if data.multi_label:
        yield Problem("data.multi_label", "each pixel has one class; write false with data.masks")
    if data.partition.kind is PartitionKind.label_skew:
        yield Problem("data.partition.kind", "label_skew takes one class for each image; write even or fraction")
    for key, used in (("class_weights", task.class_weights), ("balanced", task.balanced)):
        if used:
            neutral = "no weights" if key == "class_weights" else "false"
            yield Problem(f"task.{key}", f"weighs images by their class, and masks are none; write {neutral}")
    if settings.model.backbone._target_ is not None:
        yield Problem("model.backbone._target_", "features of an image have no pixels to mark; write null")
    for value in ("logits", "predictions"):
        if any(entry != IMAGE_OWNER for entry in settings.policy.reveal.get(value, [])):
            what = "a mask shows whose image it is; write image_owner alone, and metrics for those who need totals"
            yield Problem(f"policy.reveal.{value}", what)


def training(settings: Settings, party: str | None) -> Iterator[Problem]:
    """Of training with masks, and of the loss that only they have."""
    task, loss = settings.task, settings.task.loss
    if task.kind is not TaskKind.train:
        return
    if not settings.data.masks:
        if loss is Loss.dice_bce:
            yield Problem("task.loss", "dice_bce compares masks; write data.masks=true, or cross_entropy")
        return
    if loss is not Loss.dice_bce:
        yield Problem("task.loss", f"{loss.name} takes classes of images; write dice_bce with data.masks")
    if task.label_smoothing:
        yield Problem("task.label_smoothing", "masks are taken as they are; write 0")
    if task.early_stopping.metric not in (StopMetric.none, StopMetric.loss):
        yield Problem("task.early_stopping.metric", "masks have a loss alone to choose by; write loss, or none")
    if task.method is Method.federated:
        yield Problem("task.method", "federated training takes classes of images; write joint with data.masks")
    if settings.privacy.name is PrivacyName.dp:
        yield Problem("privacy.name", "private training takes classes of images; write privacy=none with data.masks")


CHECKS = (arrays, masks, training)
