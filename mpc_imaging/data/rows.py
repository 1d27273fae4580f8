"""Rows: what is known of an image before its pixels are read."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

UNLABELLED = -1  # the class of an image that nobody has labelled


@dataclass(frozen=True)
class Row:
    """One image of a data set.

    ``number`` finds it again: its row in manifest.csv as a spreadsheet counts (the header is 1), or its index in the
    split of an .npz file. ``label``: its class, `UNLABELLED`, or with data.multi_label the 0 or 1 of each class.
    ``patient``, ``site`` and the names of files never leave the party's process. ``moved_from``: the split that it is
    read from, where data.folds put it into another. ``mask``: the file of its mask, with data.masks; ``label`` is then
    0.
    """

    number: int
    split: str
    label: int | tuple[int, ...]
    patient: str = field(repr=False)
    site: str = field(default="", repr=False)
    file: str = field(default="", repr=False)
    moved_from: str = ""
    mask: str = field(default="", repr=False)

    @property
    def origin(self) -> str:
        """The split that the data set has it in; with ``number`` it names the row, whatever the folds."""
        return self.moved_from or self.split


@dataclass(frozen=True)
class Refused:
    """A row of manifest.csv that gives no image, and why. Its file is for its owner's eyes alone."""

    number: int
    file: str = field(repr=False)
    reason: str


def shuffle_key(seed: int, *names: object) -> bytes:
    """Order things at random, alike on every machine; numpy's shuffles may change between its versions."""
    return hashlib.sha256("\0".join(map(str, (seed, *names))).encode()).digest()


def subset(rows: Sequence[Row], limit: int | None, seed: int) -> list[Row]:
    """Keep at most ``limit`` rows of one split, in their order, drawn by ``seed``; the classes keep their balance."""
    if limit is None or limit >= len(rows):
        return list(rows)
    by_label: dict[int | tuple[int, ...], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: shuffle_key(seed, "subset", row.origin, row.number)):
        by_label[row.label].append(row)
    exact = {label: limit * len(members) / len(rows) for label, members in by_label.items()}
    quota = {label: int(share) for label, share in exact.items()}
    largest_remainder = sorted(exact, key=lambda label: (quota[label] - exact[label], label))
    for label in largest_remainder[: limit - sum(quota.values())]:
        quota[label] += 1
    kept = {(row.origin, row.number) for label, members in by_label.items() for row in members[: quota[label]]}
    return [row for row in rows if (row.origin, row.number) in kept]
