"""Results for the owner of the images: a DICOM report on each image, and results.csv, in the private folder results/.

These are the only files of a run that hold anything from the images' headers: a report belongs to the patient and the
study of its image. Their names are pseudonyms, the folder is its user's alone, and nothing of it is logged or sent.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import Dataset
from pydicom.sr.coding import Code

from mpc_imaging.data.image_names import private_folder
from mpc_imaging.data.refusals import ImageError
from mpc_imaging.errors import DataError
from mpc_imaging.report.predictions import write_atomically
from mpc_imaging.report.result_objects import ModelIdentity, Places, check_installed, check_name, class_code, save
from mpc_imaging.report.result_source import ResultError, read_sources
from mpc_imaging.report.structured_report import structured_report

TABLE = "results.csv"
NO_SOURCE = "not from a DICOM file: in this table only"


@dataclass(frozen=True)
class ResultRow:
    """What its owner knows of one image.

    ``image_id``: its pseudonym. ``source``: the DICOM file that it came from, or those of one series of a volume, None
    for other data sets; ``frame``: the one that was used of a multi-frame file, from 0, None for all.
    ``probabilities``: by class, None if not revealed.
    """

    image_id: str
    source: Path | Sequence[Path] | None = field(repr=False)
    frame: int | None
    prediction: str
    probabilities: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of the rows, by pseudonym: ``written`` reports, and why there is none (``refused``: a reason).

    ``without_source``: rows of data sets that are no DICOM files; they are in the table only, and nothing is wrong.
    """

    table: Path
    written: dict[str, Path] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    without_source: list[str] = field(default_factory=list)


def write_results(
    folder: Path,
    rows: Sequence[ResultRow],
    model: ModelIdentity,
    class_names: Sequence[str],
    *,
    codes: Mapping[str, Code] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Outcome:
    """Write ``folder``/results: ``<pseudonym>.dcm`` for each row that has a DICOM source, and results.csv for all.

    The reports of one study are one series. ``codes``: standard codes of classes. ``advance`` is called after each row.
    A source that allows no report is noted with its reason, in the table and in what is returned; the others go on.

    Raises:
        ConfigError: highdicom is not installed, or a class has a name that no DICOM code can mean.
        DataError: a row that does not fit ``class_names``, or pseudonyms that repeat or are no file names.
    """
    _check(rows, class_names, codes)
    private = private_folder(folder)
    outcome = Outcome(private / TABLE)
    sources, places = _Sources(), Places()
    for row in rows:
        if row.source is None:
            outcome.without_source.append(row.image_id)
        else:
            try:
                images = sources.read(row.source)
                report = structured_report(
                    images,
                    row.prediction,
                    _finite(row.probabilities),
                    model,
                    row.image_id,
                    row.frame,
                    codes,
                    places.next(images[0]),
                )
                outcome.written[row.image_id] = save(report, private, row.image_id)
            except (ImageError, ResultError) as error:
                outcome.refused[row.image_id] = str(error)
        advance()
    write_atomically(outcome.table, _table(rows, class_names, outcome).encode(), mode=0o600)
    return outcome


class _Sources:
    """Headers, each read once for all of its frames."""

    def __init__(self) -> None:
        self._last: tuple[Path | Sequence[Path], list[Dataset]] | None = None

    def read(self, source: Path | Sequence[Path]) -> list[Dataset]:
        if self._last is None or self._last[0] != source:
            self._last = source, read_sources(source)
        return self._last[1]


def _check(rows: Sequence[ResultRow], class_names: Sequence[str], codes: Mapping[str, Code] | None) -> None:
    if any(row.source is not None for row in rows):
        check_installed()
    for name in class_names:
        class_code(name, codes)
    known = set(class_names)
    for row in rows:
        check_name(row.image_id)
        if row.prediction not in known or not known.issuperset(row.probabilities or ()):
            raise DataError([f"{row.image_id}: the prediction or a probability is of a class that is not listed"])
    if len({row.image_id for row in rows}) != len(rows):
        raise DataError(["pseudonyms of results repeat: each image needs its own"])


def _finite(probabilities: Mapping[str, float] | None) -> dict[str, float] | None:
    """None where one of them is not a number: predictions.csv leaves such a row empty, too."""
    if probabilities is None or not all(map(math.isfinite, probabilities.values())):
        return None
    return dict(probabilities)


def _table(rows: Sequence[ResultRow], class_names: Sequence[str], outcome: Outcome) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "predicted", *(f"score_{name}" for name in class_names), "report", "reason"])
    for row in rows:
        scores = _finite(row.probabilities) or {}
        cells = [f"{scores[name]:.9g}" if name in scores else "" for name in class_names]
        written = outcome.written.get(row.image_id)
        reason = NO_SOURCE if row.source is None else outcome.refused.get(row.image_id, "")
        writer.writerow([row.image_id, row.prediction, *cells, written.name if written else "", reason])
    return text.getvalue()
