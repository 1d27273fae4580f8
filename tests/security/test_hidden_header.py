"""Text put into every attribute of the standard, at the top and in sequences, is in no copy: it is removed."""

from __future__ import annotations

from pathlib import Path
from struct import pack

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.datadict import DicomDictionary, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian

from tests.data.builders import make_dicom, random_pixels, shipped
from tests.data.hiding import STUDY, TEXT, copied, has_text


def attributes() -> list[tuple[int, str, str]]:
    """Every attribute of the standard that can hold text, with each VR that it may have."""
    return [
        (tag, vr, keyword)
        for tag, (vrs, _, _, retired, keyword) in DicomDictionary.items()
        for vr in vrs.split(" or ")
        if vr in ("LO", "SH", "CS", "LT", "ST", "UT", "UC", "UR", "PN", "AE", "OB", "OW", "OF", "OD", "OL", "OV", "UN")
        and tag >> 16 not in (0, 2, 4, 0x7FE0)
        and keyword not in _NOT_PLANTED
    ]


# What makes the file what it is, and what the copy says of itself.
_NOT_PLANTED = ("SpecificCharacterSet", "Modality", "PhotometricInterpretation", "BurnedInAnnotation", "ImageType")
_FULL = ("ReferencedImageSequence", "SharedFunctionalGroupsSequence", "SegmentSequence", "ModalityLUTSequence")


def planted(vr: str) -> object:
    if vr in ("OB", "OW", "OF", "OD", "OL", "OV", "UN"):
        return TEXT * 2
    return "ZYXWV" if vr == "CS" else "Zyxwv Anna"


def item() -> Dataset:
    """Everything at once, where a sequence can have it."""
    found = Dataset()
    for tag, vr, _ in attributes():
        found.add(DataElement(tag, vr, planted(vr), validation_mode=0))
    found.add_new(0x00990010, "LO", "Zyxwv")
    found.add_new(0x00991001, "UT", "Zyxwv")
    found.PixelData = TEXT
    found["PixelData"].VR = "OB"
    return found


@pytest.mark.parametrize("syntax", ["explicit", pytest.param("implicit", marks=pytest.mark.slow)])
def test_every_attribute_of_the_standard(tmp_path: Path, syntax: str) -> None:
    """At the top, in every sequence of the standard (an eighth of them where time counts), and in one of codes."""
    path = make_dicom(tmp_path / "a.dcm", random_pixels(1), **STUDY)
    dataset = dcmread(path)
    nested = item()
    for tag, vr, keyword in attributes():
        if keyword not in dataset:
            dataset.add(DataElement(tag, vr, planted(vr), validation_mode=0))
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        chosen = syntax == "implicit" or tag % 8 == 0 or keyword in _FULL
        if vr == "SQ" and chosen and tag >> 16 > 4 and keyword != "DirectoryRecordSequence" and tag not in dataset:
            dataset.add_new(tag, "SQ", Sequence([nested] if keyword in _FULL else [code(), named()]))
    if syntax == "implicit":
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    copy, why = copied(path)
    assert copy is not None, why
    found = [(element.keyword, str(element.value)[:60]) for element in dcmread(copy) if "zyxw" in str(element).lower()]
    assert not found and not has_text(copy)
    np.testing.assert_array_equal(dcmread(copy).pixel_array, random_pixels(1))


def code(value: str = "Zyxwv", scheme: str = "99ANNA", meaning: str = "Zyxwv Anna") -> Dataset:
    found = Dataset()
    found.CodeValue, found.CodingSchemeDesignator, found.CodeMeaning = value, scheme, meaning
    found.CodingSchemeVersion = "Zyxwv"
    return found


def named() -> Dataset:
    found = Dataset()
    for keyword in ("LUTExplanation", "SequenceName", "ContentDescription", "StackID", "RescaleType", "SegmentLabel"):
        setattr(found, keyword, "Zyxwv")
    return found


def test_codes_get_the_meaning_that_is_known_and_unknown_ones_go(tmp_path: Path) -> None:
    region = code("816094009", "SCT", "Zyxwv")
    region.AnatomicRegionModifierSequence = Sequence([code("7771000", "SCT", "Zyxwv"), code()])
    path = make_dicom(
        tmp_path / "a.dcm",
        random_pixels(1),
        **STUDY,
        AnatomicRegionSequence=Sequence([region, code()]),
        ViewCodeSequence=Sequence([code("T-D3000", "SRT", "Zyxwv")]),
        PrimaryAnatomicStructureSequence=Sequence([code()]),
    )
    copy, why = copied(path)
    assert copy is not None, why
    dataset = dcmread(copy)
    (kept,) = dataset.AnatomicRegionSequence
    (side,) = kept.AnatomicRegionModifierSequence
    assert (kept.CodeMeaning, side.CodeMeaning) == ("Thorax", "Left")
    (view,) = dataset.ViewCodeSequence
    assert (view.CodeValue, view.CodingSchemeDesignator) == ("T-D3000", "SRT") and view.CodeMeaning != "Zyxwv"
    assert "PrimaryAnatomicStructureSequence" not in dataset and not has_text(copy)


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("Rows", "LO", "Zyxwv Anna"),  # no numbers
        ("SamplesPerPixel", "LO", "Zyxwv Anna"),
        ("KVP", "LO", "Zyxwv Anna"),
        ("SmallestImagePixelValue", "US", list(np.frombuffer(TEXT, "<u2"))),  # more numbers than there can be
        ("LargestImagePixelValue", "SS", list(np.frombuffer(TEXT, "<i2"))),
        ("WindowCenter", "LT", "Zyxwv Anna"),
        ("SOPClassUID", "UI", "1.2.840.10008.Zyxwv.Anna"),
        ("ImageType", "CS", ["ORIGINAL", "PRIMARY", "ZYXWV"]),
        ("ImageType", "CS", ["ORIGINAL", "PRIMARY", "AXIAL", "Zyxwv, Anna"]),
        ("BodyPartExamined", "CS", "ZYXWV"),
        ("LUTExplanation", "LO", "Chest\u200bZyxwv"),
        ("RescaleType", "LO", "Zyxwv"),
        ("ConvolutionKernel", "SH", "Zyxwv"),
        ("Manufacturer", "LO", "Zyxwv Medical"),
        ("SoftwareVersions", "LO", ["1", "Zyxwv"]),
    ],
)
def test_text_in_place_of_what_the_standard_has_there(tmp_path: Path, keyword: str, vr: str, value: object) -> None:
    path = make_dicom(tmp_path / "a.dcm", random_pixels(1), **STUDY)
    dataset = dcmread(path)
    copy_of = dataset.copy()
    if keyword in ("Rows", "SamplesPerPixel"):
        keyword = "ExposuresOnPlate" if keyword == "Rows" else "SeriesNumber"
    if "\u200b" in str(value):
        copy_of.SpecificCharacterSet = "ISO_IR 192"
    copy_of.add(DataElement(tag_for_keyword(keyword), vr, value, validation_mode=0))
    copy_of.save_as(path)
    copy, why = copied(path)
    assert copy is not None, why
    assert not has_text(copy)
    if keyword == "ImageType":
        assert list(dcmread(copy).ImageType)[:2] == ["ORIGINAL", "PRIMARY"]


@pytest.mark.parametrize("keyword", ["KVP", "SeriesNumber"])
def test_numbers_that_are_none(tmp_path: Path, keyword: str) -> None:
    path = make_dicom(tmp_path / "a.dcm", random_pixels(1), **STUDY)
    dataset = dcmread(path)
    setattr(dataset, keyword, "1234567890")
    dataset.save_as(path)
    path.write_bytes(path.read_bytes().replace(b"1234567890", b"Zyxwv Anna"))
    copy, why = copied(path)
    assert copy is not None, why
    assert not has_text(copy) and keyword not in dcmread(copy)


@pytest.mark.parametrize("options", [("--keep-dates",), ("--keep-full-dates",), ("--keep-uids",), ("--keep-patient",)])
def test_what_an_option_keeps_is_what_it_says(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Text behind a date, in place of a time, of a UID and of an age."""
    path = make_dicom(tmp_path / "a.dcm", random_pixels(1), **STUDY)
    dataset = dcmread(path)
    for keyword, vr, value in (
        ("AcquisitionDateTime", "DT", "20200101Zyxwv"),
        ("StudyDate", "DA", "20200101Zyxwv"),
        ("StudyTime", "TM", "Zyxwv"),
        ("FrameOfReferenceUID", "UI", "1.2.Zyxwv"),
        ("PatientAge", "AS", "Zyxwv"),
    ):
        dataset.add(DataElement(tag_for_keyword(keyword), vr, value, validation_mode=0))
    dataset.save_as(path)
    copy, why = copied(path, *options)
    assert copy is not None, why
    assert not has_text(copy)


def test_tables_and_waveforms_end_with_their_last_value(tmp_path: Path) -> None:
    wave = Dataset()
    wave.NumberOfWaveformChannels, wave.NumberOfWaveformSamples, wave.WaveformBitsAllocated = 2, 3, 16
    wave.WaveformData, wave.MultiplexGroupLabel = bytes(12) + TEXT, "Zyxwv"
    wave.add_new("WaveformPaddingValue", "OW", TEXT)
    wave["WaveformData"].VR = "OW"
    wave.UnformattedTextValue = "Zyxwv"
    table = Dataset()
    table.LUTDescriptor, table.LUTExplanation = [4, 0, 16], "Zyxwv"
    table.add_new("LUTData", "OW", bytes(8) + TEXT)
    colours = {}
    for name in ("Red", "Green", "Blue"):
        colours[f"{name}PaletteColorLookupTableDescriptor"] = [2, 0, 16]
        colours[f"{name}PaletteColorLookupTableData"] = b"\1\2\3\4" + TEXT
        colours[f"Segmented{name}PaletteColorLookupTableData"] = pack("<HHHH", 0, 1, 7, 1)[:6] + b"\7\7" + TEXT
    colours["AlphaPaletteColorLookupTableDescriptor"] = [2, 0, 8]
    colours["AlphaPaletteColorLookupTableData"] = b"\1\2" + TEXT
    path = make_dicom(
        tmp_path / "a.dcm", random_pixels(1), **STUDY, **colours, WaveformSequence=Sequence([wave]),
        ModalityLUTSequence=Sequence([table]), ICCProfile=TEXT,
    )  # fmt: skip
    copy, why = copied(path)
    assert copy is not None, why
    assert not has_text(copy)
    dataset = dcmread(copy)
    assert len(dataset.WaveformSequence[0].WaveformData) == 12 and dataset.RedPaletteColorLookupTableData == b"\1\2\3\4"
    assert len(dataset.ModalityLUTSequence[0].LUTData) == 8
    assert dataset.SegmentedRedPaletteColorLookupTableData == pack("<HHH", 0, 1, 7)


def test_reports_and_documents(tmp_path: Path) -> None:
    """Without pixels: text of a report, a document in the file, and what follows the last element."""
    for name in ("reportsi.dcm", "test-SR.dcm"):
        dataset = dcmread(shipped(name))
        for element in dataset.iterall():
            if element.VR in ("UT", "LO", "ST"):
                element.value = "Zyxwv Anna"
        dataset.EncapsulatedDocument, dataset.DocumentTitle = TEXT, "Zyxwv"
        folder = tmp_path / name
        folder.mkdir()
        dataset.save_as(folder / "a.dcm")
        content = (folder / "a.dcm").read_bytes()
        (folder / "a.dcm").write_bytes(content + pack("<HH2sHL", 0xFFFC, 0xFFFC, b"OB", 0, len(TEXT)) + TEXT)
        copy, why = copied(folder / "a.dcm")
        assert copy is not None, why
        assert not has_text(copy)


def test_terms_of_the_standard_stay_and_those_of_devices_on_request(tmp_path: Path) -> None:
    """What images are read and sorted by is still there."""
    kept = {
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "PhotometricInterpretation": "MONOCHROME2", "Modality": "CT",
        "BodyPartExamined": "ABDOMEN", "PatientPosition": "HFS", "RescaleType": "HU", "ConvolutionKernel": "B30f",
        "Manufacturer": "SIEMENS", "ScanOptions": "HELICAL MODE", "ViewPosition": "MLO", "ImageLaterality": "L",
        "LossyImageCompressionMethod": "ISO_10918_1", "SpecificCharacterSet": "ISO_IR 100", "KVP": "120",
    }  # fmt: skip
    device = {"ManufacturerModelName": "Avanto_fit 4711", "SoftwareVersions": "syngo CT 2012B"}
    for name, options in (("plain", ()), ("device", ("--keep-device",))):
        (tmp_path / name).mkdir()
        path = make_dicom(tmp_path / name / "a.dcm", random_pixels(1), **STUDY, **kept, **device)
        copy, why = copied(path, *options)
        assert copy is not None, why
        dataset = dcmread(copy)
        for keyword, value in kept.items():
            assert dataset[keyword].value == value, keyword
        for keyword, value in device.items():
            assert dataset.get(keyword) == (value if options else None)


@pytest.mark.parametrize("keyword", ["NumberOfFrames", "Rows"])
def test_headers_that_cannot_be_read_are_refused_with_a_reason(tmp_path: Path, keyword: str) -> None:
    path = make_dicom(tmp_path / "a.dcm", random_pixels(1), **STUDY, NumberOfFrames=1)
    dataset = dcmread(path)
    del dataset[keyword]
    dataset.add(DataElement(keyword, "LO", "Zyxwv", validation_mode=0))
    dataset.save_as(path)
    copy, why = copied(path)
    assert copy is None and why.startswith("damaged")
