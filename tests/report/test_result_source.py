from __future__ import annotations

import pydicom
import pytest

from mpc_imaging.data.refusals import ImageError, Reason
from mpc_imaging.report.result_source import Refusal, ResultError, read_sources
from tests.report.dicom_checks import make_source


def test_values_that_the_standard_does_not_allow_are_left_empty(tmp_path):
    path = make_source(tmp_path / "in.dcm")
    ds = pydicom.dcmread(path)
    with pydicom.config.disable_value_validation():
        ds.PatientBirthDate, ds.StudyDate, ds.StudyTime = "20230231", "2024.01.02", "25"
        ds.PatientSex, ds.AccessionNumber = "male", "12345678901234567"
        ds.save_as(path)
    (source,) = read_sources(path)
    assert (source.PatientBirthDate, source.StudyDate, source.StudyTime) == ("", "20240102", "")
    assert (source.PatientSex, source.AccessionNumber) == ("", "")


def test_elements_that_may_be_empty_may_also_be_missing(tmp_path):
    absent = dict.fromkeys(("PatientName", "PatientID", "PatientSex", "StudyDate", "ReferringPhysicianName"))
    (source,) = read_sources(make_source(tmp_path / "in.dcm", **absent))
    assert all(keyword in source and not source[keyword].value for keyword in absent)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_an_image_that_cannot_be_referred_to_is_refused(tmp_path, keyword):
    for k, uid in enumerate((None, "", "999.1.2")):
        with pytest.raises(ResultError) as caught:
            read_sources(make_source(tmp_path / f"{k}.dcm", **{keyword: uid}))
        assert caught.value.reason is Refusal.identity


def test_reports_and_private_kinds_are_no_sources(tmp_path):
    for k, kind in enumerate(("1.2.840.10008.5.1.4.1.1.88.11", "1.2.3.4")):
        with pytest.raises(ResultError) as caught:
            read_sources(make_source(tmp_path / f"{k}.dcm", SOPClassUID=kind))
        assert caught.value.reason is Refusal.kind


def test_files_that_are_missing_or_no_dicom(tmp_path):
    (tmp_path / "text.dcm").write_text("no image")
    for name, reason in (("text.dcm", Reason.not_dicom), ("absent.dcm", Reason.missing)):
        with pytest.raises(ImageError) as caught:
            read_sources(tmp_path / name)
        assert caught.value.reason is reason


def test_a_deidentified_source_says_so_in_its_results(tmp_path):
    stated = {"PatientIdentityRemoved": "YES", "DeidentificationMethod": "Basic profile"}
    (source,) = read_sources(make_source(tmp_path / "in.dcm", **stated))
    assert source.PatientIdentityRemoved == "YES" and source.DeidentificationMethod == "Basic profile"
    (source,) = read_sources(make_source(tmp_path / "b.dcm", PatientIdentityRemoved="YES"))  # without its method
    assert "PatientIdentityRemoved" not in source
