"""Read manifest.csv, the list of images in a folder of DICOM files.

Columns: ``file`` (relative to the folder; with data.slices also the folder of one series), ``label`` (a name in
data.class_names or its index; with data.multi_label any number of them, separated by semicolons), ``patient`` (any
pseudonym), ``split`` (train, val or test), and optionally ``site``, ``consent`` (yes or no, true or false, 1 or 0) and
``purpose`` (what the consent is for: names separated by semicolons, or any); with data.masks ``mask``, a file as
``file`` is, in place of ``label``, which is not looked at. Other columns are subgroups, left alone here.

Messages name rows as a spreadsheet counts them (the header is row 1) and quote no cell: names of files name patients.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mpc_imaging.data.rows import UNLABELLED, Refused, Row
from mpc_imaging.errors import DataError
from mpc_imaging.local_files import DRAFT, MANIFEST, missing_manifest
from mpc_imaging.settings import SPLITS

NAME = MANIFEST
SEPARATOR = ";"
REQUIRED = ("file", "label", "patient", "split")
WITH_MASKS = ("file", "mask", "patient", "split")
CONSENT = ("consent", "purpose")
ANY_PURPOSE = "any"
UNREADABLE = (OSError, UnicodeDecodeError, csv.Error)  # raised for what is no table in UTF-8
NO_LABEL = "it has no label"
_ANSWERS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


class Manifest(NamedTuple):
    """The usable rows; those that name no label or repeat a file; how many lack consent."""

    rows: list[Row]
    rejected: list[Refused]
    withheld: int


def read_manifest(
    folder: Path,
    class_names: Sequence[str],
    multi_label: bool = False,
    purpose: str | None = None,
    masks: bool = False,
    unlabelled: bool = False,
) -> Manifest:
    """Read the rows that can be used; of those that repeat a file, also in a folder of theirs, the first is kept.

    With ``multi_label`` an empty label means that the image shows none of the classes. With a ``purpose``, images are
    left out whose patients did not consent to it, and those of which another row says so. With ``masks`` each row
    names a file with its mask, and has the label 0. ``unlabelled``: rows without a label or mask can be used.

    Whether the files can be read is not asked here, so that a file that one owner lacks changes nothing for the others.

    Raises:
        DataError: the manifest is missing, or says something that cannot be meant; every problem is listed at once.
    """
    needed, labelled = (WITH_MASKS, "mask") if masks else (REQUIRED, "label")
    if masks and unlabelled:
        needed = [column for column in needed if column != "mask"]
    lines = _read_lines(folder, (*needed, *CONSENT) if purpose is not None else needed)
    problems: dict[str, list[int]] = defaultdict(list)
    rejected: list[Refused] = []
    rows: list[Row] = []
    first_row: dict[Path | None, int] = {}
    first_below: dict[Path | None, int] = {}
    withheld: set[Path] = set()
    root = folder.resolve()
    for number, cells in lines:
        wrong = _problems(cells)
        label = 0 if masks else _class_of(cells["label"], class_names, multi_label, wrong)
        path = (root / cells["file"]).resolve()
        mask = cells.get("mask", "") if masks else ""
        for column, cell in {"file": cells["file"], "mask": mask}.items():
            if not (root / cell).resolve().is_relative_to(root):
                wrong.append(f"{column} is outside the folder of the manifest: write a path below it")
        if purpose is not None and not _consented(cells, purpose, wrong):
            withheld.add(path)
        for problem in wrong:
            problems[problem].append(number)
        if path in withheld:
            pass
        elif not unlabelled and not multi_label and not cells[labelled]:
            rejected.append(Refused(number, cells["file"], "it has no mask" if masks else NO_LABEL))
        elif path in first_row:
            rejected.append(Refused(number, cells["file"], f"the same file is in row {first_row[path]}"))
        elif other := first_row.get(_above(path)) or first_below.get(path):
            rejected.append(Refused(number, cells["file"], f"row {other} has files of it, or its folder"))
        elif not wrong and label is not None:
            site = cells.get("site", "")
            rows.append(Row(number, cells["split"], label, cells["patient"], site, cells["file"], mask=mask))
        if path not in withheld:
            first_row.setdefault(path, number)
            first_below.setdefault(_above(path), number)

    found = [f"{name_rows(numbers)}: {problem}" for problem, numbers in problems.items()] + _leaks(rows)
    if found:
        found += [f"row {row.number}: there is no such file" for row in rows if not (root / row.file).exists()]
        found += [f"row {row.number}: {row.reason}" for row in rejected]
        raise DataError([f"{NAME}, {problem}" for problem in found])
    return _with_consent(root, rows, rejected, withheld)


def _with_consent(root: Path, rows: Sequence[Row], rejected: list[Refused], withheld: set[Path]) -> Manifest:
    """Without the rows of withheld files, of folders that have one, and of files in withheld folders."""
    above = {_above(path) for path in withheld} - {None}
    kept, left_out = [], set(withheld)
    for row in rows:
        path = (root / row.file).resolve()
        if path in withheld or _above(path) in withheld or path in above:
            left_out.add(path)
        else:
            kept.append(row)
    return Manifest(kept, rejected, len(left_out))


def _above(path: Path) -> Path | None:
    """The folder whose volume a file belongs to; None for a folder: a volume takes the files in it, not those below."""
    return None if path.is_dir() else path.parent


def name_rows(numbers: Sequence[int]) -> str:
    """Name rows in an error: all of a few, or the first ones of many."""
    shown = ", ".join(map(str, numbers[:8]))
    return f"row{'s' if len(numbers) > 1 else ''} {shown}" + (f" … ({len(numbers)} rows)" if len(numbers) > 8 else "")


def _read_lines(folder: Path, required: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Return (row number, stripped cells by column) of every row that is not empty."""
    wanted = f"write a table with the columns {', '.join(required)}"
    try:
        columns, lines = read_table(folder / NAME)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError([missing_manifest(folder)]) from None
    except UNREADABLE as error:
        raise DataError([f"{NAME} in {folder} {unreadable(error)}: {wanted}"]) from None
    if not columns:
        raise DataError([f"{NAME} in {folder} is empty: {wanted}, or take what {DRAFT} {folder} drafts"])
    problems = [f"{NAME}: there is no column '{name}'{_hint(name)}" for name in required if name not in columns]
    problems += [
        f"{NAME}: the column '{name}' appears twice" for name in (*required, "site") if columns.count(name) > 1
    ]
    if problems:
        raise DataError(problems)
    return lines


def unreadable(error: Exception) -> str:
    """What is wrong with a table, without a word of it: ``error`` is one of `UNREADABLE`."""
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or type(error).__name__})"
    return f"is no CSV in UTF-8 ({type(error).__name__})"


def read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns of a manifest in lower case, and (row number, stripped cells by column) of each row that has any.

    Raises what `UNREADABLE` lists.
    """
    with path.open(encoding="utf-8-sig", newline="") as stream:
        table = [[cell.strip() for cell in line] for line in csv.reader(stream)]
    columns = [name.lower() for name in table[0]] if table else []
    lines = [(number, line) for number, line in enumerate(table[1:], start=2) if any(line)]
    return columns, [(number, dict(zip(columns, line + [""] * len(columns), strict=False))) for number, line in lines]


def _hint(column: str) -> str:
    """What to write into a column that only data.require_consent=true asks for."""
    return {
        "consent": ", which data.require_consent=true asks for: write yes or no for each image",
        "purpose": f", what the consent is for: write names, separated by semicolons, or {ANY_PURPOSE}",
    }.get(column, "")


def _consented(cells: dict[str, str], purpose: str, wrong: list[str]) -> bool:
    """Whether the row allows the image to be used for ``purpose``; what is no answer is added to ``wrong``."""
    answer = _ANSWERS.get(cells["consent"].casefold())
    if answer is None:
        wrong.append("consent must be yes or no (or true, false, 1, 0)")
    purposes = {name.strip().casefold() for name in cells["purpose"].split(SEPARATOR)}
    return bool(answer) and not purposes.isdisjoint((purpose.strip().casefold(), ANY_PURPOSE))


def _problems(cells: dict[str, str]) -> list[str]:
    """What is wrong with one row, its label aside."""
    wrong = []
    if not cells["file"]:
        wrong.append("file is empty")
    if not cells["patient"]:
        wrong.append("patient is empty: write a pseudonym, so that no patient ends up in two splits")
    if cells["split"] not in SPLITS:
        wrong.append(f"split must be one of {', '.join(SPLITS)}")
    return wrong


def _class_of(
    cell: str, class_names: Sequence[str], multi_label: bool, wrong: list[str]
) -> int | tuple[int, ...] | None:
    """The class index of one row, or the 0 or 1 of each class; a label that cannot be meant is added to ``wrong``."""
    label = (_labels if multi_label else _label)(cell, class_names)
    if not cell and not multi_label:
        return UNLABELLED
    if cell and label is None:
        some = "some, separated by semicolons," if multi_label else "one"
        known = f"data.class_names ({', '.join(class_names)}) or 0 to {len(class_names) - 1}"
        wrong.append(f"label must be {some} of {known}")
    return label


def _label(cell: str, class_names: Sequence[str]) -> int | None:
    if cell in class_names:
        return list(class_names).index(cell)
    return int(cell) if cell.isascii() and cell.isdigit() and int(cell) < len(class_names) else None


def _labels(cell: str, class_names: Sequence[str]) -> tuple[int, ...] | None:
    found = [_label(name.strip(), class_names) for name in cell.split(SEPARATOR)] if cell else []
    return None if None in found else tuple(int(k in found) for k in range(len(class_names)))


def _leaks(rows: Sequence[Row]) -> list[str]:
    """Name the rows of every patient who is in more than one split."""
    by_patient: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_patient[row.patient].append(row)
    return [
        f"{name_rows([row.number for row in same])}: one patient in several splits "
        f"({', '.join(split for split in SPLITS if split in {row.split for row in same})}): keep each in one"
        for same in by_patient.values()
        if len({row.split for row in same}) > 1
    ]
