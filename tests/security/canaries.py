"""DICOM folders like PACS exports, whose headers, names of files and folders, and manifests are full of canaries.

A canary is a made-up name, date, number or text that nothing but these folders holds.
"""

from __future__ import annotations

import csv
import random
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import DataElement, Dataset, config, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence

from mpc_imaging.data.phantoms import phantom
from tests.security.searcher import Canary

CLASSES = ("clear", "opacity")
# A canary goes into each, as long as its VR allows.
_PLANTED = """
PatientName PatientID PatientBirthDate PatientBirthTime OtherPatientNames OtherPatientIDs PatientBirthName
PatientMotherBirthName PatientAddress PatientTelephoneNumbers PatientComments AdditionalPatientHistory Occupation
MedicalAlerts PatientReligiousPreference IssuerOfPatientID ResponsiblePerson LastMenstrualDate MilitaryRank EthnicGroup
AccessionNumber StudyID StudyDate StudyTime StudyDescription SeriesDate SeriesTime SeriesDescription ContentDate
ContentTime AcquisitionDate AcquisitionTime AcquisitionDateTime InstanceCreationDate StudyInstanceUID SeriesInstanceUID
SOPInstanceUID FrameOfReferenceUID IrradiationEventUID InstanceCreatorUID SynchronizationFrameOfReferenceUID
ConcatenationUID InstitutionName InstitutionAddress InstitutionalDepartmentName StationName DeviceSerialNumber DeviceUID
PlateID DetectorID GantryID DateOfLastCalibration TimeOfLastCalibration ReferringPhysicianName PerformingPhysicianName
OperatorsName RequestingPhysician RequestingService NameOfPhysiciansReadingStudy PhysiciansOfRecord AdmissionID
AdmittingDate CurrentPatientLocation VisitComments ServiceEpisodeID RequestedProcedureID ImagingServiceRequestComments
ImageComments ProtocolName AcquisitionComments DerivationDescription IdentifyingComments InterpretationText
AcquisitionDeviceProcessingDescription RetrieveURL RetrieveAETitle PixelDataProviderURL ImageID
"""


@dataclass
class Aviary:
    """Draws canaries, and remembers all. Their words have at least eight letters, and no program knows them."""

    random: random.Random
    owner: str = ""
    all: list[Canary] = field(default_factory=list)

    def keep(self, where: str, text: str, kind: str = "text") -> str:
        self.all.append(Canary(where, text, kind, self.owner))
        return text

    def _word(self, vowels: str = "aeiouäöü") -> str:
        pair = lambda: self.random.choice("bdfgklmnprstvwz") + self.random.choice(vowels)  # noqa: E731
        return "".join(pair() for _ in range(5)).capitalize()

    def words(self, where: str, count: int = 2, vowels: str = "aeiouäöü") -> str:
        return self.keep(where, " ".join(self._word(vowels) for _ in range(count)))

    def name(self, where: str) -> str:
        """Family, given and middle name, then the same in two other scripts."""
        latin = [self._word() for _ in range(3)]
        other = ["".join(chr(self.random.randrange(0x4E10, 0x9000)) for _ in range(5)) for _ in range(2)]
        third = ["".join(chr(self.random.randrange(0x0391, 0x03C9)) for _ in range(8)) for _ in range(2)]
        self.all += [Canary(where, part, owner=self.owner) for part in (*latin, *other, *third)]
        return self.keep(where, "=".join(map("^".join, (latin, other, third))))

    def code(self, where: str) -> str:
        return self.keep(where, f"{self.random.choice('QXYZ')}{self.random.randrange(10**10, 10**11)}K")

    def date(self, where: str) -> str:
        month, day = self.random.randrange(1, 13), self.random.randrange(1, 29)
        text = f"{self.random.randrange(1931, 1959)}{month:02}{day:02}"
        known = {canary.text for canary in self.all}
        return self.date(where) if text in known else self.keep(where, text, "date")

    def time(self, where: str) -> str:
        hour, minute, second = (self.random.randrange(n) for n in (24, 60, 60))
        return self.keep(where, f"{hour:02}{minute:02}{second:02}.{self.random.randrange(10**5, 10**6)}", "time")

    def value(self, where: str, vr: str) -> str:
        """A canary that an element of this VR can hold."""
        if vr == "DT":
            return self.date(where) + self.time(where)
        if vr == "UR":
            return f"https://pacs.invalid/{self.code(where)}"
        kinds = {"PN": self.name, "DA": self.date, "TM": self.time, "UI": self.uid}
        return kinds.get(vr, self.code if vr in ("SH", "CS", "AE") else self.words)(where)

    def uid(self, where: str) -> str:
        return self.keep(where, f"2.25.{uuid.UUID(int=self.random.getrandbits(128), version=4).int}", "uid")


def export(
    folder: Path, aviary: Aviary, splits: dict[str, int], seed: int, broken: bool = True, frames: int = 1
) -> Path:
    """Write a folder of phantoms whose every header tells of one more patient; returns it.

    ``splits``: how many good images of each. ``broken``: also files of each kind that is refused or left out.
    ``frames``: in each of the good ones.
    """
    common = Dataset()
    common.file_meta = FileMetaDataset()
    plant(common, aviary)
    rows: list[dict[str, str]] = []
    index = seed * 100
    for split, count in splits.items():
        for _ in range(count):
            label = CLASSES[index % 2]
            rows.append(_image(folder, aviary, common, index, split, label))
            index += 1
    for row in rows if frames > 1 else ():
        ds = dcmread(folder / row["file"])
        ds.NumberOfFrames, ds.PixelData = frames, ds.PixelData * frames
        ds.save_as(folder / row["file"])
    if broken:
        rows += _broken(folder, aviary, common, rows, index)
    with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return folder


def _image(folder: Path, aviary: Aviary, common: Dataset, index: int, split: str, label: str) -> dict[str, str]:
    """Write one image; returns its row of the manifest."""
    ds = phantom("test", index, seed=5)
    for element in common:
        ds[element.tag] = element
    ds.preamble = common.preamble
    ds.file_meta.SourceApplicationEntityTitle = common.file_meta.SourceApplicationEntityTitle
    ds.PatientName, ds.PatientID = aviary.words("PatientName of one image", 1), aviary.code("PatientID of one image")
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = aviary.uid("SOPInstanceUID of one image")
    # As an export names its folders and files.
    file = f"{ds.PatientName}_{ds.PatientID}/{aviary.words('name of a file', 1)}_{index}.dcm"
    for part in (file, Path(file).name):  # as wholes, of which hashes could be taken
        aviary.keep("path of a file", part)
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(folder / file, enforce_file_format=True)
    behind = aviary.words("behind the data set", 1).encode()
    with (folder / file).open("ab") as stream:  # as some devices leave it
        stream.write(b"\xfc\xff\xfc\xffOB\0\0" + (64).to_bytes(4, "little") + behind.ljust(64))
    return {
        "file": file,
        "label": label,
        "patient": aviary.code("column patient"),
        "split": split,
        "site": common.StationName,
        "ethnicity": common.EthnicGroup,
    }


def plant(ds: Dataset, aviary: Aviary) -> None:
    """Fill a header, but for what decides the values of pixels."""
    ds.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _PLANTED.split():
        setattr(ds, keyword, aviary.value(keyword, dictionary_VR(keyword)))
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.SourceApplicationEntityTitle = aviary.code("SourceApplicationEntityTitle")
    ds.BurnedInAnnotation = "YES"
    block = ds.private_block(0x0011, aviary.words("private creator", 1), create=True)
    block.add_new(0x01, "LO", aviary.words("private text"))
    block.add_new(0x02, "UN", aviary.words("private octets").encode("utf-16-le"))
    _plant_nested(ds, aviary)
    for element, vr, value in (
        (0x10, "US", 8), (0x11, "US", 8), (0x40, "CS", "G"), (0x50, "SS", [1, 1]), (0x100, "US", 1), (0x102, "US", 0),
        (0x22, "LO", aviary.words("OverlayDescription")), (0x1500, "LO", aviary.words("OverlayLabel")),
        (0x3000, "OW", aviary.words("OverlayData", 4).encode().ljust(64)),
    ):  # fmt: skip
        ds.add_new((0x6000, element), vr, value)
    ds.preamble = aviary.words("preamble", 4).encode().ljust(128)[:128]


def _plant_nested(ds: Dataset, aviary: Aviary) -> None:
    deepest, nested, request = Dataset(), Dataset(), Dataset()
    deepest.PersonName = aviary.name("PersonName, nested twice")
    deepest.TextValue = aviary.words("TextValue, nested twice")
    nested.PersonIdentificationCodeSequence = Sequence([deepest])
    nested.ReferencedSOPInstanceUID = aviary.uid("ReferencedSOPInstanceUID, nested")
    request.AccessionNumber = aviary.code("AccessionNumber, nested")
    request.ScheduledProcedureStepDescription = aviary.words("ScheduledProcedureStepDescription, nested")
    ds.ReferencedStudySequence = Sequence([nested])
    ds.RequestAttributesSequence = Sequence([request])


def _against_the_standard(path: Path, aviary: Aviary) -> None:
    """Values that their VRs do not allow, which libraries like to quote; the pixels are fine."""
    ds = dcmread(path)
    with config.disable_value_validation():
        for keyword in ("StudyDate", "StudyTime", "PatientBirthDate", "AccessionNumber", "StudyID", "PatientSex"):
            wrong = aviary.words(f"{keyword}, a wrong value", 3)
            ds[keyword] = DataElement(keyword, dictionary_VR(keyword), wrong)
        ds.StudyInstanceUID = f"{aviary.uid('StudyInstanceUID, a wrong value')}.{aviary.words('behind a UID', 1)}"
        ds.PatientName = "^".join(aviary.words("PatientName, too long", 3) for _ in range(4))
        ds.save_as(path)


def _broken(
    folder: Path, aviary: Aviary, common: Dataset, good: list[dict[str, str]], index: int
) -> list[dict[str, str]]:
    """A file for each reason of being left out, one that the quality check finds, and one that is hard to report on."""
    rows = [_image(folder, aviary, common, index + k, "test", CLASSES[k % 2]) for k in range(7)]
    cut, text, unlabelled, missing, lying, blank, unruly = rows
    _against_the_standard(folder / unruly["file"], aviary)
    ds = dcmread(folder / blank["file"])
    ds.PixelData = bytes(len(ds.PixelData))
    ds.save_as(folder / blank["file"])
    path = folder / cut["file"]
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 2])
    (folder / text["file"]).write_text(aviary.words("a file that is no image", 4))
    unlabelled["label"] = ""
    (folder / missing["file"]).unlink()
    path = folder / lying["file"]
    # Values that no header may have: pydicom quotes them.
    wrong = aviary.words("Rows, a wrong value", 1, "aeiou").encode()
    octets = path.read_bytes()
    at = octets.index(b"\x28\x00\x10\x00US\x02\x00")
    path.write_bytes(octets[:at] + b"\x28\x00\x10\x00IS" + len(wrong).to_bytes(2, "little") + wrong + octets[at + 10 :])
    first = good[0]
    copy = first | {"file": f"{aviary.words('name of a copy', 1)}.dcm", "patient": aviary.words("column patient")}
    (folder / copy["file"]).write_bytes((folder / first["file"]).read_bytes())
    return [*rows, copy, copy | {"patient": aviary.words("column patient")}]
