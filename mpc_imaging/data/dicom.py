"""Read one DICOM file: the grey levels or colours that a viewer shows first, as float32 arrays in [0, 1].

Grey images go through the modality LUT or rescale, then through one of the file's VOI LUTs or windows, whose output
range becomes [0, 1]; a CT through a window in Hounsfield units, if one is given. A file without any is shown as viewers
show it: 8 bits are display values already (0 to 255), anything deeper is stretched from its own minimum to its own
maximum, since no scanner uses all of 12 or 16 bits. MONOCHROME1 is inverted, so white is always dense; pixel padding is
always black. Colour is divided by its full range. Overlays are ignored, also those in unused bits of the pixels.

Only the tags named here are kept: names, dates and identifiers of the patient are skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.uid import (
    UID,
    MediaStorageDirectoryStorage,
    RTDoseStorage,
    SegmentationStorage,
)

from mpc_imaging.data import palette, pixels, windows
from mpc_imaging.data.header import Header, open_header, refusing
from mpc_imaging.data.images import match_channels
from mpc_imaging.data.limits import MAX_RETURNED_SAMPLES
from mpc_imaging.data.refusals import ImageError, Reason
from mpc_imaging.data.windows import FIRST, Window
from mpc_imaging.settings import Frames

__all__ = ["ImageError", "Picture", "Reason", "Window", "directory_files", "open_picture", "read_dicom"]

_GREY = ("MONOCHROME1", "MONOCHROME2")
LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"  # newer than pydicom 3.0's list
_NOT_PICTURES = (SegmentationStorage, LABEL_MAP_STORAGE, RTDoseStorage)


class Picture:
    """One open image file of ``count`` frames, each decoded when it is asked for: a long cine takes little memory."""

    def __init__(self, header: Header) -> None:
        self.header = header.elements
        self._pixels = pixels.Pixels(header)
        self.count = self._pixels.count
        self.samples = self._pixels.shape.rows * self._pixels.shape.columns

    def shown(self, indices: Iterable[int], channels: int, window: Window = FIRST) -> Iterator[np.ndarray]:
        """Yield what a viewer shows of the frames: float32 (channels, H, W) in [0, 1].

        Raises:
            ImageError: a frame cannot be decoded or shown.
        """
        for index in indices:
            with refusing():
                ((stored, photometric),) = self._pixels.decode([index])
                if photometric in _GREY:
                    image = windows.shown(stored, self.header, index, window)[np.newaxis]
                else:
                    image = _colours(stored, photometric, self.header)
                frame = match_channels(np.clip(image, 0, 1).astype(np.float32), channels)
            yield frame

    def values(self, index: int) -> np.ndarray:
        """Return the modality's values of a grey frame, Hounsfield units for CT: float32 (H, W).

        Raises:
            ImageError: the frame cannot be decoded, or has colours.
        """
        with refusing():
            ((stored, photometric),) = self._pixels.decode([index])
            if photometric not in _GREY:
                raise ImageError(Reason.colours)
            return windows.modality_values(stored, self.header, index).astype(np.float32)


@contextmanager
def open_picture(path: Path, keywords: Iterable[str] = ()) -> Iterator[Picture]:
    """Open an image file for the block; ``keywords`` are further elements to keep in its ``header``.

    Raises:
        ImageError: the file is missing, truncated, damaged, larger than the limits, no image, or compressed in a way
            that cannot be decoded.
    """
    with open_header(path, [*f"{pixels.KEYWORDS} {windows.KEYWORDS} {palette.KEYWORDS}".split(), *keywords]) as header:
        with refusing():
            _check_kind(header)
            picture = Picture(header)
        yield picture


def read_dicom(path: Path, frames: Frames, channels: int, window: Window = FIRST) -> list[np.ndarray]:
    """Decode the chosen frames of one file: float32 arrays (channels, H, W) in [0, 1].

    Raises:
        ImageError: as `open_picture`, or the file has no such window, or its frames together exceed the limits.
    """
    with open_picture(path) as picture:
        chosen = _chosen(picture.count, frames)
        if len(chosen) * picture.samples * channels > MAX_RETURNED_SAMPLES:
            raise ImageError(Reason.too_large)
        return list(picture.shown(chosen, channels, window))


def directory_files(path: Path) -> list[Path]:
    """Return the image files that a DICOMDIR refers to, relative to its folder, in its order.

    Raises:
        ImageError: the file is no DICOMDIR, is damaged, or refers to a file outside its folder.
    """
    with open_header(path, ["DirectoryRecordSequence"]) as header, refusing():
        if _storage(header) != MediaStorageDirectoryStorage:
            raise ImageError(Reason.not_dicom)
        found = []
        for record in header.elements.get("DirectoryRecordSequence") or []:
            parts = record.get("ReferencedFileID")
            if record.get("DirectoryRecordType") != "IMAGE" or not parts:
                continue
            names = [parts] if isinstance(parts, str) else list(parts)
            if any(not name.strip(". ") or set(name) & set("/\\:\0") for name in names):
                raise ImageError(Reason.damaged)
            found.append(Path(*names))
        return found


def _storage(header: Header) -> UID | None:
    return header.elements.get("SOPClassUID") or header.elements.file_meta.get("MediaStorageSOPClassUID")


def _check_kind(header: Header) -> None:
    """Find the reasons that can be told from the kind of object."""
    storage = _storage(header)
    if storage == MediaStorageDirectoryStorage:
        raise ImageError(Reason.directory)
    if storage in _NOT_PICTURES:
        raise ImageError(Reason.not_a_picture)
    if header.pixels is None:
        declares_image = "Rows" in header.elements or (storage is not None and "Image Storage" in storage.name)
        raise ImageError(Reason.truncated if declares_image else Reason.no_image)


def _chosen(count: int, frames: Frames) -> range:
    if frames is Frames.all:
        return range(count)
    first = 0 if frames is Frames.first else count // 2
    return range(first, first + 1)


def _colours(stored: np.ndarray, photometric: str, header: Dataset) -> np.ndarray:
    """Return colours (3, H, W) in [0, 1] of stored indices (H, W) or colours (H, W, 3)."""
    if photometric == "PALETTE COLOR":
        return palette.colours(stored, header)
    if photometric == "RGB" and stored.ndim == 3:  # pydicom hands YBR over as RGB
        return np.moveaxis(np.divide(stored, 2**header.BitsStored - 1, dtype=np.float32), -1, 0)
    raise ImageError(Reason.unsupported)
