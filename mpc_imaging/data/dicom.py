"""Read one DICOM file: the grey levels or colours that a viewer shows first, as float32 arrays in [0, 1].

Grey images go through the modality LUT or rescale, then through the file's first VOI LUT or window, whose output range
becomes [0, 1]. A file without either is shown as viewers show it: 8 bits are display values already (0 to 255),
anything deeper is stretched from its own minimum to its own maximum, since no scanner uses all of 12 or 16 bits.
MONOCHROME1 is inverted, so white is always dense; pixel padding is always black. Colour is divided by its full range.

Only the tags named here are parsed: names, dates and identifiers of the patient never enter the process.
"""

from __future__ import annotations

import logging
import warnings
from enum import Enum
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_windowing, get_decoder, pixel_array
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import RTDoseStorage, SegmentationStorage

from mpc_imaging.data.images import match_channels
from mpc_imaging.errors import MPCImagingError
from mpc_imaging.settings import Frames

# pydicom's warnings quote header values, and a log must not: they stay out of every handler of the party.
logging.getLogger("pydicom").propagate = False

_TAGS = """
SOPClassUID SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns BitsAllocated
BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit RescaleIntercept RescaleSlope
ModalityLUTSequence WindowCenter WindowWidth VOILUTFunction VOILUTSequence SharedFunctionalGroupsSequence
PerFrameFunctionalGroupsSequence RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor
BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData GreenPaletteColorLookupTableData
BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
SegmentedBluePaletteColorLookupTableData ExtendedOffsetTable ExtendedOffsetTableLengths FloatPixelData
DoubleFloatPixelData PixelData
"""
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"  # newer than pydicom 3.0's list
_NOT_PICTURES = (SegmentationStorage, _LABEL_MAP_SEGMENTATION, RTDoseStorage)


class Reason(Enum):
    """Why a file gives no image."""

    missing = "there is no such file"
    unreadable = "the file cannot be opened: check its permissions"
    not_dicom = "not a DICOM file (no DICM prefix)"
    no_image = "a DICOM object without an image (report, plan, structure set or directory)"
    not_a_picture = "a mask or dose grid, not a picture of the patient: list the image it was made from"
    truncated = "truncated: the pixel data end early or are missing"
    no_decoder = "no decoder for its compression: pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
    unsupported = "a colour model that is not supported: convert it to RGB or MONOCHROME2"
    damaged = "damaged: its header or pixel data cannot be decoded"


class ImageError(MPCImagingError):
    """A file that gives no image; ``reason`` says why. The message carries nothing from the file's header."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason
        super().__init__(reason.value)


def read_dicom(path: Path, frames: Frames, channels: int) -> list[np.ndarray]:
    """Decode the chosen frames of one file: float32 arrays (channels, H, W) in [0, 1].

    Raises:
        ImageError: the file is missing, truncated, damaged, no image, or compressed in a way that cannot be decoded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = _read(path)
        _check(header)
        try:
            return [match_channels(_frame(header, index), channels) for index in _chosen(header, frames)]
        except ImageError:
            raise
        except Exception:  # decoders raise whatever they like on damaged input, and their texts may quote the header
            raise ImageError(Reason.damaged) from None


def _read(path: Path) -> Dataset:
    try:
        return dcmread(path, specific_tags=_TAGS.split())
    except FileNotFoundError:
        raise ImageError(Reason.missing) from None
    except OSError:
        raise ImageError(Reason.unreadable) from None
    except InvalidDicomError:
        raise ImageError(Reason.not_dicom) from None
    except Exception:
        raise ImageError(Reason.damaged) from None


def _check(header: Dataset) -> None:
    """Find the reasons that can be told from the header."""
    storage = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    if storage in _NOT_PICTURES:
        raise ImageError(Reason.not_a_picture)
    if not any(keyword in header for keyword in _PIXELS):
        declares_image = "Rows" in header or (storage is not None and "Image Storage" in storage.name)
        raise ImageError(Reason.truncated if declares_image else Reason.no_image)
    syntax = header.file_meta.get("TransferSyntaxUID")
    try:
        decodable = get_decoder(syntax).is_available
        short = not syntax.is_encapsulated and len(_pixel_bytes(header)) < get_expected_length(header)
    except NotImplementedError:
        raise ImageError(Reason.no_decoder) from None
    except Exception:
        raise ImageError(Reason.damaged) from None
    if not decodable:
        raise ImageError(Reason.no_decoder)
    if short:
        raise ImageError(Reason.truncated)


def _pixel_bytes(header: Dataset) -> bytes:
    return next(header[keyword].value for keyword in _PIXELS if keyword in header)


def _chosen(header: Dataset, frames: Frames) -> range:
    count = int(header.get("NumberOfFrames") or 1)
    if frames is Frames.all:
        return range(count)
    first = 0 if frames is Frames.first else count // 2
    return range(first, first + 1)


def _frame(header: Dataset, index: int) -> np.ndarray:
    """Decode frame ``index``: float32 (1, H, W) or (3, H, W) in [0, 1]."""
    stored = pixel_array(header, index=index)
    photometric = header.PhotometricInterpretation
    if photometric in _GREY:
        shown = _grey(stored, header, index)[np.newaxis]
    elif photometric == "PALETTE COLOR":
        colours = apply_color_lut(stored, header)
        shown = np.moveaxis(colours[..., :3] / np.iinfo(colours.dtype).max, -1, 0)
    elif photometric == "RGB" or photometric.startswith("YBR_"):  # pydicom hands YBR over as RGB
        shown = np.moveaxis(stored / (2.0**header.BitsStored - 1), -1, 0)
    else:
        raise ImageError(Reason.unsupported)
    return np.clip(shown, 0, 1).astype(np.float32)


def _grey(stored: np.ndarray, header: Dataset, index: int) -> np.ndarray:
    """Stored values (H, W) to what a viewer shows, in [0, 1]."""
    modality = _group(header, index, "PixelValueTransformationSequence")
    voi = _group(header, index, "FrameVOILUTSequence")
    padding = _padding(stored, header)
    values = stored.astype(np.float64)
    if modality.get("ModalityLUTSequence"):
        values = _look_up(values, modality.ModalityLUTSequence[0], header)[0]
    elif modality.get("RescaleSlope") is not None:
        values = values * float(modality.RescaleSlope) + float(modality.get("RescaleIntercept") or 0)
    if not np.isfinite(values).all():
        raise ImageError(Reason.damaged)

    if voi.get("VOILUTSequence"):
        table, full = _look_up(values, voi.VOILUTSequence[0], header)
        shown = table / full
    elif _has_window(voi):
        shown = _window(values, voi)
    elif stored.dtype == np.uint8 and header.BitsStored == 8 and np.array_equal(values, stored):
        shown = values / 255
    else:
        shown = _stretch(values, padding)
    if header.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return np.where(padding, 0.0, shown)


def _group(header: Dataset, index: int, keyword: str) -> Dataset:
    """Return what holds this frame's LUTs: a functional group of an enhanced multi-frame object, else the header."""
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    own = [frames[index]] if index < len(frames) else []
    for groups in (*own, *(header.get("SharedFunctionalGroupsSequence") or [])):
        if groups.get(keyword):
            return groups[keyword].value[0]
    return header


def _padding(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """Mark the pixels (H, W) outside the detector or the reconstructed circle."""
    value = header.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    limit = header.get("PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    return (stored >= low) & (stored <= high)


def _look_up(values: np.ndarray, item: Dataset, header: Dataset) -> tuple[np.ndarray, float]:
    """Map values through one LUT item (PS3.3 C.11.1.1.1); return them and the LUT's largest possible output.

    pydicom's own apply_voi indexes in the type of the output, so a table of 4096 entries of 8 bits wraps round at 256.
    """
    entries, first, bits = item.LUTDescriptor
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if header.original_encoding[1] else ">"
        data = np.frombuffer(data, dtype=np.uint8 if len(data) == entries else f"{order}u2")
    table = np.atleast_1d(np.asarray(data, dtype=np.float64))
    index = np.clip(np.rint(values) - first, 0, min(entries or 2**16, len(table)) - 1).astype(np.int64)
    return table[index], 2.0**bits - 1


def _has_window(voi: Dataset) -> bool:
    width = _first(voi.get("WindowWidth"))
    smallest = 1 if voi.get("VOILUTFunction", "LINEAR") == "LINEAR" else 1e-9
    return _first(voi.get("WindowCenter")) is not None and width is not None and float(width) >= smallest


def _window(values: np.ndarray, voi: Dataset) -> np.ndarray:
    """Apply the first window (PS3.3 C.11.2.1.2), from rescaled values to [0, 1]."""
    window = Dataset()
    window.PhotometricInterpretation, window.PixelRepresentation, window.BitsStored = "MONOCHROME2", 0, 16
    window.WindowCenter, window.WindowWidth = _first(voi.WindowCenter), _first(voi.WindowWidth)
    window.VOILUTFunction = voi.get("VOILUTFunction") or "LINEAR"
    return apply_windowing(values, window) / (2.0**16 - 1)


def _first(value: object) -> object:
    return value[0] if isinstance(value, list) or hasattr(value, "append") else value


def _stretch(values: np.ndarray, padding: np.ndarray) -> np.ndarray:
    """Stretch from the smallest to the largest value outside the padding; a flat image becomes black."""
    inside = values[~padding]
    low, high = (inside.min(), inside.max()) if inside.size else (0.0, 0.0)
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
