"""Cross-validation: one owner's rows of all splits in folds, by patient and stratified by label, one of them the test.

The folds are drawn by data.partition.seed alone, alike on every machine, and are the same whichever of them is tested.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence

from mpc_imaging.data.rows import Row, shuffle_key
from mpc_imaging.errors import DataError
from mpc_imaging.settings import FoldSettings


def pooled(rows: Sequence[Row]) -> list[Row]:
    """The same rows, all in one split without a name, so that a patient stays together wherever it came from."""
    return [dataclasses.replace(row, split="", moved_from=row.origin) for row in rows]


def assign(rows: Sequence[Row], folds: FoldSettings, seed: int, with_val: bool, owner: str) -> list[Row]:
    """The rows of ``owner``, in their order, with new splits: fold number ``folds.index`` is test, the others train.

    with_val: a part of the others becomes val, about one in ``folds.count`` of their images. No patient is in two
    splits. Raises `DataError` if there are too few patients.
    """
    patients: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        patients[row.patient].append(row)
    needed = folds.count + with_val
    if len(patients) < needed:
        have = f"{owner} has {len(patients)} patients, too few for {folds.count} folds" + " and a val split" * with_val
        fewer = len(patients) - with_val
        hint = f"write data.folds.count={fewer}, or " if fewer >= 2 else ""
        raise DataError([f"{have}: {hint}give it more images"])
    fold_of = _deal(patients, folds.count, seed)
    split_of = {patient: "test" if fold == folds.index else "train" for patient, fold in fold_of.items()}
    if with_val:
        rest = {patient: same for patient, same in patients.items() if split_of[patient] == "train"}
        part_of = _deal(rest, folds.count, seed)
        split_of |= {patient: "val" for patient, part in part_of.items() if part == 0}
    return [dataclasses.replace(row, split=split_of[row.patient], moved_from=row.origin) for row in rows]


def _deal(patients: Mapping[str, list[Row]], count: int, seed: int) -> dict[str, int]:
    """Give every patient one of ``count`` parts: that which has least of the classes that the patient brings.

    Large patients come first, while there is room to balance them; those of one size in an order drawn by the seed.
    """
    totals: dict[int | tuple[int, ...], int] = defaultdict(int)
    for same in patients.values():
        for row in same:
            totals[row.label] += 1
    held: list[dict[int | tuple[int, ...], int]] = [defaultdict(int) for _ in range(count)]
    sizes = [0] * count
    part_of = {}
    for patient in sorted(patients, key=lambda name: (-len(patients[name]), shuffle_key(seed, "folds", name))):
        labels = [row.label for row in patients[patient]]
        # Shares of a class, not images, so that rare classes are spread as evenly as common ones.
        burden = [sum(part[label] / totals[label] for label in labels) for part in held]
        chosen = min(range(count), key=lambda part: (burden[part], sizes[part], part))
        part_of[patient] = chosen
        sizes[chosen] += len(labels)
        for label in labels:
            held[chosen][label] += 1
    return part_of
