"""Parties that do not compute remember which stored session began, and refuse stores that were all put back."""

import json
import os
import shutil

import pytest

from mpc_imaging.errors import PeerLostError
from mpc_imaging.parties.parts import sealers
from mpc_imaging.randomness.demands import Mask, TruncationPair
from mpc_imaging.randomness.plan import Plan, Segment
from mpc_imaging.randomness.store import StoreWriter
from mpc_imaging.randomness.store_files import StoreError
from mpc_imaging.settings import RandomnessMode
from mpc_imaging.tasks import stored

PLAN = Plan(2, (Segment(0, (TruncationPair(5, 16), Mask(3))),))
EVERYONE = ("h1", "h2", "vendor", "a", "b")


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def meet(consortium, certificates, tmp_path):
    """Lets h1, h2, vendor, a and b begin a session of the store of a and b, and then share; what each did."""
    with StoreWriter(
        tmp_path / "store", sealers(certificates / "dealer", "dealer", ["a", "b"]), PLAN.digest, 5
    ) as writer:
        for number in range(5):
            with writer.session(number):
                pass
        writer.finish()
    for name in EVERYONE:
        (tmp_path / f"memory_{name}").mkdir()

    def begin(**parts):
        shared = []

        def part(session):
            session.settings.randomness.witness = str(tmp_path / f"memory_{session.me}")
            stored.check(session)
            with stored.begin(session, PLAN if session.rank is not None else None) as taken:
                shared.append(session.me)
                return None if taken is None else taken.number

        parties = consortium("outside")
        parties.settings.randomness.mode = RandomnessMode.stored
        parties.settings.randomness.store = str(tmp_path / "store")
        return parties, parties.run({name: parts.get(name, part) for name in EVERYONE}), shared

    return begin


def _remembered(tmp_path, name):
    (next_one,) = json.loads((tmp_path / f"memory_{name}" / f"stores.{name}.json").read_text())["stores"].values()
    return next_one


def test_everyone_remembers_what_began(meet, tmp_path):
    for number in range(2):
        parties, results, shared = meet()
        assert results == {"h1": None, "h2": None, "vendor": None, "a": number, "b": number}
        assert sorted(shared) == sorted(EVERYONE)
        assert {_remembered(tmp_path, name) for name in EVERYONE} == {number + 1}
        (seen,), (used,) = parties.entries("h2", "stored"), parties.entries("a", "stored")
        assert (seen["store"], seen["index"]) == (used["store"], used["index"]) == (used["store"], number)


@pytest.mark.parametrize("witnesses", [("h1", "h2", "vendor"), ("vendor",), ("b",)], ids="+".join)
def test_stores_that_were_all_put_back_are_noticed_by_whoever_remembers(meet, tmp_path, witnesses):
    snapshot = shutil.copytree(tmp_path / "store", tmp_path / "snapshot")
    assert meet()[1]["a"] == 0
    shutil.rmtree(tmp_path / "store")
    shutil.copytree(snapshot, tmp_path / "store")
    for name in set(EVERYONE) - set(witnesses):
        (tmp_path / f"memory_{name}" / f"stores.{name}.json").unlink()
    _, results, shared = meet()
    assert shared == [], "somebody went on, and would have shared"
    assert all(isinstance(result, StoreError | PeerLostError) for result in results.values())
    assert any(
        f"stores were put back: they take session 0, but {name} has seen it used" in str(result)
        for name in witnesses
        for result in results.values()
    )
    if witnesses != ("b",):
        # One session further each time: what was seen is never taken again, whoever forgets meanwhile.
        assert {_remembered(tmp_path, name) for name in witnesses} == {1}
        _, results, shared = meet()
        assert (results["a"], results["b"]) == (1, 1) and sorted(shared) == sorted(EVERYONE)


def test_what_compute_parties_say_must_be_the_same(meet, tmp_path):
    """Else one of them could show the witnesses another session than it uses."""
    store = json.loads((tmp_path / "store/a/store.json").read_text())["store"]

    def say(index):
        def part(session):
            for name in session.mesh.peers:
                if name not in session.compute:
                    session.mesh.send_json(name, {"store": store, "index": index})
            return session.mesh.receive_json("h1")

        return part

    _, results, shared = meet(a=say(0), b=say(1))
    text = "b takes session 1 of its store, a session 0; run again"
    assert shared == [] and any(text in str(result) for result in results.values()), results
    assert not list(tmp_path.glob("memory_h*/*.json"))


def test_a_memory_that_cannot_be_kept_or_read(meet, tmp_path):
    shutil.rmtree(tmp_path / "memory_h2")
    _, results, shared = meet()
    assert shared == [] and any(
        "h2 cannot remember which stored sessions it has seen: No such file or directory; set randomness.witness"
        in str(result)
        for result in results.values()
    )
    (tmp_path / "memory_h2").mkdir()
    (tmp_path / "memory_h2" / "stores.h2.json").write_text("{}")
    marks = (tmp_path / "store/a/used.json").read_bytes()
    _, results, shared = meet()
    assert shared == [] and any("what h2 remembers of stores is damaged" in str(result) for result in results.values())
    assert (tmp_path / "store/a/used.json").read_bytes() == marks, "known before a session is used up"
