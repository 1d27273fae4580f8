"""Every option of PS3.15 Annex E, attribute by attribute: what its column keeps or cleans, and no more."""

from __future__ import annotations

import csv
from copy import deepcopy

import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.tag import Tag

from mpc_imaging.data.deidentification import Dates, Options, Pseudonyms, deidentify
from mpc_imaging.data.profile import _OPTIONS, CODES
from tests.data.test_deidentification import CANARY, DAY, KEY, TABLE, image, saved, tags, value_of

CHOICES = {
    "uids": Options(uids=True),
    "device": Options(device=True),
    "institution": Options(institution=True),
    "patient": Options(patient=True),
    "full_dates": Options(dates=Dates.kept),
    "modified_dates": Options(dates=Dates.shifted),
    "descriptors": Options(descriptors=True),
    "structured": Options(structured=True),
    "graphics": Options(graphics=True),
}
RECORDED = {0x00100010, 0x00100020, 0x00120062, 0x00120063, 0x00120064, 0x00280301, 0x00280303}
LISTED_TEXT = ("LO", "LT", "SH", "ST", "UC", "UT")
with _OPTIONS.open(encoding="ascii") as _file:
    ROWS = {row["tag"]: row for row in csv.DictReader(_file)}


def cells(option: str) -> dict[int, str]:
    return {int(tag, 16): row[option] for tag, row in ROWS.items() if "x" not in tag and row[option]}


def full() -> Dataset:
    """An image with every attribute of the table: texts say a region and a name."""
    dataset = image()
    for tag, vr in tags():
        if tag not in dataset:
            dataset.add_new(tag, vr, f"{CANARY} Chest" if vr in LISTED_TEXT else value_of(vr))
    return dataset


@pytest.fixture(scope="module")
def plain() -> Dataset:
    dataset = full()
    deidentify(dataset, Pseudonyms(KEY), Options())
    return dataset


def code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


CHEST = ("816094009", "SCT", f"{CANARY} Chest")


@pytest.mark.parametrize("option", CHOICES)
def test_an_option_does_what_its_column_says_and_no_more(option: str, plain: Dataset) -> None:
    original, dataset = full(), full()
    deidentify(dataset, Pseudonyms(KEY), CHOICES[option])
    column, kept = cells(option), 0
    for tag, vr in tags():
        if tag in RECORDED:
            continue
        cell = column.get(tag, "")
        if cell == "K":
            kept += 1
            assert tag in dataset, ROWS[f"{tag:08X}"]["keyword"]
            if vr != "SQ":
                assert dataset[tag].value == original[tag].value
        elif cell == "C" and vr in LISTED_TEXT and option in ("descriptors", "patient"):
            kept += 1
            assert dataset[tag].value == "Chest"
        elif cell == "C" and vr in ("DA", "DT", "TM"):
            kept += 1
            assert vr == "TM" or "19000101" < str(dataset[tag].value) < DAY
        elif cell != "C" or vr != "SQ":  # the tests below look into sequences
            assert (tag in dataset) == (tag in plain), hex(tag)
            assert tag not in plain or vr == "SQ" or dataset[tag].value == plain[tag].value
    assert kept >= 10 or option in ("institution", "structured", "graphics")
    expected = [CODES["basic"], CODES[option]]
    found = [(each.CodeValue, each.CodeMeaning) for each in dataset.DeidentificationMethodCodeSequence]
    assert found == expected and set(found) <= {(each.value, each.meaning) for each in codes.cid7050.concepts.values()}
    state = {"full_dates": "UNMODIFIED", "modified_dates": "MODIFIED"}.get(option, "REMOVED")
    assert dataset.LongitudinalTemporalInformationModified == state
    if "K" not in column.values() or option == "uids":
        assert CANARY.encode() not in saved(dataset)


def test_the_columns_are_those_of_the_standard() -> None:
    """Cells that the text of Annex E names, and rules that hold for whole columns."""
    listed = {f"{group:04X}{element:04X}" for group, element, *mask in TABLE.ALL_TAGS if not mask}
    assert {tag for tag in ROWS if "x" not in tag} <= listed and len(ROWS) == 421
    for tag, row in ROWS.items():
        assert row["keyword"] and (row["full_dates"], row["modified_dates"]) in (("", ""), ("K", "C"))
        if row["uids"]:
            assert dictionary_VR(Tag(int(tag, 16))) in ("UI", "SQ")
    counts = {option: len([row for row in ROWS.values() if row[option]]) for option in CHOICES}
    assert counts["full_dates"] == counts["modified_dates"] > 150 and counts["descriptors"] > 120
    named = {
        "uids": {"StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"},
        "device": {"DeviceSerialNumber", "StationName", "DeviceUID", "DetectorID", "GantryID", "PlateID"},
        "institution": {"InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName"},
        "patient": {"PatientSex", "PatientAge", "PatientSize", "PatientWeight", "EthnicGroup", "SmokingStatus"},
        "full_dates": {"StudyDate", "SeriesDate", "AcquisitionDateTime", "ContentTime", "TimezoneOffsetFromUTC"},
        "descriptors": {"StudyDescription", "SeriesDescription", "ProtocolName", "ImageComments", "PatientComments"},
        "structured": {"ContentSequence", "AcquisitionContextSequence", "SpecimenPreparationSequence"},
        "graphics": {"GraphicAnnotationSequence", "OverlayData", "OverlayComments", "CurveData"},
    }
    for option, keywords in named.items():
        assert keywords <= {row["keyword"] for row in ROWS.values() if row[option]}, option
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "OperatorsName", "AccessionNumber"):
        assert not any(row["keyword"] == keyword for row in ROWS.values())


def test_dates_that_no_column_has(plain: Dataset) -> None:
    for choice, value in ((Dates.removed, None), (Dates.kept, DAY), (Dates.shifted, "")):
        dataset = image(PatientBirthDate=DAY, DateOfGainCalibration=DAY)
        deidentify(dataset, Pseudonyms(KEY), Options(dates=choice))
        assert dataset.PatientBirthDate == ""
        found = dataset.get("DateOfGainCalibration")
        assert found == value if choice is not Dates.shifted else "19000101" < found < DAY


def test_what_is_no_date_or_time_goes_also_where_they_are_shifted() -> None:
    dataset = image()
    dataset.add(DataElement("StudyTime", "TM", CANARY, validation_mode=0))
    dataset.add(DataElement("StudyDate", "DA", CANARY, validation_mode=0))
    deidentify(dataset, Pseudonyms(KEY), Options(dates=Dates.shifted))
    assert dataset.StudyTime == dataset.StudyDate == "" and CANARY.encode() not in saved(dataset)


def test_descriptors_keep_listed_words_and_known_codes() -> None:
    dataset = image(
        StudyDescription="CT^CHEST w/o contrast for Dr. Willis, 05.06.1987",
        SeriesDescription=CANARY,
        ProtocolName="t1_axial_0815",
        AdmittingDiagnosesDescription=["Left lung", CANARY, f"{CANARY}, right hip"],
        AdmittingDiagnosesCodeSequence=Sequence([code(*CHEST), code("4711", "99LOCAL", CANARY)]),
        ReasonForVisitCodeSequence=Sequence([code("4711", "99LOCAL", CANARY)]),
    )
    request = Dataset()
    request.ScheduledProcedureStepDescription, request.ScheduledProcedureStepID = f"MR knee {CANARY}", CANARY
    dataset.RequestAttributesSequence = Sequence([request])
    deidentify(dataset, Pseudonyms(KEY), Options(descriptors=True))
    assert dataset.StudyDescription == "CT CHEST contrast" and dataset.ProtocolName == "t1 axial"
    assert "SeriesDescription" not in dataset and "ReasonForVisitCodeSequence" not in dataset
    assert list(dataset.AdmittingDiagnosesDescription) == ["Left lung", "right hip"]
    (known,) = dataset.AdmittingDiagnosesCodeSequence
    assert (known.CodeValue, known.CodeMeaning) == ("816094009", "Thorax")
    assert dataset.RequestAttributesSequence[0].ScheduledProcedureStepDescription == "MR knee"
    assert CANARY.encode() not in saved(dataset)


def content_item(kind: str, **values: object) -> Dataset:
    item = Dataset()
    item.ValueType, item.RelationshipType = kind, "CONTAINS"
    item.ConceptNameCodeSequence = Sequence([code("121071", "DCM", CANARY)])
    for name, value in values.items():
        setattr(item, name, value)
    return item


def test_structured_content_keeps_codes_numbers_and_references() -> None:
    measured = Dataset()
    measured.NumericValue, measured.MeasurementUnitsCodeSequence = "7", Sequence([code("mm", "UCUM", CANARY)])
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.7"
    local = content_item("NUM", MeasuredValueSequence=Sequence([measured]))
    local.ConceptNameCodeSequence = Sequence([code("1", "99LOCAL", CANARY)])
    inner = [
        content_item("TEXT", TextValue=CANARY),
        content_item("PNAME", PersonName=CANARY),
        content_item("DATE", Date=DAY),
        content_item("NUM", MeasuredValueSequence=Sequence([measured])),
        content_item("CODE", ConceptCodeSequence=Sequence([code(*CHEST)])),
        content_item("CODE", ConceptCodeSequence=Sequence([code("1", "99LOCAL", CANARY)])),
        content_item("IMAGE", ReferencedSOPSequence=Sequence([reference])),
        content_item("UIDREF", UID="1.2.3.987"),
        local,
    ]
    report = image(ContentSequence=Sequence([content_item("CONTAINER", ContentSequence=Sequence(inner))]))
    dated = deepcopy(report)
    deidentify(report, Pseudonyms(KEY), Options(structured=True))
    (container,) = report.ContentSequence
    assert [item.ValueType for item in container.ContentSequence] == ["NUM", "CODE", "IMAGE", "UIDREF"]
    number, chest, picture, uid = container.ContentSequence
    assert chest.ConceptCodeSequence[0].CodeMeaning == "Thorax"
    assert number.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeMeaning == "mm"
    replaced = (picture.ReferencedSOPSequence[0].ReferencedSOPInstanceUID, uid.UID)
    assert all(value.startswith("2.25.") for value in replaced)
    assert CANARY.encode() not in saved(report) and DAY.encode() not in saved(report)
    deidentify(dated, Pseudonyms(KEY), Options(structured=True, dates=Dates.shifted))
    (moved,) = [item.Date for item in dated.ContentSequence[0].ContentSequence if item.ValueType == "DATE"]
    assert "19000101" < moved < DAY


def test_graphics_keep_neither_text_nor_lines_and_overlays_go() -> None:
    def shape(kind: str) -> Dataset:
        item = Dataset()
        item.GraphicType, item.GraphicData = kind, [1.0, 2.0]
        return item

    text = Dataset()
    text.UnformattedTextValue = CANARY
    written, drawn = Dataset(), Dataset()
    written.TextObjectSequence = Sequence([text])
    drawn.GraphicLayer, drawn.TextObjectSequence = "LAYER1", Sequence([text])
    drawn.GraphicObjectSequence = Sequence([shape("POLYLINE"), shape("CIRCLE"), shape("POINT")])
    dataset = image(GraphicAnnotationSequence=Sequence([written, drawn]))
    for tag in (0x60003000, 0x60004000, 0x60020022, 0x50003000):
        dataset.add_new(
            tag, "LT" if tag == 0x60004000 else "LO" if tag == 0x60020022 else "OB", CANARY.encode() + b"\0"
        )
    deidentify(dataset, Pseudonyms(KEY), Options(graphics=True))
    (kept,) = dataset.GraphicAnnotationSequence
    assert [each.GraphicType for each in kept.GraphicObjectSequence] == ["CIRCLE", "POINT"]
    assert "TextObjectSequence" not in kept and CANARY.encode() not in saved(dataset)


def test_references_within_what_is_kept_are_still_replaced() -> None:
    person = Dataset()
    person.ReferencedSOPInstanceUID, person.PatientName = "1.2.3.55", CANARY
    department = code("1", "99LOCAL", "a department")
    department.PersonName = CANARY
    dataset = image(InstitutionCodeSequence=Sequence([department]), ReferencedPatientSequence=Sequence([person]))
    deidentify(dataset, Pseudonyms(KEY), Options(institution=True, uids=True))
    assert dataset.ReferencedPatientSequence[0].ReferencedSOPInstanceUID == "1.2.3.55"
    assert dataset.InstitutionCodeSequence[0].CodeMeaning == "a department"
    assert dataset.SOPInstanceUID == "1.2.3.1" == dataset.file_meta.MediaStorageSOPInstanceUID
    assert CANARY.encode() not in saved(dataset)
