"""MedMNIST's .npz files: found by path or downloaded, then read row by row.

A file holds ``<split>_images``, uint8 (N, H, W) or (N, H, W, 3), and ``<split>_labels``, integers (N,) or (N, 1); of a
set whose images have several labels, such as ChestMNIST, (N, K) of 0 and 1.
MedMNIST publishes no patients, so each image counts as its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from mpc_imaging.data.images import match_channels
from mpc_imaging.data.npz import Archive, Header, open_npz
from mpc_imaging.data.rows import Row
from mpc_imaging.data.volumes import nearest
from mpc_imaging.errors import DataError

_SIZES = (28, 64, 128, 224)
_SIZES_3D = (28, 64)
_CACHE = Path("~/.medmnist")


def read_rows(path: Path, splits: Sequence[str], class_names: Sequence[str], multi_label: bool = False) -> list[Row]:
    """Return a row for every image of ``splits``, from the labels alone; a split that the file lacks has none.

    Raises:
        DataError: no such file, no MedMNIST file, labels without a name, or several per image without ``multi_label``.
    """
    problems: list[str] = []
    rows: list[Row] = []
    with _open(path) as archive:
        if not any(f"{split}_labels" in archive.names for split in splits):
            expected = " or ".join(f"{split}_labels" for split in splits)
            raise DataError([f"{path}: there is no {expected} in it: give a MedMNIST classification file"])
        for split in splits:
            if f"{split}_labels" not in archive.names:
                continue
            labels = archive.whole(f"{split}_labels")
            problem = (rows_problem if multi_label else label_problem)(labels, len(class_names))
            if problem:
                problems.append(f"{path}, {split}_labels: {problem}")
                continue
            values = map(tuple, labels.tolist()) if multi_label else labels.reshape(-1).tolist()
            rows += [Row(index, split, label, patient=f"{split}-{index}") for index, label in enumerate(values)]
    if problems:
        raise DataError(problems)
    return rows


def read_images(path: Path, split: str, index: Sequence[int], channels: int, slices: int | None = None) -> np.ndarray:
    """Return the images ``index`` of a split: float32 (len(index), channels, H, W) in [0, 1]. The others are not kept.

    With ``slices`` they are those of volumes: (len(index), slices, channels, H, W).

    Raises:
        DataError: the images are not 8-bit pictures in grey or RGB (or grey volumes), or fewer than the labels.
    """
    name = f"{split}_images"
    with _open(path) as archive:
        if name not in archive.names:
            raise DataError([f"{path}: there is no {name} in it: give a MedMNIST classification file"])
        images = archive.header(name)
        problem = _image_problem(images, slices is not None)
        if problem:
            raise DataError([f"{path}, {name}: {problem}"])
        count, shape = images.shape[0], images.shape[1:]
        if len(index) and max(index) >= count:
            raise DataError([f"{path}: {name} has {count} images, fewer than {split}_labels: get it again"])
        kept = slice(None) if slices is None else nearest(range(shape[0]), slices)
        chosen, order = np.unique(np.asarray(index, dtype=np.int64), return_inverse=True)
        parts = [part[:, kept] for part in archive.rows(name, chosen)]
    own = np.concatenate([np.empty((0, *shape), np.uint8)[:, kept], *parts])[order]
    grey = slices is not None or own.ndim == 3
    own = np.expand_dims(own, -3) if grey else np.moveaxis(own, -1, 1)
    return match_channels(own.astype(np.float32) / 255, channels)


def download(dataset: str, image_size: int, volumes: bool = False) -> Path:
    """Return the .npz file of a MedMNIST set, downloaded once by the ``medmnist`` package into ~/.medmnist.

    Of the published sizes (28, 64, 128, 224; of volumes 28, 64) it is the smallest that is not below ``image_size``.

    Raises:
        DataError: medmnist is not installed, knows no such set, or cannot download it.
    """
    sizes = _SIZES_3D if volumes else _SIZES
    size = next((size for size in sizes if size >= image_size), sizes[-1])
    path = _CACHE.expanduser() / (f"{dataset}.npz" if size == 28 else f"{dataset}_{size}.npz")
    if path.is_file():
        return path

    def refusal(problem: str) -> DataError:
        return DataError([f"data.dataset={dataset} {problem}, or give the file by data.path"])

    try:
        import medmnist  # optional, and it imports torchvision
    except ImportError:
        raise refusal(f"is not in {_CACHE} and medmnist is not installed: pip install medmnist") from None
    if dataset not in medmnist.INFO:
        raise refusal(f"is no MedMNIST set: write one of {', '.join(medmnist.INFO)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several parties may download at once: each into a folder of its own, then moved into place in one step.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        try:
            getattr(medmnist, medmnist.INFO[dataset]["python_class"])("test", download=True, root=folder, size=size)
        except Exception as error:  # medmnist catches and raises anything
            raise refusal(f"could not be downloaded ({type(error).__name__}): check the network") from None
        (Path(folder) / path.name).replace(path)
    return path


def _open(path: Path) -> AbstractContextManager[Archive]:
    return open_npz(path, "give a MedMNIST file by data.path", "get the file again")


def _image_problem(images: Header, volumes: bool) -> str | None:
    what = f"{images.dtype} {images.shape} is not uint8"
    flat = len(images.shape) == 3 or (len(images.shape) == 4 and images.shape[-1] == 3)
    if volumes and (images.dtype != np.uint8 or len(images.shape) != 4):
        return f"{what} (N, D, H, W): give a 3-D MedMNIST set, or write data.slices=null for images"
    if not volumes and (images.dtype != np.uint8 or not flat):
        wanted = "(N, H, W) or (N, H, W, 3): give a 2-D MedMNIST set, or write data.slices=N for volumes"
        return f"{what} {wanted}"
    return None


def label_problem(labels: np.ndarray, num_classes: int) -> str | None:
    """What is wrong with labels of one class for each image: integers (N,) or (N, 1)."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        return f"{labels.shape[1]} labels per image: write data.multi_label=true, or give a set with one"
    if labels.dtype.kind not in "iu" or labels.ndim not in (1, 2):
        return f"{labels.dtype} of shape {labels.shape} are no class indices of shape (N,) or (N, 1)"
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        span = f"{labels.min()} to {labels.max()}"
        return f"labels run from {span} but data.class_names has {num_classes} names: name every class"
    return None


def rows_problem(labels: np.ndarray, num_classes: int) -> str | None:
    """What is wrong with labels of any number of classes for each image: (N, K) of 0 and 1."""
    if labels.dtype.kind not in "iu" or labels.ndim != 2 or labels.shape[1] != num_classes:
        wanted = f"(N, {num_classes}) with data.multi_label=true, one column for each of data.class_names"
        return f"{labels.dtype} of shape {labels.shape} are no labels of shape {wanted}"
    if not ((labels == 0) | (labels == 1)).all():
        return "labels must be 0 or 1 with data.multi_label=true"
    return None
