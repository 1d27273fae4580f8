"""De-identification of DICOM headers by the Basic Application Level Confidentiality Profile (PS3.15, Annex E).

The table of attributes and actions is that of `dicomanonymizer`; it is applied here to nested sequences too, which
that library's own loop leaves out. Pseudonyms are keyed hashes: with the same key the same patient, study and instance
get the same ones in every run; without the key nobody finds the original by trying.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from importlib import import_module

from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from mpc_imaging.errors import ConfigError

# Of the standard's edition: Table E.1-1 as the library has it.
EDITION = "2024b"
_TABLE = f"dicomanonymizer.dicom_anonymization_databases.dicomfields_{EDITION}"

# X: remove; Z: empty; D: a dummy; U: another UID; K: keep. Where the table leaves a choice by the type of an attribute,
# the last one is always valid: an attribute that may be absent may be empty, one that may be empty may have a dummy.
_ACTIONS = {
    "X_TAGS": "X",
    "Z_TAGS": "Z",
    "D_TAGS": "D",
    "U_TAGS": "U",
    "Z_D_TAGS": "D",
    "X_Z_TAGS": "Z",
    "X_D_TAGS": "D",
    "X_Z_D_TAGS": "D",
    "X_Z_U_STAR_TAGS": "K",  # sequences of references, whose UIDs are replaced inside
}

# Retain Device Identity Option (code 113109): attributes that the table keeps then and that images have.
_DEVICE = frozenset(
    (
        *(0x00080070, 0x00081010, 0x00081090, 0x00181000, 0x00181002, 0x00181004, 0x00181005, 0x00181007, 0x00181008),
        *(0x0018100A, 0x0018100B, 0x00181020, 0x0018700A, 0x00189074, 0x00400241, 0x00400242, 0x00321020, 0x30100003),
    )
)

# The options, as (code value, meaning) of code scheme DCM.
_BASIC = ("113100", "Basic Application Confidentiality Profile")
_CLEAN_PIXELS = ("113101", "Clean Pixel Data Option")
_MODIFIED_DATES = ("113107", "Retain Longitudinal Temporal Information Modified Dates Option")
_KEPT_DEVICE = ("113109", "Retain Device Identity Option")

_DUMMIES = {
    **dict.fromkeys(("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UT"), "REMOVED"),
    **dict.fromkeys(("DS", "IS"), "0"),
    **dict.fromkeys(("FD", "FL", "SL", "SS", "UL", "US", "SV", "UV", "AT"), 0),
    **dict.fromkeys(("OB", "OD", "OF", "OL", "OV", "OW", "UN"), b"\0\0"),
    "AS": "000Y",
    "CS": "REMOVED",
    "DA": "19000101",
    "DT": "19000101000000",
    "TM": "000000",
    "UR": "http://removed.invalid",
}
MAX_SHIFT_DAYS = 3650


@dataclass(frozen=True)
class Options:
    """What departs from the plain profile. keep_dates: shifted by a number of days that is the patient's own."""

    keep_dates: bool = False
    keep_device: bool = False


class Pseudonyms:
    """Keyed hashes (HMAC-SHA256) of what identifies; the key, 32 bytes, stays with the hospital."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ConfigError([f"a key of {len(key)} bytes; write 32 random ones: openssl rand -out FILE 32"])
        self._key = key

    def _digest(self, kind: str, value: str) -> bytes:
        return hmac.digest(self._key, f"{kind}\0{value.strip()}".encode(), hashlib.sha256)

    def name(self, kind: str, value: str) -> str:
        """A pseudonym of 20 letters and digits; ``kind`` keeps patients apart from studies."""
        return self._digest(kind, value).hex()[:20]

    def uid(self, value: str) -> str:
        """A UID below 2.25, which needs no registration."""
        return f"2.25.{int.from_bytes(self._digest('uid', value)[:16])}"

    def days(self, patient: str) -> int:
        """By how many days the dates of a patient go back: 1 to `MAX_SHIFT_DAYS`."""
        return 1 + int.from_bytes(self._digest("days", patient)[:8]) % MAX_SHIFT_DAYS


def deidentify(dataset: Dataset, pseudonyms: Pseudonyms, options: Options, clean_pixels: bool = False) -> None:
    """Apply the profile to a dataset as read from a file, in place, with a new preamble and meta header.

    clean_pixels: that its pixels were cleaned is then recorded. Pixels are not looked at here: see `burned_in`.
    """
    patient = str(dataset.get("PatientID", "") or dataset.get("PatientName", "") or dataset.get("StudyInstanceUID", ""))
    _Walk(pseudonyms, options, pseudonyms.days(patient)).apply(dataset)
    name = pseudonyms.name("patient", patient)
    dataset.PatientID, dataset.PatientName = name, name
    _record(dataset, options, clean_pixels)
    syntax = dataset.file_meta.TransferSyntaxUID
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    # A preamble may hold the header of another format, and with it the patient's name.
    dataset.preamble = b"\0" * 128


class _Walk:
    def __init__(self, pseudonyms: Pseudonyms, options: Options, days: int) -> None:
        self._pseudonyms, self._options, self._days = pseudonyms, options, days

    def apply(self, dataset: Dataset) -> None:
        for tag in list(dataset.keys()):
            action = _action(tag)
            if action == "X" or not _known(tag):
                kept = self._options.keep_dates and _known(tag) and dictionary_VR(tag) in ("DA", "DT", "TM")
                if not kept and not self._keeps(tag):
                    del dataset[tag]
                    continue
            self._change(dataset[tag], action)

    def _keeps(self, tag: BaseTag) -> bool:
        return self._options.keep_device and int(tag) in _DEVICE

    def _change(self, element: DataElement, action: str) -> None:
        if self._keeps(element.tag):
            return
        if element.VR in ("DA", "DT", "TM") and self._options.keep_dates:
            element.value = _shifted(element, self._days)
        elif element.VR == "UI" and (action in "UDZ" or _is_reference(element)):
            element.value = self._uids(element)
        elif element.VR == "SQ" and action in "UK":
            for item in element.value:
                self.apply(item)
        elif element.VR == "SQ":
            element.value = Sequence()
        elif action == "Z":
            element.clear()
        elif action in "DX":
            element.value = _DUMMIES[element.VR]

    def _uids(self, element: DataElement) -> str | list[str]:
        if element.is_empty:
            return ""
        values = [element.value] if element.VM == 1 else element.value
        uids = [self._pseudonyms.uid(str(value)) for value in values]
        return uids[0] if element.VM == 1 else uids


@functools.cache
def _table() -> dict[int, str]:
    table = import_module(_TABLE)
    return {
        group << 16 | element: action
        for name, action in _ACTIONS.items()
        for group, element, *mask in getattr(table, name)
        if not mask
    }


def _action(tag: BaseTag) -> str:
    """What the profile does with an attribute; what it does not name, it keeps."""
    # Curves and overlays of any number may show text; groups of odd number are anybody's; padding means nothing.
    if tag.is_private or tag.group >> 8 in (0x50, 0x60) or tag == 0xFFFCFFFC:
        return "X"
    return _table().get(int(tag), "K")


def _known(tag: BaseTag) -> bool:
    """Whether the standard has this attribute: of others nobody knows what they say."""
    return bool(keyword_for_tag(tag))


def _is_reference(element: DataElement) -> bool:
    """Whether a UID that the table does not name is somebody's own, not one of the standard."""
    values = [] if element.is_empty else [element.value] if element.VM == 1 else element.value
    return any(not str(value).startswith("1.2.840.10008.") for value in values)


def _shifted(element: DataElement, days: int) -> str | list[str]:
    """Dates by so many days earlier; times as they are; what is no date becomes a dummy."""
    values = [] if element.is_empty else [element.value] if element.VM == 1 else list(element.value)
    if element.VR == "TM":
        return element.value
    moved = []
    for value in map(str, values):
        try:
            day = date(int(value[:4]), int(value[4:6]), int(value[6:8])) - timedelta(days)
            moved.append(f"{day:%Y%m%d}".zfill(8) + value[8:])
        except (ValueError, OverflowError):
            moved.append(_DUMMIES[element.VR])
    return moved[0] if len(moved) == 1 else moved


def _record(dataset: Dataset, options: Options, clean_pixels: bool) -> None:
    """Say in the header what was done: (0012,0062), (0012,0063), (0012,0064), (0028,0303) and (0028,0301)."""
    chosen = [
        _BASIC,
        *([_CLEAN_PIXELS] if clean_pixels else []),
        *([_MODIFIED_DATES] if options.keep_dates else []),
        *([_KEPT_DEVICE] if options.keep_device else []),
    ]
    dataset.PatientIdentityRemoved = "YES"
    names = [meaning[:64] for _, meaning in chosen]
    dataset.DeidentificationMethod = [f"mpc_imaging, DICOM PS3.15 {EDITION} Annex E", *names]
    dataset.DeidentificationMethodCodeSequence = Sequence(list(_codes(chosen)))
    dataset.LongitudinalTemporalInformationModified = "MODIFIED" if options.keep_dates else "REMOVED"
    if clean_pixels:
        dataset.BurnedInAnnotation = "NO"


def _codes(chosen: list[tuple[str, str]]) -> Iterator[Dataset]:
    for value, meaning in chosen:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
        yield code
