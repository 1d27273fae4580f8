"""From the configuration to tensors: whose rows are whose, read, resized and normalised."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mpc_imaging.data import arrays, folds, medmnist, phantom_volumes, phantoms, quality
from mpc_imaging.data.augment import augmented, augmented_masks
from mpc_imaging.data.image_names import ImageNames
from mpc_imaging.data.images import normalise, resize, resize_masks
from mpc_imaging.data.manifest import NO_LABEL, read_manifest
from mpc_imaging.data.partition import divide
from mpc_imaging.data.refusals import ImageError
from mpc_imaging.data.row_images import Source, read_row
from mpc_imaging.data.rows import UNLABELLED, Refused, Row, subset
from mpc_imaging.data.segmentations import MaskReader
from mpc_imaging.errors import DataError
from mpc_imaging.settings import SPLITS, DataKind, DataSettings, Invalid, PartitionKind, Settings

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
class _Source:
    """Rows in reach of one party, and how to read them. ``shared``: one data set for all owners, to be divided.

    ``names``: pseudonyms of DICOM files. ``withheld``: so many images are not among the rows, for want of consent.
    """

    data: DataSettings
    party: str
    path: Path
    rows: list[Row]
    rejected: list[Refused]
    shared: bool
    names: ImageNames | None = None
    withheld: int = 0


@dataclass(frozen=True)
class _Pixels:
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


def load_party(
    settings: Settings, party: str, folder: Path, splits: Sequence[str], record: Callable[..., None] | None = None
) -> dict[str, Split]:
    """Read the images that ``party`` owns, and no others; of train images also the copies that data.augment asks for.

    ``folder`` is the party's run folder, where phantoms are written, and the table of pseudonyms and files. Files that
    cannot be used are listed in the log ``mpc_imaging.data``, by pseudonym, and left out with data.invalid=skip.
    ``record(event, **details)`` notes how many images were left out without consent, which is known before any is read,
    and what `quality.findings` has.

    Raises:
        DataError: data.invalid=refuse and files cannot be used (all are listed), the manifest is wrong, or an owner
            would hold no image at all, or too few patients for data.folds; or as `quality.check`.
        ConfigError: data.partition.kind=private, but the images are phantoms; or as `ImageNames`.
    """
    data = settings.data
    owners = settings.data_owners()
    if party not in owners:
        raise DataError([f"{party} owns no data: the data owners are {', '.join(owners)}"])
    if data.kind is DataKind.phantoms:
        rows = _own_share(phantoms.rows(data.phantoms), data, owners, party, splits)
        source = _phantom_source(data, party, folder, "dicom", rows)
        own = source.rows
    else:
        source = _source(data, party, owners, folder, not settings.needs_labels())
        if data.require_consent and record is not None:
            record("consent", purpose=data.purpose, left_out=source.withheld)
        own = _own_rows(source, owners, splits)
    parts = _read(source, own, splits)
    if not any(part.ids for part in parts.values()):
        raise DataError([f"{party} holds no usable image of {', '.join(splits)}: see its log, or add images"])
    if data.kind is not DataKind.phantoms:  # those are as they were drawn
        pictures = {split: quality.Pictures(part.images, part.rows, part.flaws) for split, part in parts.items()}
        quality.check(pictures, data.quality, party, record)
    if "train" in parts:
        parts["train"] = _augmented(source, parts["train"], settings.seed)
    loaded = {split: _split(data, part) for split, part in parts.items()}
    for split, images in loaded.items():
        logger.info("%s holds %d images of %s", party, len(images), split)
    return loaded


def load_whole_split(settings: Settings, folder: Path, split: str, party: str) -> Split:
    """Read all images of a split that ``party`` can reach, for a model owner's plaintext training.

    That is data.paths of the party, else data.path, else all phantoms; data.limit holds, data.partition does not. With
    data.folds they are those that the owners have in that split, val set apart. Nothing is augmented.

    Raises:
        DataError: as `load_party`, or the split is empty.
    """
    data = settings.data
    if data.kind is DataKind.phantoms:
        rows = _limited(phantoms.rows(data.phantoms), data, split)
        source = _phantom_source(data, party, folder, f"dicom_{split}", rows)
        own = source.rows
    else:
        source = _source(data, party, [party], folder, not settings.needs_labels())
        rows = source.rows if data.folds.count is None else _all_folds(source, settings.data_owners())
        own = _limited([row for row in rows if row.label != UNLABELLED], data, split)
    loaded = _split(data, _read(source, own, [split])[split])
    if not loaded:
        raise DataError([f"{party} has no usable image of {split}: add some, or train on other weights"])
    return loaded


def _source(data: DataSettings, party: str, owners: Sequence[str], folder: Path, unlabelled: bool = False) -> _Source:
    """Read the manifest or the labels in reach of ``party``; ``unlabelled``: also of images without one."""
    path = _path(data, party, owners)
    private = party in data.paths or data.partition.kind is PartitionKind.private
    if data.kind is DataKind.medmnist:
        rows = medmnist.read_rows(path, SPLITS, data.class_names, data.multi_label)
        return _Source(data, party, path, rows, [], not private)
    if data.kind is DataKind.arrays:
        return _Source(data, party, path, arrays.read_rows(path, data), [], not private)
    rows, rejected, withheld = read_manifest(
        path,
        data.class_names,
        data.multi_label,
        data.purpose if data.require_consent else None,
        data.masks,
        unlabelled,
    )
    if data.require_consent:
        logger.info("left out %d images of the manifest, without consent for %r", withheld, data.purpose)
    names = ImageNames(party, folder, data.pseudonym_key_file)
    return _Source(data, party, path, rows, rejected, not private, names, withheld)


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
        return medmnist.download(data.dataset, data.image_size, data.slices is not None)
    if path is None:
        what = "a folder with manifest.csv" if data.kind is DataKind.dicom else "an .npz file"
        what += ", or data.dataset to a name" if data.kind is DataKind.medmnist else ""
        raise DataError([f"{party} has no data: set data.path to {what}"])
    return Path(path).expanduser()


def _phantom_source(data: DataSettings, party: str, folder: Path, name: str, rows: Sequence[Row]) -> _Source:
    """Write the phantoms of ``rows``, then take them from their manifest as any folder of DICOM files."""
    volumes = () if data.slices is None else (phantom_volumes.save, "")
    phantoms.write(folder / name, rows, data.phantoms.seed, data.class_names, *volumes)
    own, rejected, _ = read_manifest(folder / name, data.class_names, data.multi_label)
    names = ImageNames(party, folder, data.pseudonym_key_file)
    return _Source(data, party, folder / name, own, rejected, shared=False, names=names)


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


def _own_rows(source: _Source, owners: Sequence[str], splits: Sequence[str]) -> list[Row]:
    """The rows of a data owner: its share of one data set for all, or its own; in folds if data.folds says so."""
    data, party = source.data, source.party
    if data.folds.count is None:
        return (_own_share if source.shared else _own_limit)(source.rows, data, owners, party, splits)
    rows = folds.pooled(source.rows)
    if source.shared:
        rows = divide(rows, owners, data.partition, len(data.class_names))[party]
    rows = folds.assign(rows, data.folds, data.partition.seed, "val" in splits, party)
    return _own_limit(rows, data, owners, party, splits)


def _all_folds(source: _Source, owners: Sequence[str]) -> list[Row]:
    """All rows in reach of a model owner, each in the split that its data owner has it in."""
    data = source.data
    rows = folds.pooled(source.rows)
    divided = divide(rows, owners, data.partition, len(data.class_names)) if source.shared else {source.party: rows}
    return [
        row for owner, own in divided.items() for row in folds.assign(own, data.folds, data.partition.seed, True, owner)
    ]


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


def _read(source: _Source, own: Sequence[Row], splits: Sequence[str]) -> dict[str, _Pixels]:
    """Read the rows by split."""
    rows = {split: [row for row in own if row.split == split] for split in splits}
    if source.data.kind is DataKind.medmnist:
        return {split: _read_npz(source, split, rows[split]) for split in splits}
    if source.data.kind is DataKind.arrays:
        return {split: _read_arrays(source, rows[split]) for split in splits}
    return _read_files(source, rows)


def _read_npz(source: _Source, split: str, rows: Sequence[Row]) -> _Pixels:
    data = source.data
    prefix = "" if source.shared else f"{source.party}-"
    if not rows:
        return _Pixels([], [], [])
    rows = sorted(rows, key=lambda row: SPLITS.index(row.origin))
    parts = [
        medmnist.read_images(source.path, origin, [row.number for row in same], data.channels, data.slices)
        for origin, same in itertools.groupby(rows, key=lambda row: row.origin)
    ]
    pixels = np.concatenate(parts)
    contents = [_content(image) for image in pixels]
    copies = len(pixels) - len({_digest(image) for image in pixels})
    if copies:
        logger.info(
            "%d of %d %s images repeat another one: MedMNIST has some, they are kept", copies, len(pixels), split
        )
    ids = [f"{prefix}{row.origin}-{row.number:05d}" for row in rows]
    return _Pixels([resize(torch.from_numpy(pixels), data.image_size)], rows, ids, contents=contents)


def _read_arrays(source: _Source, rows: Sequence[Row]) -> _Pixels:
    data, prefix = source.data, "" if source.shared else f"{source.party}-"
    if not rows:
        return _Pixels([], [], [])
    rows = sorted(rows, key=lambda row: row.number)
    images, masks, contents = arrays.read_resized(source.path, [row.number for row in rows], data, _content)
    ids = [f"{prefix}{row.origin}-{row.number:05d}" for row in rows]
    return _Pixels(images, rows, ids, masks=masks, contents=contents)


def _read_files(source: _Source, rows: dict[str, list[Row]]) -> dict[str, _Pixels]:
    """Decode the party's DICOM files, file by file; refuse or leave out what cannot be used."""
    data = source.data
    rejected = list(source.rejected)
    seen: dict[bytes, int] = {}
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
                numbers = [number for _, number in places] if data.masks else []
                marked = reader.read(source.path / row.mask, path, numbers) if data.masks else None
            except ImageError as error:
                rejected.append(Refused(row.number, row.file, f"its mask: {error}"))
                continue
            first = seen.setdefault(_digest(*frames), row.number)
            if first != row.number:
                rejected.append(Refused(row.number, row.file, f"the same image as row {first}"))
                continue
            images += [resize(torch.from_numpy(frame)[None], data.image_size) for frame in frames]
            contents += map(_content, frames)
            used += [row] * len(frames)
            name = source.names.of(row)
            ids += [name] if len(frames) == 1 else [f"{name}-{k:03d}" for k in range(len(frames))]
            sources += places
            masks += [] if marked is None else [resize_masks(torch.from_numpy(marked), data.image_size)]
        loaded[split] = _Pixels(images, used, ids, sources, masks, contents, flaws)
    reader.close()
    source.names.write([row for part in loaded.values() for row in part.rows], rejected)
    _report([source.names.refusal(each) for each in rejected], data.invalid)
    return loaded


def _report(rejected: Sequence[str], invalid: Invalid) -> None:
    for line in rejected:
        logger.warning("%s: %s", "left out" if invalid is Invalid.skip else "refused", line)
    if rejected and invalid is Invalid.refuse:
        hint = "correct these, or write data.invalid=skip to leave them out"
        if any(line.endswith(NO_LABEL) for line in rejected):
            hint += "; to predict without labels write task=infer policy=own_outputs"
        raise DataError([*rejected[:-1], f"{rejected[-1]} ({hint})"])


def _augmented(source: _Source, part: _Pixels, seed: int) -> _Pixels:
    augment = source.data.augment
    if augment.copies == 1 or not part.ids:
        return part
    images, ids = augmented(torch.cat(part.images), part.ids, part.rows, augment, seed, source.party)
    masks = [augmented_masks(torch.cat(part.masks), part.rows, augment, seed, source.party)] if part.masks else []
    return _Pixels([images], part.rows * augment.copies, ids, masks=masks, contents=part.contents)


def _split(data: DataSettings, part: _Pixels) -> Split:
    size = data.image_size
    slices = () if data.slices is None else (data.slices,)
    joint = torch.cat(part.images) if part.images else torch.zeros(0, *slices, data.channels, size, size)
    if data.masks:
        labels = torch.cat(part.masks).long() if part.masks else torch.zeros(0, size, size, dtype=torch.int64)
    else:
        labels = torch.tensor([row.label for row in part.rows], dtype=torch.int64)
        labels = labels.reshape(-1, len(data.class_names)) if data.multi_label else labels
    return Split(normalise(joint, data.mean, data.std), labels, part.ids, part.sources, part.contents)


def _content(image: np.ndarray) -> bytes:
    """What two owners compare an image (..., C, H, W) by: nothing if it is blank, as any two blank ones are alike."""
    return b"" if image.max() - image.min() < quality.HALF_LEVEL else _digest(image)


def _digest(*arrays: np.ndarray) -> bytes:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array))
    return digest.digest()
