"""A picture as a DICOM secondary capture: saliency maps and overlays, as colours to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.sr.codedict import codes as standard
from pydicom.uid import ExplicitVRLittleEndian

from mpc_imaging.errors import ConfigError, DataError
from mpc_imaging.report.result_objects import (
    ModelIdentity,
    Place,
    building,
    check_installed,
    common,
    is_long_string,
    refer,
    save,
)
from mpc_imaging.report.result_source import frame_number, orientation, read_sources


def write_capture(
    source: Path | Sequence[Path],
    picture: npt.NDArray[np.uint8],
    title: str,
    model: ModelIdentity,
    folder: Path,
    name: str,
    *,
    frame: int | None = None,
    place: Place | None = None,
) -> Path:
    """Write ``<name>.dcm`` into the image owner's private ``folder``, and return its path.

    ``source``: the image, or the images of one series, that the picture was made from; ``frame``: of a multi-frame
    image, from 0. ``picture``: RGB, uint8 (H, W, 3). ``title``: becomes the description of the series.
    ``name``: a pseudonym.

    Raises:
        ImageError: a source file is missing, damaged or not DICOM.
        ResultError: the sources cannot be referred to.
        ConfigError: highdicom is not installed, or the ``title`` is no DICOM text.
        DataError: a ``picture`` of another kind, or a ``name`` that is no file name.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise DataError([f"a picture for a capture must be uint8 (H, W, 3), not {picture.dtype} {picture.shape}"])
    if not is_long_string(title):
        raise ConfigError(["the title of a capture must be 1 to 64 printable characters without a backslash"])
    sources = read_sources(source, ["PatientOrientation", "BurnedInAnnotation", "Laterality", "ImageLaterality"])
    return save(_build(sources, picture, title, model, frame, place or Place.new()), folder, name)


def _build(
    sources: Sequence[Dataset],
    picture: npt.NDArray[np.uint8],
    title: str,
    model: ModelIdentity,
    frame: int | None,
    place: Place,
) -> Dataset:
    check_installed()
    from highdicom.sc import SCImage

    first = sources[0]
    frames = [frame_number(source, frame) for source in sources]
    with building():
        built = SCImage(
            pixel_array=np.ascontiguousarray(picture),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "P"),  # highdicom asks for one; the source's own follows
            transfer_syntax_uid=ExplicitVRLittleEndian,
            study_instance_uid=first.StudyInstanceUID,
            patient_id=first.PatientID,
            patient_name=first.PatientName,
            patient_birth_date=first.PatientBirthDate,
            patient_sex=first.PatientSex,
            accession_number=first.AccessionNumber,
            study_id=first.StudyID,
            study_date=first.StudyDate,
            study_time=first.StudyTime,
            referring_physician_name=first.ReferringPhysicianName,
            specific_character_set=first.SpecificCharacterSet,
            **common(model, place, title),
        )
        built.PatientOrientation, built.Laterality = orientation(first), _side(first)
        built.BurnedInAnnotation = "NO" if first.get("BurnedInAnnotation") == "NO" else "YES"
        for keyword in ("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"):
            if keyword in first:
                built[keyword] = first[keyword]
        built.SourceImageSequence = [_reference(source, number) for source, number in zip(sources, frames, strict=True)]
        refer(built, sources)
    return built


def _side(source: Dataset) -> str:
    """The side of a paired part of the body, or empty: type 2C."""
    stated = {source.get("Laterality"), source.get("ImageLaterality")} & {"L", "R"}
    return stated.pop() if len(stated) == 1 else ""


def _reference(source: Dataset, numbers: list[int] | None) -> Dataset:
    purpose = standard.DCM.SourceImageForImageProcessingOperation
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = purpose[:3]
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    if numbers:
        item.ReferencedFrameNumber = numbers
    item.PurposeOfReferenceCodeSequence = [code]
    return item
