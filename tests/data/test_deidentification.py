"""The profile of PS3.15 Annex E, attribute by attribute, and that nothing of a patient is left in a file's bytes."""

from __future__ import annotations

import io
from importlib import import_module

import pytest
from pydicom import dcmread
from pydicom.config import IGNORE
from pydicom.datadict import DicomDictionary, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from mpc_imaging.data.deidentification import Dates, Options, Pseudonyms, deidentify
from mpc_imaging.data.profile import _TABLE, EDITION, actions
from mpc_imaging.errors import ConfigError

KEY = bytes(range(32))
CANARY = "Zyxwv"
DAY = "19870605"
TABLE = import_module(_TABLE)
TEXT = ("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UT", "UR")


def value_of(vr: str) -> object:
    """A value that tells of a patient."""
    if vr in TEXT:
        return CANARY
    if vr == "CS":
        return CANARY.upper()
    return {
        "DA": DAY,
        "DT": f"{DAY}101112.13+0200",
        "TM": "231759",
        "UI": "1.2.3.987654321",
        "AS": "043Y",
        "DS": "98765.4",
        "IS": "98765",
        "SQ": Sequence([named()]),
    }.get(vr, CANARY.encode() if vr[0] == "O" or vr == "UN" else 12345)


def named() -> Dataset:
    """A patient within a sequence, a private attribute and one that the standard does not have."""
    item = Dataset()
    item.PatientName, item.PatientBirthDate, item.InstanceCreatorUID = CANARY, DAY, "1.2.3.987654321"
    item.private_block(0x0099, CANARY, create=True).add_new(1, "LO", CANARY)
    return item


def image(**extra: object) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.SourceApplicationEntityTitle = CANARY
    dataset.preamble = CANARY.encode().ljust(128, b"\0")
    dataset.SOPClassUID, dataset.Modality = CTImageStorage, "CT"
    dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3.1", "1.2.3.2", "1.2.3.3"
    dataset.PatientID, dataset.PatientName = CANARY, f"{CANARY}^Anna"
    for name, value in extra.items():
        setattr(dataset, name, value)
    return dataset


def saved(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def tags() -> list[tuple[int, str]]:
    """Every attribute of the table that pydicom knows, with its VR; group 2 is the meta header."""
    found = []
    for group, element, *mask in TABLE.ALL_TAGS:
        if mask or group in (0, 2):
            continue
        try:
            vr = dictionary_VR((group, element))
        except KeyError:
            continue
        found.append((group << 16 | element, vr.split(" or ")[0]))
    return found


def test_every_attribute_of_the_table_gets_its_action():
    dataset = image()
    for tag, vr in tags():
        if tag not in dataset:
            dataset.add_new(tag, vr, value_of(vr))
    assert len(tags()) > 580
    before = {int(element.tag): str(element.value) for element in dataset}
    deidentify(dataset, Pseudonyms(KEY), Options())
    listed = {
        name: {group << 16 | element for group, element, *_ in getattr(TABLE, name)}
        for name in dir(TABLE)
        if "TAGS" in name
    }
    told = {0x00100010, 0x00100020, 0x00120062, 0x00120063, 0x00120064, 0x00280303, 0x00280301}
    for tag, vr in tags():
        if tag in told:
            continue
        if tag in listed["X_TAGS"]:
            assert tag not in dataset
            continue
        element = dataset[tag]
        if tag in listed["Z_TAGS"] | listed["X_Z_TAGS"] and vr != "UI":
            assert element.is_empty, element.keyword
        elif vr != "SQ":
            assert str(element.value) != before[tag], element.keyword
            assert not element.is_empty or vr == "SQ", element.keyword
    content = saved(dataset)
    for encoding in ("ascii", "utf-16-le", "utf-16-be"):
        for secret in (CANARY, CANARY.upper(), DAY, "1.2.3.987654321", "Anna", "98765", "12345"):
            assert secret.encode(encoding) not in content, (secret, encoding)


def test_nested_private_and_unknown_attributes_go_wherever_they_are():
    dataset = image(ReferencedImageSequence=Sequence([named()]), AnatomicRegionSequence=Sequence([named()]))
    dataset.private_block(0x0031, CANARY, create=True).add_new(1, "UT", CANARY)
    dataset.add_new(0x00090010, "LO", CANARY)
    dataset.add_new(0x00280099, "LO", CANARY)  # of even group, but not in the standard
    dataset.add_new(0x60003000, "OB", CANARY.encode() + b"\0")
    dataset.add_new(0x50003000, "OB", CANARY.encode() + b"\0")
    deidentify(dataset, Pseudonyms(KEY), Options())
    assert CANARY.encode() not in saved(dataset) and DAY.encode() not in saved(dataset)
    assert len(dataset.ReferencedImageSequence) == 1
    assert dataset.AnatomicRegionSequence[0].InstanceCreatorUID.startswith("2.25.")


def test_the_header_says_what_was_done():
    dataset = image(StudyDate=DAY)
    deidentify(dataset, Pseudonyms(KEY), Options(), clean_pixels=True)
    assert dataset.PatientIdentityRemoved == "YES" and EDITION in dataset.DeidentificationMethod[0]
    assert [code.CodeValue for code in dataset.DeidentificationMethodCodeSequence] == ["113100", "113101"]
    assert {code.CodingSchemeDesignator for code in dataset.DeidentificationMethodCodeSequence} == {"DCM"}
    assert dataset.LongitudinalTemporalInformationModified == "REMOVED" and dataset.BurnedInAnnotation == "NO"
    assert dataset.StudyDate == "" and "BurnedInAnnotation" in dataset
    again = dcmread(io.BytesIO(saved(dataset)))
    assert again.file_meta.MediaStorageSOPInstanceUID == again.SOPInstanceUID == dataset.SOPInstanceUID
    assert again.SOPClassUID == CTImageStorage and "SourceApplicationEntityTitle" not in again.file_meta


def test_dates_are_shifted_alike_within_a_patient_and_times_stay():
    first = image(StudyDate="20240301", AcquisitionDateTime="20240302080910", StudyTime="080910")
    first.add(DataElement("ContentDate", "DA", "nodate", validation_mode=IGNORE))
    second = image(StudyDate="20240311")
    other = image(StudyDate="20240301", PatientID="another")
    for dataset in (first, second, other):
        deidentify(dataset, Pseudonyms(KEY), Options(dates=Dates.shifted))
    assert first.StudyDate < "20240301" and first.AcquisitionDateTime[8:] == "080910" and first.StudyTime == "080910"
    assert int(second.StudyDate) - int(first.StudyDate) in (
        10,
        80,
        81,
        79,
        82,
        8880,
        8879,
    )  # ten days, over a month's end
    assert other.StudyDate != first.StudyDate and first.ContentDate == "19000101"
    assert first.LongitudinalTemporalInformationModified == "MODIFIED"
    assert [code.CodeValue for code in first.DeidentificationMethodCodeSequence] == ["113100", "113107"]


def test_the_device_is_kept_on_request():
    dataset = image(DeviceSerialNumber="S1", StationName="ROOM 1", InstitutionName=CANARY, DeviceUID="1.2.3.9")
    deidentify(dataset, Pseudonyms(KEY), Options(device=True))
    assert (dataset.DeviceSerialNumber, dataset.StationName, dataset.DeviceUID) == ("S1", "ROOM 1", "1.2.3.9")
    assert dataset.InstitutionName == "REMOVED"


def test_pseudonyms_are_consistent_keyed_and_need_a_whole_key():
    first, second = image(), image(SOPInstanceUID="1.2.3.4", ReferencedSOPInstanceUID="1.2.3.1")
    for dataset in (first, second):
        deidentify(dataset, Pseudonyms(KEY), Options())
    assert second.ReferencedSOPInstanceUID == first.SOPInstanceUID != second.SOPInstanceUID
    assert (first.PatientID, first.StudyInstanceUID) == (second.PatientID, second.StudyInstanceUID)
    assert len(first.SOPInstanceUID) <= 64 and first.SOPInstanceUID.startswith("2.25.")
    other = image()
    deidentify(other, Pseudonyms(KEY[::-1]), Options())
    assert {other.PatientID, other.SOPInstanceUID}.isdisjoint({first.PatientID, first.SOPInstanceUID})
    with pytest.raises(ConfigError, match="a key of 5 bytes; write .umask 077; openssl rand -out FILE 32"):
        Pseudonyms(b"short")


def test_no_name_address_or_free_text_of_the_standard_is_kept():
    """Also of attributes that the table does not name."""
    kept = {
        keyword
        for tag, (vr, *_, keyword) in DicomDictionary.items()
        if vr in ("PN", "AE", "UR", "LT", "ST", "UT", "UC") and actions(Tag(tag), Options())[0] == "K"
    }
    assert not kept


@pytest.mark.parametrize(
    "keyword",
    ["PatientBirthDateInAlternativeCalendar", "PatientDeathDateInAlternativeCalendar", "PatientAlternativeCalendar",
     "PlacerOrderNumberProcedure", "FillerOrderNumberProcedure", "PlacerOrderNumberImagingServiceRequestRetired",
     "FillerOrderNumberImagingServiceRequestRetired", "ImageID", "RetrieveURL", "PixelDataProviderURL",
     "BoardingPassID"],
)  # fmt: skip
def test_identifiers_that_the_table_does_not_name_go(keyword: str):
    dataset = image(ProtocolContextSequence=Sequence([named()]), **{keyword: CANARY.upper()})
    dataset.ProtocolContextSequence[0].TextValue = CANARY
    deidentify(dataset, Pseudonyms(KEY), Options())
    assert keyword not in dataset and CANARY.upper().encode() not in saved(dataset).upper()


@pytest.mark.parametrize("vr", ["UN", "OB", "LT"])
@pytest.mark.parametrize(
    "keyword",
    ["ReferencedSeriesSequence", "SharedFunctionalGroupsSequence", "PresentationDisplayCollectionUID", "SegmentLabel",
     "InstanceCreatorUID", "ReferencedPatientSequence"],
)  # fmt: skip
def test_what_is_stored_as_another_vr_does_not_pass_as_bytes(vr: str, keyword: str):
    """Of 64 KB and more pydicom leaves UN as it is, so that a sequence of names was copied as bytes."""
    for options in (Options(), Options(uids=True)):
        dataset = image()
        value = f"{CANARY} " * 12_000
        dataset.add(DataElement(keyword, vr, value if vr == "LT" else value.encode(), validation_mode=IGNORE))
        deidentify(dataset, Pseudonyms(KEY), options)
        assert keyword not in dataset and CANARY.encode() not in saved(dataset)


def test_pixels_that_are_stored_as_unknown_stay():
    dataset = image()
    dataset.add(DataElement("PixelData", "UN", b"\1\2"))
    deidentify(dataset, Pseudonyms(KEY), Options())
    assert dataset.PixelData == b"\1\2"
