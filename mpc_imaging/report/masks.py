"""masks.npz: the masks that an owner was shown of its images, beside the true ones; written whole, read strictly."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mpc_imaging.errors import DataError
from mpc_imaging.report.predictions import Predictions, write_atomically

MASKS = "masks.npz"


def write_masks(
    folder: Path, ids: Sequence[str], labels: npt.ArrayLike, masks: npt.ArrayLike, logits: npt.ArrayLike | None
) -> None:
    """Write masks.npz: ``ids`` (N,), ``labels`` int8 and ``masks`` uint8 (N, H, W) of 0 and 1, ``logits`` if revealed.

    labels: the true masks, of -1 where there is none; logits: float32 (N, H, W) of each pixel.
    """
    arrays = {
        "ids": np.asarray(ids, dtype=np.str_),
        "labels": np.asarray(labels, dtype=np.int8),
        "masks": np.asarray(masks, dtype=np.uint8),
    }
    if logits is not None:
        arrays["logits"] = np.asarray(logits, dtype=np.float32)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomically(folder / MASKS, content.getvalue())


def read_masks(folder: Path, class_names: Sequence[str]) -> Predictions:
    """Read what `write_masks` wrote, as outputs whose labels and predictions are (N, H, W) and logits (N, 1, H, W).

    Raises:
        DataError: a file that is missing, damaged, or whose arrays do not fit each other.
    """
    path = folder / MASKS
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        ids, labels, masks = arrays["ids"], arrays["labels"], arrays["masks"]
        logits = arrays.get("logits")
        fits = labels.shape == masks.shape == (len(ids), *masks.shape[1:]) and masks.ndim == 3
        if not fits or (logits is not None and logits.shape != masks.shape):
            raise ValueError
    except OSError as error:
        raise DataError([f"{path} cannot be read: {error.strerror or type(error).__name__}"]) from None
    except (ValueError, KeyError, zipfile.BadZipFile):
        raise DataError([f"{path} is damaged or not written by this package: run the job again"]) from None
    outputs = None if logits is None else logits[:, None]
    return Predictions(ids.tolist(), labels.astype(np.int64), masks.astype(np.int64), outputs, list(class_names))
