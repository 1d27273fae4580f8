from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mpc_imaging.compose import compose, compose_settings, conf_dir, forced, points
from mpc_imaging.errors import ConfigError
from mpc_imaging.settings import SPLITS, Role, TaskKind, from_mapping

TOPOLOGIES = ("two_hospitals", "three_hospitals", "outsourced")
EXPERIMENTS = [path.stem for path in sorted((conf_dir() / "experiment").glob("*.yaml"))]
GROUPS = sorted(
    (path.parent.name, path.stem)
    for path in conf_dir().rglob("*.yaml")
    if path.parent.name not in ("conf", "experiment", "data")
)


def problems(*overrides: str, dirs: tuple[Path, ...] = (), name: str = "main") -> list[str]:
    with pytest.raises(ConfigError) as error:
        compose_settings(overrides, dirs, name)
    assert all("\n" not in problem for problem in error.value.problems)
    return error.value.problems


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's folder, with a character in its name that Hydra's grammar would trip over."""
    folder = tmp_path / "it's, mine"
    (folder / "topology").mkdir(parents=True)
    return folder


def test_defaults() -> None:
    settings = compose_settings()
    assert settings.topology.name == "two_hospitals"
    assert settings.task.kind is TaskKind.infer
    assert settings.model.kwargs == {"in_channels": 1, "image_size": 28, "num_classes": 2}


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs_on_every_topology(experiment: str, topology: str, tmp_path: Path) -> None:
    overrides = [f"experiment={experiment}", f"topology={topology}"]
    if compose(overrides)["data"]["kind"] != "phantoms":
        overrides.append(f"data.path={tmp_path}")
    settings = compose_settings(overrides)
    assert settings.name == experiment
    assert settings.topology.name == topology
    assert settings.receivers()


@pytest.mark.parametrize(("group", "choice"), GROUPS)
def test_every_choice_of_every_group_is_valid(group: str, choice: str) -> None:
    needed = {
        "stored": ["randomness.store=/store"],
        "stream": ["data=dicom", "data.path=/data", "data.frames=all"] if group == "task" else [],
        "slices": ["data.slices=8"],
    }
    compose_settings([f"{group}={choice}", *needed.get(choice, [])])


@pytest.mark.parametrize(
    ("topology", "protocol"), [("two_hospitals", "fss"), ("three_hospitals", "beaver"), ("outsourced", "fss")]
)
def test_the_protocol_follows_the_topology(topology: str, protocol: str) -> None:
    settings = compose_settings([f"topology={topology}"])
    assert (settings.protocol.name.name, settings.randomness.mode.name) == (protocol, "stream")
    assert compose_settings([f"topology={topology}", "~protocol"]).protocol == settings.protocol


def test_every_file_says_what_it_is_for() -> None:
    for path in conf_dir().rglob("*.yaml"):
        lines = [line for line in path.read_text().splitlines() if line != "# @package _global_"]
        assert lines[0].startswith("# ") and len(lines[0]) > 20, path


def test_topologies_have_the_roles_that_the_issue_asks_for() -> None:
    two, three, outsourced = (compose_settings([f"topology={name}"]) for name in TOPOLOGIES)
    assert (len(two.compute_parties()), len(three.compute_parties()), len(outsourced.compute_parties())) == (2, 3, 2)
    assert two.data_owners() == two.compute_parties() and three.data_owners() == three.compute_parties()
    assert two.model_owner() == three.model_owner() == "hospital_a"
    assert len(outsourced.data_owners()) == 4 and not set(outsourced.data_owners()) & set(outsourced.compute_parties())
    assert outsourced.topology.parties[outsourced.model_owner()].roles == [Role.model_owner, Role.receiver]
    assert [s.dealer() for s in (two, three, outsourced)] == ["dealer"] * 3


def test_an_override_wins_over_the_experiment() -> None:
    settings = compose_settings(["model=lenet", "experiment=phantoms_infer", "task.batch_size=7"])
    assert (settings.model.name, settings.task.batch_size) == ("lenet", 7)
    assert settings.model.weights.source.name == "pretrain"


def test_the_model_follows_the_data() -> None:
    settings = compose_settings(
        ["data=dicom", "data.path=.", "data.class_names=[a,b,c]", "data.image_size=32", "data.channels=3"]
    )
    assert settings.model.kwargs == {"in_channels": 3, "image_size": 32, "num_classes": 3}


def test_arguments_of_another_module_replace_those_of_the_group() -> None:
    settings = compose_settings(["model._target_=torch.nn.Linear", "model.kwargs=null", "model.kwargs.in_features=4"])
    assert settings.model.kwargs == {"in_features": 4}


def test_a_wrong_choice_is_one_line_with_the_nearest() -> None:
    assert problems("topology=two_hospital") == [
        "topology=two_hospital: no such topology; did you mean two_hospitals? "
        "(choices: outsourced, three_hospitals, two_hospitals)"
    ]


def test_wrong_choices_keys_and_types_are_listed_together() -> None:
    found = problems(
        "protocol=beavr", "topolgy=outsourced", "task.epoch=3", "task.lr=fast", "experiment.task=x", "==", "a b"
    )
    starts = ["protocol=beavr: no such protocol; did you mean beaver?", "'==': cannot be read", "'a b': cannot be read"]
    starts += ["task.lr: 'fast' is not valid; write a number", "task.epoch: unknown key; did you mean epochs?"]
    starts += ["topolgy: unknown key; did you mean topology?"]
    for start in starts:
        assert any(problem.startswith(start) for problem in found), (start, found)


def test_single_keys_need_no_plus_and_groups_may_have_one() -> None:
    overrides = ["+model.kwargs.depth=3", "model.kwargs.width=4", "++task.lr=0.5", "+experiment=demo", "~privacy"]
    settings = compose_settings(overrides)
    assert (settings.model.kwargs["depth"], settings.model.kwargs["width"], settings.task.lr) == (3, 4, 0.5)
    assert settings.name == "demo"
    assert forced(overrides) == [
        "++model.kwargs.depth=3",
        "++model.kwargs.width=4",
        "++task.lr=0.5",
        "experiment=demo",
        "~privacy",
    ]
    assert forced(["hydra.run.dir=x", "hydra/launcher=basic"]) == ["hydra.run.dir=x", "hydra/launcher=basic"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("hydra.foo=3", "Could not override 'hydra.foo'."),
        ("hydra/launcher=foo", "Could not find 'hydra/launcher/foo'"),
        ("~task.lrr", "Could not delete from config. 'task.lrr' does not exist."),
        ("data.class_names=[a,${nothing}]", "data.class_names[1]: Interpolation key 'nothing' not found"),
        ("task.lr=0.1,0.2", "task.lr: several values: add -m to sweep"),
        ("experiment=null", "experiment=null: names no choice; write ~experiment to leave it out"),
    ],
)
def test_hydras_own_complaints_are_one_line(override: str, expected: str) -> None:
    assert expected in problems(override)[0]


def test_own_groups_are_found(own: Path) -> None:
    (own / "topology" / "clinics.yaml").write_text(
        "name: clinics\nparties:\n"
        "  north: {roles: [data_owner, compute, model_owner, receiver]}\n"
        "  south: {roles: [data_owner, compute, receiver]}\n"
        "  broker: {roles: [dealer]}\n"
    )
    settings = compose_settings(["topology=clinics"], [own])
    assert list(settings.topology.parties) == ["north", "south", "broker"]
    assert (
        "did you mean clinics? (choices: outsourced, three_hospitals, two_hospitals, clinics)"
        in problems("topology=clinic", dirs=(own,))[0]
    )


def test_a_file_that_a_built_in_one_would_hide_is_refused(own: Path) -> None:
    (own / "topology" / "two_hospitals.yaml").write_text("name: mine\n")
    (found,) = problems(dirs=(own,))
    assert "two_hospitals.yaml has the name of a built-in file" in found


def test_a_party_twice_in_one_file(own: Path) -> None:
    (own / "topology" / "twice.yaml").write_text("parties:\n  a: {roles: [compute]}\n  a: {roles: [compute]}\n")
    (found,) = problems("topology=twice", dirs=(own,))
    assert found.endswith("twice.yaml, line 3: found duplicate key a")


def test_broken_yaml_names_the_line(own: Path) -> None:
    (own / "topology" / "broken.yaml").write_text("parties:\n  a: [compute\n")
    (found,) = problems("topology=broken", dirs=(own,))
    assert "broken.yaml, line 3:" in found


def test_missing_folder_and_configuration(tmp_path: Path) -> None:
    assert "--config-dir: there is no folder" in problems(dirs=(tmp_path / "none",))[0]
    assert "--config-name: there is no mian; did you mean main?" in problems(name="mian")[0]


def test_points_of_a_sweep() -> None:
    assert points(["seed=1,2", "task.lr=0.1", "topology=two_hospitals,outsourced"]) == [
        ["seed=1", "task.lr=0.1", "topology=two_hospitals"],
        ["seed=1", "task.lr=0.1", "topology=outsourced"],
        ["seed=2", "task.lr=0.1", "topology=two_hospitals"],
        ["seed=2", "task.lr=0.1", "topology=outsourced"],
    ]
    assert points(["seed=range(1,4)"]) == [["seed=1"], ["seed=2"], ["seed=3"]]
    assert points(["data.class_names=[a,b]"]) == [["data.class_names=[a,b]"]]
    with pytest.raises(ConfigError, match="task.lr: no list of values"):
        points(["task.lr=interval(0,1)"])
    with pytest.raises(ConfigError, match="cannot be read"):
        points(["=="])


def test_a_callers_hydra_session_survives(tmp_path: Path) -> None:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        mine = GlobalHydra.instance().hydra
        assert compose()["name"] == "run"
        assert GlobalHydra.instance().hydra is mine
    compose()
    assert not GlobalHydra.instance().is_initialized()


def test_reading_settings_imports_neither_hydra_nor_torch() -> None:
    # A child process reads RUN/settings.yaml: it must not wait for what it does not use.
    script = (
        "import sys, mpc_imaging.compose, mpc_imaging.settings, mpc_imaging.validation\n"
        "heavy = {'hydra', 'torch', 'crypten', 'sklearn', 'matplotlib', 'torchvision', 'numpy'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=conf_dir().parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_composed_values_are_plain() -> None:
    mapping = compose(["experiment=demo"])
    assert type(mapping) is dict and type(mapping["topology"]["parties"]) is dict
    assert from_mapping(mapping).task.split in SPLITS
