"""De-identified copies of a folder of DICOM files: ``python -m mpc_imaging.deidentify IN OUT``."""

from __future__ import annotations

import argparse
import csv
import io
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mpc_imaging.commands import Parser, over_headers, pseudonyms, with_progress
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

Short texts and codes that Annex E does not name stay if they are made of the standard's own terms: SequenceName,
models and versions go (--keep-device keeps the device's), and a code that pydicom does not know goes with its meaning.
What is left behind of pixel data: comments and application data of compressed frames, bytes behind them, offset tables,
surplus bytes, unused bits. Frames are not compressed anew. Video, and frames in which text may hide, are refused.

What --clean-... leaves is on a list: words of DICOM's own codes for anatomy, modalities, sides and views; codes that
pydicom knows; points, circles and ellipses. A patient called like such a word (Foot, Short) would stay: then leave
these options out. Overlays, curves and device addresses cannot be cleaned, so they go.

Pixels may show text. A file that says so (Burned In Annotation is YES), or a secondary capture, an ultrasound or the
like that does not say NO, is refused unless it is masked:
  python -m mpc_imaging.deidentify IN OUT --mask 0,0,640,48                blacken a box: left,top,right,bottom
  python -m mpc_imaging.deidentify IN OUT --mask-outside-regions           ultrasound: keep only its image regions;
                                                                           other images that need no mask stay whole
  python -m mpc_imaging.deidentify IN OUT --pixels-are-clean               somebody has looked at every image

OUT gets PATIENT/STUDY/INSTANCE.dcm, each whole or not at all, and IN's manifest.csv with the new names of files,
patients, sites and masks; a row of a folder only if one folder of OUT has all of it and nothing else (each has a whole
study). --list writes, for you alone, which file became which and why others were refused. Files that are no DICOM
objects, DICOMDIRs and links are left out. The exit code is 1 if a DICOM object was refused, a row of the manifest was
not carried over, or nothing was copied.
"""
LINK = "a link: what it names is looked at by itself, if it is in IN"
_CARRIED = ("label", "mask", "split", "site", "consent", "purpose")  # columns of OUT's manifest, besides file, patient


@dataclass
class _Outcome:
    """Of each input file, by its path inside of IN: the copy's path inside of OUT, or why there is none."""

    written: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    rows_lost: int = 0

    @property
    def exit_code(self) -> int:
        """1 if something was lost or nothing was copied."""
        return int(not self.written or self.rows_lost > 0 or any(map(_is_loss, self.refused.values())))


@dataclass
class _Table:
    """IN's manifest: its columns, as `read_manifest` names them, and the rows that are not empty."""

    columns: list[str]
    rows: list[dict[str, str]]


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
        "--key-file",
        type=Path,
        help="32 random bytes, as (umask 077; openssl rand -out FILE 32) writes; else a key for this run",
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
        return outcome.exit_code

    return over_headers(body, arguments.debug)


def _is_loss(reason: str) -> bool:
    """Whether what was refused for this reason is an object that has no copy."""
    from mpc_imaging.data.refusals import Reason

    return reason not in (Reason.not_dicom.value, Reason.directory.value, LINK)


def _run(arguments: argparse.Namespace) -> _Outcome:
    from mpc_imaging.data.annotations import Mask
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
    names, options = pseudonyms(arguments.key_file), _options(arguments)
    mask = Mask(boxes, arguments.mask_outside_regions)
    outcome = _Outcome()
    _make_target(arguments.target)
    for path in with_progress(candidates(arguments.source), "de-identifying"):
        name = path.relative_to(arguments.source).as_posix()
        try:
            outcome.written[name] = _copy(path, arguments, names, options, mask)
        except DataError as error:
            outcome.refused[name] = error.problems[0]
    if manifest is not None:
        _write_manifest(arguments, names, options, outcome, manifest)
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
    elif arguments.list and not arguments.list.resolve().parent.is_dir():
        yield "--list: there is no folder for it; make it first"
    elif arguments.list and arguments.list.exists() and not arguments.list.is_file():
        yield "--list: exists and is no file; name another"


def _make_target(target: Path) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"OUT: cannot be made ({error.strerror}); name another folder"]) from None


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
    from mpc_imaging.data.annotations import applicable, burned_in
    from mpc_imaging.data.deidentification import deidentify
    from mpc_imaging.data.refusals import ImageError
    from mpc_imaging.data.whole import read_whole, write_whole

    if path.is_symlink():
        raise DataError([LINK])
    try:
        dataset = read_whole(path, decoded=bool(mask.boxes))
    except ImageError as error:
        raise DataError([str(error)]) from None
    try:
        mask = applicable(mask, dataset)
        if mask and not mask.boxes:  # whether regions are to be masked is known only now
            dataset = read_whole(path, decoded=True)
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
    except ImageError as error:
        raise DataError([str(error)]) from None
    except OSError as error:
        raise DataError([f"its copy cannot be written ({error.strerror})"]) from None
    except Exception as error:  # headers are anybody's, and pydicom's errors quote them
        raise DataError([_unwritten(error)]) from None
    return name


def _unwritten(error: Exception) -> str:
    """Why a header cannot be written anew: the element, which pydicom names before it quotes the value."""
    from pydicom.datadict import keyword_for_tag

    found = re.search(r"tag \(?([0-9A-Fa-f]{4}),\s?([0-9A-Fa-f]{4})\)?", str(error))
    if found is None:
        return f"its header cannot be rewritten ({type(error).__name__}): convert it to Explicit VR Little Endian"
    keyword = keyword_for_tag(int(found[1] + found[2], 16)) or "which the standard does not have"
    return (
        f"its header cannot be rewritten: the value of ({found[1]},{found[2]}) {keyword} is not of its type; correct it"
    )


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


def _manifest(arguments: argparse.Namespace, problems: list[str]) -> _Table | None:
    """IN's manifest.csv, if it has one: read before anything is written, so that a bad one stops it."""
    from mpc_imaging.data.manifest import NAME, UNREADABLE, read_table, unreadable

    path = arguments.source / NAME
    if not path.is_file():
        return None
    try:
        columns, lines = read_table(path)
    except UNREADABLE as error:
        problems.append(f"IN/{NAME}: {unreadable(error)}; correct or move it")
        return None
    for name in ("file", *_CARRIED):
        if columns.count(name) > 1 or (name == "file" and name not in columns):
            found = "twice" if name in columns else "missing"
            problems.append(f"IN/{NAME}: the column '{name}' is {found}; correct or move the manifest")
    return _Table(columns, [cells for _, cells in lines])


def _write_manifest(
    arguments: argparse.Namespace, pseudonyms: Pseudonyms, options: Options, outcome: _Outcome, manifest: _Table
) -> None:
    """OUT/manifest.csv: the rows of what was copied, with new names, and pseudonyms of patients and sites.

    A patient is called as in the copies, whatever the row says, so that the rows of a patient stay together.
    """
    from mpc_imaging.data.manifest import NAME
    from mpc_imaging.report.predictions import write_atomically

    columns = ["file", "patient", *(name for name in _CARRIED if name in manifest.columns)]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    folders = _Folders(outcome, {_inside(row["mask"], arguments.source) for row in manifest.rows if row.get("mask")})
    for row in manifest.rows:
        file, mask = (_copied(row.get(name, ""), arguments.source, outcome, folders) for name in ("file", "mask"))
        if file is None or (row.get("mask") and mask is None):
            outcome.rows_lost += 1
            continue
        row |= {"file": file, "patient": file.partition("/")[0], "mask": mask or ""}
        if row.get("site") and not options.institution:
            row["site"] = pseudonyms.name("site", row["site"])
        writer.writerow(row)
    write_atomically(arguments.target / NAME, table.getvalue().encode())


class _Folders:
    """Which folder of OUT has the copies of a folder of IN. Masks may lie anywhere: they are no slices of a volume."""

    def __init__(self, outcome: _Outcome, masks: set[PurePosixPath]) -> None:
        self._targets: dict[PurePosixPath, set[PurePosixPath]] = defaultdict(set)
        self._sources: dict[PurePosixPath, set[PurePosixPath]] = defaultdict(set)
        for name, copy in outcome.written.items():
            if PurePosixPath(name) in masks:
                continue
            source, target = PurePosixPath(name).parent, PurePosixPath(copy).parent
            self._targets[source].add(target)
            self._sources[target].add(source)
        self._cut = {PurePosixPath(name).parent for name, reason in outcome.refused.items() if _is_loss(reason)}

    def copy(self, folder: PurePosixPath) -> str | None:
        """None if its copies are in several folders, some are lacking, or others lie among them: no such volume."""
        targets = self._targets.get(folder, set())
        if len(targets) != 1 or folder in self._cut:
            return None
        (target,) = targets
        return target.as_posix() if len(self._sources[target]) == 1 else None


def _copied(cell: str, source: Path, outcome: _Outcome, folders: _Folders) -> str | None:
    """The path inside of OUT of what a cell of the manifest names; None if there is none."""
    if not cell:
        return None
    path = _inside(cell, source)
    return outcome.written.get(path.as_posix()) or folders.copy(path)


def _inside(cell: str, source: Path) -> PurePosixPath:
    """A path in the manifest, relative to IN."""
    return PurePosixPath(os.path.relpath(os.path.join(source, cell), source))


def _write_list(path: Path, outcome: _Outcome) -> None:
    from mpc_imaging.report.predictions import write_atomically

    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(("file", "became", "refused"))
    writer.writerows((name, became, "") for name, became in outcome.written.items())
    writer.writerows((name, "", reason) for name, reason in outcome.refused.items())
    # Names of files need not be text; they are written as they are on the disk.
    write_atomically(path, table.getvalue().encode("utf-8", "surrogateescape"))


def _show(outcome: _Outcome, arguments: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="De-identified", title_justify="left")
    table.add_column("files", justify="right")
    table.add_column("what became of them")
    table.add_row(str(len(outcome.written)), "copied, without what identifies")
    for reason, count in Counter(outcome.refused.values()).most_common():
        table.add_row(str(count), f"refused: {reason}")
    Console().print(table)
    if outcome.rows_lost:
        print(f"{outcome.rows_lost} rows of the manifest were not carried over: what they name has no whole copy.")
    if arguments.key_file is None:
        print("No --key-file: the pseudonyms are of this run alone, and nobody can make them again.")
    if arguments.list:
        _write_list(arguments.list, outcome)


if __name__ == "__main__":
    sys.exit(main())
