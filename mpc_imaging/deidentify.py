"""De-identified copies of a folder of DICOM files: ``python -m mpc_imaging.deidentify IN OUT``."""

from __future__ import annotations

import argparse
import csv
import io
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
Options of that Annex keep or clean more; each copy says which. @FILE among the arguments reads more of them from FILE
(# begins a comment), so that a hospital writes its options down once:
  python -m mpc_imaging.deidentify IN OUT @options.txt

What --clean-... leaves is on a list: words of DICOM's own codes for anatomy, modalities, sides and views; codes that
pydicom knows; points, circles and ellipses. A patient called like such a word (Foot, Short) would stay: then leave
these options out. Overlays, curves and device addresses cannot be cleaned, so they go.

Pixels may show text. A file that says so (Burned In Annotation is YES), or a secondary capture, an ultrasound or the
like that does not say NO, is refused unless it is masked:
  python -m mpc_imaging.deidentify IN OUT --mask 0,0,640,48                blacken a box: left,top,right,bottom
  python -m mpc_imaging.deidentify IN OUT --mask-outside-regions           ultrasound: keep only its image regions
  python -m mpc_imaging.deidentify IN OUT --pixels-are-clean               somebody has looked at every image

OUT gets PATIENT/STUDY/INSTANCE.dcm, each whole or not at all, and IN's manifest.csv with the new names of files,
patients and sites. --list writes, for you alone, which file became which and why others were refused. Files that are
no DICOM objects, DICOMDIRs and links are left out; the exit code is 1 if a DICOM object was refused.
"""
LINK = "a link: the file that it names is looked at by itself, if it is in IN"


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
        fromfile_prefix_chars="@",
    )
    parser.add_argument("source", type=Path, metavar="IN", help="folder with DICOM files, which stay as they are")
    parser.add_argument("target", type=Path, metavar="OUT", help="new or empty folder")
    parser.add_argument(
        "--key-file", type=Path, help="32 random bytes (openssl rand -out FILE 32); else a key for this run"
    )
    _add_options(parser.add_argument_group("options of the profile"))
    parser.add_argument(
        "--mask", action="append", default=[], metavar="L,T,R,B", help="a box to blacken in every image"
    )
    parser.add_argument("--mask-outside-regions", action="store_true", help="blacken around ultrasound regions")
    parser.add_argument("--pixels-are-clean", action="store_true", help="do not refuse pixels that may show text")
    parser.add_argument("--list", type=Path, metavar="FILE", help="CSV of what became of each file; names patients")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args(argv)


def _add_options(group: argparse._ArgumentGroup) -> None:
    for name, meaning in (
        ("--keep-dates", "dates shifted by days that are each patient's own"),
        ("--keep-full-dates", "dates and times as they are, but the patient's birth"),
        ("--keep-device", "names and numbers of devices"),
        ("--keep-institution", "names and addresses of institutions"),
        ("--keep-patient", "sex, age, size, weight, smoking, pregnancy; of allergies and states the listed words"),
        ("--keep-uids", "UIDs as they are, also in the names of OUT's files"),
        ("--clean-descriptors", "of descriptions and comments keep the listed words and codes"),
        ("--clean-structured", "of reports and acquisition contexts keep codes, numbers and references"),
        ("--clean-graphics", "of graphic annotations keep points, circles and ellipses"),
    ):
        group.add_argument(name, action="store_true", help=meaning)


def _options(arguments: argparse.Namespace) -> Options:
    from mpc_imaging.data.deidentification import Dates, Options

    return Options(
        dates=Dates.kept if arguments.keep_full_dates else Dates.shifted if arguments.keep_dates else Dates.removed,
        uids=arguments.keep_uids,
        device=arguments.keep_device,
        institution=arguments.keep_institution,
        patient=arguments.keep_patient,
        descriptors=arguments.clean_descriptors,
        structured=arguments.clean_structured,
        graphics=arguments.clean_graphics,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """De-identify; returns the exit code: 0 if all objects were copied, 1 if some were refused, 2 for mistakes."""
    arguments = _arguments(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        outcome = _run(arguments)
        _show(outcome, arguments)
        return int(any(reason not in _no_loss() for reason in outcome.refused.values()))

    return over_headers(body, arguments.debug)


def _no_loss() -> set[str]:
    """What is left out and no reason to end with an error."""
    from mpc_imaging.data.refusals import Reason

    return {Reason.not_dicom.value, Reason.directory.value, LINK}


def _run(arguments: argparse.Namespace) -> _Outcome:
    from mpc_imaging.data.annotations import Mask
    from mpc_imaging.data.deidentification import Pseudonyms
    from mpc_imaging.data.drafting import candidates

    problems: list[str] = []
    boxes = tuple(box for text in arguments.mask if (box := _box(text, problems)))
    problems += _folder_problems(arguments)
    if arguments.pixels_are_clean and (arguments.mask or arguments.mask_outside_regions):
        problems.append("--pixels-are-clean: what is masked need not be clean; leave out one of the two")
    if arguments.keep_dates and arguments.keep_full_dates:
        problems.append("--keep-dates: shifts them, and --keep-full-dates does not; leave out one of the two")
    manifest = _manifest(arguments, problems)
    if problems:
        raise ConfigError(problems)
    pseudonyms = Pseudonyms(pseudonym_key(arguments.key_file))
    options = _options(arguments)
    mask = Mask(boxes, arguments.mask_outside_regions)
    outcome = _Outcome()
    for path in with_progress(candidates(arguments.source), "de-identifying"):
        name = path.relative_to(arguments.source).as_posix()
        try:
            outcome.written[name] = _copy(path, arguments, pseudonyms, options, mask)
        except DataError as error:
            outcome.refused[name] = error.problems[0]
    if manifest:
        _write_manifest(arguments, pseudonyms, options, outcome, manifest)
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
    from mpc_imaging.data.refusals import ImageError
    from mpc_imaging.data.whole import read_whole, write_whole

    if path.is_symlink():
        raise DataError([LINK])
    try:
        dataset = read_whole(path, decoded=bool(mask))
    except ImageError as error:
        raise DataError([str(error)]) from None
    try:
        reason = burned_in(dataset)
        if reason and not mask and not arguments.pixels_are_clean:
            raise DataError([f"{reason}; mask it, or look at it and write --pixels-are-clean"])
        if mask:
            _blacken(dataset, mask)
        deidentify(
            dataset, pseudonyms, options, clean_pixels=bool(mask) or (arguments.pixels_are_clean and bool(reason))
        )
        name = f"{dataset.PatientID}/{_part(dataset.StudyInstanceUID)}/{_part(dataset.SOPInstanceUID)}.dcm"
        target = arguments.target / name
        if target.exists():
            raise DataError(["an instance that another file has already"])
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(dataset, target)
    except DataError:
        raise
    except OSError as error:
        raise DataError([f"its copy cannot be written ({error.strerror})"]) from None
    except Exception as error:  # headers are anybody's, and pydicom's errors quote them
        raise DataError([f"its header cannot be rewritten ({type(error).__name__})"]) from None
    return name


def _part(uid: str) -> str:
    """A UID as a part of a path; what is kept of a file's own may be anything."""
    if not uid or len(uid) > 64 or set(uid) - set("0123456789.") or not uid.strip("."):
        raise DataError(["a UID that is none, which --keep-uids would keep"])
    return uid


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


def _manifest(arguments: argparse.Namespace, problems: list[str]) -> list[dict[str, str]]:
    """The rows of IN's manifest.csv, if it has one: read before anything is written, so that a bad one stops it."""
    from mpc_imaging.data.manifest import NAME

    path = arguments.source / NAME
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.append(f"IN/{NAME}: cannot be read as UTF-8 CSV ({type(error).__name__}); correct or move it")
        return []


def _write_manifest(
    arguments: argparse.Namespace,
    pseudonyms: Pseudonyms,
    options: Options,
    outcome: _Outcome,
    rows: list[dict[str, str]],
) -> None:
    """OUT/manifest.csv: the rows of written files, with their new names, and pseudonyms of patients and sites."""
    from mpc_imaging.data.manifest import NAME
    from mpc_imaging.report.predictions import write_atomically

    kept = ("label", "split", "site", "consent", "purpose")
    columns = ["file", "patient", *(name for name in kept if name in rows[0])]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        name = Path(row.get("file") or "").as_posix()
        if name in outcome.written:
            row |= {"file": outcome.written[name], "patient": pseudonyms.name("patient", row.get("patient") or "")}
            if row.get("site") and not options.institution:
                row["site"] = pseudonyms.name("site", row["site"])
            writer.writerow(row)
    arguments.target.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.target / NAME, table.getvalue().encode())


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
