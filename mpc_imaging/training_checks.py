"""Settings of training, of privacy and of checkpoints that cannot run: checks in the manner of `validation`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.util import find_spec

from mpc_imaging.choices import (
    IMAGE_OWNER,
    DataKind,
    Frames,
    Loss,
    Method,
    Optimiser,
    PartitionKind,
    PrivacyName,
    ProtocolName,
    RandomnessMode,
    Role,
    StopMetric,
    TaskKind,
    WeightsSource,
)
from mpc_imaging.reading import Problem, did_you_mean
from mpc_imaging.settings import Settings

ZOO = "mpc_imaging.models.zoo."
MULTIPLE_INSTANCE = "mpc_imaging.models.multiple_instance.MultipleInstance"
# What may be opened while training or after it, and is not made from noisy gradients alone.
EXACT = ("loss", "metrics", "auc", "epoch", "range_ok", "range_layer", "duplicates")


def optimiser(settings: Settings, party: str | None) -> Iterator[Problem]:
    """Of SGD or Adam, the learning rate and clipping."""
    task = settings.task
    if task.nesterov and not task.momentum:
        yield Problem("task.nesterov", "needs momentum; write task.momentum=0.9, or nesterov=false")
    if task.optimiser is not Optimiser.sgd and task.nesterov:
        yield Problem("task.nesterov", f"belongs to sgd, not to {task.optimiser.name}; write task.optimiser=sgd")
    if len(task.betas) != 2 or not all(0 <= beta < 1 for beta in task.betas):
        yield Problem("task.betas", f"{task.betas} are no decay rates; write two numbers from 0, below 1")
    weights, classes = task.class_weights, len(settings.data.class_names)
    if weights and (len(weights) != classes or not all(0 <= weight <= 1000 for weight in weights)):
        yield Problem("task.class_weights", f"{weights}; write {classes} numbers from 0 to 1000, one for each class")
    if settings.data.multi_label and (weights or task.balanced):
        what = "with multi_label an image may have none of the classes, and so no weight; write no weights, or false"
        yield Problem("task.class_weights" if weights else "task.balanced", what)
    if settings.data.multi_label and task.kind is TaskKind.train and task.loss is not Loss.binary_cross_entropy:
        what = f"{task.loss.name} takes one class for each image; write binary_cross_entropy with data.multi_label"
        yield Problem("task.loss", what)
    if settings.data.multi_label and settings.data.positive_class is not None:
        yield Problem("data.positive_class", "with multi_label each class is reported on its own; write null")
    if settings.data.multi_label and settings.data.partition.kind is PartitionKind.label_skew:
        yield Problem("data.partition.kind", "label_skew takes one class for each image; write even or fraction")


def simulation(settings: Settings, party: str | None) -> Iterator[Problem]:
    """Of what CrypTen as it comes cannot do."""
    task = settings.task
    if settings.protocol.name is not ProtocolName.insecure_simulation or task.kind is not TaskKind.train:
        return
    if task.optimiser is not Optimiser.sgd or task.clip_norm is not None or task.clip_value is not None:
        what = "insecure_simulation has plain sgd only; write task.optimiser=sgd without clipping, or protocol=auto"
        yield Problem("task.optimiser", what)


def stopping(settings: Settings, party: str | None) -> Iterator[Problem]:
    """Of the choice of the best epoch."""
    stop, kind = settings.task.early_stopping, settings.task.kind
    if stop.patience is not None and stop.metric is StopMetric.none:
        yield Problem("task.early_stopping.metric", "patience with what? Write loss, accuracy or auc, or patience=null")
    if kind is not TaskKind.train or stop.metric is StopMetric.none or stop.patience is None:
        return
    compute = set(settings.compute_parties())
    if settings.recipients("epoch") and not compute <= set(settings.recipients("epoch")):
        what = "all compute parties must learn when to stop; write epoch: [compute], and who else should see it"
        yield Problem("policy.reveal.epoch", what)
    if settings.stops_early() and settings.randomness.mode is RandomnessMode.stored:
        yield Problem("randomness.mode", "a store holds sessions of full length; write stream, or patience=null")


def federated(settings: Settings, party: str | None) -> Iterator[Problem]:
    """Of federated averaging."""
    task, source = settings.task, settings.model.weights.source
    if task.method is not Method.federated or task.kind is not TaskKind.train:
        return
    missing = [name for name in settings.data_owners() if name not in settings.recipients("update")]
    if missing:
        what = "owners train on from the sum of all updates; write update: [data_owner]"
        yield Problem("policy.reveal.update", what)
    if source is not WeightsSource.seed and settings.model.weights.secret:
        yield Problem("model.weights.secret", "federated training shows weights to all owners; write false")
    if source is WeightsSource.shares:
        yield Problem("model.weights.source", "owners need weights, not shares of them; write seed, file or pretrain")
    if task.early_stopping.metric is not StopMetric.none:
        yield Problem("task.early_stopping.metric", "only joint training chooses its best epoch; write none")
    if settings.protocol.name is ProtocolName.insecure_simulation:
        yield Problem("protocol.name", "updates are not added up in insecure_simulation; write auto")
    if settings.checkpoint.every is not None or settings.resume:
        yield Problem("checkpoint.every", "only joint training writes checkpoints; write null, and resume=false")


def privacy(settings: Settings, party: str | None) -> Iterator[Problem]:
    """Of differential privacy."""
    task, private, data = settings.task, settings.privacy, settings.data
    if private.name is not PrivacyName.dp or task.kind is not TaskKind.train:
        return
    if settings.protocol.name is ProtocolName.insecure_simulation:
        yield Problem("privacy.name", "insecure_simulation adds no noise; write protocol=auto, or privacy=none")
    if data.augment.copies > 1:
        yield Problem("data.augment.copies", "copies of an image would each spend its budget; write 1 with privacy=dp")
    if task.clip_norm is not None or task.clip_value is not None:
        yield Problem(
            "task.clip_norm", "privacy.clip bounds gradients already; write null for clip_norm and clip_value"
        )
    if task.balanced:
        yield Problem("task.balanced", "counts of classes would be used without noise; write class_weights, or false")
    if task.class_weights and max(task.class_weights) > 1:
        yield Problem("task.class_weights", "weights above 1 break the bound on a gradient; scale them to at most 1")
    if settings.model.weights.source is WeightsSource.pretrain:
        what = "pre-training adds no noise, so no budget holds for its images; write seed, file or shares"
        yield Problem("model.weights.source", what)
    if private.micro_batch > 1 and private.input_norm is not None:
        yield Problem("privacy.micro_batch", "a head's residuals are clipped image by image; write 1, or no input_norm")


def declared(settings: Settings, party: str | None) -> Iterator[Problem]:
    """Of what is opened beside noisy gradients, and what is declared to be outside of the guarantee for that."""
    if settings.privacy.name is not PrivacyName.dp or settings.task.kind is not TaskKind.train:
        return
    if settings.task.split == "train":
        what = "outputs on training images are made of these images, not of noisy gradients alone; write val or test"
        yield Problem("task.split", what)
    outside = settings.privacy.outside
    for value in outside:
        if value not in EXACT:
            yield Problem("privacy.outside", f"{value!r} needs no declaration; {did_you_mean(value, EXACT)}")
    opened = [value for value in EXACT if settings.recipients(value) and value not in outside]
    if opened:
        what = f"{', '.join(opened)}: opened without noise; list each here, or take it out of policy.reveal"
        yield Problem("privacy.outside", what)


def checkpoints(settings: Settings, party: str | None) -> Iterator[Problem]:
    """Of checkpoints and resuming."""
    checkpoint, training = settings.checkpoint, settings.task.kind is TaskKind.train
    simulated = settings.protocol.name is ProtocolName.insecure_simulation
    if simulated and (checkpoint.every is not None or settings.resume):
        yield Problem("checkpoint.every", "insecure_simulation has no shares to keep; write null, and resume=false")
    if settings.resume and not training:
        yield Problem("resume", f"{settings.task.kind.name} is not resumed; run it again, or write task=train")
    if settings.resume and not checkpoint.path and (party is None or party in settings.compute_parties()):
        yield Problem("checkpoint.path", "resume=true needs it; write the run folder whose checkpoints to go on from")
    if checkpoint.path and not settings.resume:
        yield Problem("checkpoint.path", "read only with resume=true; write that too, or leave the path out")
    if settings.resume and settings.randomness.mode is RandomnessMode.stored:
        yield Problem("randomness.mode", "a store holds whole sessions, not the rest of one; write stream")


def images(settings: Settings, party: str | None) -> Iterator[Problem]:
    """Of augmentation, folds and the backbone."""
    data, backbone = settings.data, settings.model.backbone
    augment = data.augment
    if augment.copies > 1 and not (augment.flip or augment.shift or augment.rotate or augment.brightness):
        yield Problem("data.augment.copies", "copies of what? Add flip, shift, rotate or brightness, or write 1")
    if data.dicom_results and data.multi_label:
        yield Problem("data.dicom_results", "a report has one predicted class; write false with data.multi_label")
    if data.dicom_results and find_spec("highdicom") is None:
        yield Problem("data.dicom_results", "needs highdicom; write pip install 'mpc-imaging[dicom-results]', or false")
    window = data.window
    if (window.centre is None) != (window.width is None):
        yield Problem("data.window", "a window has a centre and a width; write both, or neither for the file's own")
    if window.width is not None and not 1 <= window.width < math.inf:
        yield Problem("data.window.width", f"{window.width:g} is no width in Hounsfield units; write 1 or more")
    if window.centre is not None and data.kind is not DataKind.dicom:
        yield Problem("data.window", "only DICOM files have Hounsfield units; write data=dicom, or null")
    folds = data.folds
    if folds.count is not None and not 0 <= folds.index < folds.count:
        yield Problem("data.folds.index", f"{folds.index} is no fold of {folds.count}; write 0 to {folds.count - 1}")
    if folds.count is not None and data.kind is DataKind.phantoms:
        yield Problem(
            "data.folds.count", "phantoms are drawn for each split; write null, or data=dicom, medmnist or arrays"
        )
    if backbone._target_ is None:
        if backbone.path:
            yield Problem("model.backbone.path", "weights of which network? Write model.backbone._target_ too")
        return
    if backbone.features < 1:
        yield Problem("model.backbone.features", "write how many features it makes of an image, like 512 for resnet18")


def volumes(settings: Settings, party: str | None) -> Iterator[Problem]:
    """Of volumes of slices."""
    data, model = settings.data, settings.model
    if model._target_ == MULTIPLE_INSTANCE and data.slices is None:
        yield Problem("data.slices", "this model takes volumes; write how many slices, like 16, or model=small_cnn")
    if data.slices is None:
        return
    if data.kind is DataKind.arrays:
        yield Problem("data.slices", "arrays hold images, not volumes; write null, or data=dicom or medmnist")
    made_for = model.kwargs.get("slices")
    if model._target_ == MULTIPLE_INSTANCE and made_for != data.slices:
        what = f"the model takes {made_for} slices, data.slices is {data.slices}"
        yield Problem("model.kwargs.slices", f"{what}; write ${{data.slices}}")
    if model._target_.startswith(ZOO):
        yield Problem("model._target_", "it takes images, not volumes; write model=slices, or data.slices=null")
    if model.backbone._target_ is not None:
        yield Problem("model.backbone", "a backbone takes images; write model=slices, or data.slices=null")
    if data.frames is not Frames.first:
        what = f"{data.frames.name} chooses images, while a volume has slices from all frames; write first"
        yield Problem("data.frames", what)
    private = settings.privacy.name is PrivacyName.dp and settings.task.kind is TaskKind.train
    if private and settings.task.method is not Method.federated:
        what = "gradients of single volumes cannot be clipped yet; write privacy=none, or task.method=federated"
        yield Problem("privacy.name", what)


def consent(settings: Settings, party: str | None) -> Iterator[Problem]:
    """Of consent to what the run is for."""
    data = settings.data
    purpose = (data.purpose or "").strip()
    if data.require_consent and data.kind is not DataKind.dicom:
        what = f"{data.kind.name} have no manifest that could say so; write data=dicom, or false"
        yield Problem("data.require_consent", what)
    if data.require_consent and not purpose:
        yield Problem("data.purpose", "consent to what? Write the purpose as manifests name it, like research")
    if purpose.casefold() == "any" or ";" in purpose or "\n" in purpose:
        yield Problem("data.purpose", f"{data.purpose!r} is not one purpose; write what this run is for, like research")


def policy(settings: Settings, party: str | None) -> Iterator[Problem]:
    """Of the policy's entries about ranges, updates and epochs."""
    compute = set(settings.compute_parties())
    for value in ("range_ok", "range_layer"):
        entries = settings.policy.reveal.get(value, [])
        if entries and IMAGE_OWNER not in entries and set(settings.recipients(value)) != compute:
            yield Problem(f"policy.reveal.{value}", f"goes to those who compute, no others; write {value}: [compute]")
    if settings.checks_range() and not settings.policy.reveal.get("range_ok"):
        what = (
            "whether values left the range is told by a bit that is opened; write range_ok: [compute] (or "
            "protocol.range_check=false, and overflow goes unnoticed)"
        )
        yield Problem("policy.reveal.range_ok", what)
    if settings.recipients("range_layer") and not settings.recipients("range_ok"):
        yield Problem("policy.reveal.range_ok", "range_layer is opened only when it is 0; write range_ok: [compute]")
    others = [name for name in settings.recipients("update") if Role.data_owner not in _roles(settings, name)]
    if others and settings.task.method is Method.federated:
        what = f"{', '.join(others)} trains nothing from it; write update: [data_owner], and weights for the result"
        yield Problem("policy.reveal.update", what)


def _roles(settings: Settings, name: str) -> list[Role]:
    return settings.topology.parties[name].roles


CHECKS = (optimiser, simulation, stopping, federated, privacy, declared, checkpoints, images, volumes, consent, policy)
