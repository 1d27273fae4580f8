"""One volume of S slices from a folder with one DICOM series, or from a multi-frame file.

Slices are sorted by their position in the patient. S places are spread evenly over the whole length, each taking the
slice nearest to it: of more slices some are left out, of fewer some are repeated, and so are those beside a gap. Frames
without positions count as evenly spaced, in the order of the file. Nothing is interpolated between slices.

Grey levels are those of single images: a window in Hounsfield units gives all slices of a CT one scale, while without
one each slice is shown through its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mpc_imaging.data.dicom import open_picture
from mpc_imaging.data.limits import MAX_RETURNED_SAMPLES
from mpc_imaging.data.manifest import NAME
from mpc_imaging.data.refusals import ImageError, Reason
from mpc_imaging.data.series import NO_POSITION, Flaw, Problem, read_volumes
from mpc_imaging.data.windows import Window

_FLAWS = {
    Flaw.gap: "volumes with gaps between slices",
    Flaw.uneven: "volumes of unevenly spaced slices",
    Flaw.tilt: "volumes stacked off the normal of their slices",
    Flaw.duplicate: "volumes with several slices at one place, of which the first was taken",
    Flaw.unit: "volumes without Hounsfield units",
}
_NO_SLICE = {
    NO_POSITION,
    Reason.not_dicom.value,
    Reason.no_image.value,
    Reason.directory.value,
}  # may lie beside slices
_FEW = "volumes with fewer slices than data.slices, of which some are repeated"


@dataclass(frozen=True, eq=False)
class Slices:
    """What was read of one volume.

    ``values`` is float32 (S, C, H, W) in [0, 1]. ``sources`` has the file and the frame of each of the S slices, so one
    that is repeated comes again. ``problems``: what is wrong with the stack that they were chosen from; ``found``: how
    many slices that has.
    """

    values: np.ndarray = field(repr=False)
    sources: list[tuple[Path, int]] = field(repr=False)
    problems: list[Problem]
    found: int

    def flaws(self) -> list[str]:
        """What is wrong, a line for each kind."""
        few = [_FEW] if self.found < len(self.values) else []
        return [*dict.fromkeys(_FLAWS[one.flaw] for one in self.problems), *few]


def read_slices(path: Path, count: int, channels: int, window: Window, left_out: list[tuple[Path, str]]) -> Slices:
    """Read ``count`` slices of the series in a folder, whose subfolders and hidden files are ignored, or of a file.

    Files of the folder that cannot be used are added to ``left_out``, each with the reason; the others go on.

    Raises:
        ImageError: as `open_picture`; or there are no two slices, or slices of several stacks.
    """
    if not path.is_dir():
        sources, positions, problems = _frames(path)
    else:
        sources, positions, problems = _stack(_files(path, left_out), left_out)
    if len(sources) < 2:
        raise ImageError(Reason.single)
    chosen = [sources[k] for k in nearest(positions, count)]
    problems = [one for one in problems if one.flaw is not Flaw.unit or window.hounsfield]
    return Slices(_shown(chosen, channels, window), chosen, problems, len(sources))


def nearest(positions: Sequence[float], count: int) -> list[int]:
    """For ``count`` places in the middles of equal parts of the whole length, the index of the nearest position.

    positions: ascending; the whole length goes half a usual step beyond the first and the last. Of two equally near
    ones it is the first.
    """
    places = np.asarray(positions, dtype=float)
    margin = float(np.median(np.diff(places))) / 2 if len(places) > 1 else 0.5
    parts = (np.arange(count) + 0.5) / count
    wanted = places[0] - margin + parts * (places[-1] - places[0] + 2 * margin)
    # Rounded, so that machines agree on which of two equally near ones is taken.
    distances = np.round(np.abs(wanted[:, None] - places[None]), 6)
    return distances.argmin(1).tolist()


def _files(folder: Path, left_out: list[tuple[Path, str]]) -> list[Path]:
    """The files directly in a folder; links that lead out of it are left out."""
    files = [
        path
        for path in sorted(folder.iterdir())
        if not path.is_dir() and not path.name.startswith(".") and path.name != NAME
    ]
    here = folder.resolve()
    left_out += [(path, Reason.outside.value) for path in files if path.resolve().parent != here]
    return [path for path in files if path.resolve().parent == here]


def _stack(
    files: Sequence[Path], left_out: list[tuple[Path, str]]
) -> tuple[list[tuple[Path, int]], list[float], list[Problem]]:
    """Sources, positions and problems of the one stack in these files; what is in no stack goes to ``left_out``."""
    found = read_volumes(files)
    left_out += found.left_out
    if len(found.volumes) > 1:
        raise ImageError(Reason.several)
    if not found.volumes:
        why = {reason for _, reason in found.left_out} - _NO_SLICE
        raise ImageError(Reason(why.pop()) if len(why) == 1 else Reason.no_slices)
    (volume,) = found.volumes
    return volume.sources, volume.positions, volume.problems


def _frames(path: Path) -> tuple[list[tuple[Path, int]], list[float], list[Problem]]:
    """The same of a multi-frame file: by position if it has any, else in its own order."""
    with open_picture(path) as picture:
        count = picture.count
    if count == 1:
        raise ImageError(Reason.single)
    left_out: list[tuple[Path, str]] = []
    with contextlib.suppress(ImageError):
        return _stack([path], left_out)
    if not left_out:
        raise ImageError(Reason.several)
    if left_out[0][1] != NO_POSITION:
        raise ImageError(Reason(left_out[0][1]))
    return [(path, frame) for frame in range(count)], list(map(float, range(count))), []


def _shown(chosen: Sequence[tuple[Path, int]], channels: int, window: Window) -> np.ndarray:
    """Decode each chosen slice once: float32 (S, C, H, W)."""
    wanted: dict[Path, list[int]] = {}
    for path, frame in dict.fromkeys(chosen):
        wanted.setdefault(path, []).append(frame)
    images: dict[tuple[Path, int], np.ndarray] = {}
    for path, frames in wanted.items():
        with open_picture(path) as picture:
            if len(chosen) * picture.samples * channels > MAX_RETURNED_SAMPLES:
                raise ImageError(Reason.too_large)
            shown = picture.shown(frames, channels, window)
            images |= {(path, frame): image for frame, image in zip(frames, shown, strict=True)}
    return np.stack([images[one] for one in chosen])
