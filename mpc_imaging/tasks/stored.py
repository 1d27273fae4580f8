"""Correlated randomness from a compute party's one-time store, on whose next session all parties agree."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpc_imaging.parties.parts import recipient
from mpc_imaging.parties.session import PATIENT_S, Session
from mpc_imaging.randomness.plan import Plan
from mpc_imaging.randomness.provider import PlannedProvider
from mpc_imaging.randomness.sealing import Recipient
from mpc_imaging.randomness.store import Store, StoredSession, read_facts
from mpc_imaging.randomness.store_files import StoreError
from mpc_imaging.randomness.witness import Witness, agreed
from mpc_imaging.settings import RandomnessMode, Settings


@contextlib.contextmanager
def begin(session: Session, plan: Plan | None) -> Iterator[StoredSession | None]:
    """Let every party agree that the next stored session begins; before anything is shared.

    plan: at compute parties. They mark the session used, tell all other parties, which remember it, and open it once
    all have. Yields the session, None at parties that do not compute, and None with randomness from a dealer.
    Raises `StoreError` for a store that cannot be used, that does not fit those of the others, or that was put back as
    far as any party remembers.
    """
    if session.settings.randomness.mode is not RandomnessMode.stored:
        yield None
        return
    if session.rank is None:
        _bear_witness(session)
        yield None
        return
    path, limit = folder(session.settings, session.me), session.settings.randomness.max_jump
    with Store.open(path, _recipient(session), session.compute, plan.digest) as store:
        index = store.claim(session.swap(store.hello(), PATIENT_S), limit)
        memory(session).remember(store.store_id, index)
        witnesses = [name for name in session.mesh.peers if name not in session.compute]
        said = {"store": store.store_id, "index": index}
        for name in witnesses:
            session.mesh.send_json(name, said)
        for name in witnesses:
            if session.mesh.receive_json(name, wait_s=PATIENT_S) != said:
                raise StoreError(f"{name} did not say that it remembers stored session {index}; update it")
        with store.confirm(session.swap(store.hello(), PATIENT_S)) as taken:
            _record(session, store.store_id, index)
            for name in witnesses:
                session.mesh.send_json(name, said)
            yield taken


def _bear_witness(session: Session) -> None:
    """At a party that does not compute: remember the session that begins, and wait until all parties do."""
    store, index = agreed(_hear(session))
    memory(session).remember(store, index)
    said = {"store": store, "index": index}
    for name in session.compute:
        session.mesh.send_json(name, said)
    if agreed(_hear(session)) != (store, index):
        raise StoreError("the compute parties began another stored session than they had said; run again")
    _record(session, store, index)


def _hear(session: Session) -> dict[str, Any]:
    return {name: session.mesh.receive_json(name, wait_s=PATIENT_S) for name in session.compute}


def _record(session: Session, store: str, index: int) -> None:
    session.ledger.write("stored", session=session.mesh.session_id.hex(), store=store, index=index)


@contextlib.contextmanager
def provider(session: Session, plan: Plan, taken: StoredSession) -> Iterator[PlannedProvider]:
    """The provider on the session that `begin` took; at the end all of it must be used."""
    result = PlannedProvider(taken.key, session.rank, plan, taken.key_id, taken.read)
    yield result
    result.finish()
    taken.finish()


def memory(session: Session) -> Witness:
    """What this party remembers of stores: in ``randomness.witness``, or beside its certificates."""
    chosen = session.settings.randomness.witness
    return Witness(session.credentials.folder if chosen is None else Path(chosen).expanduser(), session.me)


def check(session: Session) -> None:
    """Raise `StoreError` if this party needs a store and has none that it can open, or cannot remember sessions.

    Now, and not after hours of plaintext training.
    """
    settings, me = session.settings, session.me
    if settings.randomness.mode is not RandomnessMode.stored:
        return
    memory(session)
    if session.rank is None:
        return
    if not folder(settings, me).is_dir():
        raise StoreError(f"there is no folder for {me}'s store; set randomness.store to the path of its STORE/{me}")
    read_facts(folder(settings, me), _recipient(session), session.compute)


def _recipient(session: Session) -> Recipient:
    return recipient(session.credentials, session.me, session.settings.dealer())


def folder(settings: Settings, party: str) -> Path:
    """Where this compute party's part of the store is: beside those of the others, or alone."""
    root = Path(settings.randomness.store).expanduser()
    return root / party if (root / party).is_dir() else root
