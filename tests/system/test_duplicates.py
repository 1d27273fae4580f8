"""Two hospitals with two images in common, in files that differ, one of them in another split: said, or refused."""

import json
import re

import pytest
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, RLELossless

from tests.data.builders import PATIENT, make_dicom, random_pixels, rows_of, write_manifest
from tests.system.command import TINY, mpc_imaging

OPTIONS = (
    *(option for option in TINY if not option.startswith(("data=", "data.phantoms"))),
    "data=dicom", "data.positive_class=1", "task=train", "task.evaluate_each_epoch=false",
    "policy.reveal.duplicates=[image_owner]",
)  # fmt: skip
# By seed: what each hospital has in train and in test.
HELD = {"hospital_a": (range(0, 10), range(10, 14)), "hospital_b": (range(20, 29), range(30, 33))}
COMMON = {100: ("train", "train", RLELossless), 101: ("train", "test", JPEG2000Lossless)}


def _write(folder, splits):
    folder.mkdir()
    rows = []
    for split, seeds in splits.items():
        for seed, syntax in seeds:
            path = make_dicom(folder / f"{seed}.dcm", random_pixels(seed, (64, 64)))
            if syntax is not None:
                ds = dcmread(path)
                ds.compress(syntax)
                ds.save_as(path)
            rows.append({"file": path.name, "label": str(seed % 2), "patient": f"{folder.name}{seed}", "split": split})
    write_manifest(folder, rows)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    """data.paths of both."""
    folder = tmp_path_factory.mktemp("hospitals")
    for place, (name, held) in enumerate(HELD.items()):
        splits = {split: [(seed, None) for seed in seeds] for split, seeds in zip(("train", "test"), held, strict=True)}
        for seed, common in COMMON.items():
            splits[common[place]].append((seed, common[2] if place else None))
        _write(folder / name, splits)
    return f"data.paths={{hospital_a: {folder / 'hospital_a'}, hospital_b: {folder / 'hospital_b'}}}"


def test_each_learns_of_its_own(hospitals, tmp_path):
    run = mpc_imaging(*OPTIONS, hospitals, cwd=tmp_path)
    assert run.code == 0, run.output
    leak = "also at {}, in another split there"
    rows = [
        ("hospital_a", "hospital_b", "train", "test", 16, 13),
        ("hospital_b", "hospital_a", "test", "train", 14, 15),
    ]
    for me, peer, split, other, images, row in rows:
        found = {(one["kind"], one["split"]): one["count"] for one in run.result(me)["quality"]}
        assert found[f"also at {peer}", "train"] == found[leak.format(peer), f"{split}/{other}"] == 1
        log = (run.folder / "parties" / me / "log.txt").read_text()
        assert f"2 of {images} images are also at {peer}, 1 in another split" in log
        (name,) = re.findall(rf"(\S+) of {split} is also at {peer}, there in {other}", log)
        assert rows_of(run.folder / "parties" / me, [name]) == [row]
        events = run.events(me)
        assert events.index(("reveal", "duplicates")) < events.index(("input", "images train"))
    assert "also at hospital_b, in another split there" in (run.folder / "report.html").read_text()
    assert "duplicates" not in {value for _, value in run.events("dealer")}
    for path in (run.folder / "parties").rglob("*.*"):
        assert PATIENT.encode() not in path.read_bytes()


def test_or_every_party_ends_before_anything_is_shared(hospitals, tmp_path):
    run = mpc_imaging(*OPTIONS, hospitals, "data.quality=refuse", cwd=tmp_path)
    assert run.code == 1 and "Traceback" not in run.output
    assert "also at hospital_" in run.output.splitlines()[-1] and "data.quality=report" in run.output.splitlines()[-1]
    for party in ("hospital_a", "hospital_b", "dealer"):
        events = run.events(party)
        assert events[-1] == ("abort", None) and not [value for event, value in events if event == "input"]
        ledger = (run.folder / "parties" / party / "ledger.jsonl").read_text().splitlines()
        assert "cross-owner duplicates" in json.loads(ledger[-1])["cause"]
