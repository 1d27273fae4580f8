"""Stored grey values to modality units (Hounsfield for CT), and these to what a viewer shows, in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydicom import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from mpc_imaging.data.limits import MAX_LUT_ENTRIES
from mpc_imaging.data.refusals import ImageError, Reason

KEYWORDS = """
SOPClassUID PixelPaddingValue PixelPaddingRangeLimit RescaleIntercept RescaleSlope RescaleType ModalityLUTSequence
WindowCenter WindowWidth VOILUTFunction VOILUTSequence SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
"""

_CT = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)


@dataclass(frozen=True)
class Window:
    """Which grey levels are shown.

    ``index``: which of a file's windows or VOI LUTs, counted from 0. ``hounsfield``: centre and width in Hounsfield
    units, used for CT instead of the file's own; other images keep theirs.
    """

    index: int = 0
    hounsfield: tuple[float, float] | None = None


FIRST = Window()


def modality_values(stored: np.ndarray, header: Dataset, index: int) -> np.ndarray:
    """Apply the modality LUT or the rescale of frame ``index``: float64 (H, W), Hounsfield units for CT.

    Raises:
        ImageError: a value is not finite.
    """
    modality = group(header, index, "PixelValueTransformationSequence")
    values = stored.astype(np.float64)
    if modality.get("ModalityLUTSequence"):
        values = _look_up(values, modality.ModalityLUTSequence[0], header)[0]
    elif modality.get("RescaleSlope") is not None:
        values = values * float(modality.RescaleSlope) + float(modality.get("RescaleIntercept") or 0)
    if not np.isfinite(values).all():
        raise ImageError(Reason.damaged)
    return values


def is_ct(header: Dataset) -> bool:
    """Tell the storage classes whose values are Hounsfield units by definition; a screen shot of a CT is none."""
    return header.get("SOPClassUID") in _CT


def has_hounsfield(header: Dataset, index: int) -> bool:
    """Tell whether frame ``index`` is a CT whose values are rescaled to Hounsfield units (PS3.3 C.8.2.1.1.2)."""
    modality = group(header, index, "PixelValueTransformationSequence")
    unit = modality.get("RescaleType") or "HU"
    return is_ct(header) and modality.get("RescaleSlope") is not None and unit in ("HU", "HU_MOD")


def shown(stored: np.ndarray, header: Dataset, index: int, window: Window) -> np.ndarray:
    """Stored values (H, W) of frame ``index`` to what a viewer shows, in [0, 1]. MONOCHROME1 is inverted.

    Raises:
        ImageError: the file has fewer windows than ``window.index`` asks for, or is a CT without Hounsfield units where
            ``window.hounsfield`` is given, or its LUTs are damaged.
    """
    voi = group(header, index, "FrameVOILUTSequence")
    outside = _padding(stored, header)
    values = modality_values(stored, header, index)
    if window.hounsfield and is_ct(header):
        if not has_hounsfield(header, index):
            raise ImageError(Reason.no_hounsfield)
        image = through_window(values, *window.hounsfield)
    elif voi.get("VOILUTSequence"):
        table, full = _look_up(values, _entry(list(voi.VOILUTSequence), window.index), header)
        image = table / full
    elif windows := _windows(voi):
        image = through_window(values, *_entry(windows, window.index), voi.get("VOILUTFunction") or "LINEAR")
    elif window.index:
        raise ImageError(Reason.no_window)
    elif stored.dtype == np.uint8 and header.BitsStored == 8 and np.array_equal(values, stored):
        image = values / 255
    else:
        image = _stretch(values, outside)
    if header.PhotometricInterpretation == "MONOCHROME1":
        image = 1 - image
    return np.where(outside, 0.0, image)


def through_window(values: np.ndarray, centre: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Map values to [0, 1] by a window of PS3.3 C.11.2.1.2 and C.11.2.1.3: LINEAR, LINEAR_EXACT or SIGMOID."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width == 1:  # a threshold: the ramp of the formula is empty
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def group(header: Dataset, index: int, keyword: str) -> Dataset:
    """Return what describes frame ``index``: a functional group of an enhanced multi-frame object, else the header."""
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    own = [frames[index]] if index < len(frames) else []
    for groups in (*own, *(header.get("SharedFunctionalGroupsSequence") or [])):
        if groups.get(keyword):
            return groups[keyword].value[0]
    return header


def _entry(alternatives: list, index: int) -> object:
    if index >= len(alternatives):
        raise ImageError(Reason.no_window)
    return alternatives[index]


def _windows(voi: Dataset) -> list[tuple[float, float]]:
    """Centre and width of each window; none where one is not usable, as files with a width of 0 have."""
    centres, widths = (_numbers(voi.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
    smallest = 1 if (voi.get("VOILUTFunction") or "LINEAR") == "LINEAR" else 1e-9
    pairs = list(zip(centres, widths, strict=False))
    usable = all(np.isfinite(centre) and np.isfinite(width) and width >= smallest for centre, width in pairs)
    return pairs if usable else []


def _numbers(value: object) -> list[float]:
    if value is None:
        return []
    return [float(one) for one in value] if hasattr(value, "append") else [float(value)]


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
    entries = entries or MAX_LUT_ENTRIES
    if first >= 2**15 and first + entries > 2**16:  # read as unsigned, but only a signed start leaves room for the rest
        first -= 2**16
    if not 1 <= bits <= 16:
        raise ImageError(Reason.damaged)
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if header.original_encoding[1] else ">"
        data = np.frombuffer(data, dtype=np.uint8 if len(data) == entries else f"{order}u2")
    table = np.atleast_1d(np.asarray(data, dtype=np.float64))
    index = np.clip(np.rint(values) - first, 0, min(entries, len(table)) - 1).astype(np.int64)
    return table[index], 2.0**bits - 1


def _stretch(values: np.ndarray, padding: np.ndarray) -> np.ndarray:
    """Stretch from the smallest to the largest value outside the padding; a flat image becomes black."""
    inside = values[~padding]
    low, high = (inside.min(), inside.max()) if inside.size else (0.0, 0.0)
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
