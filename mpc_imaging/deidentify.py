"""De-identified copies of a folder of DICOM files: ``python -m mpc_imaging.deidentify IN OUT``."""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mpc_imaging.commands import Parser, over_headers, pseudonym_key, with_progress
from mpc_imaging.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from mpc_imaging.data.annotations import Mask
    from mpc_imaging.data.deidentification import Options, Pseudonyms

EPILOG = """\
The profile is DICOM PS3.15 Annex E, Basic Application Level Confidentiality: names, dates, identifiers, addresses,
free text, private attributes, overlays and curves go; UIDs and patients get pseudonyms. With the same --key-file they
are the same in every run, so that new images of a patient join the old ones. The key must not leave the hospital.

Pixels may show text. A file that says so (Burned In Annotation is YES), or a secondary capture, an ultrasound or the
like that does not say NO, is refused unless it is masked:
  python -m mpc_imaging.deidentify IN OUT --mask 0,0,640,48                blacken a box: left,top,right,bottom
  python -m mpc_imaging.deidentify IN OUT --mask-outside-regions           ultrasound: keep only its image regions
  python -m mpc_imaging.deidentify IN OUT --pixels-are-clean               somebody has looked at every image

OUT gets PATIENT/STUDY/INSTANCE.dcm, and IN's manifest.csv with the new names of files and patients. --list writes,
for you alone, which file became which and why others were refused.
"""


@dataclass
class _Outcome:
    """Of each input file, by its path inside of IN: the copy's path inside of OUT, or why there is none."""

    written: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m mpc_imaging.deidentify",
        description="Write de-identified copies of all DICOM files in a folder into a new folder.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="IN", help="folder with DICOM files, which stay as they are")
    parser.add_argument("target", type=Path, metavar="OUT", help="new or empty folder")
    parser.add_argument(
        "--key-file", type=Path, help="32 random bytes (openssl rand -out FILE 32); else a key for this run"
    )
    parser.add_argument("--keep-dates", action="store_true", help="dates shifted by days that are each patient's own")
    parser.add_argument("--keep-device", action="store_true", help="keep names and numbers of devices")
    parser.add_argument(
        "--mask", action="append", default=[], metavar="L,T,R,B", help="a box to blacken in every image"
    )
    parser.add_argument("--mask-outside-regions", action="store_true", help="blacken around ultrasound regions")
    parser.add_argument("--pixels-are-clean", action="store_true", help="do not refuse pixels that may show text")
    parser.add_argument("--list", type=Path, metavar="FILE", help="CSV of what became of each file; names patients")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """De-identify; returns the exit code: 0 if every DICOM file was copied, 1 if some were refused, 2 for mistakes."""
    arguments = _arguments(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        outcome = _run(arguments)
        _show(outcome, arguments)
        return int(bool(outcome.refused))

    return over_headers(body, arguments.debug)


def _run(arguments: argparse.Namespace) -> _Outcome:
    from mpc_imaging.data.annotations import Mask
    from mpc_imaging.data.deidentification import Options, Pseudonyms

    problems: list[str] = []
    boxes = tuple(box for text in arguments.mask if (box := _box(text, problems)))
    problems += _folder_problems(arguments)
    if arguments.pixels_are_clean and (arguments.mask or arguments.mask_outside_regions):
        problems.append("--pixels-are-clean: what is masked need not be clean; leave out one of the two")
    if problems:
        raise ConfigError(problems)
    pseudonyms = Pseudonyms(pseudonym_key(arguments.key_file))
    options = Options(arguments.keep_dates, arguments.keep_device)
    mask = Mask(boxes, arguments.mask_outside_regions)
    outcome = _Outcome()
    files = [path for path in sorted(arguments.source.rglob("*")) if path.is_file() and path.name != "manifest.csv"]
    for path in with_progress(files, "de-identifying"):
        name = path.relative_to(arguments.source).as_posix()
        try:
            outcome.written[name] = _copy(path, arguments, pseudonyms, options, mask)
        except DataError as error:
            outcome.refused[name] = error.problems[0]
    _rewrite_manifest(arguments, pseudonyms, outcome)
    return outcome


def _folder_problems(arguments: argparse.Namespace) -> Iterator[str]:
    source, target = arguments.source, arguments.target
    if not source.is_dir():
        yield "IN: there is no such folder; write one with DICOM files"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        yield "OUT: exists and is not an empty folder; name a new one"
    if target.resolve().is_relative_to(source.resolve()):
        yield "OUT: lies inside of IN, whose files would be read again; name a folder elsewhere"
    if arguments.list and arguments.list.resolve().is_relative_to(target.resolve()):
        yield "--list: it names patients, and OUT is to be passed on; write it elsewhere"


def _box(text: str, problems: list[str]) -> tuple[int, ...] | None:
    parts = text.split(",")
    if len(parts) == 4 and all(part.strip().isdecimal() for part in parts):
        left, top, right, bottom = map(int, parts)
        if left < right and top < bottom:
            return left, top, right, bottom
    problems.append(f"--mask: {text!r} is no box; write left,top,right,bottom in pixels, like 0,0,640,48")
    return None


def _copy(path: Path, arguments: argparse.Namespace, pseudonyms: Pseudonyms, options: Options, mask: Mask) -> str:
    """Write the copy of one file; its path inside of OUT. Raises `DataError` if there can be none."""
    from mpc_imaging.data.annotations import burned_in
    from mpc_imaging.data.deidentification import deidentify

    dataset = _read(path)
    reason = burned_in(dataset)
    if reason and not mask and not arguments.pixels_are_clean:
        raise DataError([f"{reason}; mask it, or look at it and write --pixels-are-clean"])
    try:
        if mask:
            _blacken(dataset, mask)
        deidentify(
            dataset, pseudonyms, options, clean_pixels=bool(mask) or (arguments.pixels_are_clean and bool(reason))
        )
        name = f"{dataset.PatientID}/{dataset.StudyInstanceUID}/{dataset.SOPInstanceUID}.dcm"
        target = arguments.target / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise DataError(["an instance that another file has already"])
        dataset.save_as(target, enforce_file_format=True)
    except DataError:
        raise
    except Exception as error:  # headers are anybody's, and pydicom's errors quote them
        raise DataError([f"its header cannot be rewritten ({type(error).__name__})"]) from None
    return name


def _read(path: Path) -> Dataset:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        dataset = dcmread(path)
    except InvalidDicomError:
        raise DataError(["no DICOM file"]) from None
    except Exception as error:
        raise DataError([f"cannot be read ({type(error).__name__})"]) from None
    missing = [name for name in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID") if not dataset.get(name)]
    if missing:
        raise DataError([f"no instance of a study: {', '.join(missing)} missing"])
    return dataset


def _blacken(dataset: Dataset, mask: Mask) -> None:
    from mpc_imaging.data.annotations import blacken

    if "PixelData" not in dataset:
        raise DataError(["no pixels to mask; leave the mask out for files like this"])
    try:
        blacken(dataset, mask)
    except ValueError as error:
        raise DataError([str(error)]) from None
    except Exception as error:
        raise DataError([f"its pixels cannot be decoded ({type(error).__name__})"]) from None


def _rewrite_manifest(arguments: argparse.Namespace, pseudonyms: Pseudonyms, outcome: _Outcome) -> None:
    """OUT/manifest.csv, if IN has one: the rows of written files, with their new names and patients' pseudonyms."""
    source = arguments.source / "manifest.csv"
    if not source.is_file():
        return
    with source.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = ("label", "split", "site", "consent", "purpose")
    columns = ["file", "patient", *(name for name in kept if rows and name in rows[0])]
    with (arguments.target / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            name = Path(row.get("file") or "").as_posix()
            if name in outcome.written:
                patient = pseudonyms.name("patient", row.get("patient") or "")
                writer.writerow(row | {"file": outcome.written[name], "patient": patient})


def _show(outcome: _Outcome, arguments: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    if arguments.list:
        with arguments.list.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("file", "became", "refused"))
            writer.writerows((name, became, "") for name, became in outcome.written.items())
            writer.writerows((name, "", reason) for name, reason in outcome.refused.items())
    table = Table(title="De-identified", title_justify="left")
    table.add_column("files", justify="right")
    table.add_column("what became of them")
    table.add_row(str(len(outcome.written)), "copied, without what identifies")
    for reason, count in Counter(outcome.refused.values()).most_common():
        table.add_row(str(count), f"refused: {reason}")
    Console().print(table)
    if arguments.key_file is None:
        print("No --key-file: the pseudonyms are of this run alone, and nobody can make them again.")


if __name__ == "__main__":
    sys.exit(main())
