"""An .npz file of anybody's own: pictures of one size with a class or a mask for each, read image by image.

It holds ``images``, uint8 or uint16 (N, H, W) or (N, H, W, 3), and ``labels``: integers (N,) or (N, 1), with
data.multi_label (N, K) of 0 and 1, with data.masks integers or booleans (N, H, W), masks or instance maps, of which
anything above 0 is the structure. Optional: ``split``, text (N,) of train, val and test, and ``patient``, (N,) text or
integers; without, every image counts as a patient of its own, and data.arrays says how patients are divided.
Other arrays are left alone, and only the images that are asked for are kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch

from mpc_imaging.data.images import match_channels, resize, resize_masks
from mpc_imaging.data.limits import MAX_COLUMN_BYTES
from mpc_imaging.data.medmnist import label_problem, rows_problem
from mpc_imaging.data.npz import Archive, Header, open_npz
from mpc_imaging.data.rows import Row, shuffle_key
from mpc_imaging.errors import DataError
from mpc_imaging.settings import SPLITS, ArraySettings, DataSettings

IMAGES, LABELS, SPLIT, PATIENT = "images", "labels", "split", "patient"


def read_rows(path: Path, data: DataSettings) -> list[Row]:
    """Return a row for every image, in the order of the file; with data.masks the labels of all are 0.

    Raises:
        DataError: no such file, or arrays that are not as they should be; every problem is listed.
    """
    with _open(path) as archive:
        names = archive.names
        missing = [f"{path}: there is no array {name!r} in it" for name in (IMAGES, LABELS) if name not in names]
        if missing:
            hint = "save it with numpy.savez_compressed(path, images=..., labels=...)"
            raise DataError([*missing[:-1], f"{missing[-1]}: {hint}"])
        images, labels = _header(archive, IMAGES), _header(archive, LABELS)
        problems = [f"{path}, {IMAGES}: {text}" for text in _picture_problems(images)]
        count = images.shape[0]
        values: Sequence[int | tuple[int, ...]] = [0] * count
        if data.masks:
            problems += [f"{path}, {LABELS}: {text}" for text in _mask_problems(labels, images)]
        elif not problems:
            column = _column(archive, LABELS, count)
            problem = (rows_problem if data.multi_label else label_problem)(column, len(data.class_names))
            problems += [f"{path}, {LABELS}: {problem}"] if problem else []
            values = list(map(tuple, column.tolist())) if data.multi_label else column.reshape(-1).tolist()
        if problems:
            raise DataError(problems)
        patients = _texts(archive, PATIENT, count) if PATIENT in names else list(map(str, range(count)))
        splits = _texts(archive, SPLIT, count) if SPLIT in names else _dealt(patients, data.arrays)
    _check_splits(path, splits, patients)
    return [
        Row(number, split, label, patient)
        for number, (split, label, patient) in enumerate(zip(splits, values, patients, strict=True))
    ]


def read_resized(
    path: Path, index: Sequence[int], data: DataSettings, contents_of: Callable[[np.ndarray], list[bytes]]
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[bytes]]:
    """The images ``index``, which ascends, in the size and channels of ``data``: float32 (n, C, H, W) in [0, 1] each.

    With data.masks also their masks, uint8 (n, H, W) of 0 and 1 each. Last what ``contents_of`` makes of the
    images as they were read. Raises `DataError` if they cannot be read.
    """
    size = data.image_size
    images: list[torch.Tensor] = []
    contents: list[bytes] = []
    for part in read_images(path, index, data.channels):
        images.append(resize(torch.from_numpy(part), size))
        contents += contents_of(part)
    masks = read_masks(path, index) if data.masks else ()
    return images, [resize_masks(torch.from_numpy(part), size) for part in masks], contents


def read_images(path: Path, index: Sequence[int], channels: int) -> Iterator[np.ndarray]:
    """Yield the images ``index``, which ascends: float32 (n, channels, H, W) in [0, 1], a few at a time.

    The full range of the file's integers is [0, 1].

    Raises:
        DataError: the images cannot be read.
    """
    for own in _rows(path, IMAGES, index):
        shown = own[:, np.newaxis] if own.ndim == 3 else np.moveaxis(own, -1, 1)
        yield match_channels(shown.astype(np.float32) / np.iinfo(own.dtype).max, channels)


def read_masks(path: Path, index: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the masks ``index``, which ascends: bool (n, H, W), a few at a time. Raises as `read_images`."""
    for own in _rows(path, LABELS, index):
        yield own > 0


def _dealt(patients: Sequence[str], fractions: ArraySettings) -> list[str]:
    """A split for each image: patients in an order drawn by the seed, each to the split furthest below its share."""
    sizes: dict[str, int] = defaultdict(int)
    for patient in patients:
        sizes[patient] += 1
    share = {split: getattr(fractions, split) for split in SPLITS if getattr(fractions, split) > 0}
    held = dict.fromkeys(share, 0)
    split_of = {}
    for patient in sorted(sizes, key=lambda name: shuffle_key(fractions.seed, "arrays", name)):
        chosen = min(share, key=lambda split: (held[split] + sizes[patient]) / share[split])
        split_of[patient] = chosen
        held[chosen] += sizes[patient]
    return [split_of[patient] for patient in patients]


def _check_splits(path: Path, splits: Sequence[str], patients: Sequence[str]) -> None:
    problems = []
    if not set(splits) <= set(SPLITS):
        problems.append(f"{path}, {SPLIT}: every image needs one of {', '.join(SPLITS)}")
    of: dict[str, set[str]] = defaultdict(set)
    for split, patient in zip(splits, patients, strict=True):
        of[patient].add(split)
    several = sum(len(found) > 1 for found in of.values())
    if several:
        problems.append(f"{path}, {SPLIT}: {several} patients are in several splits: keep each in one")
    if problems:
        raise DataError(problems)


def _picture_problems(images: Header) -> list[str]:
    shape = images.shape
    pictures = len(shape) == 3 or (len(shape) == 4 and shape[-1] == 3)
    if not pictures or images.dtype not in (np.uint8, np.uint16):
        wanted = "uint8 or uint16 of shape (N, H, W) or (N, H, W, 3)"
        return [f"{images.dtype} of shape {shape} are no pictures; save {wanted}"]
    return []


def _mask_problems(labels: Header, images: Header) -> list[str]:
    if labels.shape != images.shape[:3] or len(labels.shape) != 3 or labels.dtype.kind not in "iub":
        what = f"{labels.dtype} of shape {labels.shape} are no masks of the images, {images.shape}"
        return [f"{what}; save integers (N, H, W), or write data.masks=false for a class of each image"]
    return []


def _texts(archive: Archive, name: str, count: int) -> list[str]:
    column = _column(archive, name, count)
    if column.ndim != 1 or column.dtype.kind not in "Uiu":
        what = f"{column.dtype} of shape {column.shape}; save text (N,), one for each image"
        raise DataError([f"{archive.path}, {name}: {what}"])
    return [str(value) for value in column.tolist()]


def _column(archive: Archive, name: str, count: int) -> np.ndarray:
    """A small array with ``count`` rows, whole."""
    claimed, where = _header(archive, name), f"{archive.path}, {name}"
    if claimed.shape[0] != count:
        raise DataError([f"{where}: shape {claimed.shape} for {count} images; save one row for each image"])
    if len(claimed.shape) > 2 or claimed.bytes > MAX_COLUMN_BYTES:
        what = f"shape {claimed.shape} is more than a few values for each image"
        raise DataError([f"{where}: {what}; if these are masks, write data.masks=true"])
    return archive.whole(name)


def _header(archive: Archive, name: str) -> Header:
    claimed = archive.header(name)
    if claimed.fortran:
        raise DataError([f"{archive.path}, {name}: it is in Fortran order; save numpy.ascontiguousarray of it"])
    if claimed.shape[0] < 1:
        raise DataError([f"{archive.path}, {name}: shape {claimed.shape} has nothing in it"])
    return claimed


def _rows(path: Path, name: str, index: Sequence[int]) -> Iterator[np.ndarray]:
    with _open(path) as archive:
        yield from archive.rows(name, index)


def _open(path: Path) -> AbstractContextManager[Archive]:
    return open_npz(path, "save it with numpy.savez_compressed", "save it again")
