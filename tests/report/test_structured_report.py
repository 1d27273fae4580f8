from __future__ import annotations

import logging
from pathlib import Path

import pydicom
import pytest
from pydicom.sr.codedict import codes as standard
from pydicom.sr.coding import Code

from mpc_imaging.errors import ConfigError, DataError
from mpc_imaging.report.result_objects import SCHEME, ModelIdentity
from mpc_imaging.report.result_source import Refusal, ResultError
from mpc_imaging.report.structured_report import PREDICTED_CLASS, write_structured_report
from tests.report.dicom_checks import MODEL, PLANTED, ct_series, dump, make_source, require, standard_errors

highdicom = pytest.importorskip("highdicom", reason="an extra: pip install highdicom")
CODES = {"pneumonia": Code("233604007", "SCT", "Pneumonia")}
PROBABILITIES = {"clear": 0.25, "pneumonia": 0.75}


def written(tmp_path: Path, source: Path | list[Path], **arguments: object) -> pydicom.Dataset:
    path = write_structured_report(
        source, "pneumonia", PROBABILITIES, MODEL, tmp_path / "out", "a-test-00001", codes=CODES, **arguments
    )
    return pydicom.dcmread(path)


def group_of(ds: pydicom.Dataset) -> object:
    report = highdicom.sr.ComprehensiveSR.from_dataset(ds).content
    (group,) = report.get_image_measurement_groups()
    return group


def test_measurement_report_holds_the_prediction_and_its_probabilities(tmp_path):
    ds = written(tmp_path, make_source(tmp_path / "in.dcm"))
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.33"
    assert ds.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert (ds.CompletionFlag, ds.VerificationFlag, ds.PreliminaryFlag) == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")
    group = group_of(ds)
    (evaluation,) = group.get_qualitative_evaluations()
    assert evaluation.name == PREDICTED_CLASS and evaluation.value == CODES["pneumonia"]
    found = {}
    for measurement in group.get_measurements():
        assert measurement.name == standard.DCM.Probability and measurement.unit == standard.UCUM.NoUnits
        (modifier,) = measurement[0].ContentSequence
        assert modifier.name == standard.DCM.Finding and modifier.ValueType == "CODE"
        assert modifier.RelationshipType == "HAS CONCEPT MOD"
        found[modifier.value.meaning] = measurement.value, modifier.value.scheme_designator
    assert found == {"clear": (0.25, SCHEME), "Pneumonia": (0.75, "SCT")}


def test_algorithm_and_observer_are_the_model(tmp_path):
    ds = written(tmp_path, make_source(tmp_path / "in.dcm"))
    report = highdicom.sr.ComprehensiveSR.from_dataset(ds).content
    (observer,) = report.get_observer_contexts(standard.DCM.Device)
    attributes = observer.observer_identifying_attributes
    assert (attributes.uid, attributes.name) == (MODEL.uid, MODEL.name)
    texts = {
        item.ConceptNameCodeSequence[0].CodeMeaning: item.TextValue
        for item in group_of(ds)[0].ContentSequence
        if item.ValueType == "TEXT"
    }
    assert texts == {
        "Tracking Identifier": "a-test-00001",
        "Algorithm Name": "small_cnn",
        "Algorithm Version": "1.2",
        "Algorithm Parameters": f"sha256={MODEL.digest}",
    }


def test_source_is_referenced_and_its_patient_and_study_are_copied(tmp_path):
    path = make_source(tmp_path / "in.dcm", IssuerOfPatientID="Here")
    source, ds = pydicom.dcmread(path), written(tmp_path, path)
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "IssuerOfPatientID"):
        assert ds[keyword].value == source[keyword].value, keyword
    for keyword in ("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
        assert ds[keyword].value == source[keyword].value, keyword
    assert ds.SeriesInstanceUID != source.SeriesInstanceUID and ds.SOPInstanceUID != source.SOPInstanceUID
    assert ds.Modality == "SR" and ds.SeriesDescription == "Predictions by small_cnn"
    (image,) = group_of(ds).source_images
    assert image.referenced_sop_instance_uid == source.SOPInstanceUID
    assert image.referenced_sop_class_uid == source.SOPClassUID and image.referenced_frame_numbers is None
    (study,) = ds.CurrentRequestedProcedureEvidenceSequence
    (reference,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert reference.ReferencedSOPClassUID == source.SOPClassUID


def test_free_text_of_the_source_stays_there(tmp_path):
    ds = written(tmp_path, make_source(tmp_path / "in.dcm"))
    assert PLANTED not in str(ds) and "Planted" not in str(ds)


def test_names_are_decoded_whatever_the_character_set(tmp_path):
    source = make_source(tmp_path / "in.dcm", SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Änne")
    ds = written(tmp_path, source)
    assert ds.SpecificCharacterSet == "ISO_IR 192" and str(ds.PatientName) == "Müller^Änne"


def test_series_of_images_is_referenced_whole(tmp_path):
    ds = written(tmp_path, ct_series(tmp_path))
    assert [image.referenced_sop_instance_uid for image in group_of(ds).source_images] == [
        "1.2.3.4.1",
        "1.2.3.4.2",
        "1.2.3.4.3",
    ]


def test_images_of_two_series_are_refused(tmp_path):
    sources = [make_source(tmp_path / f"{k}.dcm", index=k) for k in range(2)]
    with pytest.raises(ResultError) as caught:
        written(tmp_path, sources)
    assert caught.value.reason is Refusal.several


def test_frame_of_a_cine_is_referenced_from_one(tmp_path):
    source = Path(pydicom.data.get_testdata_file("OBXXXX1A_rle_2frame.dcm"))
    (image,) = group_of(written(tmp_path, source, frame=1)).source_images
    assert image.referenced_frame_numbers == [2]
    (image,) = group_of(written(tmp_path, source)).source_images
    assert image.referenced_frame_numbers is None
    with pytest.raises(ResultError) as caught:
        written(tmp_path, source, frame=2)
    assert caught.value.reason is Refusal.frame


def test_retired_kinds_of_image_are_referenced_by_their_own_name(tmp_path):
    retired = "1.2.840.10008.5.1.4.1.1.6"
    ds = written(tmp_path, make_source(tmp_path / "in.dcm", SOPClassUID=retired))
    (image,) = group_of(ds).source_images
    (study,) = ds.CurrentRequestedProcedureEvidenceSequence
    evidence = study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert image.referenced_sop_class_uid == evidence.ReferencedSOPClassUID == retired


def test_probabilities_may_be_unknown_but_not_wrong(tmp_path):
    source = make_source(tmp_path / "in.dcm")
    path = write_structured_report(source, "clear", None, MODEL, tmp_path, "unknown")
    assert not group_of(pydicom.dcmread(path)).get_measurements()
    for wrong in (1.5, -0.1, float("nan")):
        with pytest.raises(DataError, match=r"\[0, 1\]"):
            write_structured_report(source, "clear", {"clear": wrong}, MODEL, tmp_path, "wrong")
    assert not (tmp_path / "wrong.dcm").exists()


@pytest.mark.parametrize("name", ["", "a\\b", "x" * 65, "two\nlines"])
def test_class_that_no_code_can_mean_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"data\.class_names"):
        write_structured_report(make_source(tmp_path / "in.dcm"), name, None, MODEL, tmp_path, "report")


def test_model_identity_lists_all_that_is_wrong_with_it():
    with pytest.raises(ConfigError) as caught:
        ModelIdentity("", "a\\b", "1")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("name", ["../escape", "", "a/b", ".hidden", "Ann Smith"])
def test_only_plain_file_names_are_written(tmp_path, name):
    with pytest.raises(DataError, match="pseudonym"):
        write_structured_report(make_source(tmp_path / "in.dcm"), "clear", None, MODEL, tmp_path, name)


def test_a_refusal_names_nothing_of_the_header(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    source = make_source(tmp_path / "in.dcm", PatientName="Planted^Name" + "^x" * 5)
    with pytest.raises(ResultError) as caught:
        write_structured_report(source, "clear", None, MODEL, tmp_path, "report")
    assert caught.value.reason is Refusal.identity
    output = capfd.readouterr()
    assert "Planted" not in f"{caught.value!r} {caught.value} {caplog.text} {output.out} {output.err}"


def test_nothing_is_logged_of_what_highdicom_warns_about(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    written(tmp_path, make_source(tmp_path / "in.dcm", PatientName="Plantedwithoutparts"))  # it warns of such names
    output = capfd.readouterr()
    assert "Planted" not in caplog.text + output.out + output.err


def check(tmp_path: Path, sources: list[Path]) -> None:
    require("dciodvfy")
    require("dsrdump")
    for k, source in enumerate(sources):
        path = write_structured_report(
            source, "pneumonia", PROBABILITIES, MODEL, tmp_path, f"report{k}", frame=0, codes=CODES
        )
        assert standard_errors(path) == []
        assert "Imaging Measurement Report" in dump("dsrdump", path)


def test_checkers_find_no_error(tmp_path):
    check(tmp_path, [make_source(tmp_path / "in.dcm"), Path(pydicom.data.get_testdata_file("OBXXXX1A_rle_2frame.dcm"))])


def test_checkers_find_no_error_in_reports_on_real_scans(tmp_path, medical_data):
    check(tmp_path, [medical_data / "ct_head" / "01.dcm", medical_data / "ct_liver" / "01.dcm"])
