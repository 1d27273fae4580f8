"""From a folder of mixed real DICOM files to structured reports, by the commands that a hospital would type."""

from __future__ import annotations

import csv
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from tests.report.dicom_checks import dump, require, standard_errors
from tests.system.command import Run, finish, mpc_imaging, start

HOSPITALS = ("hospital_a", "hospital_b")
# A PACS export has more than images.
OTHERS = ("reportsi.dcm", "rtplan.dcm", "MR_truncated.dcm", "DICOMDIR", "README.txt", "liver_1frame.dcm")
IMAGES = ("CT_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "color-px.dcm", "examples_overlay.dcm", "emri_small.dcm")


def package(name: str, folder: str = "") -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package that holds {name} is not installed")
    return Path(spec.submodule_search_locations[0]) / folder


def export(folder: Path, medical_data: Path, every: bool) -> Path:
    """Mammograms, a head CT, and files of several modalities and makers, of one folder each."""
    mammograms = sorted(package("mammograms", "cases").rglob("*.dcm"))
    slices = sorted((medical_data / "ct_head").glob("*.dcm"))
    if every:
        rest = [path for path in package("data_store", "data").iterdir() if path.suffix == ".dcm"]
    else:
        mammograms, slices, rest = mammograms[::7], slices[::9], []
    rest += [Path(path) for name in (*IMAGES, *OTHERS) if (path := get_testdata_file(name, download=False))]
    for kind, paths in (("breast", mammograms), ("head", slices), ("various", rest)):
        (folder / kind).mkdir(parents=True)
        for path in paths:
            shutil.copy(path, folder / kind / path.name)
    (folder / "various" / "notes.txt").write_text("not an image")
    return folder


def draft(folder: Path, *options: str) -> list[str]:
    """The words of the command that the draft names, after ``python -m mpc_imaging``."""
    run = finish(start("mpc_imaging.manifest", folder.name, *options, cwd=folder.parent), folder.parent, 120)
    assert run.code == 0, run.output
    return shlex.split(run.output.splitlines()[-1])[3:]


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory, medical_data: Path) -> tuple[Path, Run]:
    """Two commands: draft the manifest; run what it says, on small images so that it ends soon."""
    folder = export(tmp_path_factory.mktemp("pacs") / "export", medical_data, every=False)
    words = draft(folder, "--label-from", "folder", "--split", "0,0,100")
    faster = ("data.image_size=16", "model.kwargs.image_size=16", "protocol=beaver")
    run = mpc_imaging(*words, *faster, cwd=folder.parent)
    assert run.code == 0, run.output
    return folder, run


def reports(run: Run, owner: str) -> list[Path]:
    return sorted((run.folder / "parties" / owner / "results").glob("*.dcm"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def check_reports(folder: Path, run: Run) -> int:
    """Each owner has a report on each of its images, as the table beside it says; how many they are."""
    found: dict[str, str] = {}
    for owner in HOSPITALS:
        results = run.folder / "parties" / owner / "results"
        table = rows_of(results / "results.csv")
        files = {row["pseudonym"]: row["file"] for row in rows_of(results / "images.csv")}
        assert len(table) == run.result(owner)["counts"][owner]["test"] > 0
        assert {row["report"] for row in table if row["report"]} == {path.name for path in reports(run, owner)}
        for row in table:
            assert bool(row["report"]) != bool(row["reason"])
            if row["report"]:
                file = folder / files[row["image_id"].split("-")[2]]
                source, report = dcmread(file, stop_before_pixels=True, force=True), dcmread(results / row["report"])
                assert report.Modality == "SR" and report.PatientID == (source.get("PatientID") or "")
                assert report.StudyInstanceUID == source.StudyInstanceUID
                (study,) = report.CurrentRequestedProcedureEvidenceSequence
                (reference,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
                assert found.setdefault(reference.ReferencedSOPInstanceUID, owner) == owner, "an image of two owners"
    assert not list((run.folder / "parties" / "dealer").rglob("*.dcm"))
    return len(found)


def test_every_owner_has_reports_on_its_images(predicted: tuple[Path, Run]) -> None:
    folder, run = predicted
    count = check_reports(folder, run)
    assert count >= 9
    assert run.metrics["fidelity"]["agreeing"] == run.metrics["images"] >= count


def test_the_reports_pass_highdicom(predicted: tuple[Path, Run]) -> None:
    sr = pytest.importorskip("highdicom.sr", reason="an extra: pip install highdicom")
    for owner in HOSPITALS:
        for path in reports(predicted[1], owner):
            (group,) = sr.srread(path).content.get_image_measurement_groups()
            (evaluation,) = group.get_qualitative_evaluations()
            assert evaluation.value.meaning in ("breast", "head", "various")
            assert sum(each.value for each in group.get_measurements()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("tool", ["dciodvfy", "dsrdump", "dsr2html"])
def test_the_reports_pass_the_tools(predicted: tuple[Path, Run], tool: str) -> None:
    require(tool)
    for owner in HOSPITALS:
        for path in reports(predicted[1], owner):
            if tool == "dciodvfy":
                assert not standard_errors(path), path.name
            else:
                assert "Imaging Measurement Report" in dump(tool, path)


@pytest.mark.slow  # tests/data/test_loading.py has the same without processes
def test_images_without_labels_are_predicted(medical_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    for path in sorted((medical_data / "ct_head").glob("*.dcm"))[:4]:
        shutil.copy(path, folder)
    shutil.copy(get_testdata_file("MR_small.dcm"), folder)
    words = draft(folder, "--split", "0,0,100")
    assert "policy=own_outputs" in words
    words[words.index("data.class_names=[CLASS,CLASS]")] = "data.class_names=[normal,bleeding]"
    run = mpc_imaging(*words, "model=mlp", "data.image_size=12", "protocol=beaver", cwd=tmp_path)
    assert run.code == 0, run.output
    assert sum(len(reports(run, owner)) for owner in HOSPITALS) == 5
    assert run.metrics["secure"]["accuracy"] is None and run.metrics["fidelity"]["agreeing"] == 5
    assert {row["label"] for row in rows_of(run.folder / "parties" / "hospital_a" / "predictions.csv")} == {""}


@pytest.mark.slow
def test_all_files_of_three_sources(medical_data: Path, tmp_path: Path) -> None:
    """8 mammograms, 28 slices, 68 files of pydicom-data and some of pydicom, as they would run."""
    folder = export(tmp_path / "export", medical_data, every=True)
    run = mpc_imaging(*draft(folder, "--label-from", "folder", "--split", "0,0,100"), cwd=tmp_path)
    assert run.code == 0, run.output
    assert check_reports(folder, run) > 60
    for owner in HOSPITALS:
        for path in reports(run, owner):
            assert shutil.which("dciodvfy") is None or not standard_errors(path), path.name
