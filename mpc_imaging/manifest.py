"""Drafts manifest.csv, the list of images, from a folder of DICOM files: ``python -m mpc_imaging.manifest FOLDER``."""

from __future__ import annotations

import argparse
import csv
import difflib
import io
import re
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mpc_imaging.commands import Parser, over_headers, pseudonyms, with_progress
from mpc_imaging.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mpc_imaging.data.drafting import Contents, Found

COLUMNS = ("file", "patient", "label", "split", "site", "consent", "purpose")
EPILOG = """\
The draft has a row for each image object (with --volumes, for each folder with slices), with the columns
  file      relative to FOLDER                      site     where it was made, for data.partition.kind=site
  patient   a pseudonym, or the id in the file      consent  yes or no: empty, you fill it in
  label     what the model is to learn              purpose  what the consent is for: research;teaching, or any
  split     train, val or test, by patient          ...      one for each --column, as subgroups

Labels come from
  --label-from folder               the name of the folder that a file is in
  --label-from tag BodyPartExamined an element of the header, by its DICOM keyword
  --label-from csv FILE COLUMN      a table with COLUMN and either `file` (relative to FOLDER) or `patient` (as the
                                    header has it)
or stay empty. Then look through the table in a spreadsheet, correct it, and run the command that the draft prints. With
--split 0,0,100 it predicts every image, also those that have no label yet; else it trains.

Pseudonyms are keyed hashes; with the same --key-file they are those of python -m mpc_imaging.deidentify. To
de-identify FOLDER after this, use --real-ids: deidentify replaces them in its copy of the table. FOLDER stays with you.
"""


@dataclass(frozen=True)
class _LabelSource:
    """How images are labelled: ``kind`` none, folder, tag or csv; for csv, ``labels`` by a ``column`` of the table."""

    kind: str = "none"
    keyword: str = ""
    column: str = ""
    labels: dict[str, str] | None = None

    def of(self, image: Found) -> str:
        """The label of an image; empty if there is none."""
        if self.labels is not None:
            return self.labels.get(image.file if self.column == "file" else image.patient, "")
        if self.kind == "tag":
            return image.values[self.keyword]
        return PurePosixPath(image.file).parent.name if self.kind == "folder" else ""


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m mpc_imaging.manifest",
        description="Draft manifest.csv, the list of images with labels and splits, from a folder of DICOM files.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder with DICOM files, as in a PACS export")
    parser.add_argument(
        "--label-from", nargs="+", default=[], metavar="SOURCE", help="folder, tag KEYWORD, or csv FILE COLUMN"
    )
    parser.add_argument("--volumes", action="store_true", help="a row for each folder of slices, for data.slices")
    parser.add_argument("--split", default="70,10,20", metavar="TRAIN,VAL,TEST", help="per cent of images (70,10,20)")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which patients are split (0)")
    parser.add_argument("--site-from", metavar="KEYWORD", help="element of the header for `site`, like StationName")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="KEYWORD",
        help="one column more, like PatientSex; repeatable",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write (FOLDER/manifest.csv)")
    parser.add_argument(
        "--key-file",
        type=Path,
        help="32 random bytes, as (umask 077; openssl rand -out FILE 32) writes, for pseudonyms",
    )
    parser.add_argument("--real-ids", action="store_true", help="patients as the files name them, not pseudonyms")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Draft a manifest; returns the exit code: 0 if it was written, 1 if there are no images, 2 for mistakes."""
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    return over_headers(lambda: _run(arguments), arguments.debug)


def _run(arguments: argparse.Namespace) -> int:
    from mpc_imaging.data.drafting import candidates, inspect, series_folders, split_by_patient
    from mpc_imaging.data.manifest import NAME

    problems: list[str] = []
    out = arguments.out or arguments.folder / NAME
    percent = _percent(arguments.split, problems)
    source = _label_source(arguments.label_from, problems)
    problems += _problems(arguments, out, source)
    if problems:
        raise ConfigError(problems)
    name = _patient_names(arguments)
    keywords = [*arguments.column, *filter(None, (arguments.site_from, source.keyword))]
    files = candidates(arguments.folder)
    contents = inspect(arguments.folder, with_progress(files, "reading headers"), keywords)
    if arguments.volumes:
        series_folders(contents)
    if not contents.images:
        reasons = [f"{count} left out: {reason}" for reason, count in contents.left_out.most_common()]
        raise DataError(["FOLDER: there is no image to list; name one with DICOM files", *reasons])
    labels = [source.of(image) for image in contents.images]
    splits = split_by_patient(contents.images, labels, percent, arguments.seed)
    rows = [
        {"file": image.file, "patient": name(image.patient), "label": label, "split": split}
        | {"site": image.values[arguments.site_from] if arguments.site_from else ""}
        | {keyword: image.values[keyword] for keyword in arguments.column}
        for image, label, split in zip(contents.images, labels, splits, strict=True)
    ]
    _write(out, rows, [*COLUMNS, *arguments.column])
    _show(arguments, out, contents, rows)
    return 0


def _problems(arguments: argparse.Namespace, out: Path, source: _LabelSource) -> Iterator[str]:
    from pydicom.datadict import dictionary_VR, keyword_dict

    if not arguments.folder.is_dir():
        yield "FOLDER: there is no such folder; write one with DICOM files"
    elif out.exists():
        yield f"--out: {out.name} is there already; move it away, or name another file"
    elif not out.parent.is_dir():
        yield "--out: there is no folder for it; make it first"
    if arguments.real_ids and arguments.key_file:
        yield "--key-file: makes pseudonyms, and --real-ids wants none; leave out one of the two"
    for option, keyword in [
        ("--label-from tag", source.keyword),
        ("--site-from", arguments.site_from),
        *(("--column", keyword) for keyword in arguments.column),
    ]:
        if keyword and keyword not in keyword_dict:
            yield f"{option}: {keyword!r} is no DICOM keyword; {_near(keyword, keyword_dict)}"
        elif keyword and dictionary_VR(keyword).startswith(("O", "SQ", "UN")):
            yield f"{option}: {keyword} holds no text; write another, like BodyPartExamined"
    repeated = [name for name, count in Counter(arguments.column).items() if count > 1]
    if repeated:
        yield f"--column: {', '.join(repeated)} twice; write each once"


def _near(word: str, keywords: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, keywords, n=1)
    return f"did you mean {near[0]}?" if near else "write one of PS3.6, like BodyPartExamined"


def _percent(text: str, problems: list[str]) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 3 and all(part.isascii() and part.isdigit() for part in parts) and sum(map(int, parts)) == 100:
        return list(map(int, parts))
    problems.append(f"--split: {text!r}; write three whole numbers that add up to 100, like 70,10,20")
    return [100, 0, 0]


def _label_source(words: Sequence[str], problems: list[str]) -> _LabelSource:
    match words:
        case []:
            return _LabelSource()
        case ["folder"]:
            return _LabelSource("folder")
        case ["tag", keyword]:
            return _LabelSource("tag", keyword)
        case ["csv", path, column]:
            key, labels = _table(Path(path), column, problems)
            return _LabelSource("csv", column=key, labels=labels)
    problems.append("--label-from: write folder, tag KEYWORD, or csv FILE COLUMN, and FOLDER before it")
    return _LabelSource()


def _table(path: Path, column: str, problems: list[str]) -> tuple[str, dict[str, str]]:
    """The labels of a CSV file by its column ``file`` or ``patient``, and which of the two it is."""
    from mpc_imaging.data.manifest import UNREADABLE, unreadable

    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            table = csv.DictReader(stream)
            columns = list(table.fieldnames or [])
            lines = list(table)
    except UNREADABLE as error:
        problems.append(f"--label-from csv: {path} {unreadable(error)}; name a table")
        return "file", {}
    key = next((name for name in ("file", "patient") if name in columns), "")
    if not key or column not in columns:
        lacking = f"{column!r}" if key else "'file' or 'patient'"
        problems.append(f"--label-from csv: there is no column {lacking}; add it to the table's first row")
        return "file", {}
    found: dict[str, set[str]] = defaultdict(set)
    rows: dict[str, list[int]] = defaultdict(list)
    for number, line in enumerate(lines, start=2):
        name = (line[key] or "").strip()
        name = PurePosixPath(name.replace("\\", "/")).as_posix() if key == "file" and name else name
        found[name].add((line[column] or "").strip())
        rows[name].append(number)
    for name, labels in found.items():
        if len(labels) > 1 and name:
            shown = ", ".join(map(str, rows[name][:8]))
            problems.append(f"--label-from csv, rows {shown}: one {key} with different labels; keep one of them")
    return key, {name: min(labels) for name, labels in found.items() if name}


def _patient_names(arguments: argparse.Namespace) -> Callable[[str], str]:
    """How patients are named in the manifest: as they are, or by pseudonyms (those of `deidentify`)."""
    if arguments.real_ids:
        return str
    names = pseudonyms(arguments.key_file)
    return lambda patient: names.name("patient", patient)


def _write(out: Path, rows: Sequence[dict[str, str]], columns: Sequence[str]) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    try:
        with out.open("x", encoding="utf-8", newline="") as file:
            file.write(table.getvalue())
    except OSError as error:
        raise ConfigError([f"--out: {error.strerror}; name another file"]) from None


def _show(arguments: argparse.Namespace, out: Path, contents: Contents, rows: Sequence[dict[str, str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from mpc_imaging.data.manifest import NAME
    from mpc_imaging.settings import SPLITS

    patients = len({row["patient"] for row in rows})
    table = Table(title=f"Images: {len(rows):,}, patients: {patients:,}", title_justify="left")
    table.add_column("label")
    for split in SPLITS:
        table.add_column(split, justify="right")
    counts = Counter((row["label"], row["split"]) for row in rows)
    labels = sorted({row["label"] for row in rows})
    for label in labels[:20]:
        table.add_row(escape(label) or "none", *(str(counts[label, split]) for split in SPLITS))
    if len(labels) > 20:
        table.add_row(f"{len(labels) - 20} more", *("" for _ in SPLITS))
    console = Console()
    console.print(table)
    for reason, count in contents.left_out.most_common():
        print(f"left out {count}: {reason}")
    print(f"wrote {out}")
    unlabelled = sum(counts["", split] for split in SPLITS)
    if unlabelled:
        print(f"{unlabelled} images have no label: fill in the column `label`, delete their rows, or predict only")
    if not arguments.real_ids and arguments.key_file is None:
        print("No --key-file: the pseudonyms of patients are of this draft alone, and nobody can make them again.")
    if out == arguments.folder / NAME:
        print(f"Look through it, then run\n  {_next_command(arguments.folder, rows, arguments.volumes)}")


def _next_command(folder: Path, rows: Sequence[dict[str, str]], volumes: bool) -> str:
    """What runs on the draft as it is; of images without any label only the model's owner knows the classes.

    Pixels were not decoded: what cannot be is left out of predictions, and named; training is to ask first.
    """
    labels = sorted({row["label"] for row in rows} - {""})
    path = shlex.quote(f"data.path={_hydra(str(folder))}")
    # Two classes or more: who drafts from images of one alone knows what the other is called.
    classes = [*map(_hydra, labels), "CLASS", "CLASS"][: max(2, len(labels))]
    names = shlex.quote(f"data.class_names=[{','.join(classes)}]")
    words = ["python -m mpc_imaging data=dicom", path, names]
    words += ["model=slices", "data.slices=16"] if volumes else []
    trains = labels and any(row["split"] == "train" for row in rows)
    if not trains or any(not row["label"] for row in rows):
        words += ["data.invalid=skip"]
    words += ["task=train"] if trains else ["data.dicom_results=true", "task=infer"]
    return " ".join([*words, *([] if labels else ["policy=own_outputs"])])


def _hydra(text: str) -> str:
    """Text as a value on the command line: in quotes where Hydra would read it as something else."""
    plain = re.fullmatch(r"[A-Za-z_/.][\w/.-]*", text, re.ASCII)
    if plain and text.lower() not in ("true", "false", "yes", "no", "on", "off", "null", "nan", "inf"):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


if __name__ == "__main__":
    sys.exit(main())
