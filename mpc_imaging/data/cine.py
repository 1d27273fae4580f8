"""A data owner's cine: its frames are counted from the headers of files, and decoded one by one when they are due."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mpc_imaging.data.dicom import ImageError, Picture, open_picture
from mpc_imaging.data.image_names import ImageNames
from mpc_imaging.data.images import normalise, resize
from mpc_imaging.data.loading import find_rows, own_rows, require_rows
from mpc_imaging.data.row_images import window_of
from mpc_imaging.data.rows import Refused, Row
from mpc_imaging.data.splits import Split, labels_of, report
from mpc_imaging.errors import DataError
from mpc_imaging.settings import DataSettings, Settings

logger = logging.getLogger("mpc_imaging.data")

# Decodes a frame; None for one that cannot be used and is left out.
Load = Callable[[], torch.Tensor | None]


@dataclass(frozen=True)
class CineFile:
    """A file of ``count`` frames, as its header has it, and its row of the manifest."""

    path: Path = field(repr=False)
    row: Row = field(repr=False)
    count: int


class Cine:
    """The frames of one party's files of one split, in the order of the manifest. No pixel is kept.

    ``names``: by which files that cannot be used are named in logs and errors.
    """

    def __init__(self, data: DataSettings, files: Sequence[CineFile], names: ImageNames) -> None:
        self._data, self._files, self._names = data, list(files), names

    def __len__(self) -> int:
        """Return the number of frames of all files."""
        return sum(file.count for file in self._files)

    def split(self) -> Split:
        """Pseudonyms, labels and sources of all frames: a `Split` without images, of shape (0, C, H, W)."""
        data, ids, rows, sources = self._data, [], [], []
        for file in self._files:
            ids += self._names.ids(file.row, file.count)
            rows += [file.row] * file.count
            sources += [(file.path, k) for k in range(file.count)]
        none = torch.zeros(0, data.channels, data.image_size, data.image_size)
        return Split(none, labels_of(rows, data), ids, sources)

    def frames(self) -> Iterator[tuple[int, Load]]:
        """Yield every frame's number, from 0, and what decodes it: float32 (C, H, W), resized and normalised.

        A frame is decoded before the next is asked for, or never. What cannot be used is None with data.invalid=skip.

        Raises:
            DataError: a file, or a frame when it is decoded, cannot be used; its row is named.
        """
        index = 0
        for file in self._files:
            with contextlib.ExitStack() as stack:
                picture = self._open(stack, file)
                for k in range(file.count):
                    yield index, functools.partial(self._load, picture, file, k)
                    index += 1

    def _open(self, stack: contextlib.ExitStack, file: CineFile) -> Picture | None:
        try:
            picture = stack.enter_context(open_picture(file.path))
        except ImageError as error:
            self._refuse(file, str(error))
            return None
        if picture.count != file.count:
            self._refuse(file, "it has changed since its frames were counted")
            return None
        return picture

    def _load(self, picture: Picture | None, file: CineFile, k: int) -> torch.Tensor | None:
        if picture is None:
            return None
        data = self._data
        try:
            (frame,) = picture.shown([k], data.channels, window_of(data))
        except ImageError as error:
            self._refuse(file, f"frame {k}: {error}")
            return None
        return normalise(resize(torch.from_numpy(frame)[None], data.image_size), data.mean, data.std)[0]

    def _refuse(self, file: CineFile, reason: str) -> None:
        refused = Refused(file.row.number, file.row.file, reason)
        self._names.write([], [refused])
        report([self._names.refusal(refused)], self._data.invalid)


def open_cine(settings: Settings, party: str, folder: Path, record: Callable[..., None] | None = None) -> Cine:
    """Find the cine files of task.split that ``party`` owns, and count their frames.

    Files whose headers say that they cannot be used are left out with data.invalid=skip. ``folder`` and ``record``: see
    `load_party`.

    Raises:
        DataError: with data.invalid=refuse, files that cannot be used (all are listed); the manifest is wrong; or no
            file is left.
    """
    data, split, owners = settings.data, settings.task.split, settings.data_owners()
    source = find_rows(data, party, owners, folder, not settings.needs_labels(), record)
    rejected, files = list(source.rejected), []
    require_rows(source, [split])
    for row in own_rows(source, owners, [split]):
        path = source.path / row.file
        try:
            with open_picture(path) as picture:
                files.append(CineFile(path, row, picture.count))
        except ImageError as error:
            rejected.append(Refused(row.number, row.file, str(error)))
    source.names.write([file.row for file in files], rejected)
    report([source.names.refusal(each) for each in rejected], data.invalid)
    if not files:
        raise DataError([f"{party} holds no usable file of {split}: see its log, or add files"])
    cine = Cine(data, files, source.names)
    logger.info("%s holds %d frames of %s in %d files", party, len(cine), split, len(files))
    return cine
