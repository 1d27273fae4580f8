"""From the configuration to each party's images: which rows are whose, and their splits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from mpc_imaging.data import arrays, folds, medmnist, phantom_volumes, phantoms, quality
from mpc_imaging.data.image_names import ImageNames
from mpc_imaging.data.manifest import NAME, read_manifest
from mpc_imaging.data.partition import divide
from mpc_imaging.data.rows import UNLABELLED, Row, subset
from mpc_imaging.data.splits import RowSource, Split, finished, read, with_copies
from mpc_imaging.errors import DataError
from mpc_imaging.settings import SPLITS, DataKind, DataSettings, PartitionKind, Settings, WeightsSource

logger = logging.getLogger("mpc_imaging.data")


def load_party(
    settings: Settings, party: str, folder: Path, splits: Sequence[str], record: Callable[..., None] | None = None
) -> dict[str, Split]:
    """Read the images that ``party`` owns, and no others; of train images also the copies that data.augment asks for.

    ``folder`` is the party's run folder, where phantoms are written, and the table of pseudonyms and files. Files that
    cannot be used are listed in the log ``mpc_imaging.data``, by pseudonym, and left out with data.invalid=skip.
    ``record(event, **details)`` notes how many images were left out without consent, which is known before any is read,
    and what `quality.findings` has.

    Raises:
        DataError: data.invalid=refuse and files cannot be used (all are listed), the manifest is wrong, a class to
            train for has no image at any owner, or an owner would hold no image at all, or too few patients for
            data.folds; or as `quality.check`.
        ConfigError: data.partition.kind=private, but the images are phantoms; or as `ImageNames`.
    """
    data = settings.data
    owners = settings.data_owners()
    if party not in owners:
        raise DataError([f"{party} owns no data: the data owners are {', '.join(owners)}"])
    if data.kind is DataKind.phantoms:
        rows = _own_share(phantoms.rows(data.phantoms), data, owners, party, splits)
        source = _phantom_rows(data, party, folder, "dicom", rows)
        own = source.rows
    else:
        source = find_rows(data, party, owners, folder, not settings.needs_labels(), record)
        if source.shared or len(owners) == 1:  # who has a part of the images knows nothing of the others
            _check_classes(settings, source.rows, "train" in splits)
        require_rows(source, splits)
        own = own_rows(source, owners, splits)
    parts = read(source, own, splits)
    if not any(part.ids for part in parts.values()):
        raise DataError([f"{party} holds no usable image of {', '.join(splits)}: see its log, or add images"])
    if data.kind is not DataKind.phantoms:  # those are as they were drawn
        pictures = {split: quality.Pictures(part.images, part.rows, part.flaws) for split, part in parts.items()}
        quality.check(pictures, data.quality, party, record)
    if "train" in parts:
        parts["train"] = with_copies(source, parts["train"], settings.seed)
    loaded = {split: finished(data, part) for split, part in parts.items()}
    for split, images in loaded.items():
        logger.info("%s holds %d images of %s", party, len(images), split)
    return loaded


def load_whole_split(settings: Settings, folder: Path, split: str, party: str) -> Split:
    """Read all images of a split that ``party`` can reach, for a model owner's plaintext training.

    That is data.paths of the party, else data.path, else all phantoms; data.limit holds, data.partition does not. With
    data.folds they are those that the owners have in that split, val set apart. Nothing is augmented.

    Raises:
        DataError: as `load_party`, a class has no image, or the split is empty.
    """
    data = settings.data
    if data.kind is DataKind.phantoms:
        rows = _limited(phantoms.rows(data.phantoms), data, split)
        source = _phantom_rows(data, party, folder, f"dicom_{split}", rows)
        own = source.rows
    else:
        source = find_rows(data, party, [party], folder, not settings.needs_labels())
        _check_classes(settings, source.rows, split == "train")
        rows = source.rows if data.folds.count is None else _all_folds(source, settings.data_owners())
        own = _limited([row for row in rows if row.label != UNLABELLED], data, split)
    loaded = finished(data, read(source, own, [split])[split])
    if not loaded:
        raise DataError([f"{party} has no usable image of {split}: add some, or train on other weights"])
    return loaded


def find_rows(
    data: DataSettings,
    party: str,
    owners: Sequence[str],
    folder: Path,
    unlabelled: bool,
    record: Callable[..., None] | None = None,
) -> RowSource:
    """Read the manifest or the labels in reach of ``party``; ``unlabelled``: also of images without one.

    ``record``: see `load_party`.
    """
    path = _path(data, party, owners)
    private = party in data.paths or data.partition.kind is PartitionKind.private
    if data.kind is DataKind.medmnist:
        rows = medmnist.read_rows(path, SPLITS, data.class_names, data.multi_label)
        return RowSource(data, party, path, rows, [], not private)
    if data.kind is DataKind.arrays:
        return RowSource(data, party, path, arrays.read_rows(path, data), [], not private)
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
        if record is not None:
            record("consent", purpose=data.purpose, left_out=withheld)
    names = ImageNames(party, folder, data.pseudonym_key_file)
    return RowSource(data, party, path, rows, rejected, not private, names)


def require_rows(source: RowSource, splits: Sequence[str]) -> None:
    """Raise `DataError` if what is in reach of a party has no image of any of the splits."""
    data, rows, rejected = source.data, source.rows, source.rejected
    if rows and (data.folds.count is not None or any(row.split in splits for row in rows)):
        return
    where = f"{NAME} in {source.path}" if data.kind is DataKind.dicom else str(source.path)
    if not rows and rejected:
        what = f"none of {len(rejected)} rows can be used, as row {rejected[0].number}: {rejected[0].reason}"
        raise DataError([f"{where}: {what}"])
    consent = f" with consent for {data.purpose!r}" if data.require_consent else ""
    if not rows:
        raise DataError([f"{where} lists no image{consent}: add a row for each"])
    counts = ", ".join(f"{sum(row.split == split for row in rows)} of {split}" for split in SPLITS)
    other = "add rows, or write another task.split"
    raise DataError([f"{where} lists no image of {' or '.join(splits)}{consent} ({counts}): {other}"])


def _check_classes(settings: Settings, rows: Sequence[Row], training: bool) -> None:
    """Raise `DataError` if a class has no image in any split of a whole data set, from which a new model is trained.

    What goes on from given weights, or only runs a model, may know more classes than there are here: that is logged.
    """
    data, known = settings.data, settings.model.weights.source in (WeightsSource.file, WeightsSource.shares)
    if data.masks or data.multi_label or not rows:
        return
    present = {row.label for row in rows}
    missing = [name for number, name in enumerate(data.class_names) if number not in present]
    if not missing:
        return
    what = f"no image is labelled {', '.join(missing)}"
    if known or not training:
        logger.warning("%s", what)
        return
    rest = [name for name in data.class_names if name not in missing]
    instead = f"add some, or write data.class_names=[{','.join(rest)}]" if rest else "add labels"
    raise DataError([f"{what}: {instead}"])


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


def _phantom_rows(data: DataSettings, party: str, folder: Path, name: str, rows: Sequence[Row]) -> RowSource:
    """Write the phantoms of ``rows``, then take them from their manifest as any folder of DICOM files."""
    volumes = () if data.slices is None else (phantom_volumes.save, "")
    phantoms.write(folder / name, rows, data.phantoms.seed, data.class_names, *volumes)
    own, rejected, _ = read_manifest(folder / name, data.class_names, data.multi_label)
    names = ImageNames(party, folder, data.pseudonym_key_file)
    return RowSource(data, party, folder / name, own, rejected, shared=False, names=names)


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


def own_rows(source: RowSource, owners: Sequence[str], splits: Sequence[str]) -> list[Row]:
    """The rows of a data owner: its share of one data set for all, or its own; in folds if data.folds says so."""
    data, party = source.data, source.party
    if data.folds.count is None:
        return (_own_share if source.shared else _own_limit)(source.rows, data, owners, party, splits)
    rows = folds.pooled(source.rows)
    if source.shared:
        rows = divide(rows, owners, data.partition, len(data.class_names))[party]
    rows = folds.assign(rows, data.folds, data.partition.seed, "val" in splits, party)
    return _own_limit(rows, data, owners, party, splits)


def _all_folds(source: RowSource, owners: Sequence[str]) -> list[Row]:
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
