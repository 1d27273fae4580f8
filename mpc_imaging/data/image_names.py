"""Pseudonyms of one owner's images: keyed hashes of their files' names, since names and folders of files name patients.

Whatever a party logs, raises or sends names an image by them. The key and the table that leads back to the files are in
the owner's private folder ``results/``; without the key nobody finds the file by trying.
"""

from __future__ import annotations

import csv
import io
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from mpc_imaging.data.deidentification import Pseudonyms
from mpc_imaging.data.rows import Refused, Row

RESULTS = "results"  # in a party's run folder: what only the owner of the images may see
KEY = "pseudonyms.key"
TABLE = "images.csv"
_COLUMNS = ("pseudonym", "row", "file", "refused")


class ImageNames:
    """Names for the images of ``party``, whose run folder is ``folder``.

    ``key_file``: 32 bytes of the owner's own, with which pseudonyms are the same in every run; by default each run
    folder has a key of its own, made when it is first needed.

    Raises:
        ConfigError: the key file cannot be read, or holds something else than 32 bytes.
    """

    def __init__(self, party: str, folder: Path, key_file: str | None) -> None:
        self._party, self._folder = party, private_folder(folder)
        if key_file is None:
            self._pseudonyms = Pseudonyms(_key_of_run(self._folder))
        else:
            self._pseudonyms = Pseudonyms.of_file(Path(key_file).expanduser(), "data.pseudonym_key_file")

    def pseudonym(self, file: str) -> str:
        """20 letters and digits for a file, as the manifest has it."""
        return self._pseudonyms.name("image", file)

    def of(self, row: Row) -> str:
        """The id of a row's image: ``<party>-<split that the data set has it in>-<pseudonym>``."""
        return f"{self._party}-{row.origin}-{self.pseudonym(row.file)}"

    def ids(self, row: Row, count: int) -> list[str]:
        """The ids of a row's images, with the number of each, from 0, if there are several."""
        name = self.of(row)
        return [name] if count == 1 else [f"{name}-{k:03d}" for k in range(count)]

    def refusal(self, refused: Refused) -> str:
        """One line for logs and errors: the row and the pseudonym of its file, and what is wrong with it."""
        return f"row {refused.number} (image {self.pseudonym(refused.file)}): {refused.reason}"

    def write(self, used: Iterable[Row], refused: Iterable[Refused]) -> Path:
        """Add images to results/images.csv, the owner's way from pseudonyms to files; returns its path."""
        table = self._folder / TABLE
        lines: dict[tuple[str, str], dict[str, str]] = {}
        if table.exists():  # of another split that this party read before
            with table.open(encoding="utf-8", newline="") as file:
                lines = {(line["row"], line["file"]): line for line in csv.DictReader(file)}
        for row, reason in [*((row, "") for row in used), *((row, row.reason) for row in refused)]:
            cells = (self.pseudonym(row.file), str(row.number), row.file, reason)
            lines[cells[1:3]] = dict(zip(_COLUMNS, cells, strict=True))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines.values())
        _write_private(table, text.getvalue().encode())
        return table


def _key_of_run(folder: Path) -> bytes:
    """The key in ``folder``, made if there is none yet: the plaintext baseline names images as the parties did."""
    path = folder / KEY
    if not path.exists():
        _write_private(path, secrets.token_bytes(32))
    return path.read_bytes()


def private_folder(folder: Path) -> Path:
    """``folder``/results, made if it is not there, for this user's eyes alone."""
    private = folder / RESULTS
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    private.chmod(0o700)
    return private


def _write_private(path: Path, content: bytes) -> None:
    """Write a file for this user's eyes alone."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
