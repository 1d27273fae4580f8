"""What a result takes over from the image that it is about: patient, study, and how its pixels lie in space.

Only the elements named here are read, so comments and other free text of the image stay where they are. What they hold
belongs into the objects that `report.dicom_results` writes for the image's owner, and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from enum import Enum
from pathlib import Path

from pydicom import Dataset
from pydicom.valuerep import PersonName

from mpc_imaging.data.header import open_header, refusing
from mpc_imaging.data.limits import MAX_FRAMES
from mpc_imaging.errors import MPCImagingError

_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_DEIDENTIFIED = ("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence")
# Type 2 (PS3.3 C.7.1.1, C.7.2.1), and how much they hold: what does not fit is left empty, which the standard allows.
_LENGTHS = {"IssuerOfPatientID": 64, "StudyID": 16, "AccessionNumber": 16}
_DATES = ("PatientBirthDate", "StudyDate")
KEYWORDS = (*_UIDS, *_DEIDENTIFIED, *_LENGTHS, *_DATES, "PatientName", "PatientID", "PatientSex", "StudyTime")
KEYWORDS += ("ReferringPhysicianName", "NumberOfFrames", "Rows", "Columns")

_UID = re.compile(r"([01]\.[1-3]?\d|2\.(0|[1-9]\d*))(\.(0|[1-9]\d*))*", re.ASCII)  # PS3.5 9.1
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")
_NAME_GROUPS, _NAME_PARTS = 3, 5  # of a person's name (PS3.5 6.2.1)
_ORIENTATIONS = frozenset("ALPRHF")
_UNDECODABLE = "\ufffd"


class Refusal(Enum):
    """Why no result object can be written for an image; its prediction is in the table all the same."""

    identity = "its header lacks a valid patient's name or ID, or a valid UID of its study, series or instance"
    header = "its header lacks what such a result needs, or breaks the standard there"
    kind = "not of a standard kind of image, so that a result cannot refer to it"
    frame = "it has no such frame"
    frames = "it has several frames though its kind has one: results cannot refer to one of them"
    several = "the images are not of one patient, study and series: write a result for each series"
    positions = "its frames have no positions in space: write one result for each frame"
    shape = "the mask is not as large as the images: one plane for each image or frame, with its rows and columns"


class ResultError(MPCImagingError):
    """An image for which no result can be written. The message carries nothing from its header."""

    def __init__(self, reason: Refusal) -> None:
        self.reason = reason
        super().__init__(reason.value)


def read_sources(paths: Path | Sequence[Path], keywords: Iterable[str] = ()) -> list[Dataset]:
    """Read what results need of one image, or of the images of one series; ``keywords``: further elements, as they are.

    All text is decoded. Elements of type 2 that are missing, or that DICOM does not allow to be as they are, are empty.

    Raises:
        ImageError: a file is missing, damaged or not DICOM.
        ResultError: the images cannot be referred to, or are of different series.
    """
    further = tuple(keywords)
    sources = [_read(path, further) for path in ([paths] if isinstance(paths, Path) else paths)]
    common = {(source.PatientID, source.StudyInstanceUID, source.SeriesInstanceUID) for source in sources}
    if len(common) != 1:
        raise ResultError(Refusal.several)
    return sources


def frame_number(source: Dataset, frame: int | None) -> list[int] | None:
    """How DICOM refers to a frame that counts from 0: its number from 1; None for an image of one frame, or for all.

    Raises:
        ResultError: there is no such frame, or the kind of image has no frames that can be referred to.
    """
    if frame is not None and not 0 <= frame < source.NumberOfFrames:
        raise ResultError(Refusal.frame)
    if frame is None or source.NumberOfFrames == 1:
        return None
    from highdicom.utils import is_multiframe_image

    with suppress(KeyError):  # a retired kind that highdicom does not know
        if not is_multiframe_image(source):
            raise ResultError(Refusal.frames)
    return [frame + 1]


def orientation(source: Dataset) -> list[str]:
    """The Patient Orientation of an image that was read with it, or empty: it is of type 2C."""
    stated = source.get("PatientOrientation") or []
    stated = [stated] if isinstance(stated, str) else list(stated)
    return stated if len(stated) == 2 and all(set(way) <= _ORIENTATIONS for way in stated) else []


def _read(path: Path, further: Sequence[str]) -> Dataset:
    with open_header(path, [*KEYWORDS, *further]) as header, refusing():
        header.elements.walk(lambda dataset, element: None)  # decodes all text, also in sequences
        source = Dataset()
        for keyword in further:
            if keyword in header.elements:
                source[keyword] = header.elements[keyword]
        found = {keyword: header.elements.get(keyword) for keyword in KEYWORDS}
        found |= {"FrameCount": int(found["NumberOfFrames"] or 1)}
    _identify(source, found)
    _describe(source, found)
    return source


def _identify(source: Dataset, found: dict[str, object]) -> None:
    """Copy what the image and its patient are known by; there is no result without."""
    for keyword in _UIDS:
        uid = _text(found[keyword])
        if not _UID.fullmatch(uid) or len(uid) > 64:
            raise ResultError(Refusal.identity)
        setattr(source, keyword, uid)
    if "Image Storage" not in source.SOPClassUID.name:
        raise ResultError(Refusal.kind)
    name, patient = _text(found["PatientName"]), _text(found["PatientID"])
    if not _allowed(patient, 64) or not _is_name(name):
        raise ResultError(Refusal.identity)
    source.PatientName, source.PatientID = PersonName(name), patient
    if not 1 <= found["FrameCount"] <= MAX_FRAMES:
        raise ResultError(Refusal.frame)
    source.NumberOfFrames = found["FrameCount"]


def _describe(source: Dataset, found: dict[str, object]) -> None:
    source.SpecificCharacterSet = "ISO_IR 192"
    source.Rows, source.Columns = found["Rows"] or 0, found["Columns"] or 0
    for keyword, length in _LENGTHS.items():
        text = _text(found[keyword])
        setattr(source, keyword, text if _allowed(text, length) else "")
    if not source.IssuerOfPatientID:
        del source.IssuerOfPatientID  # type 3
    for keyword in _DATES:
        setattr(source, keyword, _date(_text(found[keyword])))
    time = _text(found["StudyTime"]).replace(":", "")
    source.StudyTime = time if _TIME.fullmatch(time) else ""
    sex, physician = _text(found["PatientSex"]), _text(found["ReferringPhysicianName"])
    source.PatientSex = sex if sex in ("M", "F", "O") else ""
    source.ReferringPhysicianName = PersonName(physician) if _is_name(physician) else ""
    # Who removed the identity must say how (types 1C).
    if found["PatientIdentityRemoved"] == "YES" and (found[_DEIDENTIFIED[1]] or found[_DEIDENTIFIED[2]]):
        for keyword in _DEIDENTIFIED:
            if found[keyword]:
                setattr(source, keyword, found[keyword])


def _text(value: object) -> str:
    """A single value as text without padding; text that is never allowed for several values."""
    return "" if value is None else str(value).strip(" \0") if isinstance(value, str | PersonName) else _UNDECODABLE


def _allowed(text: str, length: int) -> bool:
    return len(text) <= length and text.isprintable() and "\\" not in text and _UNDECODABLE not in text


def _is_name(text: str) -> bool:
    groups = text.split("=")
    return len(groups) <= _NAME_GROUPS and all(_allowed(g, 64) and g.count("^") < _NAME_PARTS for g in groups)


def _date(text: str) -> str:
    """YYYYMMDD, also of the YYYY.MM.DD that ACR-NEMA wrote; empty for anything else."""
    compact = text.replace(".", "") if len(text) == 10 else text
    with suppress(ValueError):
        if len(compact) == 8 and compact.isdecimal() and compact.isascii():
            datetime.strptime(compact, "%Y%m%d")
            return compact
    return ""
