"""Masks for the owner of the images: DICOM segmentations (SEG), and masks.csv, in the private folder results/.

The images of a series that have their place in space get one SEG together, one frame for each image in which something
is marked; so do the frames of a multi-frame image. All others get one each.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from pydicom import Dataset

from mpc_imaging.data.image_names import private_folder
from mpc_imaging.data.images import restore_masks
from mpc_imaging.data.refusals import ImageError
from mpc_imaging.errors import DataError
from mpc_imaging.report.dicom_results import NO_SOURCE, Outcome
from mpc_imaging.report.predictions import write_atomically
from mpc_imaging.report.result_objects import (
    ModelIdentity,
    Place,
    Places,
    building,
    check_installed,
    check_name,
    private_code,
)
from mpc_imaging.report.result_source import ResultError, read_sources
from mpc_imaging.report.segmentation import SPACE, has_position, write_segmentation

TABLE = "masks.csv"


@dataclass(frozen=True, eq=False)
class MaskRow:
    """What its owner gets of one image.

    ``image_id``: its pseudonym. ``source``: its DICOM file, None for other data sets; ``frame``: the one that was used
    of it, from 0. ``mask``: (S, S) of 0 and 1, as large as the model's images.
    """

    image_id: str
    source: Path | None = field(repr=False)
    frame: int
    mask: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class _Found:
    """A row with the header of its image."""

    row: MaskRow
    header: Dataset = field(repr=False)
    positioned: bool

    @property
    def key(self) -> tuple:
        """Alike for images whose masks go into one SEG."""
        header = self.header
        if header.NumberOfFrames > 1:
            return (self.row.source,)
        if not self.positioned:
            return (self.row.source, self.row.image_id)
        space = (header.get("FrameOfReferenceUID"), *(header.get("ImageOrientationPatient") or ()))
        return (header.StudyInstanceUID, header.SeriesInstanceUID, header.Rows, header.Columns, *space)


def write_masks(
    folder: Path,
    rows: Sequence[MaskRow],
    label: str,
    model: ModelIdentity,
    *,
    advance: Callable[[], None] = lambda: None,
) -> Outcome:
    """Write ``folder``/results: segmentations of ``label``, and masks.csv, which says where each image's mask is.

    A mask gets the rows and columns of its image. A SEG is called after its first image, ``<pseudonym>-mask.dcm``. An
    image that allows none is noted with its reason; the others go on. ``advance`` is called once for each row.

    Raises:
        ConfigError: highdicom is not installed, or ``label`` is no DICOM text.
        DataError: pseudonyms that repeat or are no file names.
    """
    _check(rows, label)
    private = private_folder(folder)
    outcome, places = Outcome(private / TABLE), Places()
    for group in _groups(rows, outcome, advance):
        _write(group, label, model, private, places, outcome)
        for _ in group:
            advance()
    write_atomically(outcome.table, _table(rows, outcome).encode(), mode=0o600)
    return outcome


def _check(rows: Sequence[MaskRow], label: str) -> None:
    if any(row.source is not None for row in rows):
        check_installed()
    private_code(label)
    for row in rows:
        check_name(row.image_id)
    if len({row.image_id for row in rows}) != len(rows):
        raise DataError(["pseudonyms of masks repeat: each image needs its own"])


def _groups(rows: Sequence[MaskRow], outcome: Outcome, advance: Callable[[], None]) -> list[list[_Found]]:
    """Rows with their headers, those together whose masks go into one SEG; what has none goes to the ``outcome``."""
    groups: dict[tuple, list[_Found]] = defaultdict(list)
    for row in rows:
        if row.source is None:
            outcome.without_source.append(row.image_id)
            advance()
            continue
        try:
            (header,) = read_sources(row.source, SPACE.split())
            with building():
                found = _Found(row, header, has_position(header))
                groups[found.key].append(found)
        except (ImageError, ResultError) as error:
            outcome.refused[row.image_id] = str(error)
            advance()
    return list(groups.values())


def _write(
    group: Sequence[_Found], label: str, model: ModelIdentity, private: Path, places: Places, outcome: Outcome
) -> None:
    """One SEG of the whole group; where that is not possible, one for each image."""

    def write(some: Sequence[_Found], source: Path | list[Path], mask: np.ndarray, frame: int | None) -> None:
        first = some[0]
        place = Place.new() if first.positioned else places.next(first.header)
        name = f"{first.row.image_id}-mask"
        path = write_segmentation(source, mask, label, model, private, name, frame=frame, place=place)
        outcome.written.update({found.row.image_id: path for found in some})

    together = len(group) > 1 and group[0].positioned
    if together and group[0].header.NumberOfFrames > 1:
        together = [found.row.frame for found in group] == list(range(group[0].header.NumberOfFrames))
    if together:
        several = group[0].header.NumberOfFrames == 1
        try:
            source = [found.row.source for found in group] if several else group[0].row.source
            write(group, source, _restored(group), None)
            return
        except (ImageError, ResultError):
            pass  # one of them may be at fault: each is then written, or refused, on its own
    for found in group:
        try:
            frame = found.row.frame if found.header.NumberOfFrames > 1 else None
            write([found], found.row.source, _restored([found])[0], frame)
        except (ImageError, ResultError) as error:
            outcome.refused[found.row.image_id] = str(error)


def _restored(group: Sequence[_Found]) -> np.ndarray:
    """Masks as large as the images: bool (n, rows, columns)."""
    header = group[0].header
    masks = torch.from_numpy(np.stack([found.row.mask for found in group]))
    return restore_masks(masks, header.Rows, header.Columns).numpy()


def _table(rows: Sequence[MaskRow], outcome: Outcome) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "marked_percent", "segmentation", "reason"])
    for row in rows:
        written = outcome.written.get(row.image_id)
        reason = NO_SOURCE if row.source is None else outcome.refused.get(row.image_id, "")
        marked = f"{100 * float(np.mean(row.mask > 0)):.3f}"
        writer.writerow([row.image_id, marked, written.name if written else "", reason])
    return text.getvalue()
