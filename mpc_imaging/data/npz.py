"""The arrays of an .npz file: nothing is unpickled, and what a header claims is compared before memory is taken for it.

It is compared with what the file holds and with mpc_imaging/data/limits.py. A small array is read whole, a large one
a few rows at a time, of which only those that are asked for are kept. What is damaged becomes a `DataError`.
"""

from __future__ import annotations

import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from mpc_imaging.data.limits import MAX_ARRAY_ROWS, MAX_COLUMN_BYTES, MAX_SAMPLES
from mpc_imaging.errors import DataError

_CHUNK_SAMPLES = 2**22  # so many are read and handed on together
_COMPRESSION = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes
# What zipfile, zlib and numpy raise for a damaged file; numpy reads a header as Python source.
_DAMAGED = (
    OSError, ValueError, EOFError, RuntimeError, MemoryError, OverflowError, struct.error, zipfile.BadZipFile,
    zlib.error, SyntaxError, tokenize.TokenError, TypeError, LookupError,
)  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What the header of one array claims. ``fortran``: its first index runs fastest."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool

    @property
    def bytes(self) -> int:
        """The size of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


class Archive:
    """An open .npz file. ``remedy``: what its owner does about an array that cannot be read."""

    def __init__(self, path: Path, members: zipfile.ZipFile, remedy: str) -> None:
        self.path = path
        self._members, self._remedy = members, remedy
        # Only whole names: numpy finds no array by the name of its folder or file alone.
        self.names = {name.removesuffix(".npy") for name in members.namelist() if name.endswith(".npy")}

    def header(self, name: str) -> Header:
        """What an array claims, which the file and the limits can hold. Raises `DataError`."""
        with self._reading(name) as (_, claimed):
            return claimed

    def whole(self, name: str) -> np.ndarray:
        """A small array. Raises `DataError`."""
        with self._reading(name) as (stream, claimed):
            if claimed.bytes > MAX_COLUMN_BYTES:
                raise self._refusal(name, _too_large(claimed))
            own = np.frombuffer(_exactly(stream, claimed.bytes), claimed.dtype)
            return own.reshape(claimed.shape, order="F" if claimed.fortran else "C")

    def rows(self, name: str, index: Sequence[int]) -> Iterator[np.ndarray]:
        """Rows ``index``, which ascends, a few at a time. Raises `DataError`.

        The others are read past, to the end of the array, where zipfile compares its checksum.
        """
        chosen = np.asarray(index, dtype=np.int64)
        if self.header(name).fortran:  # a row is all over the array
            yield self.whole(name)[chosen]
            return
        with self._reading(name) as (stream, claimed):
            count, shape = claimed.shape[0], claimed.shape[1:]
            if len(chosen) and chosen[-1] >= count:
                raise EOFError
            most = max(1, _CHUNK_SAMPLES // math.prod(shape))
            for start in range(0, count, most):
                size = min(most, count - start)
                content = _exactly(stream, size * math.prod(shape) * claimed.dtype.itemsize)
                first, last = np.searchsorted(chosen, [start, start + size])
                if first < last:
                    block = np.frombuffer(content, claimed.dtype).reshape(size, *shape)
                    yield block[chosen[first:last] - start]

    @contextmanager
    def _reading(self, name: str) -> Iterator[tuple[IO[bytes], Header]]:
        """Open an array behind its header."""
        try:
            info = self._members.getinfo(f"{name}.npy")
            self._check_member(info)
            with self._members.open(info) as stream:
                claimed = _claims(stream)
                problem = _limit_problem(claimed, info.file_size - stream.tell(), self._remedy)
                if problem:
                    raise self._refusal(name, problem)
                yield stream, claimed
        except _DAMAGED as error:
            what = f"it cannot be read ({type(error).__name__})"
            raise self._refusal(name, f"{what}: {self._remedy}") from None

    def _check_member(self, info: zipfile.ZipInfo) -> None:
        """zipfile takes memory for all the bytes that the directory claims, and knows packings without a bound."""
        if info.compress_size > self.path.stat().st_size or info.compress_type not in _COMPRESSION:
            raise zipfile.BadZipFile

    def _refusal(self, name: str, problem: str) -> DataError:
        return DataError([f"{self.path}, {name}: {problem}"])


@contextmanager
def open_npz(path: Path, advice: str, remedy: str) -> Iterator[Archive]:
    """Open an .npz file.

    Args:
        path: The file.
        advice: What to do if it is none.
        remedy: What to do if one of its arrays cannot be read.

    Raises:
        DataError: no such file, or no .npz file.
    """
    if path.is_dir():
        raise DataError([f"{path}: it is a folder: give the .npz file itself by data.path"])
    if not path.is_file():
        raise DataError([f"{path}: there is no such file: correct data.path"])
    try:
        members = zipfile.ZipFile(path)
    except _DAMAGED:
        raise DataError([f"{path}: it is no .npz file, or cut short: {advice}"]) from None
    with members:
        yield Archive(path, members, remedy)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content


def _claims(stream: IO[bytes]) -> Header:
    if npy.read_magic(stream) != (1, 0):  # numpy writes later ones for fields only, and their headers have no limit
        raise ValueError
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's and Python's remarks on a damaged header would quote it
        shape, fortran, dtype = npy.read_array_header_1_0(stream)
    return Header(shape, dtype, fortran)


def _limit_problem(claimed: Header, there: int, remedy: str) -> str | None:
    if claimed.dtype.hasobject:
        return "Python objects are not read; save integers"
    if claimed.bytes != there:
        return f"shape {claimed.shape} of {claimed.dtype} does not fit the bytes of the file: {remedy}"
    if not claimed.shape or claimed.shape[0] < 0 or min(claimed.shape[1:], default=1) < 1:
        return f"shape {claimed.shape} has nothing in it"
    if claimed.shape[0] > MAX_ARRAY_ROWS or math.prod(claimed.shape[1:]) > MAX_SAMPLES:
        return _too_large(claimed)
    return None


def _too_large(claimed: Header) -> str:
    return f"shape {claimed.shape} of {claimed.dtype} is larger than the limits in mpc_imaging/data/limits.py"
