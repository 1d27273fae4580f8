"""What manifest.csv may say, and how its problems are reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpc_imaging.data import read_manifest
from mpc_imaging.data.rows import Refused
from mpc_imaging.errors import DataError
from tests.data.builders import make_folder, some_rows, write_manifest

NAMES = ["normal", "pneumonia"]


def problems_of(folder: Path) -> list[str]:
    with pytest.raises(DataError) as caught:
        read_manifest(folder, NAMES)
    return caught.value.problems


def test_rows_by_name_and_by_index(tmp_path: Path) -> None:
    rows = some_rows(3, site="north", sex="F")
    rows[1]["label"] = "pneumonia"
    found, rejected, _ = read_manifest(make_folder(tmp_path, rows), NAMES)
    assert rejected == []
    assert [(row.number, row.label, row.split, row.site) for row in found] == [
        (2, 0, "test", "north"),
        (3, 1, "test", "north"),
        (4, 0, "test", "north"),
    ]


def test_a_file_from_a_spreadsheet(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").touch()
    text = "\ufeffFile, Label ,patient,split\r\na.dcm , 1,p1, val\r\n,,,\r\n\r\n"
    (tmp_path / "manifest.csv").write_bytes(text.encode())
    (row,), *_ = read_manifest(tmp_path, NAMES)
    assert (row.file, row.label, row.split, row.number) == ("a.dcm", 1, "val", 2)


def test_missing_columns_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("file,diagnosis\na.dcm,1\n")
    assert [problem.rsplit(" ", 1)[1] for problem in problems_of(tmp_path)] == ["'label'", "'patient'", "'split'"]


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00f"])
def test_no_manifest(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "manifest.csv").write_bytes(content)
    assert "manifest.csv" in problems_of(tmp_path)[0]


def test_every_problem_at_once_and_no_cell(tmp_path: Path) -> None:
    rows = some_rows(9)
    rows[0]["split"] = "Secretsplit"
    rows[1]["label"] = "Secretlabel"
    rows[2]["label"] = "2"
    rows[3]["patient"] = ""
    rows[4]["patient"] = rows[5]["patient"] = "Secretname"
    rows[5]["split"] = "train"
    rows[6]["file"] = "../outside.dcm"
    rows[7]["label"] = ""
    rows[8]["file"] = "/etc/passwd"
    make_folder(tmp_path, rows[:5])
    write_manifest(tmp_path, rows)
    text = "\n".join(problems_of(tmp_path))
    assert "Secret" not in text
    assert "row 2: split must be one of train, val, test" in text
    assert "rows 3, 4: label must be one of data.class_names (normal, pneumonia) or 0 to 1" in text
    assert "row 5: patient is empty" in text
    assert "rows 6, 7: one patient in several splits (train, test)" in text
    assert "rows 8, 10: file is outside the folder" in text
    assert "row 7: there is no such file" in text
    assert "row 9: it has no label" in text


def test_many_rows_with_one_problem_are_one_line(tmp_path: Path) -> None:
    rows = [row | {"split": "holdout"} for row in some_rows(50)]
    (problem,) = problems_of(make_folder(tmp_path, rows))
    assert "(50 rows)" in problem and len(problem) < 300


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.dcm").touch()
    folder = make_folder(tmp_path / "data", some_rows(1))
    (folder / "link.dcm").symlink_to(tmp_path / "secret.dcm")
    write_manifest(folder, [some_rows(1)[0] | {"file": "link.dcm"}])
    assert "outside the folder" in problems_of(folder)[0]


def test_missing_labels_and_repeated_files_are_left_to_the_caller(tmp_path: Path) -> None:
    rows = some_rows(4)
    rows[1]["label"] = ""
    rows[3]["file"] = "test/../test/0.dcm"
    make_folder(tmp_path, rows[:3])
    write_manifest(tmp_path, rows)
    found, rejected, _ = read_manifest(tmp_path, NAMES)
    assert [row.number for row in found] == [2, 4]
    assert rejected == [
        Refused(3, "test/1.dcm", "it has no label"),
        Refused(5, "test/../test/0.dcm", "the same file is in row 2"),
    ]
    assert ".dcm" not in repr(rejected)


def test_several_labels_for_each_image(tmp_path: Path) -> None:
    rows = some_rows(4)
    for row, label in zip(rows, ["normal;pneumonia", "", " 1 ", "normal; 1"], strict=True):
        row["label"] = label
    found, rejected, _ = read_manifest(make_folder(tmp_path, rows), NAMES, multi_label=True)
    assert rejected == [], "an empty label says that there is nothing to see"
    assert [row.label for row in found] == [(1, 1), (0, 0), (0, 1), (1, 1)]


def test_an_unknown_label_among_several(tmp_path: Path) -> None:
    rows = some_rows(2)
    rows[1]["label"] = "normal;tuberculosis"
    with pytest.raises(DataError, match=r"row 3: label must be some, separated by semicolons, of data.class_names"):
        read_manifest(make_folder(tmp_path, rows), NAMES, multi_label=True)


def consenting(folder: Path, cells: list[tuple[str, str]]) -> Path:
    rows = some_rows(len(cells))
    for row, (consent, purpose) in zip(rows, cells, strict=True):
        row |= {"consent": consent, "purpose": purpose}
    return make_folder(folder, rows)


def test_only_images_with_consent_for_the_purpose(tmp_path: Path) -> None:
    cells = [
        ("yes", "research"),
        ("no", "any"),
        ("TRUE", "Teaching; Research "),
        ("1", "any"),
        ("yes", "teaching"),
        ("0", ""),
        ("true", ""),
        ("False", "research"),
        ("yes", "research-2"),
    ]
    folder = consenting(tmp_path, cells)
    found = read_manifest(folder, NAMES, purpose="research")
    assert [row.number for row in found.rows] == [2, 4, 5] and found.withheld == 6 and found.rejected == []
    assert len(read_manifest(folder, NAMES).rows) == len(cells), "not asked for: not looked at"


def test_what_is_no_answer_is_an_error_with_its_row(tmp_path: Path) -> None:
    folder = consenting(tmp_path, [("yes", "any"), ("", "any"), ("Secretly", "any"), ("no", "")])
    with pytest.raises(DataError) as caught:
        read_manifest(folder, NAMES, purpose="research")
    (problem,) = caught.value.problems
    assert "rows 3, 4: consent must be yes or no" in problem and "Secret" not in problem


def test_a_manifest_without_consent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_manifest(make_folder(tmp_path, some_rows(2)), NAMES, purpose="research")
    consent, purpose = caught.value.problems
    assert "no column 'consent', which data.require_consent=true asks for: write yes or no" in consent
    assert "no column 'purpose', what the consent is for" in purpose


@pytest.mark.parametrize("order", [("yes", "no"), ("no", "yes")])
def test_a_no_in_any_row_of_a_file_counts(tmp_path: Path, order: tuple[str, str]) -> None:
    rows = [row | {"consent": "yes", "purpose": "any"} for row in some_rows(3)]
    make_folder(tmp_path, rows)
    rows[1] |= {"file": "test/../test/0.dcm", "consent": order[1]}
    rows[0]["consent"] = order[0]
    write_manifest(tmp_path, rows)
    found = read_manifest(tmp_path, NAMES, purpose="research")
    assert [row.number for row in found.rows] == [4] and found.withheld == 1


def test_rows_without_consent_need_no_label(tmp_path: Path) -> None:
    rows = [row | {"consent": "no", "purpose": "any"} for row in some_rows(2)]
    rows[0]["label"] = ""
    found = read_manifest(make_folder(tmp_path, rows), NAMES, purpose="research")
    assert found == ([], [], 2)


def test_files_of_a_folder_are_not_used_twice(tmp_path: Path) -> None:
    """A row may name a folder, whose files are then slices of one volume."""
    rows = some_rows(5)
    for row, file in zip(rows, ["a", "a/1.dcm", "b/1.dcm", "b", "c/d/e.dcm"], strict=True):
        row["file"] = file
    write_manifest(tmp_path, rows)
    found, rejected, _ = read_manifest(tmp_path, NAMES)
    assert [row.file for row in found] == ["a", "b/1.dcm", "c/d/e.dcm"]
    assert rejected == [
        Refused(3, "a/1.dcm", "row 2 has files of it, or its folder"),
        Refused(5, "b", "row 4 has files of it, or its folder"),
    ]


@pytest.mark.parametrize("order", [["a", "a/1.dcm", "b"], ["a/1.dcm", "b", "a"]])
@pytest.mark.parametrize("refused", ["a", "a/1.dcm"])
def test_consent_holds_for_a_folder_and_its_files(tmp_path: Path, refused: str, order: list[str]) -> None:
    rows = [row | {"consent": "yes", "purpose": "any"} for row in some_rows(3)]
    for row, file in zip(rows, order, strict=True):
        row |= {"file": file, "consent": "no" if file == refused else "yes"}
    write_manifest(tmp_path, rows)
    found, rejected, withheld = read_manifest(tmp_path, NAMES, purpose="research")
    assert [row.file for row in found] == ["b"] and withheld == 2 and not rejected


def test_a_series_folder_may_lie_in_that_of_another(tmp_path: Path) -> None:
    rows = some_rows(3)
    for row, file in zip(rows, ["a", "a/b", "a/1.dcm"], strict=True):
        row["file"] = file
    (tmp_path / "a" / "b").mkdir(parents=True)
    write_manifest(tmp_path, rows)
    found, rejected, _ = read_manifest(tmp_path, NAMES)
    assert [row.file for row in found] == ["a", "a/b"]
    assert [row.reason for row in rejected] == ["row 2 has files of it, or its folder"]


def test_images_to_be_marked_need_no_mask(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("file,patient,split\na.dcm,p1,test\n")
    (row,) = read_manifest(tmp_path, NAMES, masks=True, unlabelled=True).rows
    assert (row.mask, row.label) == ("", 0)
    with pytest.raises(DataError, match="no column 'mask'"):
        read_manifest(tmp_path, NAMES, masks=True)


def test_a_missing_manifest_is_said_to_be_missing_and_where(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path)
    assert problem == f"there is no manifest.csv in {tmp_path}; python -m mpc_imaging.manifest {tmp_path} drafts one"
    (tmp_path / "manifest.csv").touch()
    (problem,) = problems_of(tmp_path)
    assert problem.startswith(f"manifest.csv in {tmp_path} is empty: write a table with the columns file, label")
    (tmp_path / "manifest.csv").write_bytes(b"\xff\xfe\x00f")
    (problem,) = problems_of(tmp_path)
    assert problem.startswith(f"manifest.csv in {tmp_path} is no CSV in UTF-8 (UnicodeDecodeError): write a table")
