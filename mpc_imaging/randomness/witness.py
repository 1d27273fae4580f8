"""What a party remembers of the stores that it saw in use, across runs and apart from any store.

A store that was put back cannot know it. Each party that takes part, whether it computes or not, keeps for each store
the first session that it has not seen begin; it refuses a session below. So all compute parties' stores together can be
put back unnoticed only if no party remembers more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from mpc_imaging.randomness.claims import is_index
from mpc_imaging.randomness.store_files import REDO, StoreError, read_sealed, write_sealed

LIMIT = 10_000  # stores, so that the file stays small


class Witness:
    """The memory of one party, in ``folder``: a file of its own, whoever else keeps one there.

    Raises `StoreError` if it cannot be written there, or is damaged.
    """

    def __init__(self, folder: Path, party: str) -> None:
        self._path, self._party = folder / f"stores.{party}.json", party
        # Said now, while nothing is marked used.
        with self._errors():
            os.close(self._lock())
        self._read()

    def remember(self, store: str, index: int) -> None:
        """Remember, durably, that session ``index`` of a store (hex) begins.

        Raises `StoreError` if it was seen to begin before, or a later one was: the stores were put back.
        """
        with self._errors():
            lock = self._lock()
        try:
            with self._errors():
                fcntl.flock(lock, fcntl.LOCK_EX)
            stores = self._read()
            if index < stores.get(store, 0):
                raise StoreError(
                    f"the compute parties' stores were put back: they take session {index}, but {self._party} has seen "
                    f"it used (as it remembers, {stores[store]} comes next); {REDO} and never copy a store in use"
                )
            if store not in stores and len(stores) >= LIMIT:
                raise StoreError(
                    f"{self._party} remembers {LIMIT} stores, and no more; if none of them is in use any more, move "
                    f"{self._path.name} away"
                )
            with self._errors():
                write_sealed(self._path, {"stores": {**stores, store: index + 1}})
        finally:
            os.close(lock)

    def _lock(self) -> int:
        return os.open(self._path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)

    def _read(self) -> dict[str, int]:
        if not self._path.exists():
            return {}
        try:
            stores = read_sealed(self._path, self._party, "it was removed just now").get("stores")
        except StoreError:
            stores = None
        if not isinstance(stores, dict) or not all(map(is_index, stores.values())):
            raise StoreError(
                f"what {self._party} remembers of stores is damaged, or cannot be read; {REDO}, and then remove "
                f"{self._path.name}"
            )
        return stores

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        what = f"{self._party} cannot remember which stored sessions it has seen"
        try:
            yield
        except OSError as error:
            where = "set randomness.witness to a folder that stays from run to run, and that it may write"
            raise StoreError(f"{what}: {error.strerror or type(error).__name__}; {where}") from None


def announced(name: str, message: object) -> tuple[str, int]:
    """The store and session that a compute party says it begins. Raises `StoreError` for anything else."""
    store, index = (message.get("store"), message.get("index")) if isinstance(message, Mapping) else (None, None)
    known = isinstance(store, str) and len(store) == 32 and not set(store) - set("0123456789abcdef")
    if not known or not is_index(index):
        raise StoreError(f"{name} did not say which stored session begins; check its settings, or update it")
    return store, index


def agreed(messages: Mapping[str, object]) -> tuple[str, int]:
    """The store and session that all compute parties (by name) say they begin.

    Raises `StoreError` if they differ: one could show others a store that it does not use.
    """
    said = {name: announced(name, message) for name, message in messages.items()}
    (first, (store, index)), *others = said.items()
    for name, (other, number) in others:
        if other != store:
            raise StoreError(f"{first} and {name} use different stores; use the folders of one run of preprocess")
        if number != index:
            raise StoreError(f"{name} takes session {number} of its store, {first} session {index}; run again")
    return store, index
