"""Slices to volumes: sorted by their position in the patient, with what is wrong with the stack said.

A folder holds slices in any order, of several series, with repeats and holes. Slices belong together when their
series, orientation, size and pixel spacing agree; each such stack becomes one volume. Series identifiers are compared
and dropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np

from mpc_imaging.data.dicom import Picture, open_picture
from mpc_imaging.data.header import refusing
from mpc_imaging.data.limits import MAX_VOLUME_SAMPLES
from mpc_imaging.data.refusals import ImageError, Reason
from mpc_imaging.data.windows import group, has_hounsfield

_KEYWORDS = ("SeriesInstanceUID", "ImageType", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
NO_POSITION = "no position in the patient, or a localizer"
_SAME_MM = 0.01  # positions closer than this are one position
_UNEVEN = 0.02  # of the usual step: what rounding in the header explains
_GAP = 1.5  # of the usual step
_TILT_DEGREES = 0.5


class Flaw(Enum):
    """What can be wrong with a stack of slices."""

    gap = "gap"
    uneven = "uneven spacing"
    tilt = "tilt"
    duplicate = "duplicate"
    single = "one slice"
    unit = "no Hounsfield units"


@dataclass(frozen=True)
class Problem:
    """One flaw of a volume; ``text`` says where and how large, and carries nothing that names a patient."""

    flaw: Flaw
    text: str


@dataclass(frozen=True, eq=False)
class Volume:
    """One stack, slices ascending along the normal (the cross product of the row's and the column's direction).

    ``values`` is float32 (D, H, W) in the modality's units, Hounsfield units for CT. ``spacing`` is (dz, dy, dx) in mm,
    dz the usual (median) distance of neighbours along the normal, 0 for a single slice. ``sources`` has the file and
    the frame of each slice, ``positions`` its place along the normal in mm.
    """

    values: np.ndarray = field(repr=False)
    spacing: tuple[float, float, float]
    sources: list[tuple[Path, int]]
    problems: list[Problem]
    positions: list[float]


@dataclass(frozen=True)
class Volumes:
    """All stacks of some files, largest first, and the files that are in none, each with the reason."""

    volumes: list[Volume]
    left_out: list[tuple[Path, str]]


@dataclass(frozen=True, repr=False)
class _Slice:
    path: Path
    frame: int
    position: np.ndarray  # (3,) mm, of the first pixel
    row: np.ndarray  # (3,) unit vector along a row
    column: np.ndarray
    spacing: tuple[float, float]  # dy, dx in mm
    key: tuple
    hounsfield: bool

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.row, self.column)


def read_volumes(paths: Iterable[Path]) -> Volumes:
    """Sort the slices of ``paths`` into volumes. Files that cannot be used are listed, never raised.

    A file whose pixels cannot be decoded costs its slices; the rest of the stack stays, with a gap.
    """
    left_out: list[tuple[Path, str]] = []
    stacks: dict[tuple, list[_Slice]] = {}
    for path in paths:
        try:
            with open_picture(path, _KEYWORDS) as picture, refusing():
                slices = [_slice(path, picture, frame) for frame in range(picture.count)]
        except ImageError as error:
            left_out.append((path, str(error)))
            continue
        if None in slices:
            left_out.append((path, NO_POSITION))
            continue
        for one in slices:
            stacks.setdefault(one.key, []).append(one)
    volumes = []
    for stack in stacks.values():
        try:
            volume = _volume(stack, left_out)
        except ImageError as error:
            left_out += [(path, str(error)) for path in dict.fromkeys(one.path for one in stack)]
            continue
        volumes += [] if volume is None else [volume]
    return Volumes(sorted(volumes, key=lambda volume: -len(volume.sources)), left_out)


def _slice(path: Path, picture: Picture, frame: int) -> _Slice | None:
    """Read where frame ``frame`` lies; None where the file does not say, or it is a localizer."""
    header = picture.header
    position = group(header, frame, "PlanePositionSequence").get("ImagePositionPatient")
    orientation = group(header, frame, "PlaneOrientationSequence").get("ImageOrientationPatient")
    spacing = group(header, frame, "PixelMeasuresSequence").get("PixelSpacing")
    if not position or not orientation or not spacing or "LOCALIZER" in (header.get("ImageType") or []):
        return None
    position, orientation = np.array(position, dtype=float), np.array(orientation, dtype=float)
    row, column = orientation[:3], orientation[3:]
    dy, dx = (float(one) for one in spacing)
    square = abs(row @ row - 1) < 0.01 and abs(column @ column - 1) < 0.01 and abs(row @ column) < 0.01
    if position.shape != (3,) or orientation.shape != (6,) or not np.isfinite(position).all() or not square:
        raise ImageError(Reason.damaged)
    series = header.get("SeriesInstanceUID")
    key = (series, *np.round(orientation, 3).tolist(), header.Rows, header.Columns, round(dy, 4), round(dx, 4))
    return _Slice(path, frame, position, row, column, (dy, dx), key, has_hounsfield(header, frame))


def _volume(stack: Sequence[_Slice], left_out: list[tuple[Path, str]]) -> Volume | None:
    """None where no slice can be decoded; files that cannot be are added to ``left_out``."""
    normal = stack[0].normal
    ordered = sorted(stack, key=lambda one: float(one.position @ normal))
    rows, columns = ordered[0].key[7:9]
    if len(ordered) * rows * columns > MAX_VOLUME_SAMPLES:
        raise ImageError(Reason.too_large)
    ordered, values = _values(ordered, rows, columns, left_out)
    if not ordered:
        return None
    kept, problems = _without_duplicates(ordered, values, normal)
    slices = [ordered[k] for k in kept]
    step, found = _steps(slices, normal)
    problems += found
    if not all(one.hounsfield for one in slices):
        problems.append(Problem(Flaw.unit, "not all slices are CT with a rescale: values are not in Hounsfield units"))
    values = values if len(kept) == len(ordered) else values[kept]
    sources = [(one.path, one.frame) for one in slices]
    positions = [float(one.position @ normal) for one in slices]
    return Volume(values, (step, *slices[0].spacing), sources, problems, positions)


def _values(
    ordered: Sequence[_Slice], rows: int, columns: int, left_out: list[tuple[Path, str]]
) -> tuple[list[_Slice], np.ndarray]:
    """The slices of files that can be decoded, and their values."""
    values = np.empty((len(ordered), rows, columns), dtype=np.float32)
    damaged: dict[Path, str] = {}
    for path, frames in itertools.groupby(enumerate(ordered), key=lambda numbered: numbered[1].path):
        try:
            with open_picture(path) as picture:
                for k, one in frames:
                    values[k] = picture.values(one.frame)
        except ImageError as error:
            damaged[path] = str(error)
    left_out += damaged.items()
    good = [k for k, one in enumerate(ordered) if one.path not in damaged]
    return [ordered[k] for k in good], values[good] if damaged else values


def _without_duplicates(
    ordered: Sequence[_Slice], values: np.ndarray, normal: np.ndarray
) -> tuple[list[int], list[Problem]]:
    """Keep the first slice of each position."""
    kept, problems = [0], []
    for k in range(1, len(ordered)):
        if (ordered[k].position - ordered[kept[-1]].position) @ normal > _SAME_MM:
            kept.append(k)
            continue
        same = "the same" if np.array_equal(values[k], values[kept[-1]]) else "other"
        text = f"a second slice at the place of slice {len(kept) - 1}, with {same} pixels, is left out"
        problems.append(Problem(Flaw.duplicate, text))
    return kept, problems


def _steps(slices: Sequence[_Slice], normal: np.ndarray) -> tuple[float, list[Problem]]:
    """Return the usual step along the normal in mm, and what is wrong with the steps."""
    if len(slices) == 1:
        return 0.0, [Problem(Flaw.single, "a single slice: it has no thickness to its neighbours")]
    moves = np.diff([one.position for one in slices], axis=0)
    steps = moves @ normal
    usual = float(np.median(steps))
    problems = _gaps(steps, usual)
    within = steps[steps <= _GAP * usual]
    if np.abs(within - usual).max() > max(_UNEVEN * usual, _SAME_MM):
        text = f"steps from {within.min():.2f} to {within.max():.2f} mm"
        problems.append(Problem(Flaw.uneven, text))
    whole = moves.sum(axis=0)
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(whole - (whole @ normal) * normal), whole @ normal)))
    if tilt > _TILT_DEGREES:
        problems.append(Problem(Flaw.tilt, f"slices are stacked {tilt:.1f} degrees off their normal: not a cuboid"))
    return usual, problems


def _gaps(steps: np.ndarray, usual: float) -> list[Problem]:
    """Steps much longer than usual; neighbours of one length make one line, as when the protocol changes half-way."""
    problems, k = [], 0
    for length, run in itertools.groupby(steps, key=lambda step: round(float(step), 1)):
        count = len(list(run))
        if length > _GAP * usual:
            steps_of = "a step" if count == 1 else f"{count} steps"
            text = f"{steps_of} of {length:.1f} mm from slice {k} to {k + count}, usually {usual:.1f} mm"
            problems.append(Problem(Flaw.gap, text))
        k += count
    return problems
