"""A whole DICOM object in memory, for a copy of it: read within the limits, and written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from mpc_imaging.data import deflated, pixels, stored
from mpc_imaging.data.header import PIXELS, Header, open_header, refusing
from mpc_imaging.data.limits import MAX_RETURNED_SAMPLES
from mpc_imaging.data.refusals import ImageError, Reason

_INSTANCE = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID")
_OFFSETS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "EncapsulatedPixelDataValueTotalLength")
_TAGS = {keyword: tag for tag, keyword in PIXELS.items()}


def read_whole(path: Path, decoded: bool = False) -> Dataset:
    """Read one object: its header, and its pixels as they are stored, with nothing beside them (see `stored`).

    It knows its transfer syntax. What follows the pixel data is left behind: padding and signatures, which no copy that
    differs can keep.
    ``decoded``: its pixels will be decoded, so that every frame must be what the header says, and all fit in memory.

    Raises:
        ImageError: the file is missing, damaged, no DICOM object, a DICOMDIR, truncated, or larger than
            the limits.
    """
    with open_header(path, None) as header, refusing():
        dataset = header.elements
        if "DirectoryRecordSequence" in dataset:
            raise ImageError(Reason.directory)
        if not header.complete:
            raise ImageError(Reason.cut)  # pydicom takes what is there
        if not all(dataset.get(keyword) for keyword in _INSTANCE):
            raise ImageError(Reason.no_instance)
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = header.syntax
        if not stored.known_syntax(header.syntax):
            raise ImageError(Reason.unknown_syntax)
        if header.syntax == deflated.SYNTAX:
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if header.pixels is not None:
            if decoded:
                _check_frames(header)
            _add_pixels(dataset, header)
        elif "Rows" in dataset:
            raise ImageError(Reason.truncated)
    return dataset


def write_whole(dataset: Dataset, path: Path) -> None:
    """Write a DICOM file under a temporary name, and then give it its own: what is there under it is complete.

    Raises OSError, or whatever pydicom raises for a header that it cannot write.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            dataset.save_as(file, enforce_file_format=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_frames(header: Header) -> None:
    """Compare each frame with the header before a decoder, which takes memory for what a frame claims, sees it."""
    found = pixels.Pixels(header)
    if found.count * found.shape.rows * found.shape.columns * found.shape.samples > MAX_RETURNED_SAMPLES:
        raise ImageError(Reason.too_large)
    found.check()


def _add_pixels(dataset: Dataset, header: Header) -> None:
    clean = stored.clean(header)
    element = header.pixels
    new = DataElement(_TAGS[element.keyword], element.vr, clean.value, already_converted=True)
    new.is_undefined_length = clean.encapsulated
    dataset.add(new)
    for keyword in _OFFSETS:  # of frames as they were
        if keyword in dataset:
            del dataset[keyword]
