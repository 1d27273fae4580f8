"""Settings of classes, and of what a model gives for them, that cannot run: checks in the manner of `validation`."""

from __future__ import annotations

from collections.abc import Iterator

from mpc_imaging.choices import DataKind, PrivacyName, TaskKind
from mpc_imaging.reading import Problem
from mpc_imaging.settings import Settings

# Classes of each published set (MedMNIST v2, Scientific Data 2023).
MEDMNIST = {
    "pathmnist": 9,
    "chestmnist": 14,
    "dermamnist": 7,
    "octmnist": 4,
    "pneumoniamnist": 2,
    "retinamnist": 5,
    "breastmnist": 2,
    "bloodmnist": 8,
    "tissuemnist": 8,
    "organamnist": 11,
    "organcmnist": 11,
    "organsmnist": 11,
    "organmnist3d": 11,
    "nodulemnist3d": 2,
    "adrenalmnist3d": 2,
    "fracturemnist3d": 3,
    "vesselmnist3d": 2,
    "synapsemnist3d": 2,
}
# Whose ``num_classes`` is the length of what they give.
OWN_MODELS = ("mpc_imaging.models.", "torchvision.models.")


def names(settings: Settings, party: str | None) -> Iterator[Problem]:
    """Of the names of classes: how many, which is the positive one, and whether the data set has as many."""
    data, key = settings.data, "data.class_names"
    classes, positive = data.class_names, data.positive_class
    if len(classes) < 2:
        yield Problem(key, f"{len(classes)} classes; name two or more, in the order of the labels 0, 1, ...")
    if len(set(classes)) < len(classes) or not all(name.strip() for name in classes):
        yield Problem(key, "a class without a name, or two of one name; give each its own")
    listed = ", ".join(f"{i} ({name})" for i, name in enumerate(classes))
    if positive is None and len(classes) == 2 and not data.multi_label:
        yield Problem("data.positive_class", f"needed to report sensitivity with two classes; write one of {listed}")
    if positive is not None and not 0 <= positive < len(classes):
        yield Problem("data.positive_class", f"there is no class {positive}; write one of {listed}")
    if data.kind is DataKind.phantoms and len(classes) > 2:
        yield Problem(key, f"{len(classes)} classes; phantoms have two: name them, the one with a finding second")
    published = MEDMNIST.get(data.dataset or "") if data.kind is DataKind.medmnist else None
    if len(classes) > 1 and published not in (None, len(classes)):
        what = f"{len(classes)} names; {data.dataset} has {published} classes: name each, or write data.dataset=null"
        yield Problem(key, f"{what} for a file of your own")


def scores(settings: Settings, party: str | None) -> Iterator[Problem]:
    """Of what the model gives: a score for each class, or one logit for two."""
    data, model, classes = settings.data, settings.model, len(settings.data.class_names)
    single = model.single_logit
    if single and (classes != 2 or data.multi_label or data.masks):
        case = "masks" if data.masks else "several labels" if data.multi_label else f"{classes} classes"
        yield Problem("model.single_logit", f"one logit tells two classes apart, not {case}; write false")
        return
    private = settings.privacy.name is PrivacyName.dp and settings.task.kind is TaskKind.train
    if single and private and settings.privacy.input_norm is not None:
        what = "a head's residuals are clipped for each class; write null, or a model with two outputs"
        yield Problem("privacy.input_norm", what)
    given, wanted = model.kwargs.get("num_classes"), 1 if single else classes
    if data.masks or not model._target_.startswith(OWN_MODELS) or not isinstance(given, int) or given == wanted:
        return
    if single:
        yield Problem(
            "model.kwargs.num_classes", f"{given} with model.single_logit=true; write 1, or single_logit=false"
        )
        return
    what = f"{given}, but data.class_names has {classes} names; write ${{len:${{data.class_names}}}}"
    if (given, classes) == (1, 2):
        what += ", or model.single_logit=true for a model whose one output is the logit of the second class"
    yield Problem("model.kwargs.num_classes", what)


CHECKS = (names, scores)
