"""From DICOM files to DICOM reports: each owner's own, in its own folder."""

import pytest
from pydicom import dcmread

from tests.system.command import TINY, mpc_imaging


@pytest.mark.slow  # tests/system/test_hospital.py has these reports on real images
def test_owners_get_reports_on_their_own_images(tmp_path):
    run = mpc_imaging(*TINY, "data.dicom_results=true", cwd=tmp_path)
    assert run.code == 0, run.output
    for party in ("hospital_a", "hospital_b"):
        folder = run.folder / "parties" / party
        reports = sorted((folder / "results").glob("*.dcm"))
        owned = run.result(party)["counts"][party]["test"]
        assert len(reports) == owned > 0
        assert all(path.stem.startswith(f"{party}-test-") for path in reports)
        assert (folder / "results").stat().st_mode & 0o077 == 0
        report = dcmread(reports[0])
        assert report.Modality == "SR" and report.SeriesInstanceUID
        patients = {dcmread(path).PatientID for path in (folder / "dicom").rglob("*.dcm")}
        assert {dcmread(path).PatientID for path in reports} <= patients
    assert not list((run.folder / "parties" / "dealer").rglob("*.dcm"))
