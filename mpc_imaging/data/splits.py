"""One party's images of each split: read from files or arrays, resized, with their copies, and normalised."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mpc_imaging.data import arrays, medmnist, quality
from mpc_imaging.data.augment import augmented, augmented_masks
from mpc_imaging.data.image_names import ImageNames
from mpc_imaging.data.images import normalise, resize, resize_masks
from mpc_imaging.data.manifest import NO_LABEL
from mpc_imaging.data.refusals import ImageError
from mpc_imaging.data.row_images import Source, read_row
from mpc_imaging.data.rows import UNLABELLED, Refused, Row
from mpc_imaging.data.segmentations import MaskReader
from mpc_imaging.errors import DataError
from mpc_imaging.settings import SPLITS, DataKind, DataSettings, Invalid

logger = logging.getLogger("mpc_imaging.data")


@dataclass(frozen=True, eq=False)
class Split:
    """One party's images of one split, in a fixed order.

    ``images`` is float32 (N, C, H, W), normalised, or volumes (N, S, C, H, W), or (N, F), features of images;
    ``labels`` int64 (N,), or with data.multi_label (N, K) of 0 and 1, with data.masks (N, H, W) of 0 and 1, the
    structure. ``ids``: N pseudonyms, unique within the run: ``<party>-<split>-<keyed hash>`` or ``<split>-<row of the
    .npz>``, with the split that the data set has the image in, ``-<frame>`` behind it where all are used, and ``-a<k>``
    at the end of the k-th copy of a train image. ``sources``: the file of each image and its frame, from 0, or those of
    all slices of a volume; empty for images that have none. ``contents``: of the images before those copies, a digest
    each of its decoded pixels, before they were resized, or b"" of a blank one.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: list[str]
    sources: list[Source] = field(default_factory=list, repr=False)
    contents: list[bytes] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        """Return N."""
        return len(self.ids)

    def __repr__(self) -> str:
        """Show the shape alone: pixels and labels must not reach a log."""
        return f"Split(images={tuple(self.images.shape)})"


@dataclass(frozen=True)
class RowSource:
    """Rows in reach of one party, and how to read them. ``shared``: one data set for all owners, to be divided.

    ``names``: pseudonyms of DICOM files.
    """

    data: DataSettings
    party: str
    path: Path
    rows: list[Row]
    rejected: list[Refused]
    shared: bool
    names: ImageNames | None = None


@dataclass(frozen=True)
class Pixels:
    """Images of one split as they were read: float32 (n, ..., C, H, W) in [0, 1] each, with rows and ids of all.

    ``masks``: with data.masks, uint8 (n, H, W) of 0 and 1 each. ``contents``: see `Split`. ``flaws``: what is wrong
    with stacks of slices, as often as it is.
    """

    images: list[torch.Tensor] = field(repr=False)
    rows: list[Row] = field(repr=False)
    ids: list[str]
    sources: list[Source] = field(default_factory=list, repr=False)
    masks: list[torch.Tensor] = field(default_factory=list, repr=False)
    contents: list[bytes] = field(default_factory=list, repr=False)
    flaws: list[str] = field(default_factory=list)


def read(source: RowSource, own: Sequence[Row], splits: Sequence[str]) -> dict[str, Pixels]:
    """Read a party's rows by split. Raises `DataError` for what cannot be used, unless it may be left out."""
    rows = {split: [row for row in own if row.split == split] for split in splits}
    if source.data.kind is DataKind.medmnist:
        return {split: _read_npz(source, split, rows[split]) for split in splits}
    if source.data.kind is DataKind.arrays:
        return {split: _read_arrays(source, rows[split]) for split in splits}
    return _read_files(source, rows)


def _read_npz(source: RowSource, split: str, rows: Sequence[Row]) -> Pixels:
    data = source.data
    prefix = "" if source.shared else f"{source.party}-"
    if not rows:
        return Pixels([], [], [])
    rows = sorted(rows, key=lambda row: SPLITS.index(row.origin))
    parts = [
        medmnist.read_images(source.path, origin, [row.number for row in same], data.channels, data.slices)
        for origin, same in itertools.groupby(rows, key=lambda row: row.origin)
    ]
    pixels = np.concatenate(parts)
    digests = list(map(_digest, pixels))
    copies = len(pixels) - len(set(digests))
    if copies:
        logger.info(
            "%d of %d %s images repeat another one: MedMNIST has some, they are kept", copies, len(pixels), split
        )
    ids = [f"{prefix}{row.origin}-{row.number:05d}" for row in rows]
    images = [resize(torch.from_numpy(pixels), data.image_size)]
    return Pixels(images, rows, ids, contents=_contents(pixels, digests))


def _read_arrays(source: RowSource, rows: Sequence[Row]) -> Pixels:
    data, prefix = source.data, "" if source.shared else f"{source.party}-"
    if not rows:
        return Pixels([], [], [])
    rows = sorted(rows, key=lambda row: row.number)
    images, masks, contents = arrays.read_resized(source.path, [row.number for row in rows], data, _contents)
    ids = [f"{prefix}{row.origin}-{row.number:05d}" for row in rows]
    return Pixels(images, rows, ids, masks=masks, contents=contents)


def _read_files(source: RowSource, rows: dict[str, list[Row]]) -> dict[str, Pixels]:
    """Decode the party's DICOM files, file by file; refuse or leave out what cannot be used."""
    data = source.data
    rejected = list(source.rejected)
    seen: dict[tuple[bytes, ...], int] = {}
    loaded = {}
    reader = MaskReader(data.mask_segment)
    for split, own in rows.items():
        images, used, ids, sources, masks, contents, flaws = [], [], [], [], [], [], []
        for row in own:
            path = source.path / row.file
            try:
                frames, places = read_row(data, source.path, row, source.names, rejected, flaws)
            except ImageError as error:
                rejected.append(Refused(row.number, row.file, str(error)))
                continue
            try:
                marked = reader.read(source.path / row.mask, path, [k for _, k in places]) if row.mask else None
            except ImageError as error:
                rejected.append(Refused(row.number, row.file, f"its mask: {error}"))
                continue
            digests = tuple(map(_digest, frames))
            first = seen.setdefault(digests, row.number)
            if first != row.number:
                rejected.append(Refused(row.number, row.file, f"the same image as row {first}"))
                continue
            images += [resize(torch.from_numpy(frame)[None], data.image_size) for frame in frames]
            contents += _contents(frames, digests)
            used += [row] * len(frames)
            ids += source.names.ids(row, len(frames))
            sources += places
            if data.masks:
                masks.append(_masks(marked, len(frames), data.image_size))
        loaded[split] = Pixels(images, used, ids, sources, masks, contents, flaws)
    reader.close()
    source.names.write([row for part in loaded.values() for row in part.rows], rejected)
    report([source.names.refusal(each) for each in rejected], data.invalid)
    return loaded


def _masks(marked: np.ndarray | None, count: int, size: int) -> torch.Tensor:
    """So many masks (n, size, size) of 0 and 1, or of `UNLABELLED` where there are none."""
    if marked is None:
        return torch.full((count, size, size), UNLABELLED, dtype=torch.int8)
    return resize_masks(torch.from_numpy(marked), size)


def report(rejected: Sequence[str], invalid: Invalid) -> None:
    """Log a line for each image that cannot be used. Raises `DataError` with all of them for data.invalid=refuse."""
    for line in rejected:
        logger.warning("%s: %s", "left out" if invalid is Invalid.skip else "refused", line)
    if rejected and invalid is Invalid.refuse:
        hint = "correct these, or write data.invalid=skip to leave them out"
        if any(line.endswith(NO_LABEL) for line in rejected):
            hint += "; to predict without labels write task=infer policy=own_outputs"
        raise DataError([*rejected[:-1], f"{rejected[-1]} ({hint})"])


def with_copies(source: RowSource, part: Pixels, seed: int) -> Pixels:
    """The same, then the copies that data.augment asks for, drawn from the public seed."""
    augment = source.data.augment
    if augment.copies == 1 or not part.ids:
        return part
    images, ids = augmented(torch.cat(part.images), part.ids, part.rows, augment, seed, source.party)
    masks = [augmented_masks(torch.cat(part.masks), part.rows, augment, seed, source.party)] if part.masks else []
    return Pixels([images], part.rows * augment.copies, ids, masks=masks, contents=part.contents)


def finished(data: DataSettings, part: Pixels) -> Split:
    """Images normalised, and labels as tensors."""
    size = data.image_size
    slices = () if data.slices is None else (data.slices,)
    joint = torch.cat(part.images) if part.images else torch.zeros(0, *slices, data.channels, size, size)
    if data.masks:
        labels = torch.cat(part.masks).long() if part.masks else torch.zeros(0, size, size, dtype=torch.int64)
    else:
        labels = labels_of(part.rows, data)
    return Split(normalise(joint, data.mean, data.std), labels, part.ids, part.sources, part.contents)


def labels_of(rows: Sequence[Row], data: DataSettings) -> torch.Tensor:
    """The labels of rows: int64 (N,), or with data.multi_label (N, K)."""
    labels = torch.tensor([row.label for row in rows], dtype=torch.int64)
    return labels.reshape(-1, len(data.class_names)) if data.multi_label else labels


def _contents(images: Sequence[np.ndarray], digests: Sequence[bytes] | None = None) -> list[bytes]:
    """What two owners compare images (..., C, H, W) by: nothing of a blank one, as any two of those are alike."""
    digests = list(map(_digest, images)) if digests is None else digests
    blank = [image.max() - image.min() < quality.HALF_LEVEL for image in images]
    return [b"" if empty else known for empty, known in zip(blank, digests, strict=True)]


def _digest(image: np.ndarray) -> bytes:
    """SHA-256 of an image's shape and values."""
    found = hashlib.sha256(str(image.shape).encode())
    found.update(np.ascontiguousarray(image))
    return found.digest()
