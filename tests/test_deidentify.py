from __future__ import annotations

import csv
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from mpc_imaging.deidentify import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two instances of one patient, a capture, a text, a broken file, and a manifest that names the patient."""
    source = tmp_path / "Meier, Anna"
    source.mkdir()
    image = dcmread(get_testdata_file("CT_small.dcm"))
    image.PatientName, image.PatientID = "Meier^Anna", "ID-4711"
    image.save_as(source / "a.dcm")
    image.SOPInstanceUID += ".1"
    image.save_as(source / "b.dcm")
    image.SOPInstanceUID += ".2"
    image.BurnedInAnnotation = "YES"
    image.save_as(source / "shown.dcm")
    (source / "letter.txt").write_text("Dear Anna")
    (source / "cut.dcm").write_bytes((source / "a.dcm").read_bytes()[:400])
    (source / "manifest.csv").write_text(
        "file,label,patient,split,remark\na.dcm,1,Anna,train,Anna!\nb.dcm,0,Anna,test,\nshown.dcm,0,Anna,test,\n"
    )
    return source


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_a_folder_becomes_one_that_may_be_passed_on(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out, listing = tmp_path / "out", tmp_path / "list.csv"
    assert run(folder, out, "--list", listing) == 1
    files = sorted(out.rglob("*.dcm"))
    assert len(files) == 2 and len({file.parent for file in files}) == 1
    for file in out.rglob("*"):
        assert not any(word in file.as_posix() for word in ("ID-4711", "Anna", "a.dcm")) or file == out
        if file.is_file():
            assert b"Anna" not in file.read_bytes() and b"ID-4711" not in file.read_bytes()
    with (out / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [list(row) for row in rows] == [["file", "patient", "label", "split"]] * 2
    assert {row["patient"] for row in rows} == {rows[0]["patient"]} and [row["label"] for row in rows] == ["1", "0"]
    assert all((out / row["file"]).is_file() for row in rows)
    with listing.open() as file:
        became = {row["file"]: row["refused"] for row in csv.DictReader(file)}
    assert became["letter.txt"] == "no DICOM file" and "is YES" in became["shown.dcm"] and became["a.dcm"] == ""
    assert became["cut.dcm"] and listing.stat().st_mode & 0o077 == 0
    shown = capsys.readouterr()
    assert "Anna" not in shown.out + shown.err and "of this run alone" in shown.out


def test_the_same_key_gives_the_same_pseudonyms(folder: Path, tmp_path: Path):
    key = tmp_path / "key"
    key.write_bytes(bytes(32))
    for name in ("one", "two"):
        run(folder, tmp_path / name, "--key-file", key)
    run(folder, tmp_path / "three")
    one, two, three = ({f.name for f in (tmp_path / name).rglob("*.dcm")} for name in ("one", "two", "three"))
    assert one == two and one.isdisjoint(three)


def test_masked_files_are_copied(folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    run(folder, out, "--mask", "0,0,128,64")
    files = list(out.rglob("*.dcm"))
    assert len(files) == 3
    for file in files:
        dataset = dcmread(file)
        assert dataset.BurnedInAnnotation == "NO" and len(set(dataset.pixel_array[:64].flat)) == 1
        assert "113101" in [code.CodeValue for code in dataset.DeidentificationMethodCodeSequence]


def test_all_mistakes_are_told_at_once(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert run(folder, folder / "out", "--mask", "1,2,3", "--pixels-are-clean", "--list", folder / "out" / "list") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and all(line.startswith("error: ") for line in lines)
    short = tmp_path / "short"
    short.write_bytes(b"1")
    assert run(folder, tmp_path / "out", "--key-file", short) == 2
    assert run(folder, tmp_path / "out", "--key-file", tmp_path / "none") == 2
    assert run(tmp_path / "none", tmp_path / "out") == 2
