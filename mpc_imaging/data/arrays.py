"""An .npz file of anybody's own: pictures of one size with a class or a mask for each, read image by image.

It holds ``images``, uint8 or uint16 (N, H, W) or (N, H, W, 3), and ``labels``: integers (N,) or (N, 1), with
data.multi_label (N, K) of 0 and 1, with data.masks integers or booleans (N, H, W), masks or instance maps, of which
anything above 0 is the structure. Optional: ``split``, text (N,) of train, val and test, and ``patient``, (N,) text or
integers; without, every image counts as a patient of its own, and data.arrays says how patients are divided.
Other arrays are left alone. Nothing is unpickled; what a header claims is compared with what the file holds, and with
limits, before memory is taken, and only the images that are asked for are kept.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy

from mpc_imaging.data.images import match_channels, resize, resize_masks
from mpc_imaging.data.limits import MAX_ARRAY_ROWS, MAX_COLUMN_BYTES, MAX_SAMPLES
from mpc_imaging.data.medmnist import label_problem, rows_problem
from mpc_imaging.data.rows import Row, shuffle_key
from mpc_imaging.errors import DataError
from mpc_imaging.settings import SPLITS, ArraySettings, DataSettings

IMAGES, LABELS, SPLIT, PATIENT = "images", "labels", "split", "patient"
_CHUNK_SAMPLES = 2**22  # so many pixels are handed on together
_DAMAGED = (OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class _Array:
    """What the header of one array claims. ``fortran``: its first index runs fastest."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool


def read_rows(path: Path, data: DataSettings) -> list[Row]:
    """Return a row for every image, in the order of the file; with data.masks the labels of all are 0.

    Raises:
        DataError: no such file, or arrays that are not as they should be; every problem is listed.
    """
    with _open(path) as archive:
        names = {Path(name).stem for name in archive.namelist() if name.endswith(".npy")}
        missing = [f"{path}: there is no array {name!r} in it" for name in (IMAGES, LABELS) if name not in names]
        if missing:
            hint = "save it with numpy.savez_compressed(path, images=..., labels=...)"
            raise DataError([*missing[:-1], f"{missing[-1]}: {hint}"])
        images, labels = _header(archive, path, IMAGES), _header(archive, path, LABELS)
        problems = [f"{path}, {IMAGES}: {text}" for text in _picture_problems(images)]
        count = images.shape[0] if images.shape else 0
        values: Sequence[int | tuple[int, ...]] = [0] * count
        if data.masks:
            problems += [f"{path}, {LABELS}: {text}" for text in _mask_problems(labels, images)]
        elif not problems:
            column = _column(archive, path, LABELS, count)
            problem = (rows_problem if data.multi_label else label_problem)(column, len(data.class_names))
            problems += [f"{path}, {LABELS}: {problem}"] if problem else []
            values = list(map(tuple, column.tolist())) if data.multi_label else column.reshape(-1).tolist()
        if problems:
            raise DataError(problems)
        patients = _texts(archive, path, PATIENT, count) if PATIENT in names else list(map(str, range(count)))
        splits = _texts(archive, path, SPLIT, count) if SPLIT in names else _dealt(patients, data.arrays)
    _check_splits(path, splits, patients)
    return [
        Row(number, split, label, patient)
        for number, (split, label, patient) in enumerate(zip(splits, values, patients, strict=True))
    ]


def read_resized(
    path: Path, index: Sequence[int], data: DataSettings, content: Callable[[np.ndarray], bytes]
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[bytes]]:
    """The images ``index``, which ascends, in the size and channels of ``data``: float32 (n, C, H, W) in [0, 1] each.

    With data.masks also their masks, uint8 (n, H, W) of 0 and 1 each. Last what ``content`` makes of each image
    (C, H, W) as it was read. Raises `DataError` if they cannot be read.
    """
    size = data.image_size
    images: list[torch.Tensor] = []
    contents: list[bytes] = []
    for part in read_images(path, index, data.channels):
        images.append(resize(torch.from_numpy(part), size))
        contents += map(content, part)
    masks = read_masks(path, index) if data.masks else ()
    return images, [resize_masks(torch.from_numpy(part), size) for part in masks], contents


def read_images(path: Path, index: Sequence[int], channels: int) -> Iterator[np.ndarray]:
    """Yield the images ``index``, which ascends: float32 (n, channels, H, W) in [0, 1], a few at a time.

    The full range of the file's integers is [0, 1].

    Raises:
        DataError: the images cannot be read.
    """
    for own in _chosen(path, IMAGES, index):
        shown = own[:, np.newaxis] if own.ndim == 3 else np.moveaxis(own, -1, 1)
        yield match_channels(shown.astype(np.float32) / np.iinfo(own.dtype).max, channels)


def read_masks(path: Path, index: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the masks ``index``, which ascends: bool (n, H, W), a few at a time. Raises as `read_images`."""
    for own in _chosen(path, LABELS, index):
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


def _picture_problems(images: _Array) -> list[str]:
    shape = images.shape
    pictures = len(shape) == 3 or (len(shape) == 4 and shape[-1] == 3)
    if not pictures or images.dtype not in (np.uint8, np.uint16):
        wanted = "uint8 or uint16 of shape (N, H, W) or (N, H, W, 3)"
        return [f"{images.dtype} of shape {shape} are no pictures; save {wanted}"]
    return []


def _mask_problems(labels: _Array, images: _Array) -> list[str]:
    if labels.shape != images.shape[:3] or len(labels.shape) != 3 or labels.dtype.kind not in "iub":
        what = f"{labels.dtype} of shape {labels.shape} are no masks of the images, {images.shape}"
        return [f"{what}; save integers (N, H, W), or write data.masks=false for a class of each image"]
    return []


def _texts(archive: zipfile.ZipFile, path: Path, name: str, count: int) -> list[str]:
    column = _column(archive, path, name, count)
    if column.ndim != 1 or column.dtype.kind not in "Uiu":
        raise DataError([f"{path}, {name}: {column.dtype} of shape {column.shape}; save text (N,), one for each image"])
    return [str(value) for value in column.tolist()]


def _column(archive: zipfile.ZipFile, path: Path, name: str, count: int) -> np.ndarray:
    """A small array with ``count`` rows, whole."""
    claimed = _header(archive, path, name)
    if claimed.shape[:1] != (count,):
        raise DataError([f"{path}, {name}: shape {claimed.shape} for {count} images; save one row for each image"])
    if len(claimed.shape) > 2 or math.prod(claimed.shape) * claimed.dtype.itemsize > MAX_COLUMN_BYTES:
        what = f"shape {claimed.shape} is more than a few values for each image"
        raise DataError([f"{path}, {name}: {what}; if these are masks, write data.masks=true"])
    with _reading(archive, path, name) as (stream, _):
        content = stream.read(math.prod(claimed.shape) * claimed.dtype.itemsize)
        return np.frombuffer(content, claimed.dtype).reshape(claimed.shape)


def _chosen(path: Path, name: str, index: Sequence[int]) -> Iterator[np.ndarray]:
    """Rows ``index`` of an array, a chunk at a time; the others are read past."""
    with _open(path) as archive, _reading(archive, path, name) as (stream, claimed):
        size = math.prod(claimed.shape[1:]) * claimed.dtype.itemsize
        at, most = 0, max(1, _CHUNK_SAMPLES // math.prod(claimed.shape[1:]))
        for start in range(0, len(index), most):
            rows = []
            for row in index[start : start + most]:
                for _ in range(row - at):
                    _exactly(stream, size)
                rows.append(np.frombuffer(_exactly(stream, size), claimed.dtype).reshape(claimed.shape[1:]))
                at = row + 1
            yield np.stack(rows)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content


def _header(archive: zipfile.ZipFile, path: Path, name: str) -> _Array:
    with _reading(archive, path, name) as (_, claimed):
        return claimed


@contextmanager
def _reading(archive: zipfile.ZipFile, path: Path, name: str) -> Iterator[tuple[IO[bytes], _Array]]:
    """Open an array behind its header, which claims no more than the file and the limits hold."""
    try:
        with archive.open(f"{name}.npy") as stream:
            claimed = _claims(stream)
            problem = _limit_problem(claimed, archive.getinfo(f"{name}.npy").file_size - stream.tell())
            if problem:
                raise DataError([f"{path}, {name}: {problem}"])
            yield stream, claimed
    except _DAMAGED as error:
        raise DataError([f"{path}, {name}: it cannot be read ({type(error).__name__}): save it again"]) from None


def _claims(stream: IO[bytes]) -> _Array:
    if npy.read_magic(stream) != (1, 0):  # numpy writes later ones for fields only, and their headers have no limit
        raise ValueError
    shape, fortran, dtype = npy.read_array_header_1_0(stream)
    return _Array(shape, dtype, fortran)


def _limit_problem(claimed: _Array, there: int) -> str | None:
    if claimed.dtype.hasobject:
        return "Python objects are not read; save integers"
    if claimed.fortran:
        return "it is in Fortran order; save numpy.ascontiguousarray of it"
    if math.prod(claimed.shape) * claimed.dtype.itemsize != there:
        return f"shape {claimed.shape} of {claimed.dtype} does not fit the bytes of the file: save it again"
    if not claimed.shape or min(claimed.shape) < 1:
        return f"shape {claimed.shape} has nothing in it"
    if claimed.shape[0] > MAX_ARRAY_ROWS or math.prod(claimed.shape[1:]) > MAX_SAMPLES:
        return f"shape {claimed.shape} is larger than the limits in mpc_imaging/data/limits.py"
    return None


@contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    if not path.is_file():
        raise DataError([f"{path}: there is no such file: correct data.path"])
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        raise DataError([f"{path}: it is no .npz file, or cut short: save it with numpy.savez_compressed"]) from None
    with archive:
        yield archive
