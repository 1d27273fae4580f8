from __future__ import annotations

import csv
import io
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from mpc_imaging import commands
from mpc_imaging.deidentify import LINK, _unwritten as unwritten, main


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
    assert became["letter.txt"] == "not a DICOM file" and "is YES" in became["shown.dcm"] and became["a.dcm"] == ""
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


def contents(out: Path) -> dict[str, bytes]:
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_two_runs_with_one_key_write_the_same_bytes(folder: Path, tmp_path: Path):
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    for name in ("one", "two"):
        run(folder, tmp_path / name, "--key-file", key, "--keep-dates", "--clean-descriptors")
    assert contents(tmp_path / "one") == contents(tmp_path / "two") and len(contents(tmp_path / "one")) == 3


def test_a_copy_of_a_copy_loses_nothing_more(folder: Path, tmp_path: Path):
    """Other pseudonyms, since those of the first time are a header like any other, and nothing else."""
    key = tmp_path / "key"
    key.write_bytes(bytes(32))
    run(folder, tmp_path / "one", "--key-file", key)
    assert run(tmp_path / "one", tmp_path / "two", "--key-file", key) == 0
    first, second = (sorted((tmp_path / name).rglob("*.dcm")) for name in ("one", "two"))
    assert len(first) == len(second) == 2
    for once, twice in zip(map(dcmread, first), map(dcmread, second), strict=True):
        assert set(once.keys()) == set(twice.keys()) and once.PixelData == twice.PixelData
        assert {e.keyword for e in once if e.value != twice[e.tag].value and e.VR != "UI"} == {
            "PatientID",
            "PatientName",
        }


def test_each_option_is_recorded_and_a_file_may_name_them(folder: Path, tmp_path: Path):
    options = tmp_path / "options.txt"
    flags = ["full-dates", "device", "institution", "patient", "uids"]
    lines = [f"--keep-{name}" for name in flags]
    options.write_text("\n".join([*lines, "# agreed in May", "", "--clean-descriptors --clean-graphics  # no text"]))
    run(folder, tmp_path / "out", f"@{options}", "--clean-structured")
    source = dcmread(folder / "a.dcm")
    (file,) = (tmp_path / "out").rglob(f"{source.SOPInstanceUID}.dcm")
    copy = dcmread(file)
    recorded = [code.CodeValue for code in copy.DeidentificationMethodCodeSequence]
    assert recorded[0] == "113100" and sorted(recorded[1:]) == [
        "113103", "113104", "113105", "113106", "113108", "113109", "113110", "113112",
    ]  # fmt: skip
    assert copy.LongitudinalTemporalInformationModified == "UNMODIFIED" and copy.PatientID != source.PatientID
    for keyword in ("StudyDate", "StationName", "InstitutionName", "PatientSex", "StudyInstanceUID"):
        assert copy[keyword].value == source[keyword].value, keyword
    assert run(folder, tmp_path / "both", "--keep-dates", "--keep-full-dates") == 2


def test_a_media_export_with_links_and_hidden_files(tmp_path: Path):
    source, secret = tmp_path / "export", tmp_path / "elsewhere.dcm"
    shutil.copytree(Path(get_testdata_file("DICOMDIR")).parent, source / "DICOM")
    shutil.copy(get_testdata_file("CT_small.dcm"), secret)
    shutil.copy(get_testdata_file("MR_small.dcm"), source / ".hidden.dcm")
    (source / "._a.dcm").write_bytes(b"\0\5\x16\7Mac OS X")
    (source / "linked.dcm").symlink_to(secret)
    (source / "again").symlink_to(source / "DICOM", target_is_directory=True)
    (source / "loop").symlink_to(source, target_is_directory=True)
    os.mkfifo(source / "pipe")
    for path in (source / "DICOM").iterdir():  # pydicom ships them beside its media
        if path.is_file() and path.name != "DICOMDIR":
            path.unlink()
    listing = tmp_path / "list.csv"
    code = run(source, tmp_path / "out", "--list", listing)
    with listing.open() as file:
        became = {row["file"]: row for row in csv.DictReader(file)}
    assert code == 0, Counter(row["refused"] for row in became.values())
    assert became["DICOM/DICOMDIR"]["refused"].startswith("a DICOMDIR") and became[".hidden.dcm"]["became"]
    assert became["linked.dcm"]["refused"].startswith("a link") and "._a.dcm" in became and "pipe" not in became
    written = [row["became"] for row in became.values() if row["became"]]
    assert len(written) > 10 and len(set(written)) == len(written) == len(list((tmp_path / "out").rglob("*.dcm")))


def test_what_is_too_large_is_refused_and_the_others_go_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    large = dcmread(folder / "a.dcm")
    large.SOPInstanceUID += ".9"
    large.ImageComments = "x" * 10_000
    large.save_as(folder / "large.dcm")
    monkeypatch.setattr("mpc_imaging.data.header.MAX_WHOLE_HEADER_BYTES", 12_000)
    listing = tmp_path / "list.csv"
    assert run(folder, tmp_path / "out", "--list", listing) == 1
    with listing.open() as file:
        became = {row["file"]: row for row in csv.DictReader(file)}
    assert "larger than the limits" in became["large.dcm"]["refused"] and became["b.dcm"]["became"]


def test_a_full_disk_is_told_and_leaves_no_part_of_a_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mpc_imaging.data.whole.os.fsync", full)
    (folder / "manifest.csv").unlink()
    assert run(folder, tmp_path / "out") == 1
    assert "cannot be written (No space left on device)" in capsys.readouterr().out
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]


def test_a_manifest_that_cannot_be_read_stops_it_before_anything_is_written(folder: Path, tmp_path: Path):
    (folder / "manifest.csv").write_bytes(b"file,patient\n\xff\xfe,x\n")
    assert run(folder, tmp_path / "out") == 2 and not (tmp_path / "out").exists()


def test_sites_of_a_manifest_become_pseudonyms(folder: Path, tmp_path: Path):
    (folder / "manifest.csv").write_text("file,label,patient,split,site\na.dcm,1,x,train,St. Anna\n")
    for name, options, kept in (("out", (), False), ("named", ("--keep-institution",), True)):
        run(folder, tmp_path / name, *options)
        assert ("St. Anna" in (tmp_path / name / "manifest.csv").read_text()) == kept


def slices(folder: Path, study: str, count: int = 2) -> None:
    """A series of one patient's study."""
    folder.mkdir(parents=True)
    image = dcmread(get_testdata_file("CT_small.dcm"))
    image.StudyInstanceUID, image.SeriesInstanceUID = study, f"{study}.9"
    for index in range(count):
        image.SOPInstanceUID = f"{study}.{int.from_bytes(folder.name.encode())}.{index}"
        image.save_as(folder / f"{index}.dcm")


def carried(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_rows_of_folders_and_masks_get_the_names_of_their_copies(tmp_path: Path):
    source, out = tmp_path / "in", tmp_path / "out"
    slices(source / "s1", "1.2.1")
    slices(source / "masks", "1.2.1", 1)
    (source / "manifest.csv").write_text(" File ,MASK,Patient,Split\n ./s1 , masks/0.dcm ,x,test\n,,,\n")
    assert run(source, out) == 0
    (row,) = carried(out)
    assert list(row) == ["file", "patient", "mask", "split"] and row["split"] == "test"
    assert (out / row["file"]).is_dir() and (out / row["mask"]).is_file() and row["patient"] == row["file"][:20]


def test_rows_that_no_copy_stands_for_are_counted_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Two series in one folder of OUT, two studies in one of IN, files that are not there, a row without a file."""
    source, out = tmp_path / "in", tmp_path / "out"
    for name, study in (("s1", "1.2.1"), ("s2", "1.2.1"), ("whole", "1.2.2"), ("x", "1.2.3"), ("y", "1.2.4")):
        slices(source / name, study)
    (source / "y" / "0.dcm").rename(source / "x" / "2.dcm")
    (source / "manifest.csv").write_text(
        "file,mask,patient,split\ns1,,p,test\nx,,p,test\nwhole,,p,test\nnone,,p,test\n,,p,test\n"
        "s1/0.dcm,none.dcm,p,test\ns1/1.dcm,,p,test\n"
    )
    assert run(source, out) == 1
    assert [(out / row["file"]).exists() for row in carried(out)] == [True, True]
    assert "5 rows of the manifest were not carried over" in capsys.readouterr().out


def test_a_volume_of_which_a_slice_was_refused_is_not_carried_over(tmp_path: Path):
    source, out = tmp_path / "in", tmp_path / "out"
    slices(source / "s1", "1.2.1")
    (source / "s1" / "2.dcm").write_bytes((source / "s1" / "0.dcm").read_bytes()[:400])
    (source / "manifest.csv").write_text("file,label,patient,split\ns1,0,p,test\n")
    assert run(source, out) == 1 and carried(out) == []


@pytest.mark.parametrize("header", ["label,patient", "file,label,Label", ""])
def test_a_manifest_whose_columns_cannot_be_meant_stops_it(folder: Path, tmp_path: Path, header: str):
    (folder / "manifest.csv").write_text(f"{header}\n")
    assert run(folder, tmp_path / "out") == 2 and not (tmp_path / "out").exists()


def test_patients_of_the_manifest_are_those_of_the_copies(folder: Path, tmp_path: Path):
    """The draft had pseudonyms of the same key: another round of them would match nothing."""
    key, out = tmp_path / "key", tmp_path / "out"
    key.write_bytes(bytes(32))
    (folder / "manifest.csv").write_text("file,label,patient,split\na.dcm,1,0123456789abcdef0123,train\n")
    run(folder, out, "--key-file", key)
    (row,) = carried(out)
    assert row["patient"] == dcmread(out / row["file"]).PatientID


def test_around_regions_only_what_has_some_is_masked(tmp_path: Path):
    """A CT stays whole and says nothing of cleaned pixels; an ultrasound that says nothing is refused without them."""
    source, out, listing = tmp_path / "in", tmp_path / "out", tmp_path / "list.csv"
    source.mkdir()
    region = Dataset()
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 10, 10
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 100, 100
    for name, modality, stated, inside in (
        ("ct", "CT", "", False), ("us", "US", "", True), ("bare", "US", "", False), ("clean", "US", "NO", False),
        ("shown", "CT", "YES", False),
    ):  # fmt: skip
        image = dcmread(get_testdata_file("CT_small.dcm"))
        image.Modality, image.BurnedInAnnotation = modality, stated
        image.SOPInstanceUID = f"1.2.{int.from_bytes(name.encode())}"
        if inside:
            image.SequenceOfUltrasoundRegions = Sequence([region])
        image.save_as(source / f"{name}.dcm")
    assert run(source, out, "--mask-outside-regions", "--list", listing) == 1
    with listing.open() as file:
        became = {row["file"]: row for row in csv.DictReader(file)}
    assert {name for name, row in became.items() if "no ultrasound regions" in row["refused"]} == {
        "bare.dcm",
        "shown.dcm",
    }
    for name, masked in (("ct", False), ("clean", False), ("us", True)):
        copy = dcmread(out / became[f"{name}.dcm"]["became"])
        assert ("113101" in [each.CodeValue for each in copy.DeidentificationMethodCodeSequence]) == masked
        assert (len(set(copy.pixel_array[:10].flat)) == 1) == masked


def test_places_that_cannot_be_written_are_told_before_anything_is_copied(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert run(folder, tmp_path / "out", "--list", tmp_path / "none" / "list.csv") == 2
    assert run(folder, tmp_path / "out", "--list", tmp_path) == 2
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    assert run(folder, tmp_path / "file" / "out") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith(("error: --list: ", "error: OUT: ")) for line in lines)


def test_names_of_files_that_are_no_text(folder: Path, tmp_path: Path):
    listing = tmp_path / "list.csv"
    os.rename(os.fsencode(folder / "a.dcm"), os.fsencode(folder) + b"/Gro\xdf.dcm")
    run(folder, tmp_path / "out", "--list", listing)
    assert b"\nGro\xdf.dcm," in listing.read_bytes().replace(b"\r", b"")


def test_a_fault_of_a_disk_is_one_line_without_the_file(capsys: pytest.CaptureFixture):
    def body() -> int:
        raise PermissionError(13, "Permission denied", "/export/Meier^Anna")

    assert commands.over_headers(body, debug=False) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "error: Permission denied" in shown and "Anna" not in shown


def test_linked_folders_are_listed_and_nothing_copied_is_an_error(folder: Path, tmp_path: Path):
    source, listing = tmp_path / "export", tmp_path / "list.csv"
    source.mkdir()
    (source / "s1").symlink_to(folder, target_is_directory=True)
    assert run(source, tmp_path / "out", "--list", listing) == 1
    with listing.open() as file:
        assert [tuple(row.values()) for row in csv.DictReader(file)] == [("s1", "", LINK)]


def test_a_header_that_cannot_be_written_names_the_element_and_not_its_value():
    dataset = dcmread(get_testdata_file("CT_small.dcm"))
    dataset[0x00280010].VR, dataset[0x00280010].value = "LO", "Meier"
    dataset[0x00280010].VR = "US"
    with pytest.raises(Exception) as caught:  # noqa: PT011, whatever pydicom raises
        dataset.save_as(io.BytesIO())
    why = unwritten(caught.value)
    assert "(0028,0010) Rows" in why and "Meier" not in why
    assert "ValueError" in unwritten(ValueError("Meier"))
