"""From the configuration to tensors: whose rows are whose, read, resized and normalised."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mpc_imaging.data import medmnist, phantoms
from mpc_imaging.data.dicom import ImageError, read_dicom
from mpc_imaging.data.images import normalise, resize
from mpc_imaging.data.manifest import read_manifest
from mpc_imaging.data.partition import divide
from mpc_imaging.data.rows import Row, subset
from mpc_imaging.errors import DataError
from mpc_imaging.settings import SPLITS, DataKind, DataSettings, Invalid, PartitionKind, Settings

logger = logging.getLogger("mpc_imaging.data")


@dataclass(frozen=True, eq=False)
class Split:
    """One party's images of one split, in a fixed order.

    ``images`` is float32 (N, C, H, W), normalised; ``labels`` int64 (N,); ``ids`` N pseudonyms, unique within the run:
    ``<party>-<split>-<row of manifest.csv>`` or ``<split>-<row of the .npz>``.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: list[str]

    def __len__(self) -> int:
        """Return N."""
        return len(self.ids)

    def __repr__(self) -> str:
        """Show the shape alone: pixels and labels must not reach a log."""
        return f"Split(images={tuple(self.images.shape)})"


@dataclass(frozen=True)
class _Source:
    """Rows in reach of one party, and how to read them. ``shared``: one data set for all owners, to be divided."""

    data: DataSettings
    party: str
    path: Path
    rows: list[Row]
    rejected: list[str]
    shared: bool


def load_party(settings: Settings, party: str, folder: Path, splits: Sequence[str]) -> dict[str, Split]:
    """Read the images that ``party`` owns, and no others.

    ``folder`` is the party's run folder, where phantoms are written. Files that cannot be used are named in the log
    ``mpc_imaging.data`` and left out with data.invalid=skip.

    Raises:
        DataError: data.invalid=refuse and files cannot be used (all are listed), the manifest is wrong, or an owner
            would hold no image at all.
        ConfigError: data.partition.kind=private, but the images are phantoms.
    """
    data = settings.data
    owners = settings.data_owners()
    if party not in owners:
        raise DataError([f"{party} owns no data: the data owners are {', '.join(owners)}"])
    if data.kind is DataKind.phantoms:
        rows = _own_share(phantoms.rows(data.phantoms), data, owners, party, splits)
        source = _phantom_source(data, party, folder / "dicom", rows)
        own = source.rows
    else:
        source = _source(data, party, owners)
        own = (_own_share if source.shared else _own_limit)(source.rows, data, owners, party, splits)
    loaded = _read(source, own, splits)
    if not any(loaded.values()):
        raise DataError([f"{party} holds no usable image of {', '.join(splits)}: see its log, or add images"])
    for split, images in loaded.items():
        logger.info("%s holds %d images of %s", party, len(images), split)
    return loaded


def load_whole_split(settings: Settings, folder: Path, split: str, party: str) -> Split:
    """Read all images of a split that ``party`` can reach, for a model owner's plaintext training.

    That is data.paths of the party, else data.path, else all phantoms; data.limit holds, data.partition does not.

    Raises:
        DataError: as `load_party`, or the split is empty.
    """
    data = settings.data
    if data.kind is DataKind.phantoms:
        rows = _limited(phantoms.rows(data.phantoms), data, split)
        source = _phantom_source(data, party, folder / f"dicom_{split}", rows)
        own = source.rows
    else:
        source = _source(data, party, [party])
        own = _limited(source.rows, data, split)
    loaded = _read(source, own, [split])[split]
    if not loaded:
        raise DataError([f"{source.path}: there is no usable image of {split}: add some, or train on other weights"])
    return loaded


def _source(data: DataSettings, party: str, owners: Sequence[str]) -> _Source:
    """Read the manifest or the labels in reach of ``party``."""
    path = _path(data, party, owners)
    private = party in data.paths or data.partition.kind is PartitionKind.private
    if data.kind is DataKind.medmnist:
        rows = medmnist.read_rows(path, SPLITS, data.class_names)
        return _Source(data, party, path, rows, [], not private)
    rows, rejected = read_manifest(path, data.class_names)
    return _Source(data, party, path, rows, rejected, not private)


def _path(data: DataSettings, party: str, owners: Sequence[str]) -> Path:
    path = data.paths.get(party, data.path)
    divided = set(data.paths) & set(owners) and data.partition.kind is not PartitionKind.private
    if party not in data.paths and divided:
        raise DataError(
            [
                f"data.paths names other owners but not {party}: add data.paths.{party}, "
                "or write data.partition.kind=private to let it use all of data.path"
            ]
        )
    if path is None and data.kind is DataKind.medmnist and data.dataset:
        return medmnist.download(data.dataset, data.image_size)
    if path is None:
        what = (
            "a folder with manifest.csv" if data.kind is DataKind.dicom else "an .npz file, or data.dataset to a name"
        )
        raise DataError([f"{party} has no data: set data.path to {what}"])
    return Path(path).expanduser()


def _phantom_source(data: DataSettings, party: str, folder: Path, rows: Sequence[Row]) -> _Source:
    """Write the phantoms of ``rows``, then take them from their manifest as any folder of DICOM files."""
    phantoms.write(folder, rows, data.phantoms.seed, data.class_names)
    own, rejected = read_manifest(folder, data.class_names)
    return _Source(data, party, folder, own, rejected, shared=False)


def _limited(rows: Sequence[Row], data: DataSettings, split: str) -> list[Row]:
    return subset([row for row in rows if row.split == split], getattr(data.limit, split), data.partition.seed)


def _own_share(
    rows: Sequence[Row], data: DataSettings, owners: Sequence[str], party: str, splits: Sequence[str]
) -> list[Row]:
    """Apply data.limit over all owners together, divide all splits, and check that nobody is left with nothing."""
    divided = divide(
        [row for split in SPLITS for row in _limited(rows, data, split)], owners, data.partition, len(data.class_names)
    )
    wanted = {name: [row for row in own if row.split in splits] for name, own in divided.items()}
    count = sum(map(len, wanted.values()))
    empty = [name for name, own in wanted.items() if not own]
    if empty:
        raise DataError(
            [
                f"{name} would own none of the {count} images of {', '.join(splits)}: use more images, fewer owners, "
                "or another data.partition"
                for name in empty
            ]
        )
    return wanted[party]


def _own_limit(
    rows: Sequence[Row], data: DataSettings, owners: Sequence[str], party: str, splits: Sequence[str]
) -> list[Row]:
    """Apply an equal share of data.limit to private data, whose joint size no party knows."""
    kept = []
    for split in splits:
        limit = getattr(data.limit, split)
        if limit is not None:
            limit = limit // len(owners) + (owners.index(party) < limit % len(owners))
        kept += subset([row for row in rows if row.split == split], limit, data.partition.seed)
    return kept


def _read(source: _Source, own: Sequence[Row], splits: Sequence[str]) -> dict[str, Split]:
    rows = {split: [row for row in own if row.split == split] for split in splits}
    if source.data.kind is DataKind.medmnist:
        return {split: _read_npz(source, split, rows[split]) for split in splits}
    return _read_files(source, rows)


def _read_npz(source: _Source, split: str, rows: Sequence[Row]) -> Split:
    data = source.data
    prefix = "" if source.shared else f"{source.party}-"
    if not rows:
        return _split(data, [], [], [])
    pixels = medmnist.read_images(source.path, split, [row.number for row in rows], data.channels)
    copies = len(pixels) - len({_digest(image) for image in pixels})
    if copies:
        logger.info(
            "%d of %d %s images repeat another one: MedMNIST has some, they are kept", copies, len(pixels), split
        )
    ids = [f"{prefix}{split}-{row.number:05d}" for row in rows]
    return _split(data, [resize(torch.from_numpy(pixels), data.image_size)], [row.label for row in rows], ids)


def _read_files(source: _Source, rows: dict[str, list[Row]]) -> dict[str, Split]:
    """Decode the party's DICOM files, file by file; refuse or leave out what cannot be used."""
    data = source.data
    rejected = list(source.rejected)
    seen: dict[bytes, int] = {}
    loaded = {}
    for split, own in rows.items():
        images, labels, ids = [], [], []
        for row in own:
            try:
                frames = read_dicom(source.path / row.file, data.frames, data.channels)
            except ImageError as error:
                rejected.append(f"row {row.number}, {row.file}: {error}")
                continue
            first = seen.setdefault(_digest(*frames), row.number)
            if first != row.number:
                rejected.append(f"row {row.number}, {row.file}: the same image as row {first}")
                continue
            images += [resize(torch.from_numpy(frame)[None], data.image_size) for frame in frames]
            labels += [row.label] * len(frames)
            name = f"{source.party}-{split}-{row.number:05d}"
            ids += [name] if len(frames) == 1 else [f"{name}-{k:03d}" for k in range(len(frames))]
        loaded[split] = _split(data, images, labels, ids)
    _report(rejected, data.invalid)
    return loaded


def _report(rejected: Sequence[str], invalid: Invalid) -> None:
    for line in rejected:
        logger.warning("%s: %s", "left out" if invalid is Invalid.skip else "refused", line)
    if rejected and invalid is Invalid.refuse:
        hint = "correct these, or write data.invalid=skip to leave them out"
        raise DataError([*rejected[:-1], f"{rejected[-1]} ({hint})"])


def _split(data: DataSettings, images: list[torch.Tensor], labels: list[int], ids: list[str]) -> Split:
    size = data.image_size
    joint = torch.cat(images) if images else torch.zeros(0, data.channels, size, size)
    return Split(normalise(joint, data.mean, data.std), torch.tensor(labels, dtype=torch.int64), ids)


def _digest(*arrays: np.ndarray) -> bytes:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array))
    return digest.digest()
