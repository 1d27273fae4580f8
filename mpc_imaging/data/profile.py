"""The table of PS3.15 Annex E (Table E.1-1): what the profile and its options do with each attribute.

The basic action of an attribute is as `dicomanonymizer` has it. The columns of the options, which that library leaves
out, are in annex_e_options.csv: K, keep, or C, clean. Its rows are attributes of edition 2024b; its cells were read
from the edition that was current in June 2025, whose basic actions are the same for all these rows.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path

from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.tag import BaseTag

EDITION = "2024b"
_TABLE = f"dicomanonymizer.dicom_anonymization_databases.dicomfields_{EDITION}"
_OPTIONS = Path(__file__).with_name("annex_e_options.csv")

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
_DATES = ("DA", "DT", "TM")

# What the table does not name and still tells of somebody: what these hold is a name, an address or free text.
_TELLING_VRS = frozenset(("PN", "AE", "UR", "LT", "ST", "UT", "UC"))
# Short texts and code strings, of which only those stay that are made of terms of the standard.
_LISTED_VRS = frozenset(("CS", "LO", "SH"))
_BYTES = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN"))
# What bytes hold is anything. These are pixels and tables, which end with their last value (see `lengths`).
_NEEDED = frozenset(
    """
    PixelData FloatPixelData DoubleFloatPixelData WaveformData LUTData
    RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
    AlphaPaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData
    SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData
    SegmentedAlphaPaletteColorLookupTableData
    """.split()  # noqa: SIM905
)
# What tells of a device and of no particular one: kept with it, although the table does not name them.
_DEVICE = frozenset(
    """
    Manufacturer ManufacturerModelName SoftwareVersions ConvolutionKernel FilterType GridID PlateType PhosphorType
    SecondaryCaptureDeviceManufacturer SecondaryCaptureDeviceManufacturerModelName
    SecondaryCaptureDeviceSoftwareVersions DetectorManufacturerName DetectorManufacturerModelName ReceiveCoilName
    ReceiveCoilManufacturerName TransmitCoilName TransmitCoilManufacturerName PulseSequenceName TransducerData
    CollimatorGridName ReconstructionMethod ApplicationName ApplicationVersion ApplicationManufacturer
    """.split()  # noqa: SIM905
)
# Identifiers, persons, addresses and comments of other VRs that the table does not name.
_TELLING = frozenset(
    """
    PatientBirthDateInAlternativeCalendar PatientDeathDateInAlternativeCalendar PatientAlternativeCalendar
    PlacerOrderNumberProcedure FillerOrderNumberProcedure
    PlacerOrderNumberImagingServiceRequestRetired FillerOrderNumberImagingServiceRequestRetired
    BreedRegistrationNumber StrainStockNumber ComponentWelderIDs ImageID StorageMediaFileSetID PrintJobID OwnerID
    PrintQueueID NTPSourceAddress HangingProtocolCreator HangingProtocolUserGroupName ContactDisplayName
    DoseComment FrameOfReferenceTransformationComment SystemStatusComment TestResultComment InstructionText
    SubstanceAdministrationNotes EncryptedContent Signature ObjectBinaryIdentifierTrial
    ObjectDirectoryBinaryIdentifierTrial ReferenceToRecordedSound BoardingPassID ItineraryID
    ItineraryIDAssigningAuthority RouteID CarrierID AssignedLocation SourceImageIDs SequenceName
    """.split()  # noqa: SIM905, one a line is harder to read
)


class Dates(Enum):
    """What becomes of dates and times, except the patient's birth date, which always goes.

    Shifted ones go back by a number of days that is the patient's own.
    """

    removed = "REMOVED"  # as in (0028,0303)
    shifted = "MODIFIED"
    kept = "UNMODIFIED"


@dataclass(frozen=True)
class Options:
    """The options of the profile that are chosen: what departs from the plain one."""

    dates: Dates = Dates.removed
    uids: bool = False
    device: bool = False
    institution: bool = False
    patient: bool = False
    descriptors: bool = False
    structured: bool = False
    graphics: bool = False

    def columns(self) -> list[str]:
        """The columns of annex_e_options.csv that apply."""
        dates = {Dates.removed: [], Dates.shifted: ["modified_dates"], Dates.kept: ["full_dates"]}[self.dates]
        names = ("uids", "device", "institution", "patient", "descriptors", "structured", "graphics")
        return [name for name in names if getattr(self, name)] + dates

    def codes(self) -> list[tuple[str, str]]:
        """(code value, meaning) of the profile and of each option, of CID 7050 and scheme DCM."""
        return [CODES["basic"], *(code for name, code in CODES.items() if name in self.columns())]


CODES = {
    "basic": ("113100", "Basic Application Confidentiality Profile"),
    "pixels": ("113101", "Clean Pixel Data Option"),
    "graphics": ("113103", "Clean Graphics Option"),
    "structured": ("113104", "Clean Structured Content Option"),
    "descriptors": ("113105", "Clean Descriptors Option"),
    "full_dates": ("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    "modified_dates": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "patient": ("113108", "Retain Patient Characteristics Option"),
    "device": ("113109", "Retain Device Identity Option"),
    "uids": ("113110", "Retain UIDs Option"),
    "institution": ("113112", "Retain Institution Identity Option"),
}


@functools.lru_cache(maxsize=100_000)
def actions(tag: BaseTag, options: Options) -> tuple[str, str]:
    """The basic action, of X, Z, D, U, K, L, and what the options do instead: ``K``, the column that says C, or ``""``.

    An attribute that the table does not name is kept, unless the standard does not have it either, or what it holds may
    tell of somebody: dates, names, addresses, free text, bytes, and the identifiers of a list. L: if it is made of
    terms that are listed (`terms`).
    """
    # Of curves and overlays nobody knows whether they show text: cleaning them, as an option asks for, is removal.
    # Private attributes are anybody's, and padding means nothing.
    if tag.is_private or tag.group >> 8 in (0x50, 0x60) or tag == 0xFFFCFFFC or not keyword_for_tag(tag):
        return "X", ""
    key = f"{int(tag):08X}"
    basic = _basic().get(key) or _unnamed(tag)
    if key not in _basic() and dictionary_VR(tag) in _DATES:
        return "X", {Dates.removed: "", Dates.shifted: "modified_dates", Dates.kept: "K"}[options.dates]
    if options.device and keyword_for_tag(tag) in _DEVICE:
        return basic, "K"
    cells = _options().get(key, {})
    chosen = {name: cells[name] for name in options.columns() if name in cells}
    if "K" in chosen.values():
        return basic, "K"
    return basic, next(iter(chosen), "")


def _unnamed(tag: BaseTag) -> str:
    """The basic action for a standard attribute that the table does not name, dates aside."""
    keyword, vrs = keyword_for_tag(tag), set(dictionary_VR(tag).split(" or "))
    if keyword in _TELLING or vrs & _TELLING_VRS or (vrs & _BYTES and keyword not in _NEEDED):
        return "X"
    return "L" if vrs & _LISTED_VRS else "K"


@functools.cache
def _basic() -> dict[str, str]:
    table = import_module(_TABLE)
    return {
        f"{group:04X}{element:04X}": action
        for name, action in _ACTIONS.items()
        for group, element, *mask in getattr(table, name)
        if not mask
    }


@functools.cache
def _options() -> dict[str, dict[str, str]]:
    with _OPTIONS.open(encoding="ascii", newline="") as file:
        return {
            row["tag"]: {name: cell for name, cell in row.items() if cell in ("K", "C")} for row in csv.DictReader(file)
        }
