"""The images of one row of a manifest: frames of its file, or the slices of its volume."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from mpc_imaging.data.dicom import open_picture, read_dicom
from mpc_imaging.data.image_names import ImageNames
from mpc_imaging.data.refusals import ImageError, Reason
from mpc_imaging.data.rows import Refused, Row
from mpc_imaging.data.volumes import read_slices
from mpc_imaging.data.windows import Window
from mpc_imaging.settings import DataSettings, Frames

logger = logging.getLogger("mpc_imaging.data")

# The file and the frame of an image, or those of all slices of a volume.
Source = tuple[Path, int] | list[tuple[Path, int]]


def read_row(
    data: DataSettings, folder: Path, row: Row, names: ImageNames, rejected: list[Refused], flaws: list[str]
) -> tuple[list[np.ndarray], list[Source]]:
    """The images of a row, float32 (C, H, W) in [0, 1], each with its source; or its one volume (S, C, H, W).

    Slices that cannot be used are added to ``rejected``, and what is wrong with a volume to ``flaws``.

    Raises:
        ImageError: as `read_dicom` or `read_slices`, or the row names a folder where images are read.
    """
    if data.slices is not None:
        return _volume(data, folder, row, names, rejected, flaws)
    path = folder / row.file
    if path.is_dir():
        raise ImageError(Reason.folder)
    frames = read_dicom(path, data.frames, data.channels, window_of(data))
    first = _middle(path) if data.frames is Frames.middle else 0
    return frames, [(path, first + k) for k in range(len(frames))]


def window_of(data: DataSettings) -> Window:
    """The window that ``data`` chooses."""
    chosen = data.window
    return Window(chosen.index, None if chosen.centre is None else (chosen.centre, chosen.width))


def _middle(path: Path) -> int:
    with open_picture(path) as picture:
        return picture.count // 2


def _volume(
    data: DataSettings, folder: Path, row: Row, names: ImageNames, rejected: list[Refused], flaws: list[str]
) -> tuple[list[np.ndarray], list[Source]]:
    left_out: list[tuple[Path, str]] = []
    try:
        volume = read_slices(folder / row.file, data.slices, data.channels, window_of(data), left_out)
    finally:
        rejected += [Refused(row.number, path.relative_to(folder).as_posix(), reason) for path, reason in left_out]
    for problem in volume.problems:
        logger.info("%s", names.refusal(Refused(row.number, row.file, problem.text)))
    flaws += volume.flaws()
    return [volume.values], [volume.sources]
