"""Small stores, and a compute party whose peers go along with it."""

import functools
import os
import tempfile
from pathlib import Path

import pytest

from mpc_imaging.parties.parts import recipient, sealers
from mpc_imaging.randomness.store import Store, StoreWriter
from mpc_imaging.transport.certificates import Credentials, make_local

PARTIES = ("a", "b", "c")
PLAN, OTHER_PLAN = "5e" * 32, "ab" * 32
MESSAGES = [b"first", b"", bytes(range(256)) * 20]


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    """Tests that ask about syncing look at the calls."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


_FOLDER = tempfile.TemporaryDirectory(prefix="mpc_imaging_")


@functools.cache
def certificates():
    """Folder with the certificates of all parties, of the dealer, and of one that is neither."""
    make_local(Path(_FOLDER.name), [*PARTIES, "dealer", "other"])
    return Path(_FOLDER.name)


def part_sealers(parties=PARTIES, dealer="dealer"):
    """What seals the parts of some parties, as `dealer`."""
    return sealers(certificates() / dealer, dealer, parties)


@functools.cache
def recipient_of(party, dealer="dealer"):
    """What opens the part of a party."""
    return recipient(Credentials(certificates() / party), party, dealer)


def write(root, count=3, parties=PARTIES, messages=MESSAGES, plan=PLAN):
    """A store whose messages begin with the rank and the session; the keys by (rank, session)."""
    keys = {}
    with StoreWriter(root, part_sealers(parties), plan, count) as writer:
        for number in range(count):
            with writer.session(number) as session:
                for rank in range(len(parties)):
                    keys[rank, number] = session.keys[rank], session.key_id
                    for message in messages:
                        session.write(rank, [bytes([rank, number]), message])
        writer.finish()
    return keys


def open_store(root, party="a", parties=PARTIES, plan=PLAN):
    return Store.open(root / party, recipient_of(party), parties, plan)


def hellos(store, index):
    """What peers say that are all at `index` and have seen nothing."""
    mine, names = store.hello(), [store.hello()["party"], *store.hello()["witness"]]
    return {
        peer: {**mine, "party": peer, "next": index, "witness": dict.fromkeys(set(names) - {peer}, 0)}
        for peer in mine["witness"]
    }


def take(store, index=None):
    """A session of a store whose peers go along."""
    index = store.claim(hellos(store, store.next_index if index is None else index))
    return store.confirm(hellos(store, index + 1))
