"""A configuration that somebody else wrote names no code that runs: not as a model, nor in its arguments, nor to Hydra.

Each attack would leave a marker, a file in the test's own folder; without the checks each of them does.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from mpc_imaging import app
from mpc_imaging.compose import compose_settings
from mpc_imaging.errors import ConfigError
from mpc_imaging.model_checks import PREFIXES, within
from mpc_imaging.models import build
from mpc_imaging.models.backbone import build_backbone
from mpc_imaging.settings import BackboneSettings, ModelSettings, from_mapping, load, save
from tests.test_settings import changed

MARK = "import pathlib; pathlib.Path('marker').touch()"
SHELL = {"command": "touch marker"}

# Everything that these name is really there: the standard library, and what allowed packages import for themselves.
TARGETS: list[tuple[str, dict[str, Any]]] = [
    ("os.system", SHELL),
    ("subprocess.run", {"args": ["touch", "marker"]}),
    ("subprocess.Popen", {"args": ["touch", "marker"]}),
    ("pathlib.Path.home", {}),
    ("builtins.exec", {"source": MARK}),
    ("timeit.timeit", {"stmt": MARK, "number": 1}),
    ("evil_package.Net", {}),
    ("torch.nn.functional.torch.hub.os.system", SHELL),
    ("torch.nn.modules.module.torch.hub.os.system", SHELL),
    ("torch.nn.parallel.distributed.os.system", SHELL),
    ("torchvision.models._api.os.system", SHELL),
    ("torchvision.models._api.sys.modules", {}),
    ("mpc_imaging.models.build.os.system", SHELL),
    ("mpc_imaging.models.weights.pickle.loads", {}),
    ("mpc_imaging.parties.launcher.subprocess.run", {"args": ["touch", "marker"]}),
    ("mpc_imaging.models.build.importlib.import_module", {"name": "evil_package"}),
]
# What an allowed package defines itself, and is no network.
FUNCTIONS: list[tuple[str, dict[str, Any]]] = [
    ("mpc_imaging.models.weights.save_weights", {"state": {}, "path": "marker"}),
    ("mpc_imaging.models.save_weights", {"state": {}, "path": "marker"}),
    ("mpc_imaging.report.predictions.write_json", {"path": "marker", "content": {}}),
    ("mpc_imaging.randomness.store_files.write_durably", {"path": "marker", "content": "x"}),
    ("torch.nn.modules.module.register_module_forward_hook", {"hook": "x"}),
    ("torchvision.models._api.load_state_dict_from_url", {"url": "file:marker"}),
    ("torch.nn.Module.load_state_dict", {}),
    ("torchvision.models.list_models", {}),
    ("torchvision.models.get_model", {"name": "resnet18"}),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, from which packages are imported too: one of them is the attacker's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    package = tmp_path / "packages" / "evil_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"{MARK}\nfrom torch import nn\nclass Net(nn.Linear):\n    pass\n")
    yield tmp_path
    sys.modules.pop("evil_package", None)


def refused(model: ModelSettings) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        build(model, 0)
    assert not Path("marker").exists()
    assert all("\n" not in problem for problem in raised.value.problems)
    return raised.value.problems


@pytest.mark.parametrize(("target", "kwargs"), TARGETS + FUNCTIONS)
def test_a_target_that_is_no_network_is_not_called(target: str, kwargs: dict[str, Any]) -> None:
    assert any(
        problem.startswith(f"model._target_={target}") for problem in refused(ModelSettings("x", target, kwargs))
    )


@pytest.mark.parametrize(("target", "kwargs"), [TARGETS[0], TARGETS[6], TARGETS[7], FUNCTIONS[0]])
def test_the_same_of_a_backbone(target: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"model\.backbone\._target_="):
        build_backbone(BackboneSettings(target, kwargs, features=2), 0)
    assert not Path("marker").exists()


@pytest.mark.parametrize("target", [target for target, _ in TARGETS if not within(target, PREFIXES)])
@pytest.mark.parametrize("section", ["model", "model.backbone"])
def test_it_is_refused_before_anything_is_started(target: str, section: str) -> None:
    """What the other names lead to is known when the module is imported."""
    problems = problems_of({f"{section}._target_": target, "model.backbone.features": 2})
    assert any(problem.startswith(f"{section}._target_") and "allow_code" in problem for problem in problems)


def problems_of(changes: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        from_mapping(changed(changes))
    return raised.value.problems


@pytest.mark.parametrize("section", ["model", "model.backbone"])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"activation": {"_target_": "os.system", "command": "touch marker"}},
        {"layers": [{"deep": {"_target_": "os.system", "_args_": ["touch marker"]}}]},
        {"_target_": "os.system"},
        {"_args_": ["touch marker"]},
        {"_partial_": True},
        {"x": {"_recursive_": True}},
    ],
)
def test_arguments_name_nothing_to_build(section: str, kwargs: dict[str, Any]) -> None:
    changes = {f"{section}._target_": "torch.nn.Linear", f"{section}.kwargs": kwargs, "model.backbone.features": 2}
    assert any(problem.startswith(f"{section}.kwargs.") for problem in problems_of(changes))


def test_arguments_are_plain_data() -> None:
    (problem,) = refused(
        ModelSettings("x", "torch.nn.Linear", {"in_features": 1, "out_features": 1, "device": os_path})
    )
    assert problem.startswith("model.kwargs.device: ") and "text" in problem


def os_path() -> None:
    """Some code."""


@pytest.mark.parametrize("name", ["weights", "weights_backbone", "pretrained", "pretrained_backbone"])
def test_torchvision_downloads_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda url, *rest, **keys: asked.append(url))
    monkeypatch.setenv("TORCH_HOME", str(Path("home").absolute()))
    target = "torchvision.models.segmentation.fcn_resnet50" if "backbone" in name else "torchvision.models.resnet18"
    value = True if name.startswith("pretrained") else "DEFAULT"
    (problem,) = refused(ModelSettings("x", target, {name: value}))
    assert not asked
    assert problem.startswith(f"model.kwargs.{name}: ") and "model.weights.path" in problem


def test_torchvision_downloads_nothing_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda url, *rest, **keys: asked.append(url))
    monkeypatch.setenv("TORCH_HOME", str(Path("home").absolute()))
    target = "torchvision.models.segmentation.lraspp_mobilenet_v3_large"  # whose weights_backbone are ImageNet's
    build(ModelSettings("x", target, {"num_classes": 2}), 0)
    assert not asked


def test_code_of_ones_own_is_allowed_on_ones_own_command_line_alone(here: Path) -> None:
    settings = compose_settings(["model._target_=evil_package.Net", "model.allow_code=[evil_package]"])
    assert settings.model.allow_code == ["evil_package"] and not Path("marker").exists()
    save(settings, here / "settings.yaml")
    assert "evil_package.Net" in (here / "settings.yaml").read_text()
    with pytest.raises(ConfigError, match="model._target_"):
        load(here / "settings.yaml")
    assert load(here / "settings.yaml", allow_code=["evil_package"]) == settings
    settings.model.kwargs = {"in_features": 2, "out_features": 2}
    assert type(build(settings.model, 0)).__name__ == "Net" and Path("marker").exists()


@pytest.mark.parametrize(
    "prefixes",
    [["other"], ["evil"], ["evil_package.nets"], ["evil_package.Net.x"], [], [""], ["evil_package."], ["a;b"]],
)
def test_another_prefix_allows_nothing(prefixes: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"model\._target_"):
        from_mapping(changed({"model._target_": "evil_package.Net"}), allow_code=prefixes)
    with pytest.raises(ConfigError, match=r"model\._target_"):
        build(ModelSettings("x", "evil_package.Net", {}, allow_code=prefixes), 0)
    assert not Path("marker").exists()


@pytest.mark.parametrize("value", ["evil_package", "[1]", "null", "{a: b}"])
def test_allowed_code_is_a_list_of_names(value: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.allow_code: no list of packages; write \[my_package\]"):
        compose_settings(["model._target_=evil_package.Net", f"model.allow_code={value}"])
    assert not Path("marker").exists()


def test_what_a_package_of_ones_own_imports_is_not_allowed_with_it() -> None:
    package = Path("packages/my_package")
    package.mkdir()
    (package / "__init__.py").write_text("import os\nfrom os import system\nimport evil_package\n")
    for target in ("my_package.os.system", "my_package.system", "my_package.evil_package.Net"):
        model = ModelSettings("x", target, SHELL, allow_code=["my_package"])
        with pytest.raises(ConfigError, match=r"model\._target_=my_package"):
            build(model, 0)
        Path("marker").unlink(missing_ok=True)  # of the import of evil_package, which my_package itself wants
    sys.modules.pop("my_package")


PLACES = {
    "group": ("model/theirs.yaml", "_target_: evil_package.Net\nallow_code: [evil_package]\n", "model=theirs"),
    "experiment": (
        "experiment/theirs.yaml",
        "# @package _global_\nmodel:\n  _target_: evil_package.Net\n  allow_code: [evil_package]\n",
        "experiment=theirs",
    ),
    "hidden": (
        "transport/theirs.yaml",
        "# @package model.allow_code\n- evil_package\n",
        "transport=theirs",
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_no_file_allows_code(place: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, content, override = PLACES[place]
    path = here / "shared" / file
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ConfigError):
        compose_settings([override], [here / "shared"])
    assert app.main(["--config-dir", str(here / "shared"), override]) == 2
    if place != "hidden":
        assert "error: model.allow_code: " in capsys.readouterr().err
    assert not (here / "marker").exists() and not (here / "outputs").exists()


HYDRA = {
    "callbacks": "hydra:\n  callbacks:\n    x: {_target_: evil_package.Net, in_features: 1, out_features: 1}\n",
    "logging": "hydra:\n  job_logging:\n    version: 1\n    root: {handlers: [x]}\n    handlers:\n"
    "      x: {(): evil_package.Net, in_features: 1, out_features: 1}\n",
    "environment": "hydra:\n  job:\n    env_set: {PYTHONPATH: packages, PYTHONSTARTUP: x}\n",
    "sweeper": "hydra:\n  sweeper:\n    params: {seed: '1,2'}\n",
    "mode": "hydra:\n  mode: MULTIRUN\n",
}


@pytest.mark.parametrize("place", HYDRA)
def test_no_file_tells_hydra_what_to_run(
    place: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = here / "shared" / "experiment"
    folder.mkdir(parents=True)
    (folder / "theirs.yaml").write_text(f"# @package _global_\n{HYDRA[place]}")
    monkeypatch.setattr(app, "launch", lambda *arguments, **keys: pytest.fail("something was started"))
    assert app.main(["--config-dir", str(here / "shared"), "experiment=theirs"]) == 2
    assert f"error: hydra.{HYDRA[place].split(':')[1].strip()}" in capsys.readouterr().err
    assert not (here / "marker").exists() and not (here / "outputs").exists()


def test_no_file_is_found_by_hydra_alone(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder in `hydra.searchpath` of a configuration, whose files the checks would not see."""
    shared, more = here / "shared", here / "more" / "extra"
    shared.mkdir()
    more.mkdir(parents=True)
    (more / "theirs.yaml").write_text(f"# @package _global_\n{HYDRA['callbacks']}")
    text = "defaults:\n  - main\n  - optional extra: theirs\n  - _self_\nhydra:\n  searchpath: [file://%s]\n"
    (shared / "config.yaml").write_text(text % (here / "more"))
    started = []
    monkeypatch.setattr(app, "launch", lambda *arguments, **keys: started.append(arguments))
    monkeypatch.setattr(app, "_report_jointly", lambda *arguments: None)
    app.main(["--config-dir", str(shared), "--config-name", "config"])
    assert not (here / "marker").exists()
    assert app.main([f"hydra.searchpath=[file://{here / 'more'}]", "+extra=theirs"]) == 2
    assert "--config-dir" in capsys.readouterr().err
