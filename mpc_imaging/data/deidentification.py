"""De-identification of DICOM headers by the Basic Application Level Confidentiality Profile (PS3.15, Annex E).

The table is in `profile`, and how its options clean in `cleaning`; nested sequences are walked through, too. Pseudonyms
are keyed hashes: with the same key the same patient, study and instance get the same ones in every run; without the key
nobody finds the original by trying.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import math
import re
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import UID_dictionary

from mpc_imaging.data import cleaning, lengths, terms
from mpc_imaging.data.profile import CODES, EDITION, Dates, Options, actions
from mpc_imaging.errors import ConfigError
from mpc_imaging.local_files import MAKE_KEY, read_key

__all__ = ["Dates", "Options", "Pseudonyms", "deidentify"]

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
_PIXELS = 0x7FE0  # the group of pixel data
_KINDS = (  # VRs of one kind can stand for each other
    frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN")),
    frozenset(("US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "IS", "DS", "AT")),
    frozenset(("LO", "SH", "CS")),
    frozenset(("DA", "DT", "TM")),
    frozenset(("PN", "AE", "UR", "LT", "ST", "UT", "UC")),
)
_NUMBERS = _KINDS[1]
_NUMBER = re.compile(r"[0-9+. eE-]{0,16}", re.ASCII)
_MOMENT = re.compile(r"[0-9:.+ -]{0,32}", re.ASCII)
_UID = re.compile(r"[0-9]+(\.[0-9]+)*", re.ASCII)
_STANDARD_CLASS = re.compile(r"1\.2\.840\.10008\.5\.1\.4(\.[0-9]{1,3}){1,6}", re.ASCII)  # also newer than pydicom
_NEEDED_TEXTS = ("SegmentLabel",)  # a segmentation is none without them
_FORMS = {  # of what an option keeps
    **dict.fromkeys(("DA", "DT", "TM"), _MOMENT),
    "UI": _UID,
    "AS": re.compile(r"[0-9]{3}[DWMY]", re.ASCII),
}
MAX_SHIFT_DAYS = 3650


class Pseudonyms:
    """Keyed hashes (HMAC-SHA256) of what identifies; the key, 32 bytes, stays with the hospital."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ConfigError([f"a key of {len(key)} bytes; {MAKE_KEY}"])
        self._key = key

    @classmethod
    def of_file(cls, path: Path, option: str) -> Pseudonyms:
        """With the key in a file, which ``option`` names. Raises `ConfigError`."""
        return cls(read_key(path, option, private=False))

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
    """Applies the table to a dataset and to all that is nested in it."""

    def __init__(self, pseudonyms: Pseudonyms, options: Options, days: int) -> None:
        self._pseudonyms, self._options, self._days = pseudonyms, options, days

    def apply(self, dataset: Dataset, nested: bool = False, kept: bool = False) -> None:
        """Change a dataset in place. ``kept``: it is within a sequence that an option keeps, with the texts in it."""
        for tag in list(dataset.keys()):
            basic, option = actions(tag, self._options)
            if nested and tag.group == _PIXELS:  # icons: what they show nobody has looked at
                basic, option = "X", ""
            if (basic, option) != ("X", "") and not _is_sound(dataset, tag):
                # Its action is for what the standard has there: UIDs and sequences would pass as bytes.
                del dataset[tag]
            elif option and self._optional(dataset[tag], option):
                continue
            elif basic == "X" or (basic == "L" and not kept and not _keep_listed(dataset[tag])):
                del dataset[tag]
            else:
                empty = dataset[tag].is_empty
                self._basic(dataset[tag], basic, kept)
                if basic == "K" and dataset[tag].is_empty and not empty:  # of its codes none is known
                    del dataset[tag]
        lengths.cut(dataset)

    def _basic(self, element: DataElement, action: str, kept: bool) -> None:
        if element.VR == "UI" and (action != "K" or (_is_own(element) and not self._keeps(element))):
            element.value = self._uids(element)
        elif element.VR == "SQ" and action in "UK":
            self._inside(element, kept)
        elif element.VR == "SQ":
            element.value = Sequence()
        elif action == "Z":
            element.clear()
        elif action == "D":
            element.value = _DUMMIES[element.VR]

    def _optional(self, element: DataElement, option: str) -> bool:
        """Keep or clean an element; False if that cannot be done, so that it needs the basic action."""
        if element.is_empty:
            return option == "K"
        if option == "K":
            if element.VR == "SQ":
                self._inside(element, kept=True)
            return element.VR not in _FORMS or all(_FORMS[element.VR].fullmatch(str(one)) for one in _values(element))
        if option == "modified_dates":
            return self._shift(element)
        if element.VR == "SQ":
            return self._clean_sequence(element, option)
        if option in ("descriptors", "patient") and element.VR in cleaning.TEXT:
            kept = [clean for value in _values(element) if (clean := cleaning.words(str(value)))]
            element.value = kept if len(kept) > 1 else "".join(kept)
            return bool(kept)
        return False  # addresses of devices, bytes: what of them may stay is not to be told

    def _clean_sequence(self, element: DataElement, option: str) -> bool:
        if option == "structured":
            element.value = cleaning.content(element.value, self._options.dates is not Dates.removed)
        elif option == "graphics":
            element.value = cleaning.graphics(element.value)
        elif element.keyword.endswith("CodeSequence"):
            element.value = Sequence([code for item in element.value if (code := cleaning.coded(item))])
        self._inside(element)
        return len(element.value) > 0

    def _inside(self, element: DataElement, kept: bool = False) -> None:
        items = [item for item in element.value if self._item(item, kept)]
        if len(items) < len(element.value):
            element.value = Sequence(items)

    def _item(self, item: Dataset, kept: bool) -> bool:
        """Apply the table to an item; whether it stays. Of a code that is known the meaning is the known one."""
        code = cleaning.coded(item)
        if not kept and cleaning.take_code(item):
            if code is None:
                return False
            self.apply(item, nested=True)
            item.update(code)
        else:
            self.apply(item, nested=True, kept=kept)
        return True

    def _keeps(self, element: DataElement) -> bool:
        """Whether UIDs stay, if they are some."""
        return self._options.uids and all(_UID.fullmatch(str(value)) for value in _values(element))

    def _uids(self, element: DataElement) -> str | list[str]:
        uids = [self._pseudonyms.uid(str(value)) for value in _values(element)]
        return uids if len(uids) > 1 else "".join(uids)

    def _shift(self, element: DataElement) -> bool:
        """Dates by so many days earlier, times as they are; False for what is neither."""
        values = [str(value) for value in _values(element)]
        if element.VR == "TM":
            return all(_MOMENT.fullmatch(value) for value in values)
        if element.VR not in ("DA", "DT"):
            return False
        moved = []
        for value in values:
            try:
                day = date(int(value[:4]), int(value[4:6]), int(value[6:8])) - timedelta(self._days)
            except (ValueError, OverflowError):
                return False
            if not _MOMENT.fullmatch(value):
                return False
            moved.append(f"{day:%Y%m%d}".zfill(8) + value[8:])
        element.value = moved if len(moved) > 1 else moved[0]
        return True


def _values(element: DataElement) -> list:
    if element.is_empty:
        return []
    return [element.value] if element.VM == 1 else list(element.value)


def _is_sound(dataset: Dataset, tag: BaseTag) -> bool:
    """Whether an element can be read, is what the standard has there, and has no more numbers than that.

    pydicom leaves an element as UN that a system without a dictionary wrote, if it has 64 KB and more.
    """
    try:
        element = dataset[tag]
    except Exception:  # pydicom raises what it likes for a value that is none of its VR
        return False
    stored = set(element.VR.split(" or "))
    alike, most = _allowed(tag)
    if stored & {"IS", "DS"} and not all(_NUMBER.fullmatch(str(value)) for value in _values(element)):
        return False
    return stored <= alike and not (stored <= _NUMBERS and most < element.VM)


@functools.lru_cache(maxsize=100_000)
def _allowed(tag: BaseTag) -> tuple[frozenset[str], float]:
    """The VRs that can stand for an attribute's own, and how many values it has at most."""
    meant = frozenset(dictionary_VR(tag).split(" or "))
    most = dictionary_VM(tag).rpartition("-")[2]
    return meant.union(*(kind for kind in _KINDS if kind & meant)), int(most) if most.isdecimal() else math.inf


def _keep_listed(element: DataElement) -> bool:
    """Keep of short texts what is listed, and where it is; whether there is any."""
    values = [str(value) for value in _values(element)]
    kept = [terms.listed(element.keyword, value) for value in values]
    if not any(kept) and element.keyword not in _NEEDED_TEXTS:
        return not values
    if not all(kept):
        clean = [value if stays else _DUMMIES["CS"] for value, stays in zip(values, kept, strict=True)]
        element.value = clean if len(clean) > 1 else clean[0]
    return True


def _is_own(element: DataElement) -> bool:
    """Whether a UID that the table does not name is somebody's own, not one of the standard."""
    return any(
        str(value) not in UID_dictionary and not _STANDARD_CLASS.fullmatch(str(value)) for value in _values(element)
    )


def _record(dataset: Dataset, options: Options, clean_pixels: bool) -> None:
    """Say in the header what was done: (0012,0062), (0012,0063), (0012,0064), (0028,0303) and (0028,0301)."""
    chosen = [*options.codes(), *([CODES["pixels"]] if clean_pixels else [])]
    dataset.PatientIdentityRemoved = "YES"
    names = [meaning[:64] for _, meaning in chosen]
    dataset.DeidentificationMethod = [f"mpc_imaging, DICOM PS3.15 {EDITION} Annex E", *names]
    dataset.DeidentificationMethodCodeSequence = Sequence(list(_codes(chosen)))
    dataset.LongitudinalTemporalInformationModified = options.dates.value
    if clean_pixels:
        dataset.BurnedInAnnotation = "NO"


def _codes(chosen: list[tuple[str, str]]) -> Iterator[Dataset]:
    for value, meaning in chosen:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
        yield code
