"""The one-time store: correlated randomness that the dealer wrote ahead, in numbered sessions that are used once, ever.

`StoreWriter` (the dealer's preprocess command) writes ``STORE/<party>/`` for each compute party, sealed to it and
signed (`sealing`), and the operator moves each folder to its party. `Store` is that party's side. A session begins in
two steps, each with a hello of every peer:

    index = store.claim(hellos)           # all take the highest next index; the mark is durable on return
    session = store.confirm(hellos)       # all peers have marked it too: only now there is a key

Why no session is ever used twice. Write ``next(P)`` for the first index that party P's folder does not mark as used.

1. ``claim`` returns m, and P's hello says ``next = m + 1``, only after the new mark was written beside the old one,
   synced, renamed over it, and the folder synced; ``claim`` never takes less than ``next(P)``, and an exclusive lock
   keeps a second process out. So a crash of P leaves: before the rename is durable, the old mark, and nothing was sent;
   after it, the new mark, and m is skipped for good, used or not. Session files follow the mark: those below
   ``next(P)`` are deleted, and one that is missing at or above it shows that the mark was put back alone.
2. ``confirm`` hands out m only after every compute party's hello said ``next = m + 1``. So bytes derived from m exist
   only if **every** party's mark lay above m, durably. For m to be taken again, the highest ``next`` must be at most m:
   every folder must have been put back, or every disk must have lost what it had reported as synced.
3. A folder that is put back while another is not cannot cause a second use, by 2, and is noticed: ``confirm`` makes
   durable, as a witness, that all peers have reached m + 1, and ``claim`` keeps what each peer announced. Later hellos
   compare it. What peers announce is durable on their side, so a crash never looks like a store that was put back.

A peer that announces a high index costs no more than ``max_jump`` sessions: ``claim`` refuses more, and marks nothing.

What a store cannot notice: all compute parties put back to one snapshot, or two copies of all folders in use. Parties
that remember apart from it can (`witness`), unless they too were put back. Never take snapshots or backups of stores;
where that cannot be ruled out, stream the randomness instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mpc_imaging.randomness.claims import MAX_JUMP, agree, check_marked, is_index
from mpc_imaging.randomness.sealing import PartOpener, PartSealer, Recipient
from mpc_imaging.randomness.store_files import (
    KEY_BYTES,
    REDO,
    Header,
    SessionFile,
    SessionReader,
    StoreError,
    os_errors,
    read_sealed,
    session_path,
    sync_folder,
    write_sealed,
)

KEY_ID_BYTES = 16

_FACTS, _MARKS = "store.json", "used.json"  # the first never changes, and carries the lock
_PART = "part of a store"  # what the dealer signs of a part


class SessionWriter:
    """One session in the making, for all parties: ``keys`` (of each rank) and ``key_id`` are fresh."""

    def __init__(self, files: Sequence[SessionFile], keys: Sequence[bytes], key_id: bytes) -> None:
        self._files, self.keys, self.key_id = files, keys, key_id

    def write(self, rank: int, buffers: Iterable[Any]) -> None:
        """Append a message of any contiguous buffers for compute party `rank`."""
        with os_errors("writing the store"):
            self._files[rank].write(buffers)


class StoreWriter:
    """Writes a store of `count` sessions of one plan into `root`, a folder for each party of `parts`, by rank.

    Memory: 1 MiB for each party and session being written.
    Use as a context manager: an error inside removes what was written. Different sessions may be written by different
    threads or forked processes. A store is usable only after `finish`. Raises `StoreError` where a folder exists or
    cannot be written. plan_digest: SHA-256, hex.
    """

    def __init__(self, root: Path, parts: Sequence[PartSealer], plan_digest: str, count: int) -> None:
        parties = [part.party for part in parts]
        if not parties or len(set(parties)) != len(parties) or not (is_index(count) and count):
            raise ValueError("a store is for one or more distinct parties and at least one session")
        self._plan = _plan_bytes(plan_digest)
        self._store_id = secrets.token_bytes(16)
        self._parts, self._parties, self._count = list(parts), parties, count
        self._folders = [Path(root) / name for name in parties]
        with os_errors("making the store's folders"):
            existing = [name for name, folder in zip(parties, self._folders, strict=True) if folder.exists()]
            if existing:
                raise StoreError(f"the store's folder already has {', '.join(existing)}; name another or remove it")
            Path(root).mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in self._folders:
                folder.mkdir(mode=0o700)
                (folder / "sessions").mkdir(mode=0o700)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for folder in self._folders:
                shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def session(self, number: int) -> Iterator[SessionWriter]:
        """Write session `number` (0 to count - 1), once. It is whole at the end of the block, or absent on an error."""
        if not (is_index(number) and number < self._count):
            raise ValueError(f"session {number} of {self._count}")
        key_id = secrets.token_bytes(KEY_ID_BYTES)
        keys = [secrets.token_bytes(KEY_BYTES) for _ in self._parties]
        files: list[SessionFile] = []
        try:
            with os_errors(f"writing session {number} of the store"):
                for rank, (folder, part, key) in enumerate(zip(self._folders, self._parts, keys, strict=True)):
                    header = Header(self._store_id, self._plan, rank, number, key_id)
                    files.append(SessionFile(folder, header, part, key))
            yield SessionWriter(files, keys, key_id)
            with os_errors(f"writing session {number} of the store"):
                for file in files:
                    file.commit()
        except BaseException:
            for file in files:
                file.discard()
            raise

    def finish(self) -> None:
        """Make the store usable. Raises `StoreError` if a session is missing or the folders cannot be written."""
        for name, folder in zip(self._parties, self._folders, strict=True):
            missing = [number for number in range(self._count) if not session_path(folder, number).exists()]
            if missing:
                raise StoreError(f"session {missing[0]} of {name} was not written, and {len(missing) - 1} more")
        with os_errors("writing the store"):
            for part, folder in zip(self._parts, self._folders, strict=True):
                sync_folder(folder / "sessions")
                _write_marks(folder, self._store_id.hex(), 0, dict.fromkeys(_others(self._parties, part.party), 0))
                write_sealed(folder / _FACTS, self._facts(part))
                sync_folder(folder.parent)

    def _facts(self, part: PartSealer) -> dict[str, Any]:
        facts = {
            "store": self._store_id.hex(),
            "plan": self._plan.hex(),
            "parties": self._parties,
            "party": part.party,
            "count": self._count,
            "dealer": part.dealer,
            "certificate": part.certificate,
            "sealed_to": part.sealed_to,
        }
        return {**facts, "signature": part.sign(_PART, _canonical(facts)).hex()}


class StoredSession:
    """A session that this party may use, once: ``number``, ``key`` (this party's stream) and the public ``key_id``."""

    def __init__(self, reader: SessionReader) -> None:
        self._reader = reader
        self.number, self.key, self.key_id = reader.header.number, reader.key, reader.header.key_id

    def read(self, size: int) -> bytearray:
        """The next `size` bytes that the dealer wrote. Raises `StoreError` for damage, before a byte of it is seen."""
        return self._reader.read(size)

    def finish(self) -> None:
        """Raise `StoreError` if the plan has left something unread; close."""
        left = self._reader.left
        self.close()
        if left:
            raise StoreError(
                f"{left} bytes of stored session {self.number} are left over: it is for another plan; {REDO}"
            )

    def close(self) -> None:
        """Close the file; its name is already gone."""
        self._reader.close()

    def __enter__(self) -> StoredSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Store:
    """A compute party's folder of the store, locked for this process until `close`.

    Attributes: ``store_id`` (hex), ``count`` of sessions, ``next_index`` (the first that is not marked used).
    """

    def __init__(self, folder: Path, recipient: Recipient, parties: Sequence[str], plan: str, lock: int) -> None:
        self._folder, self._parties, self._plan, self._lock = folder, list(parties), plan, lock
        self._party = recipient.party
        facts, self._opener = read_facts(folder, recipient, parties)
        if facts["plan"] != plan:
            raise StoreError(f"{self._party}'s store is for another plan: settings have changed since; {REDO}")
        self.store_id, self.count = facts["store"], facts["count"]
        self.next_index, self._witness = self._read_marks()
        self._claimed: int | None = None
        self._check_files()

    @classmethod
    def open(cls, folder: Path, recipient: Recipient, parties: Sequence[str], plan_digest: str) -> Store:
        """Open and lock the folder of a party.

        parties: all compute parties by rank. plan_digest: SHA-256 of the plan to run, hex.
        Raises `StoreError` if it is not there, locked, unfinished, damaged, put back, for another party, key or plan,
        or not by the dealer.
        """
        folder, party = Path(folder), recipient.party
        plan = _plan_bytes(plan_digest).hex()
        with os_errors(f"opening {party}'s store"):
            try:
                lock = os.open(folder / _FACTS, os.O_RDWR)
            except FileNotFoundError:
                raise StoreError(_no_store(party)) from None
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(f"{party}'s store is in use by another process; wait until that has ended") from None
            except OSError as error:
                raise StoreError(f"{party}'s store cannot be locked ({error.strerror}); use a local disk") from None
            return cls(folder, recipient, parties, plan, lock)
        except BaseException:
            os.close(lock)
            raise

    def _read_marks(self) -> tuple[int, dict[str, int]]:
        marks = read_sealed(
            self._folder / _MARKS, self._party, f"{self._party}'s store has lost its marks ({_MARKS}); {REDO}"
        )
        index, witness = marks.get("next"), marks.get("witness")
        good = isinstance(witness, dict) and list(witness) == _others(self._parties, self._party)
        if not good or not all(is_index(value, self.count) for value in (index, *witness.values())):
            raise StoreError(f"{_MARKS} in {self._party}'s store is damaged; {REDO}")
        if marks.get("store") != self.store_id:
            raise StoreError(f"{_MARKS} in {self._party}'s store belongs to another store; {REDO}")
        if index < max(witness.values(), default=0):
            raise StoreError(f"{self._party}'s store was put back: its peers have used sessions after {index}; {REDO}")
        return index, witness

    def _check_files(self) -> None:
        """Delete the files of used sessions; all others must be there."""
        with os_errors(f"reading sessions of {self._party}'s store"):
            names = set(os.listdir(session_path(self._folder, 0).parent))
            for number in range(self.next_index):
                if session_path(self._folder, number).name in names:
                    session_path(self._folder, number).unlink()
        for number in range(self.next_index, self.count):
            if session_path(self._folder, number).name not in names:
                raise StoreError(
                    f"session {number} is missing in {self._party}'s store: it was not copied whole, or "
                    f"its marks were put back; {REDO}"
                )

    def hello(self) -> dict[str, Any]:
        """What the peers need to know (`randomness.claims`): only what is durable here."""
        return {
            "party": self._party,
            "store": self.store_id,
            "plan": self._plan,
            "count": self.count,
            "next": self.next_index,
            "witness": dict(self._witness),
        }

    def claim(self, theirs: Mapping[str, Any], max_jump: int = MAX_JUMP) -> int:
        """Agree on the next session with the hellos of all peers, and mark it and all before it used, durably.

        Then send `hello` again. max_jump: how many sessions may be left out to meet the peers.
        Raises `StoreError` if a peer differs or lies too far ahead, all sessions are used, or the mark cannot be
        written; before that, nothing is marked.
        """
        if self._lock < 0:
            raise ValueError("this store was closed: another process may be using it")
        index = agree(self.hello(), theirs, max_jump)
        if self._read_marks() != (self.next_index, self._witness):
            raise StoreError(f"{_MARKS} in {self._party}'s store was changed by another process; {REDO}")
        self._save(index + 1, {peer: theirs[peer]["next"] for peer in self._witness})
        self._claimed = index
        return index

    def confirm(self, theirs: Mapping[str, Any]) -> StoredSession:
        """The claimed session, once the peers' second hellos show that all have marked it.

        Its file loses its name here. Raises `StoreError` if a peer has marked another, or the file is not whole; run
        again then: the next session is taken.
        """
        if self._claimed is None:
            raise ValueError("claim a session first")
        index, self._claimed = self._claimed, None
        check_marked(self.hello(), theirs)
        self._save(self.next_index, {peer: theirs[peer]["next"] for peer in self._witness})
        return StoredSession(self._open_session(index))

    def _save(self, index: int, witness: dict[str, int]) -> None:
        with os_errors(f"marking a session of {self._party}'s store as used"):
            _write_marks(self._folder, self.store_id, index, witness)
        self.next_index, self._witness = index, witness

    def _open_session(self, index: int) -> SessionReader:
        name = f"sessions/{index:06d}.bin of {self._party}'s store"
        with os_errors(f"opening {name}"):
            file = session_path(self._folder, index).open("rb")
        try:
            reader = SessionReader(file, name, self._opener)
            header = reader.header
            expected = (self.store_id, self._plan, self._parties.index(self._party), index)
            if (header.store_id.hex(), header.plan.hex(), header.rank, header.number) != expected:
                raise StoreError(f"{name} is the file of another store, party or session; {REDO}")
            with os_errors(f"removing {name}"):
                session_path(self._folder, index).unlink()
        except BaseException:
            file.close()
            raise
        return reader

    def close(self) -> None:
        """Let other processes use the store."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_facts(folder: Path, recipient: Recipient, parties: Sequence[str]) -> tuple[dict[str, Any], PartOpener]:
    """What the dealer says of a part, and what opens its sessions.

    parties: all compute parties by rank. Raises `StoreError` if it is not there, damaged, for another party or key, or
    not by the dealer.
    """
    party = recipient.party
    facts = read_sealed(folder / _FACTS, party, _no_store(party))
    # All of it is signed, but these two come first: they say what to do instead.
    if facts.get("party") != party:
        raise StoreError(f"this is not {party}'s folder of the store; give it STORE/{party}")
    if facts.get("sealed_to") != recipient.digest:
        raise StoreError(
            f"{party}'s store is sealed to another key than {party}'s: it was written for another certificate; set "
            f"transport.certificates to that one's folder, or give {recipient.dealer} the new party.crt, and {REDO}"
        )
    damaged = StoreError(f"{_FACTS} in {party}'s store is damaged, or not what {recipient.dealer} wrote; {REDO}")
    try:
        signature, certificate = bytes.fromhex(facts.pop("signature")), facts["certificate"].encode()
    except (KeyError, TypeError, ValueError, AttributeError):
        raise damaged from None
    opener = recipient.opener(certificate)
    if facts.get("dealer") != recipient.dealer or not opener.signed(_PART, _canonical(facts), signature):
        raise damaged
    if not all(isinstance(facts.get(key), str) for key in ("store", "plan")) or not is_index(facts.get("count")):
        raise damaged
    if facts.get("parties") != list(parties):
        raise StoreError(f"{party}'s store is for other compute parties, or another order of them; {REDO}")
    return facts, opener


def _no_store(party: str) -> str:
    where = f"move STORE/{party} there that preprocess has written"
    return f"there is no finished store for {party}: {_FACTS} is missing; {where}"


def _canonical(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(facts), sort_keys=True, separators=(",", ":")).encode()


def _others(parties: Sequence[str], party: str) -> list[str]:
    return [name for name in parties if name != party]


def _write_marks(folder: Path, store_id: str, index: int, witness: Mapping[str, int]) -> None:
    write_sealed(folder / _MARKS, {"store": store_id, "next": index, "witness": dict(witness)})


def _plan_bytes(digest: str) -> bytes:
    raw = bytes.fromhex(digest)
    if len(raw) != 32:
        raise ValueError("a plan's digest is SHA-256 in hex")
    return raw
