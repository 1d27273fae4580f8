"""predictions.csv and logits.safetensors: what one receiver was shown of each image; written whole, read strictly."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpc_imaging.errors import DataError
from mpc_imaging.report.metrics import UNKNOWN_LABEL, log_softmax

PREDICTIONS = "predictions.csv"
LOGITS = "logits.safetensors"
_SCORE = "score_"
_KINDS = ("label", "predicted")


@dataclass(frozen=True)
class Predictions:
    """Rows of predictions.csv in its order. A label of -1 is unknown; ``logits`` is None if they were not revealed."""

    ids: list[str]
    labels: npt.NDArray[np.int64]  # (N,), or (N, K) of 0 and 1 where images have several labels
    predicted: npt.NDArray[np.int64]  # as the labels
    logits: npt.NDArray[np.float32] | None  # (N, K)
    class_names: list[str]


def write_predictions(
    folder: Path,
    ids: Sequence[str],
    labels: npt.ArrayLike | None,
    logits: npt.ArrayLike | None,
    predicted: npt.ArrayLike,
    class_names: Sequence[str],
) -> None:
    """Write predictions.csv and, if logits were revealed, logits.safetensors into ``folder``.

    Classes are written as their index; the columns ``score_<class name>`` are in the order of the indices and hold the
    softmax of the logits. ``labels`` (N,) is None or holds -1 where this receiver does not know them. Of images that
    have several labels, ``labels`` and ``predicted`` are (N, K): then each class has columns ``label_<class name>`` and
    ``predicted_<class name>`` of 0 and 1, and its score is the sigmoid of its logit.
    """
    outputs = None if logits is None else np.ascontiguousarray(logits, dtype=np.float32)
    guesses = np.asarray(predicted, dtype=np.int64)
    several = guesses.ndim == 2
    truth = np.full(guesses.shape, UNKNOWN_LABEL) if labels is None else np.asarray(labels, dtype=np.int64)
    truth = truth.reshape(len(truth), -1) if several and len(truth) else truth
    if outputs is not None and outputs.shape != (len(ids), len(class_names)):
        raise DataError([f"logits {outputs.shape} do not fit {len(ids)} images of {len(class_names)} classes"])
    if not len(ids) == len(guesses) == len(truth):
        raise DataError([f"{len(ids)} image ids, {len(truth)} labels and {len(guesses)} predictions must be as many"])
    scores = [[""] * len(class_names)] * len(ids) if outputs is None else _score_cells(outputs, several)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_header(class_names, several))
    for image_id, label, guess, row in zip(ids, truth, guesses, scores, strict=True):
        known = ["" if each == UNKNOWN_LABEL else int(each) for each in np.atleast_1d(label)]
        writer.writerow([image_id, *known, *np.atleast_1d(guess).tolist(), *row])
    if outputs is not None:
        from safetensors.numpy import save

        write_atomically(folder / LOGITS, save({"logits": outputs}))
    write_atomically(folder / PREDICTIONS, text.getvalue().encode())


def read_predictions(folder: Path) -> Predictions:
    """Read what `write_predictions` wrote.

    Raises:
        DataError: a file that is missing, damaged, or does not fit the other.
    """
    path = folder / PREDICTIONS
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file, strict=True)
        names = [column.removeprefix(_SCORE) for column in header if column.startswith(_SCORE)]
        several = header != _header(names, several=False)
        if header != _header(names, several) or any(len(row) != len(header) for row in rows):
            raise ValueError
        width = len(names) if several else 1
        cells = [[int(cell) if cell else UNKNOWN_LABEL for cell in row[1 : 1 + 2 * width]] for row in rows]
        numbers = np.array(cells, dtype=np.int64).reshape(len(rows), 2, width)
        if (numbers[:, 1] == UNKNOWN_LABEL).any():
            raise ValueError
        labels, predicted = (numbers[:, i] if several else numbers[:, i, 0] for i in (0, 1))
    except OSError as error:
        raise DataError([f"{path} cannot be read: {error.strerror}"]) from None
    except (ValueError, csv.Error):  # their messages would quote cells
        raise DataError([f"{path} is damaged or not written by this package: run the job again"]) from None
    logits = _read_logits(folder / LOGITS, (len(rows), len(names)))
    return Predictions([row[0] for row in rows], labels, predicted, logits, names)


def write_atomically(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file so that readers see all of it or nothing, even after a power cut.

    It goes to a temporary neighbour, which then takes its name. ``mode``: permissions, less the process's umask.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write strict JSON atomically: NaN and infinities are a ValueError, since other programs cannot read them."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def _header(class_names: Sequence[str], several: bool) -> list[str]:
    columns = [f"{kind}_{name}" for kind in _KINDS for name in class_names] if several else _KINDS
    return ["image_id", *columns, *(f"{_SCORE}{name}" for name in class_names)]


def _score_cells(logits: npt.NDArray[np.float32], several: bool) -> list[list[str]]:
    """Class probabilities with nine digits; empty where the logits are not finite."""
    scores = _sigmoid if several else lambda row: np.exp(log_softmax(row[None])[0])
    return [[f"{v:.9g}" for v in scores(row)] if np.isfinite(row).all() else [""] * len(row) for row in logits]


def _sigmoid(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    small = np.exp(-np.abs(values.astype(np.float64)))
    return np.where(values < 0, small, 1) / (1 + small)


def _read_logits(path: Path, shape: tuple[int, int]) -> npt.NDArray[np.float32] | None:
    if not path.exists():
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        logits = load(path.read_bytes())["logits"]
    except (OSError, KeyError, SafetensorError):
        raise DataError([f"{path} is damaged or holds no logits: run the job again"]) from None
    if logits.shape != shape:
        raise DataError([f"{path} holds logits {logits.shape}, but {PREDICTIONS} beside it has {shape}"])
    return logits
