"""The command line of `mpc_imaging.plan`."""

import json

import pytest

from mpc_imaging import plan
from mpc_imaging.errors import ConfigError
from mpc_imaging.randomness.plan import Plan
from tests.system.command import TINY

OWNERS, SPLITS = ("a", "b"), ("train", "test")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a=3,b=4"], {"a": {"train": 3, "test": 3}, "b": {"train": 4, "test": 4}}),
        (["a=3,b=4", "test:b=0"], {"a": {"train": 3, "test": 3}, "b": {"train": 4, "test": 0}}),
        (["train:a=1,b=2", "test:b=3", "test:a=4"], {"a": {"train": 1, "test": 4}, "b": {"train": 2, "test": 3}}),
        (["a=1,b=1", "val:a=7"], {"a": {"train": 1, "test": 1}, "b": {"train": 1, "test": 1}}),
    ],
)
def test_stated_counts(texts, expected):
    assert plan.stated_counts(texts, OWNERS, SPLITS) == expected


@pytest.mark.parametrize(
    ("texts", "problems"),
    [
        (["a=3"], ["say how many images there are of train:b, test:b"]),
        (["a=3,b=x", "c=1", "tst:a=1"], ["like b=100", "'c' is no data owner", "one of train, val, test"]),
        (["a=-3,b=1"], ["like a=100"]),
        (["a=9999999999,b=1"], ["like a=100"]),
        (["a=0,b=0"], ["the task needs images of train, test; write at least one"]),
        ([""], ["write owner=count"]),
        (["a:b:c"], ["write owner=count"]),
    ],
    ids=str,
)
def test_wrong_counts(texts, problems):
    with pytest.raises(ConfigError) as caught:
        plan.stated_counts(texts, OWNERS, SPLITS)
    assert len(caught.value.problems) == len(problems)
    for problem, said in zip(problems, caught.value.problems, strict=True):
        assert problem in said


IMAGES = ("--images", "hospital_a=3,hospital_b=2")


def test_table_and_files(tmp_path, capsys):
    files = ["--json", str(tmp_path / "costs.json"), "--write", str(tmp_path / "plan.json")]
    assert plan.main([*TINY, *IMAGES, *files]) == 0
    shown = capsys.readouterr().out
    assert "at hospital_a" in shown and "classifier.1" in shown and "outputs" in shown and "total" in shown
    record = json.loads((tmp_path / "costs.json").read_text())
    read = Plan.from_json(json.loads((tmp_path / "plan.json").read_text()))
    assert read.digest == record["digest"] and read.count == record["demands"]
    assert record["total"]["key_bytes"] == read.octets(0)
    assert sum(layer["sent_bytes"] for layer in record["layers"]) == record["total"]["sent_bytes"]
    assert record["total"]["online_s"].keys() == {"loopback", "LAN", "WAN"}


def test_images_that_nobody_here_has(capsys):
    """With their numbers stated, no paths are needed; without, the error says so."""
    assert plan.main(["data=dicom", "model=mlp", "task.batch_size=2", *IMAGES]) == 0
    capsys.readouterr()
    assert plan.main(["data=dicom", "model=mlp"]) == 2
    assert "data.path: no images for hospital_a, hospital_b" in (said := capsys.readouterr().err)
    assert said.rstrip().endswith("or say how many images there are, with --images")
    assert plan.main(["data=dicom", "model=mlp", "data.path=/nowhere"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("say how many there are, with --images")


def test_no_store_is_needed_to_plan_for_one(capsys):
    assert plan.main([*TINY, *IMAGES, "randomness=stored"]) == 0
    stored = capsys.readouterr().out
    assert plan.main([*TINY, *IMAGES, "topology.parties.hospital_a.address=a.example.org:9000"]) == 0
    assert capsys.readouterr().out == stored, "nor does it matter where parties are"


def test_mistakes_are_listed_together(capsys, tmp_path):
    wrong = ["--rank", "2", "--json", str(tmp_path / "no" / "x.json"), "--write", str(tmp_path / "no" / "y.json")]
    assert plan.main([*TINY, *IMAGES, *wrong]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and all(line.startswith("error: --") for line in said)
    assert "write one of 0 (hospital_a), 1 (hospital_b)" in said[2]
    assert plan.main(["task.epoch=3", *IMAGES]) == 2
    assert "did you mean epochs?" in capsys.readouterr().err


def test_help_says_what_is_exact(capsys):
    with pytest.raises(SystemExit):
        plan.main(["--help"])
    shown = capsys.readouterr().out
    assert "Rounds and bytes are exact" in shown and "Seconds are estimates" in shown


STOPPING = (
    "task=train", "task.epochs=4", "task.early_stopping.metric=loss", "task.early_stopping.patience=1",
    "+policy.reveal.epoch=[compute]",
)  # fmt: skip


def test_what_may_stop_early_costs_so_much_at_most(tmp_path, capsys):
    costs = tmp_path / "costs.json"
    assert plan.main([*TINY, *STOPPING, *IMAGES, "--json", str(costs)]) == 0
    assert "Counts are those of all epochs; training may stop early" in capsys.readouterr().out
    record = json.loads(costs.read_text())
    assert record["stops_early"] and record["total"]["key_bytes"] > 0 and len(record["digest"]) == 64


def test_a_store_is_not_for_what_may_stop_early(tmp_path, capsys):
    assert plan.main([*TINY, *STOPPING, *IMAGES, "--write", str(tmp_path / "plan.json")]) == 2
    assert "write task.early_stopping.patience=null" in capsys.readouterr().err
    assert not (tmp_path / "plan.json").exists()
