"""Text burned into pixels: which images may have it, and masks that blacken it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

# Where names and dates are commonly part of the picture, so that an absent Burned In Annotation tells nothing.
RISKY_MODALITIES = frozenset(
    ("US", "IVUS", "ES", "XC", "GM", "SM", "SC", "OT", "RF", "XA", "OP", "OPT", "DOC", "IO", "PX")
)
# Secondary captures are screens, whatever modality they name.
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Mask:
    """What is blackened: ``boxes`` (left, top, right, bottom in pixels, right and bottom excluded), and with
    ``outside_regions`` all that is outside of an ultrasound image's own regions.
    """

    boxes: tuple[Box, ...] = ()
    outside_regions: bool = False

    def __bool__(self) -> bool:
        return bool(self.boxes) or self.outside_regions


def burned_in(dataset: Dataset) -> str | None:
    """Why the pixels may show text about the patient; None if nothing says so."""
    stated = str(dataset.get("BurnedInAnnotation", "")).strip().upper()
    if stated == "YES":
        return "its pixels show text (Burned In Annotation is YES)"
    if stated == "NO":
        return None
    if str(dataset.get("SOPClassUID", "")).startswith(_SECONDARY_CAPTURE):
        return "a secondary capture that does not say whether its pixels show text"
    modality = str(dataset.get("Modality", "")).strip().upper()
    if modality in RISKY_MODALITIES or not modality:
        return "of a modality whose pixels often show text, and does not say whether they do"
    return None


def regions(dataset: Dataset) -> list[Box]:
    """The ultrasound regions of (0018,6011), as boxes.

    Some scanners count one pixel too many, to where the next would begin: what is one past the edge is cut off.
    """
    return [
        (
            int(item.RegionLocationMinX0),
            int(item.RegionLocationMinY0),
            _within(int(item.RegionLocationMaxX1) + 1, dataset.Columns),
            _within(int(item.RegionLocationMaxY1) + 1, dataset.Rows),
        )
        for item in dataset.get("SequenceOfUltrasoundRegions", [])
    ]


def _within(stop: int, size: int) -> int:
    return size if stop == size + 1 else stop


def applicable(mask: Mask, dataset: Dataset) -> Mask:
    """What of a mask is for this object: where nothing may show text, a lack of ultrasound regions masks nothing.

    One that may show text keeps ``outside_regions``, so that `blacken` refuses it.
    """
    if mask.outside_regions and not burned_in(dataset) and not regions(dataset):
        return Mask(mask.boxes)
    return mask


def blacken(dataset: Dataset, mask: Mask) -> None:
    """Blacken what the mask covers, in all frames, in place; the pixels are then uncompressed, and in one plane.

    The order of bytes stays: pydicom cannot turn that of a whole file.

    Raises ValueError for an ultrasound image without regions, and for boxes that leave the image; whatever pydicom
    raises for pixels that cannot be decoded.
    """
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        dataset.decompress(generate_instance_uid=False)
    pixels = np.array(dataset.pixel_array)
    covered = _covered(dataset, mask)
    frames = pixels.reshape(-1, *covered.shape, *pixels.shape[pixels.ndim - (dataset.SamplesPerPixel > 1) :])
    frames[:, covered] = _black(dataset)
    if dataset.SamplesPerPixel > 1:
        dataset.PlanarConfiguration = 0
    big = dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    if dataset.BitsAllocated == 1:
        frames = np.packbits(frames.reshape(-1), bitorder="little")
    content = frames.astype(frames.dtype.newbyteorder(">" if big else "<")).tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
    if not big:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


def _covered(dataset: Dataset, mask: Mask) -> np.ndarray:
    """What becomes black: bool (rows, columns)."""
    covered = np.zeros((dataset.Rows, dataset.Columns), dtype=bool)
    if mask.outside_regions:
        inside = regions(dataset)
        if not inside:
            raise ValueError("no ultrasound regions say which pixels are the image; mask it with boxes")
        covered[:] = True
        _fill(covered, inside, False)
    _fill(covered, mask.boxes, True)
    return covered


def _fill(covered: np.ndarray, boxes: Sequence[Box], value: bool) -> None:
    rows, columns = covered.shape
    for left, top, right, bottom in boxes:
        if not (0 <= left < right <= columns and 0 <= top < bottom <= rows):
            raise ValueError(f"the box {left},{top},{right},{bottom} is not inside of {columns}x{rows} pixels")
        covered[top:bottom, left:right] = value


def _black(dataset: Dataset) -> int:
    """The pixel value that shows as black."""
    signed, bits = dataset.get("PixelRepresentation", 0), dataset.BitsStored
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        return 2 ** (bits - signed) - 1
    return -(2 ** (bits - 1)) if signed else 0
