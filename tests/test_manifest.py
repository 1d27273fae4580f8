from __future__ import annotations

import csv
import shlex
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from mpc_imaging.compose import compose_settings
from mpc_imaging.data import read_manifest
from mpc_imaging.data.deidentification import Pseudonyms
from mpc_imaging.deidentify import main as deidentify
from mpc_imaging.manifest import main
from tests.data.builders import make_dicom, random_pixels


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty images of twenty patients, half of them in each of two folders named by the label; and what is no image."""
    source = tmp_path / "export"
    for index in range(40):
        place = source / ("sick" if index % 4 < 2 else "well")
        place.mkdir(parents=True, exist_ok=True)
        make_dicom(
            place / f"{index}.dcm",
            random_pixels(index),
            PatientID=f"Secretname-{index // 2}",
            PatientSex="FM"[index // 2 % 2],
            StationName=f"room{index % 2}",
            ImageType=["ORIGINAL", "PRIMARY"],
        )
    shutil.copy(source / "sick" / "0.dcm", source / "well" / "copy.dcm")
    (source / "readme.txt").write_text("no image")
    return source


def test_a_draft_is_a_manifest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--label-from", "folder", "--column", "PatientSex", "--site-from", "StationName") == 0
    found = read_manifest(folder, ["sick", "well"])
    assert (len(found.rows), found.rejected, found.withheld) == (40, [], 0)
    rows = rows_of(folder / "manifest.csv")
    assert list(rows[0]) == ["file", "patient", "label", "split", "site", "consent", "purpose", "PatientSex"]
    assert {(row["label"], row["site"], row["PatientSex"], row["consent"]) for row in rows} == {
        (label, site, sex, "") for label, sex in (("sick", "F"), ("well", "M")) for site in ("room0", "room1")
    }
    assert (folder / "manifest.csv").stat().st_mode & 0o077 == 0
    shown = capsys.readouterr()
    assert "left out 1: the same object as in another file" in shown.out
    assert "left out 1: not a DICOM file" in shown.out
    assert "Secretname" not in shown.out + shown.err + (folder / "manifest.csv").read_text()


def test_splits_are_by_patient_and_hold_for_each_label(folder: Path) -> None:
    run(folder, "--label-from", "folder", "--split", "50,20,30")
    rows = rows_of(folder / "manifest.csv")
    splits = defaultdict(set)
    for row in rows:
        splits[row["patient"]].add(row["split"])
    assert len(splits) == 20 and all(len(names) == 1 for names in splits.values())
    for label in ("sick", "well"):
        counts = [sum(r["label"] == label and r["split"] == s for r in rows) for s in ("train", "val", "test")]
        assert counts == [10, 4, 6]


def test_the_same_seed_and_key_give_the_same_draft(folder: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(32))
    for name in ("one", "two"):
        run(folder, "--key-file", key, "--out", tmp_path / name)
    run(folder, "--key-file", key, "--out", tmp_path / "three", "--seed", 1)
    run(folder, "--out", tmp_path / "four")
    one, two, three, four = ((tmp_path / name).read_text() for name in ("one", "two", "three", "four"))
    assert one == two and one != three
    splits = [[(row["file"], row["split"]) for row in rows_of(tmp_path / name)] for name in ("one", "four")]
    assert splits[0] == splits[1] and one != four, "another key: other pseudonyms, the same splits"
    assert Pseudonyms(bytes(32)).name("patient", "Secretname-0") in one


def test_real_ids_become_those_of_the_copies(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(bytes(32))
    run(folder, "--label-from", "folder", "--real-ids")
    assert rows_of(folder / "manifest.csv")[0]["patient"] == "Secretname-0"
    for path in folder.rglob("*.dcm"):
        make_dicom(path, random_pixels(1), PatientID="Secretname-0", StudyInstanceUID="1.2", Modality="DX")
    deidentify([str(folder), str(tmp_path / "out"), "--key-file", str(tmp_path / "key")])
    for row in rows_of(tmp_path / "out" / "manifest.csv")[:1]:
        assert row["file"].startswith(f"{row['patient']}/") and row["label"] == "sick"


def test_labels_from_a_tag(folder: Path) -> None:
    run(folder, "--label-from", "tag", "ImageType")
    assert {row["label"] for row in rows_of(folder / "manifest.csv")} == {"ORIGINAL;PRIMARY"}
    assert len(read_manifest(folder, ["ORIGINAL", "PRIMARY"], multi_label=True).rows) == 40


@pytest.mark.parametrize("key", ["file", "patient"])
def test_labels_from_a_table(folder: Path, tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "labels.csv"
    known = {"file": "sick\\0.dcm", "patient": "Secretname-0"}[key]
    table.write_text(f"{key},finding,other\n{known},opacity,1\nunknown,clear,2\n", encoding="utf-8-sig")
    run(folder, "--label-from", "csv", table, "finding")
    labels = {row["file"]: row["label"] for row in rows_of(folder / "manifest.csv")}
    opaque = {"file": {"sick/0.dcm"}, "patient": {"sick/0.dcm", "sick/1.dcm"}}[key]
    assert {file for file, label in labels.items() if label == "opacity"} == opaque
    assert "images have no label" in capsys.readouterr().out


def test_tables_that_cannot_be_used(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("patient,finding\nSecretname-0,0\nSecretname-1,0\nSecretname-0,1\n")
    assert run(folder, "--label-from", "csv", table, "finding") == 2
    assert run(folder, "--label-from", "csv", table, "nothing") == 2
    assert run(folder, "--label-from", "csv", tmp_path / "none.csv", "finding") == 2
    shown = capsys.readouterr().err
    assert "rows 2, 4: one patient with different labels" in shown and "no column 'nothing'" in shown
    assert "cannot be read" in shown and "Secretname" not in shown
    assert not (folder / "manifest.csv").exists()


def test_a_dicomdir_and_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Path(get_testdata_file("DICOMDIR", download=False)).parent
    folder = tmp_path / "cd"
    shutil.copytree(source, folder)
    run(folder, "--out", tmp_path / "all.csv")
    every = capsys.readouterr().out
    lost = next(path for path in sorted((folder / "77654033").rglob("*")) if path.is_file())
    lost.unlink()
    assert run(folder, "--out", tmp_path / "fewer.csv") == 0
    fewer = capsys.readouterr().out
    assert "a DICOMDIR: list" not in every and "listed in a DICOMDIR" not in every
    assert "left out 1: listed in a DICOMDIR, but there is no such file" in fewer
    assert len(rows_of(tmp_path / "all.csv")) >= len(rows_of(tmp_path / "fewer.csv")) > 0


def test_links_and_names_that_a_manifest_refuses(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_dicom(tmp_path / "outside.dcm", random_pixels(99))
    (folder / "link.dcm").symlink_to(tmp_path / "outside.dcm")
    make_dicom(folder / " padded.dcm", random_pixels(98))
    make_dicom(folder / "nobody.dcm", random_pixels(97), PatientID="", PatientName="")
    run(folder)
    shown = capsys.readouterr().out
    for reason in ("a link to a file outside", "a name that no table can hold", "an image without a patient"):
        assert f"left out 1: {reason}" in shown
    assert len(rows_of(folder / "manifest.csv")) == 40


def test_all_mistakes_are_told_at_once(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "manifest.csv").write_text("mine")
    (tmp_path / "key").write_bytes(bytes(32))
    wrong = ["--split", "70,20,20", "--label-from", "tags", "x", "--column", "PatientSexx", "--column", "PixelData"]
    assert run(folder, *wrong, "--real-ids", "--key-file", tmp_path / "key") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6 and all(line.startswith("error: ") for line in lines)
    assert "did you mean PatientSex?" in "\n".join(lines) and "manifest.csv is there already" in "\n".join(lines)
    assert (folder / "manifest.csv").read_text() == "mine"
    assert run(tmp_path / "none") == 2
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").touch()
    assert run(tmp_path / "empty") == 1
    assert "1 left out: not a DICOM file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "end"),
    [
        (("--label-from", "folder"), "'data.class_names=[sick,well]' task=train"),
        (
            ("--label-from", "folder", "--split", "0,0,100"),
            "'data.class_names=[sick,well]' data.invalid=skip data.dicom_results=true task=infer",
        ),
        (
            ("--label-from", "tag", "PatientSex", "--split", "0,0,100"),
            "'data.class_names=[F,M]' data.invalid=skip data.dicom_results=true task=infer",
        ),
        (
            ("--split", "0,0,100"),
            "'data.class_names=[CLASS,CLASS]' data.invalid=skip data.dicom_results=true task=infer policy=own_outputs",
        ),
    ],
)
def test_the_next_command_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], end: str
) -> None:
    run(folder, *options)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"  python -m mpc_imaging data=dicom data.path={folder} {end}"


def test_the_next_command_quotes_for_the_shell_and_for_hydra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "a folder"
    for index, name in enumerate(('1 "a", [b]', "yes", "it's", "CT")):
        (source / name).mkdir(parents=True)
        make_dicom(source / name / "x.dcm", random_pixels(index), PatientID=f"p{index}")
    run(source, "--label-from", "folder")
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    settings = compose_settings(command[3:])
    assert settings.data.path == str(source)
    assert settings.data.class_names == sorted(('1 "a", [b]', "yes", "it's", "CT"))


def test_a_row_for_each_folder_of_slices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patients = {"sick/one/0": "a", "sick/one/1": "a", "well/two/0": "b", "well/two/1": "b", "well/cine": "c"}
    for seed, (name, patient) in enumerate((patients | {"mixed/0": "a", "mixed/1": "b"}).items()):
        path = tmp_path / f"{name}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_dicom(path, random_pixels(seed), PatientID=patient)
    assert run(tmp_path, "--volumes", "--label-from", "folder") == 0
    rows = {row["file"]: row["label"] for row in rows_of(tmp_path / "manifest.csv")}
    assert rows == {"sick/one": "sick", "well/two": "well", "well/cine.dcm": "well"}
    output = capsys.readouterr().out
    assert "left out 2: a folder with slices of several patients" in output
    assert compose_settings(shlex.split(output.splitlines()[-1])[3:]).data.slices == 16
    found = read_manifest(tmp_path, ["sick", "well"])
    assert len(found.rows) == 3 and not found.rejected
