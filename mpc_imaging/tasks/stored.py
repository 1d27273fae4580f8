"""Correlated randomness from a compute party's one-time store, on whose next session all compute parties agree."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mpc_imaging.parties.parts import recipient
from mpc_imaging.parties.session import PATIENT_S, Session
from mpc_imaging.randomness.plan import Plan
from mpc_imaging.randomness.provider import PlannedProvider
from mpc_imaging.randomness.sealing import Recipient
from mpc_imaging.randomness.store import Store, read_facts
from mpc_imaging.randomness.store_files import StoreError
from mpc_imaging.settings import RandomnessMode, Settings


@contextlib.contextmanager
def provider(session: Session, plan: Plan) -> Iterator[PlannedProvider]:
    """The provider on one stored session, which is marked used at every compute party before this returns.

    Raises `StoreError` for a store that cannot be used, or that does not fit those of the others.
    """
    with Store.open(folder(session.settings, session.me), _recipient(session), session.compute, plan.digest) as store:
        store.claim(session.swap(store.hello(), PATIENT_S), session.settings.randomness.max_jump)
        with store.confirm(session.swap(store.hello(), PATIENT_S)) as stored:
            session.ledger.write(
                "stored", session=session.mesh.session_id.hex(), store=store.store_id, index=stored.number
            )
            result = PlannedProvider(stored.key, session.rank, plan, stored.key_id, stored.read)
            yield result
            result.finish()
            stored.finish()


def check(session: Session) -> None:
    """Raise `StoreError` if this party needs a store and has none that it can open.

    Now, and not after hours of plaintext training.
    """
    settings, me = session.settings, session.me
    if settings.randomness.mode is not RandomnessMode.stored or session.rank is None:
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
