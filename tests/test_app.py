from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mpc_imaging import app
from mpc_imaging.errors import ConfigError
from mpc_imaging.parties.launcher import LaunchError
from mpc_imaging.parties.parts import TRIAL
from mpc_imaging.settings import Settings, load

SCORES = {"accuracy": 0.75, "auc": 0.9, "sensitivity": 0.5, "specificity": 1.0, "f1": 0.6667, "mcc": 0.5774}
METRICS: dict[str, Any] = {
    "name": "run",
    "task": "infer",
    "topology": "two_hospitals",
    "protocol": "beaver",
    "insecure": False,
    "seed": 0,
    "fraction_bits": 16,
    "positive_class": 1,
    "class_names": ["negative", "positive"],
    "images": 8,
    "secure": SCORES | {"confusion": [[4, 0], [2, 2]], "reasons": {}},
    "plaintext": SCORES | {"confusion": [[4, 0], [2, 2]], "reasons": {}},
    "fidelity": {
        "label_agreement": 1.0,
        "agreeing": 8,
        "images": 8,
        "max_logit_error": 0.001,
        "mean_logit_error": 0.0005,
        "auc_difference": 0.0,
        "reasons": {},
    },
    "cost": {"online_s": 1.5, "offline_s": 0.5, "rounds": 18, "sent_bytes": 3800000, "dealer_bytes": 9000000},
    "history": {"secure": [], "plaintext": []},
}


class Parties:
    """Stands in for the launcher and the report: notes the settings, and fails where the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[Settings] = []
        self.failures: dict[int, Exception] = {}
        monkeypatch.setattr(app, "launch", self.launch)
        monkeypatch.setattr(app, "_report_jointly", self.report)

    def launch(self, run_dir: Path, settings: Settings) -> None:
        assert load(run_dir / "settings.yaml", allow_code=settings.model.allow_code) == settings
        self.seen.append(settings)
        if len(self.seen) in self.failures:
            raise self.failures[len(self.seen)]

    def report(self, run_dir: Path, allow_code: list[str]) -> None:
        assert allow_code == self.seen[-1].model.allow_code
        (run_dir / "metrics.json").write_text(json.dumps(METRICS | {"seed": self.seen[-1].seed}))


@pytest.fixture
def parties(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Parties:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(app.DEBUG, raising=False)
    return Parties(monkeypatch)


def run_dirs() -> list[Path]:
    return sorted(Path("outputs").glob("*/*"))


def shown(*argv: str) -> int:
    """The exit code where Hydra may leave by itself."""
    try:
        return app.main(argv)
    except SystemExit as left:
        return int(left.code or 0)


def test_a_run_leaves_its_folder_and_prints_a_table(parties: Parties, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["task.batch_size=5", "name=night"]) == 0
    (folder,) = run_dirs()
    assert folder.name.endswith(f"_night_{os.getpid()}")
    assert parties.seen[0].task.batch_size == 5
    assert (folder / ".hydra" / "config.yaml").exists() and (folder / "metrics.json").exists()
    out, err = capsys.readouterr()
    assert "0.9000" in out and out.rstrip().endswith(f"{folder}/report.html") and err == ""


def test_a_run_can_be_repeated_from_its_folder(parties: Parties) -> None:
    assert app.main(["experiment=phantoms_infer", "topology=outsourced", "task.batch_size=5", "model.kwargs.x=1"]) == 0
    (first,) = run_dirs()
    repeat = ["--config-dir", str(first / ".hydra"), "--config-name", "config"]
    assert app.main(repeat) == 0
    assert app.main([*repeat, "seed=9"]) == 0
    original, same, other = parties.seen
    assert same == original
    assert other.seed == 9 and other.topology == original.topology
    assert len(run_dirs()) == 3
    assert all(folder.name.endswith(f"_phantoms_infer_{os.getpid()}") for folder in run_dirs())
    assert not list(Path().glob("*.log")) and not list(first.glob("*.log"))


def test_relative_paths_start_at_the_callers_folder(parties: Parties, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    weights = tmp_path / "w.safetensors"
    weights.touch()
    argv = ["data=pneumoniamnist", "data.paths.hospital_a=a", "data.paths.hospital_b=./b", "model.weights.source=file"]
    assert app.main([*argv, "data.partition.kind=private", "model.weights.path=w.safetensors"]) == 0
    (settings,) = parties.seen
    assert settings.data.paths == {"hospital_a": str(tmp_path / "a"), "hospital_b": str(tmp_path / "b")}
    assert settings.model.weights.path == str(weights)


def test_a_relative_store_is_made_absolute_and_must_exist(
    parties: Parties, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["randomness=stored", "randomness.store=store", "topology.parties.dealer.address=dealer.example.org:9000"]
    assert app.main(argv) == 2
    assert capsys.readouterr().err.startswith("error: randomness.store: there is no store; write a path that exists")
    (tmp_path / "store").mkdir()
    assert app.main(argv) == 2
    assert "the parts of this store cannot be opened here" in capsys.readouterr().err
    (tmp_path / "store" / TRIAL).mkdir()
    assert app.main(argv) == 0, "where the dealer is does not matter"
    assert parties.seen[0].randomness.store == str(tmp_path / "store")


def test_mistakes_are_listed_and_nothing_starts(parties: Parties, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["topology=two_hospital", "task.epoch=1", "task.lr=x"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
    assert app.main(["data=pneumoniamnist", "data.path=nowhere.npz"]) == 2
    assert "error: data.path: there is no nowhere.npz" in capsys.readouterr().err
    assert not parties.seen and not run_dirs()


@pytest.mark.parametrize("flag", ["--config-path=/x", "--experimental-rerun=/x.pickle"])
def test_flags_of_hydra_that_are_refused(parties: Parties, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main([flag]) == 2
    assert capsys.readouterr().err.startswith(f"error: {flag.partition('=')[0]}: ")


def test_other_machines_are_refused_with_the_command_for_each(
    parties: Parties, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["topology.parties.dealer.address=dealer.example.org:9000"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all("python -m mpc_imaging.party party=" in line for line in lines)
    assert not parties.seen


def test_a_failed_run_ends_with_its_cause(parties: Parties, capsys: pytest.CaptureFixture[str]) -> None:
    parties.failures[1] = LaunchError("hospital_b: 1 data problem: scan-7 has no pixels", 7)
    assert app.main([]) == 7
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "error: hospital_b: 1 data problem: scan-7 has no pixels"
    assert "Traceback" not in "".join(lines)
    assert not (run_dirs()[0] / "error.txt").exists()


def test_an_unforeseen_error_is_kept_in_the_run_folder(parties: Parties, capsys: pytest.CaptureFixture[str]) -> None:
    parties.failures = {1: ZeroDivisionError("surprise"), 2: ZeroDivisionError("surprise")}
    assert app.main([]) == 1
    (folder,) = run_dirs()
    assert "Traceback" in (folder / "error.txt").read_text()
    err = capsys.readouterr().err
    assert "Traceback" not in err and err.splitlines()[-1].startswith("error: ZeroDivisionError: surprise (details in")


def test_debug_shows_tracebacks(
    parties: Parties, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(app.DEBUG, "")  # so that what --debug sets is undone
    parties.failures[1] = LaunchError("dealer: no room", 4)
    assert app.main(["--debug"]) == 4
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1] == "error: dealer: no room"


def test_interruption(parties: Parties, capsys: pytest.CaptureFixture[str]) -> None:
    parties.failures[1] = KeyboardInterrupt()  # type: ignore[assignment]
    assert app.main(["-m", "seed=1,2"]) == 130
    assert len(parties.seen) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("interrupted")


def test_insecure_simulation_warns(parties: Parties, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["protocol=insecure_simulation"]) == 0
    assert capsys.readouterr().err.startswith("warning: protocol=insecure_simulation protects nothing")


def test_a_failed_point_does_not_stop_a_sweep(parties: Parties, capsys: pytest.CaptureFixture[str]) -> None:
    parties.failures[2] = LaunchError("hospital_b: lost", 3)
    sweep = ["topology=two_hospitals,outsourced", "seed=1,2", "task.batch_size=5"]
    assert app.main(["-m", *sweep]) == 1
    assert [(s.topology.name, s.seed) for s in parties.seen] == [
        ("two_hospitals", 1),
        ("two_hospitals", 2),
        ("outsourced", 1),
        ("outsourced", 2),
    ]
    (folder,) = run_dirs()
    recorded = json.loads((folder / "points.json").read_text())
    assert [point["status"] for point in recorded] == ["ok", "failed", "ok", "ok"]
    assert recorded[1]["error"] == "hospital_b: lost" and recorded[1]["metrics"] is None
    assert recorded[2]["metrics"]["seed"] == 1 and (Path(recorded[2]["run_dir"]) / "settings.yaml").exists()
    table = capsys.readouterr().out.partition("Sweep:")[2]
    assert "4 points, 1 failed" in table and "seed=2" in table and "batch_size" not in table


def test_a_sweep_that_works_ends_with_zero(parties: Parties) -> None:
    assert app.main(["-m", "seed=1,2"]) == 0


def test_a_point_that_does_not_fit_together_is_recorded(parties: Parties, tmp_path: Path) -> None:
    (tmp_path / "mine" / "topology").mkdir(parents=True)
    names = "abcd"
    (tmp_path / "mine" / "topology" / "four.yaml").write_text(
        "name: four\nparties:\n"
        + "".join(f"  {name}: {{roles: [data_owner, compute, receiver]}}\n" for name in names)
        + "  vendor: {roles: [model_owner]}\n  dealer: {roles: [dealer]}\n"
    )
    argv = ["-m", "--config-dir", "mine", "topology=four,two_hospitals", "protocol=insecure_simulation"]
    assert app.main(argv) == 1
    (point, fine) = json.loads((run_dirs()[0] / "points.json").read_text())
    assert point["status"] == "failed" and "2 or 3 compute parties, not 4" in point["error"]
    assert fine["status"] == "ok" and len(parties.seen) == 1


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["topology=two_hospitals,three_hospital", "seed=1,2"], "topology=three_hospital: no such topology"),
        (["seed=1,2", "task.epoch=3"], "task.epoch: unknown key"),
        (["seed=1,2", "task.batch_size=0"], "task.batch_size: 0 is out of range"),
    ],
)
def test_what_no_point_can_have_stops_a_sweep(
    parties: Parties, argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["-m", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {expected}")
    assert not parties.seen


def test_help_teaches(parties: Parties, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown("--help") == 0
    out = capsys.readouterr().out
    for text in (
        "experiment=demo",
        "--config-dir",
        "topology: outsourced, three_hospitals, two_hospitals",
        "batch_size",
    ):
        assert text in out
    assert not run_dirs()


def test_cfg_shows_even_what_lacks_a_path(parties: Parties, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown("experiment=pneumonia_infer", "task.batch_size=9", "--cfg", "job") == 0
    out = capsys.readouterr().out
    assert "batch_size: 9" in out and "pneumonia_infer" in out
    assert shown("--cfg", "job", "task.epoch=1") == 2
    assert not run_dirs()


def test_a_settings_mapping_can_be_run_from_python(parties: Parties, tmp_path: Path) -> None:
    from mpc_imaging.compose import compose

    assert app.run(compose(["seed=4"]), tmp_path)["seed"] == 4
    with pytest.raises(ConfigError, match="there is no"):
        app.run(compose(["data=pneumoniamnist", "data.path=/no/such"]), tmp_path)


def test_the_report_process_passes_its_cause_on(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("seed: -1\n")
    with pytest.raises(LaunchError, match="^report: ") as error:
        app._report_jointly(tmp_path)
    assert error.value.exit_code > 0


def test_the_command_itself(tmp_path: Path) -> None:
    root = Path(app.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "mpc_imaging", "topology=twohospitals"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: topology=twohospitals: no such topology; did you mean two_hospitals?")
    assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize(
    ("argv", "indices"),
    [
        ([], [0, 1, 2, 3, 4]),
        (["data.folds.index=0,2"], [0, 2]),
        (["data.folds.count=3", "data.folds.index=range(3)"], [0, 1, 2]),
    ],
)
def test_folds_end_with_their_mean(
    parties: Parties, tmp_path: Path, argv: list[str], indices: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "breastmnist.npz").touch()
    parties.failures[2] = LaunchError("hospital_b: lost", 3)
    assert app.main(["-m", "experiment=breast_kfold", "data.path=breastmnist.npz", *argv]) == 1
    assert [settings.data.folds.index for settings in parties.seen] == indices
    (folder,) = run_dirs()
    (group,) = json.loads((folder / "folds.json").read_text())["groups"]
    assert [fold["index"] for fold in group["folds"]] == indices and (folder / "folds.html").exists()
    assert group["summary"]["auc"]["secure"]["folds"] == len(indices) - 1
    out = capsys.readouterr().out
    assert f"{len(indices) - 1} of {len(indices)} folds" in out and out.rstrip().endswith(f"{folder}/folds.html")
    assert f"fold {indices[1]} failed and is left out" in out


def test_other_sweeps_leave_no_folds(parties: Parties, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["-m", "seed=1,2"]) == 0
    assert not list(run_dirs()[0].glob("folds*")) and "Folds" not in capsys.readouterr().out


@pytest.mark.parametrize("sweep", [[], ["-m", "seed=1,2"]])
def test_code_of_ones_own_is_in_no_file(parties: Parties, sweep: list[str]) -> None:
    own = ["model._target_=my_package.Net", "model.allow_code=[my_package]"]
    assert app.main([*sweep, *own]) == 0
    assert all(settings.model.allow_code == ["my_package"] for settings in parties.seen)
    written = [path for path in Path("outputs").rglob("*") if path.is_file()]
    assert any("my_package.Net" in path.read_text() for path in written)
    assert not any("[my_package]" in path.read_text() or "- my_package\n" in path.read_text() for path in written)
    folder = next(path for path in written if path.name == "config.yaml").parent
    assert app.main(["--config-dir", str(folder), "--config-name", "config"]) == 2, "the operator's word, each time"


def test_code_is_allowed_for_all_points_alike(parties: Parties, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["-m", "model._target_=my_package.Net", "model.allow_code=[my_package],[other]"]) == 2
    assert "error: model.allow_code: the same for all runs" in capsys.readouterr().err


def test_a_backbone_of_ones_own(parties: Parties, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["model=head_on_backbone", "model.backbone.path=mine.safetensors"]
    assert app.main(argv) == 2
    assert capsys.readouterr().err.startswith("error: model.backbone.path: there is no mine.safetensors")
    (tmp_path / "mine.safetensors").touch()
    assert app.main(argv) == 0
    (settings,) = parties.seen
    assert settings.model.backbone.path == str(tmp_path / "mine.safetensors")
    assert settings.model.kwargs == {"features": 512, "num_classes": 2, "hidden": 0}
