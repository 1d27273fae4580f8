"""Building from a dotted name: the same weights everywhere, and one line for every mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mpc_imaging.errors import ConfigError
from mpc_imaging.models import build
from mpc_imaging.settings import ModelSettings

ZOO = "mpc_imaging.models.zoo"


def settings(target: str, **kwargs: object) -> ModelSettings:
    return ModelSettings(_target_=target, kwargs=kwargs, allow_code=[__name__, "broken_user_module"])


def problems_of(target: str, **kwargs: object) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        build(settings(target, **kwargs), seed=0)
    assert all("\n" not in line for line in raised.value.problems)
    return raised.value.problems


def test_the_seed_alone_decides_the_weights() -> None:
    target = settings(f"{ZOO}.SmallCNN", num_classes=3)
    torch.manual_seed(1)
    first = build(target, seed=5).state_dict()
    torch.manual_seed(2)
    second = build(target, seed=5).state_dict()
    third = build(target, seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["features.0.weight"], third["features.0.weight"])


def test_the_global_generator_is_untouched() -> None:
    state = torch.random.get_rng_state()
    build(settings(f"{ZOO}.MLP"), seed=5)
    with pytest.raises(ConfigError):
        build(settings(f"{ZOO}.SmallCNN", image_size=3), seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_models_are_in_eval_mode() -> None:
    assert not build(settings("torchvision.models.resnet18", num_classes=2), seed=0).training


def test_any_module_of_torch_or_of_the_user() -> None:
    assert isinstance(build(settings("torch.nn.Linear", in_features=3, out_features=2), seed=0), nn.Linear)
    assert isinstance(build(settings("tests.models.test_build.make", width=3), seed=0), nn.Linear)


def make(width: int) -> nn.Module:
    return nn.Linear(width, width)


def fail(width: int = 1) -> nn.Module:
    raise RuntimeError("out of ideas\nand of lines")


def not_a_module() -> dict:
    return {}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("SmallCNN", "is no dotted name; write package.module.Class"),
        (f"{ZOO}.SmallCN", "mpc_imaging.models.zoo has no SmallCN: did you mean SmallCNN?"),
        ("mpc_imaging.models.zo.SmallCNN", "mpc_imaging.models has no zo: did you mean zoo?"),
        ("torchvison.models.resnet18", "is not in mpc_imaging.models, torchvision.models or torch.nn"),
        ("torchvision.models.resnet19", "torchvision.models has no resnet19: did you mean resnet1"),
        (f"{ZOO}.SmallCNN.build", "mpc_imaging.models.zoo.SmallCNN is no module; name a class"),
        ("torchvision.models.resnet", "is a module: name a class or function"),
        ("tests.models.test_build.not_a_module", "returns dict, not a torch.nn.Module"),
        ("tests.models.test_build.fail", "cannot be built with them: RuntimeError: out of ideas"),
    ],
)
def test_a_wrong_target(target: str, message: str) -> None:
    (line,) = problems_of(target)
    assert line.startswith("model.") and message in line


def test_a_module_that_fails_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_user_module.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    (line,) = problems_of("broken_user_module.Net")
    assert line.endswith("importing broken_user_module failed: No module named 'no_such_dependency'")


def test_all_wrong_arguments_at_once() -> None:
    assert problems_of(f"{ZOO}.SmallCNN", num_clases=2, img_size=3) == [
        f"model.kwargs.num_clases: {ZOO}.SmallCNN has no such argument: did you mean num_classes?",
        f"model.kwargs.img_size: {ZOO}.SmallCNN has no such argument: did you mean image_size?",
    ]
    assert problems_of("tests.models.test_build.make", widht=2) == [
        "model.kwargs.widht: tests.models.test_build.make has no such argument: did you mean width?",
        "model.kwargs.width is missing: tests.models.test_build.make requires it",
    ]


def test_an_argument_that_a_function_passes_on() -> None:
    (line,) = problems_of("torchvision.models.resnet18", num_clases=2)
    assert line.endswith("torchvision.models.resnet18 has no such argument: did you mean num_classes?")


def test_an_image_that_is_too_small() -> None:
    (line,) = problems_of(f"{ZOO}.SmallCNN", image_size=15)
    assert line.endswith("ValueError: image_size is 15, this model needs at least 16")


def test_only_what_the_target_needs_is_imported() -> None:
    code = (
        "import sys; from mpc_imaging.models import build; from mpc_imaging.settings import ModelSettings;"
        "build(ModelSettings(), 0); print(sorted({'torchvision', 'crypten', 'sklearn', 'hydra'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"
