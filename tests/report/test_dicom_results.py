from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from mpc_imaging.errors import ConfigError, DataError
from mpc_imaging.report.dicom_results import NO_SOURCE, ResultRow, write_results
from tests.report.dicom_checks import MODEL, ct_series, make_source, require, standard_errors

pytest.importorskip("highdicom", reason="an extra: pip install highdicom")
CLASSES = ["clear", "opacity"]


def row(
    image_id: str, source: Path | list[Path] | None, frame: int | None = None, scores: tuple[float, float] = (0.1, 0.9)
):
    return ResultRow(image_id, source, frame, "opacity", dict(zip(CLASSES, scores, strict=True)))


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_report_for_each_image_and_a_table(tmp_path):
    rows = [row(f"a-test-0000{k}", make_source(tmp_path / f"{k}.dcm", index=k)) for k in range(3)]
    steps = []
    outcome = write_results(tmp_path / "run", rows, MODEL, CLASSES, advance=lambda: steps.append(1))
    assert sorted(outcome.written) == [r.image_id for r in rows] and not outcome.refused and len(steps) == 3
    for each in rows:
        ds = pydicom.dcmread(outcome.written[each.image_id])
        assert ds.PatientID == pydicom.dcmread(each.source).PatientID
    assert outcome.table == tmp_path / "run" / "results" / "results.csv"
    first = read_table(outcome.table)[0]
    assert first == {
        "image_id": "a-test-00000",
        "predicted": "opacity",
        "score_clear": "0.1",
        "score_opacity": "0.9",
        "report": "a-test-00000.dcm",
        "reason": "",
    }


def test_files_are_their_owners_alone_even_with_a_lax_umask(tmp_path):
    (tmp_path / "results").mkdir(mode=0o755)
    old = os.umask(0)
    try:
        outcome = write_results(tmp_path, [row("a-1", make_source(tmp_path / "in.dcm"))], MODEL, CLASSES)
    finally:
        os.umask(old)
    results = tmp_path / "results"
    assert results.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in results.iterdir()} == {0o600}
    assert (
        {path.name for path in results.iterdir()}
        == {"a-1.dcm", "results.csv"}
        == {
            outcome.written["a-1"].name,
            outcome.table.name,
        }
    )


def test_what_allows_no_report_is_noted_and_the_others_go_on(tmp_path):
    (tmp_path / "text.dcm").write_text("no image")
    rows = [
        row("a-1", tmp_path / "text.dcm"),
        row("a-2", make_source(tmp_path / "bad.dcm", StudyInstanceUID=None)),
        row("a-3", make_source(tmp_path / "in.dcm"), frame=1),
        row("a-4", None),
        row("a-5", tmp_path / "in.dcm"),
    ]
    outcome = write_results(tmp_path, rows, MODEL, CLASSES)
    assert list(outcome.written) == ["a-5"] and outcome.without_source == ["a-4"]
    assert list(outcome.refused) == ["a-1", "a-2", "a-3"] and "no such frame" in outcome.refused["a-3"]
    table = read_table(outcome.table)
    assert [line["report"] for line in table] == ["", "", "", "", "a-5.dcm"]
    assert table[0]["reason"] == "not a DICOM file" and table[3]["reason"] == NO_SOURCE and not table[4]["reason"]
    assert all(line["predicted"] == "opacity" for line in table)


def test_reports_of_a_study_are_one_series(tmp_path):
    cine = Path(pydicom.data.get_testdata_file("OBXXXX1A_rle_2frame.dcm"))
    rows = [row("a-1-000", cine, 0), row("b", make_source(tmp_path / "in.dcm")), row("a-1-001", cine, 1)]
    outcome = write_results(tmp_path, rows, MODEL, CLASSES)
    first, other, second = (pydicom.dcmread(outcome.written[each.image_id]) for each in rows)
    assert first.SeriesInstanceUID == second.SeriesInstanceUID != other.SeriesInstanceUID
    assert (first.InstanceNumber, second.InstanceNumber) == (1, 2) and first.SOPInstanceUID != second.SOPInstanceUID


def test_scores_that_are_not_finite_are_left_out(tmp_path):
    rows = [row("a-1", make_source(tmp_path / "in.dcm"), scores=(float("nan"), 0.5))]
    outcome = write_results(tmp_path, rows, MODEL, CLASSES)
    assert read_table(outcome.table)[0]["score_opacity"] == ""
    assert "(122157, DCM" not in str(pydicom.dcmread(outcome.written["a-1"]))


def test_wrong_rows_are_refused_before_anything_is_written(tmp_path):
    source = make_source(tmp_path / "in.dcm")
    for rows in ([row("a", source), row("a", source)], [ResultRow("a", source, None, "tumour")], [row("../a", source)]):
        with pytest.raises(DataError):
            write_results(tmp_path / "run", rows, MODEL, CLASSES)
    with pytest.raises(ConfigError):
        write_results(tmp_path / "run", [], MODEL, ["x" * 80])
    assert not (tmp_path / "run").exists()


def test_without_highdicom_a_dicom_source_is_refused_at_once_and_a_table_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("mpc_imaging.report.result_objects.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install"):
        write_results(tmp_path / "run", [row("a", make_source(tmp_path / "in.dcm"))], MODEL, CLASSES)
    assert not (tmp_path / "run").exists()
    assert write_results(tmp_path / "run", [row("a", None)], MODEL, CLASSES).without_source == ["a"]


def test_a_row_does_not_show_its_file():
    assert "Secretname" not in repr(row("a-1", Path("/data/Secretname.dcm")))


def test_highdicom_is_loaded_only_when_an_object_is_built():
    code = "import sys, mpc_imaging.report.dicom_results; sys.exit('highdicom' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_real_series_ends_as_valid_reports(tmp_path, medical_data):
    require("dciodvfy")
    files = sorted((medical_data / "ct_head").glob("*.dcm"))[:6]
    outcome = write_results(tmp_path, [row(f"a-test-{k:05d}", path) for k, path in enumerate(files)], MODEL, CLASSES)
    assert len(outcome.written) == len(files)
    assert [standard_errors(path) for path in outcome.written.values()] == [[]] * len(files)


def test_a_report_on_a_volume_refers_to_all_of_its_slices(tmp_path):
    slices = ct_series(tmp_path)
    outcome = write_results(tmp_path / "run", [row("a-1", slices)], MODEL, CLASSES)
    report = pydicom.dcmread(outcome.written["a-1"])
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    referred = {entry.ReferencedSOPInstanceUID for entry in series.ReferencedSOPSequence}
    assert referred == {pydicom.dcmread(path).SOPInstanceUID for path in slices}
    mixed = write_results(tmp_path / "mixed", [row("a-1", [*slices, make_source(tmp_path / "x.dcm")])], MODEL, CLASSES)
    assert "not of one patient, study and series" in mixed.refused["a-1"]
