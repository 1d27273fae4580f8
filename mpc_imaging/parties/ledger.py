"""Each party's append-only record of sessions, inputs and reveals: JSON lines, each bound to the one before by a hash.

The ledger names values, parties and shapes; it never holds a value, a share or patient data.
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mpc_imaging import strict_json
from mpc_imaging.errors import SessionError

GENESIS = "0" * 64


class Ledger:
    """Appends to one file; every entry is on disk before the method returns.

    Raises `SessionError` for a file that is no unbroken ledger: a party does not go on with one that was altered.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        entries = read(path) if path.exists() else []
        self._previous = entries[-1]["hash"] if entries else GENESIS
        self._count = len(entries)

    def write(self, event: str, **details: Any) -> None:
        """Append ``event`` with public ``details``, of types that JSON has. Raises OSError if the disk refuses."""
        entry = {
            "number": self._count,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event,
            **details,
            "previous": self._previous,
        }
        entry["hash"] = _digest(entry)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._previous, self._count = entry["hash"], self._count + 1


def read(path: Path) -> list[dict[str, Any]]:
    """All entries of a ledger. Raises `SessionError` where an entry was changed, removed or inserted."""
    entries: list[dict[str, Any]] = []
    previous = GENESIS
    # Bytes that are no text become other text, and an entry that was cut off is none: the chain breaks there.
    *lines, rest = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate([*lines, ""] if rest else lines):
        try:
            entry = strict_json.mapping(strict_json.loads(line))
            stated = entry.pop("hash")
        except (strict_json.JsonError, KeyError):
            raise SessionError(f"{path.name}, line {number + 1}: not a ledger entry; the file was damaged") from None
        if entry.get("previous") != previous or entry.get("number") != number or _digest(entry) != stated:
            raise SessionError(f"{path.name}, line {number + 1}: the hash chain breaks here; the file was altered")
        previous = entry["hash"] = stated
        entries.append(entry)
    return entries


def _digest(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
