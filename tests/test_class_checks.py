"""Settings of classes and of what models give for them: each mistake is one line."""

from __future__ import annotations

import medmnist
import pytest

from mpc_imaging.class_checks import MEDMNIST
from mpc_imaging.compose import compose_settings
from mpc_imaging.errors import ConfigError
from mpc_imaging.settings import public_digests

THREE = "data.class_names=[a,b,c]"
FOLDER = ("data=dicom", "data.path=.")
# Digest of the default model in version 0.1.0.
VERSION_0_1_0 = "9db3e4218dc190120866d892ec8a3d92fe1079b39213ed2c96e1cae8748f9856"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((THREE,), "data.class_names: 3 classes; phantoms have two"),
        (
            ("data=pneumoniamnist", THREE),
            "data.class_names: 3 names; pneumoniamnist has 2 classes: name each, or write data.dataset=null",
        ),
        (("data=medmnist", "data.dataset=octmnist"), "data.class_names: 2 names; octmnist has 4 classes"),
        (
            (*FOLDER, THREE, "model.kwargs.num_classes=2"),
            "model.kwargs.num_classes: 2, but data.class_names has 3 names; write ${len:${data.class_names}}",
        ),
        (
            ("model._target_=torchvision.models.resnet18", "model.kwargs={num_classes: 1}"),
            "model.kwargs.num_classes: 1, but data.class_names has 2 names; write ${len:${data.class_names}}, or "
            "model.single_logit=true for a model whose one output is the logit of the second class",
        ),
        (("model.single_logit=true",), "model.kwargs.num_classes: 2 with model.single_logit=true; write 1"),
        (
            (*FOLDER, THREE, "model.single_logit=true", "model.kwargs.num_classes=1"),
            "model.single_logit: one logit tells two classes apart, not 3 classes; write false",
        ),
        (
            (*FOLDER, "data.multi_label=true", "data.positive_class=null", "model.single_logit=true"),
            "model.single_logit: one logit tells two classes apart, not several labels",
        ),
        (
            ("data=nuclei", "data.path=.", "model=unet_small", "policy=own_outputs", "model.single_logit=true"),
            "model.single_logit: one logit tells two classes apart, not masks",
        ),
    ],
)
def test_mistakes(overrides: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_settings(list(overrides))
    (problem,) = caught.value.problems
    assert expected in problem


def test_a_private_head_gives_two_logits() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_settings(["experiment=dp_head", "data.path=.", "model.single_logit=true", "model.kwargs.num_classes=1"])
    (problem,) = caught.value.problems
    assert problem.startswith("privacy.input_norm: a head's residuals are clipped for each class; write null")


def test_what_other_modules_mean_by_their_arguments_is_not_known() -> None:
    compose_settings(["model._target_=torch.nn.Linear", "model.kwargs={num_classes: 7}"])


def test_the_table_of_published_sets_is_medmnists() -> None:
    assert {name: len(entry["label"]) for name, entry in medmnist.INFO.items()} == MEDMNIST


def test_settings_without_the_switch_are_those_of_version_0_1_0() -> None:
    """Its checkpoints name digests of sections that do not know the key."""
    settings = compose_settings([])
    assert public_digests(settings)["model"] == VERSION_0_1_0
    settings.model.single_logit = True
    assert public_digests(settings)["model"] != VERSION_0_1_0
