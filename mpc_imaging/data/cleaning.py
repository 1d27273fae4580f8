"""The action C of PS3.15 Annex E, "clean": of text, codes, structured content and graphics what can tell of nobody.

No program finds every name in a text, so that nothing is searched for: what stays is what is on a list. Of text, words
that DICOM's own codes for anatomy, modalities, sides and views are made of; of codes, those of pydicom's dictionary,
with the meaning that it has for them; of graphics, points, circles and ellipses. A person whose name is such a word
(Foot, Short) is not told from it: who cannot accept that leaves the options out. What nothing is left of gets the basic
action, which is to remove it or to put a dummy.
"""

from __future__ import annotations

import functools
import re

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code, snomed_mapping

TEXT = ("LO", "LT", "SH", "ST", "UC", "UT")
_SOURCES = ("cid4", "cid29", "cid244", "cid4010", "cid4014")  # regions, modalities, sides, views of two kinds
_SCHEMES = ("DCM", "SCT", "UCUM", "LN", "RADLEX", "NCIt", "FMA")
_MORE = """
ct mr mri us pet xr cr dx mg nm rf xa t1 t2 t2star flair dwi adc pd stir swi tof mra cta mip ap pa lat cc mlo lao rao
with without contrast native phase plain series scout localizer localiser topogram survey thin thick slices axial
coronal sagittal head neck reconstruction average supine prone standing inspiration expiration screening low dose
"""
_EPONYMS = frozenset(("boyd", "dodd", "hunterian", "willis"))  # words of those codes that are names
_WORD = re.compile(r"[^\W_]+")

_CODE_PARTS = ("CodeValue", "LongCodeValue", "URNCodeValue", "CodeMeaning", "CodingSchemeDesignator")
_SNOMED = ("SRT", "SNM3", "99SDM")  # what SNOMED's scheme was called before it became SCT
_CODE_SEQUENCES = ("ConceptNameCodeSequence", "ConceptCodeSequence", "MeasurementUnitsCodeSequence")
_CONTENT_SEQUENCES = ("ContentSequence", "SpecimenPreparationStepContentItemSequence")
_FREE_CONTENT = ("TextValue", "PersonName")
_DATED_CONTENT = ("Date", "Time", "DateTime")
_CLEAN_GRAPHICS = ("POINT", "CIRCLE", "ELLIPSE")  # no lines: they can write
_GRAPHIC_PARTS = ("ReferencedImageSequence", "GraphicLayer", "GraphicObjectSequence")


def words(text: str) -> str:
    """The words of a text that are on the list, in their order."""
    return " ".join(word for word in _WORD.findall(text) if word.lower() in vocabulary())


def coded(item: Dataset) -> Dataset | None:
    """The code in an item of a code sequence, as pydicom's dictionary has it; None if it does not have it."""
    value = str(item.get("CodeValue") or item.get("LongCodeValue") or "")
    scheme = str(item.get("CodingSchemeDesignator", ""))
    known = ("SCT", snomed_mapping["SRT"].get(value)) if scheme in _SNOMED else (scheme, value)
    meaning = _meanings().get(known)
    if meaning is None:
        return None
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def take_code(item: Dataset) -> list[str]:
    """Remove what names a code from an item of any sequence; the attributes that it had of it."""
    parts = [part for part in _CODE_PARTS if part in item]
    for part in parts:
        del item[part]
    return parts


def content(items: Sequence, dated: bool) -> Sequence:
    """Content items without text, names, unknown codes and, unless ``dated``, dates; a dropped item takes its children.

    Numbers, references and positions in images stay. UIDs and dates in what stays are for the caller to replace.
    """
    return Sequence([item for item in items if _cleaned_content(item, dated)])


def graphics(items: Sequence) -> Sequence:
    """Graphic annotations without text and lines."""
    kept = []
    for item in items:
        shapes = [each for each in item.get("GraphicObjectSequence", []) if each.get("GraphicType") in _CLEAN_GRAPHICS]
        if shapes:
            clean = Dataset()
            for part in _GRAPHIC_PARTS:
                if part in item:
                    clean[part] = item[part]
            clean.GraphicObjectSequence = Sequence(shapes)
            kept.append(clean)
    return Sequence(kept)


def _cleaned_content(item: Dataset, dated: bool) -> bool:
    """Clean one item in place; whether it may stay."""
    if any(part in item for part in _FREE_CONTENT) or (not dated and any(part in item for part in _DATED_CONTENT)):
        return False
    for part in _CODE_SEQUENCES:
        known = [coded(each) for each in item.get(part, [])]
        if None in known:
            return False
        if known:
            item[part].value = Sequence(known)
    for measured in item.get("MeasuredValueSequence", []):
        if not _cleaned_content(measured, dated):
            return False
    for part in _CONTENT_SEQUENCES:
        if part in item:
            item[part].value = content(item[part].value, dated)
    return True


@functools.cache
def vocabulary() -> frozenset[str]:
    """Return the words that may stay in a text, in small letters."""
    meanings = [code.meaning for name in _SOURCES for code in getattr(codes, name).concepts.values()]
    found = {word for meaning in meanings for word in _WORD.findall(meaning.lower()) if word.isalpha()}
    return frozenset(word for word in found | set(_MORE.split()) if len(word) > 1) - _EPONYMS


@functools.cache
def _meanings() -> dict[tuple[str, str], str]:
    known: list[Code] = [code for scheme in _SCHEMES for code in getattr(codes, scheme).concepts.values()]
    return {(code.scheme_designator, code.value): code.meaning[:64] for code in known}  # all that an LO holds
