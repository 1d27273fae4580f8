"""Masks of images from DICOM segmentations (SEG): binary, fractional (half or more) or label maps.

Of a SEG those frames mark an image that are of the wanted segment and name the image, by its SOP Instance UID, as a
source (Derivation Image Sequence, PS3.3 C.7.6.16.2.6). A frame that names no source marks what lies where it does, in
the same frame of reference; of several images that one frame names, those that lie where it does, where both say so:
some programs let every frame name the whole series. What several frames mark is joined. An image that no frame marks
has an empty mask if the SEG refers to the image or its series: a SEG leaves out frames in which nothing is marked.

Identifiers are compared and dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.uid import SegmentationStorage

from mpc_imaging.data import pixels
from mpc_imaging.data.dicom import LABEL_MAP_STORAGE
from mpc_imaging.data.header import Header, open_header, refusing
from mpc_imaging.data.refusals import ImageError, Reason
from mpc_imaging.data.windows import group

_GROUPS = "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence FrameOfReferenceUID"
_SEG = f"{_GROUPS} SOPClassUID SegmentationType SegmentSequence MaximumFractionalValue ReferencedSeriesSequence"
_IMAGE = f"{_GROUPS} SOPInstanceUID SeriesInstanceUID ImagePositionPatient ImageOrientationPatient PixelSpacing"
_SAME_MM = 0.05  # positions closer than this are one position: six digits are often all that is written
_SAME_DIRECTION = 1e-3
_SAME_SPACING = 0.01  # of the spacing


@dataclass(frozen=True, repr=False)
class _Plane:
    """Where the pixels of a frame lie: mm in the patient, None where the file does not say."""

    position: np.ndarray | None  # (3,), of the first pixel
    directions: np.ndarray | None  # (6,) of a row and of a column
    spacing: np.ndarray | None  # (2,) of rows and of columns

    @classmethod
    def of(cls, header: Dataset, frame: int) -> _Plane:
        position = group(header, frame, "PlanePositionSequence").get("ImagePositionPatient")
        directions = group(header, frame, "PlaneOrientationSequence").get("ImageOrientationPatient")
        spacing = group(header, frame, "PixelMeasuresSequence").get("PixelSpacing")
        return cls(_numbers(position, 3), _numbers(directions, 6), _numbers(spacing, 2))

    def same_grid(self, other: _Plane) -> bool:
        """Whether pixels lie over each other, as far as both files say: within half of one, in each direction."""
        if self.directions is None or other.directions is None:
            return True
        if np.abs(self.directions - other.directions).max() > _SAME_DIRECTION:
            return False
        if self.spacing is None or other.spacing is None:
            return True
        if np.abs(self.spacing / other.spacing - 1).max() > _SAME_SPACING:
            return False
        if not self.placed or not other.placed:
            return True
        row, column = self.directions.reshape(2, 3)
        offset = np.array([row, column, np.cross(row, column)]) @ (self.position - other.position)
        return bool(np.abs(offset / [*self.spacing[::-1], self.spacing.min()]).max() < 0.5)

    @property
    def placed(self) -> bool:
        """Whether the file says where it is."""
        return self.position is not None and self.directions is not None

    def at(self, other: _Plane) -> bool:
        """Whether both say that they lie at the same place."""
        if not self.placed or not other.placed:
            return False
        return bool(np.linalg.norm(self.position - other.position) < _SAME_MM) and self.same_grid(other)


@dataclass(frozen=True, repr=False)
class _Image:
    """An image that a mask is wanted of."""

    uid: str
    series: str | None
    frame_of_reference: str | None
    size: tuple[int, int]
    planes: list[_Plane]

    @classmethod
    def read(cls, path: Path, frames: Sequence[int]) -> _Image:
        with open_header(path, [*_IMAGE.split(), *pixels.KEYWORDS.split()]) as header, refusing():
            elements = header.elements
            return cls(
                elements.SOPInstanceUID,
                elements.get("SeriesInstanceUID"),
                elements.get("FrameOfReferenceUID"),
                (elements.Rows, elements.Columns),
                [_Plane.of(elements, frame) for frame in frames],
            )


class MaskReader:
    """Reads masks; the last SEG stays open until `close`, since the images of a series have one together."""

    def __init__(self, segment: int) -> None:
        self._segment = segment
        self._path: Path | None = None
        self._open = ExitStack()

    def read(self, path: Path, image: Path, frames: Sequence[int]) -> np.ndarray:
        """Return what the SEG ``path`` marks of ``frames`` of the file ``image``: bool (len(frames), H, W).

        Raises:
            ImageError: one of the files is missing or damaged, the SEG has no such segment, refers neither to the image
                nor to its series, or has pixels that do not lie over those of the image.
        """
        of = _Image.read(image, frames)
        if path != self._path:
            self.close()
            header = self._open.enter_context(open_header(path, [*_SEG.split(), *pixels.KEYWORDS.split()]))
            with refusing():
                self._seg = _Segmentation(header, self._segment)
            self._path = path
        with refusing():
            return self._seg.masks(of, frames)

    def close(self) -> None:
        """Close the last SEG."""
        self._path = None
        self._open.close()


class _Segmentation:
    """One open SEG, and which of its frames are of the wanted segment."""

    def __init__(self, header: Header, segment: int) -> None:
        elements = header.elements
        if elements.get("SOPClassUID") not in (SegmentationStorage, LABEL_MAP_STORAGE) or header.pixels is None:
            raise ImageError(Reason.not_a_mask)
        self._header, self._segment = elements, segment
        self._pixels = pixels.Pixels(header)
        self._kind = elements.SegmentationType
        if segment not in (int(item.SegmentNumber) for item in elements.SegmentSequence):
            raise ImageError(Reason.no_segment)
        frames = [k for k in range(self._pixels.count) if self._kind == "LABELMAP" or self._is_of(k)]
        self._planes = {k: _Plane.of(elements, k) for k in frames}
        self._without_source: list[int] = []
        self._of_several: set[int] = set()
        self._of_source: dict[tuple[str, int | None], list[int]] = defaultdict(list)
        for k in frames:
            sources = set(_sources(elements, k))
            for source in sources:
                self._of_source[source].append(k)
            if not sources:
                self._without_source.append(k)
            if len({uid for uid, _ in sources}) > 1:
                self._of_several.add(k)
        self._referred = _referred(elements)

    def _is_of(self, frame: int) -> bool:
        item = group(self._header, frame, "SegmentIdentificationSequence")
        return int(item.ReferencedSegmentNumber) == self._segment

    def masks(self, image: _Image, frames: Sequence[int]) -> np.ndarray:
        """Return bool (len(frames), H, W)."""
        if (self._pixels.shape.rows, self._pixels.shape.columns) != image.size:
            raise ImageError(Reason.other_grid if self._refers_to(image) else Reason.other_series)
        found = np.zeros((len(frames), *image.size), dtype=bool)
        anything = self._refers_to(image)
        for mask, frame, plane in zip(found, frames, image.planes, strict=True):
            for own in self._marking(image, frame, plane):
                if not self._planes[own].same_grid(plane):
                    raise ImageError(Reason.other_grid)
                anything = True
                mask |= self._decoded(own)
        if not anything:
            raise ImageError(Reason.other_series)
        return found

    def _marking(self, image: _Image, frame: int, plane: _Plane) -> list[int]:
        """The frames that mark this one of the image."""
        named = [
            k
            for number in (None, frame + 1)
            for k in self._of_source.get((image.uid, number), ())
            if k not in self._of_several or not self._apart(k, plane)
        ]
        space = image.frame_of_reference
        if not space or self._header.get("FrameOfReferenceUID") != space:
            return named
        return named + [k for k in self._without_source if self._planes[k].at(plane)]

    def _apart(self, own: int, plane: _Plane) -> bool:
        """Whether both say where they lie, and that is not the same place."""
        mine = self._planes[own]
        return mine.placed and plane.placed and not mine.at(plane)

    def _decoded(self, frame: int) -> np.ndarray:
        ((stored, _),) = self._pixels.decode([frame])
        if stored.ndim != 2:
            raise ImageError(Reason.damaged)
        if self._kind == "FRACTIONAL":
            return stored.astype(np.int64) * 2 >= int(self._header.MaximumFractionalValue)
        return stored == (self._segment if self._kind == "LABELMAP" else 1)

    def _refers_to(self, image: _Image) -> bool:
        return image.uid in self._referred or image.series in self._referred


def _referred(header: Dataset) -> set[str]:
    """UIDs of the series and of the images that a SEG says it was made of."""
    found = set()
    for series in header.get("ReferencedSeriesSequence") or []:
        instances = series.get("ReferencedInstanceSequence") or []
        found |= {series.get("SeriesInstanceUID"), *(item.get("ReferencedSOPInstanceUID") for item in instances)}
    return found - {None}


def _sources(header: Dataset, frame: int) -> Iterator[tuple[str, int | None]]:
    """Which images a frame was made of: the UID of each, and the number of its frame from 1, None for all of them."""
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    own = [frames[frame]] if frame < len(frames) else []
    for groups in (*own, *(header.get("SharedFunctionalGroupsSequence") or [])):
        for derivation in groups.get("DerivationImageSequence") or []:
            for source in derivation.get("SourceImageSequence") or []:
                numbers = source.get("ReferencedFrameNumber")
                numbers = [numbers] if numbers is None or isinstance(numbers, int) else list(numbers)
                yield from ((source.ReferencedSOPInstanceUID, None if n is None else int(n)) for n in numbers)


def _numbers(value: object, count: int) -> np.ndarray | None:
    """So many finite numbers of a header; None if there are none."""
    if not value:
        return None
    numbers = np.array(value, dtype=np.float64)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ImageError(Reason.damaged)
    return numbers
