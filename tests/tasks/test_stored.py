"""Compute parties that take a session from their stores, as threads over real meshes. (Whole runs: tests/system.)"""

import os
import shutil

import numpy as np
import pytest

from mpc_imaging.errors import PeerLostError, RandomnessError
from mpc_imaging.parties.parts import sealers
from mpc_imaging.preprocess import write_store
from mpc_imaging.randomness.demands import Mask, TruncationPair
from mpc_imaging.randomness.plan import Plan, Segment
from mpc_imaging.randomness.store_files import StoreError
from mpc_imaging.settings import RandomnessMode
from mpc_imaging.tasks import stored

DEMANDS = (TruncationPair(5, 16), Mask(3), TruncationPair(4, 16))
PLAN = Plan(2, (Segment(0, DEMANDS),))


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def meet(consortium, certificates, tmp_path):
    """Lets a and b run something with their stores; what each returned or raised."""
    write_store(tmp_path / "store", sealers(certificates / "dealer", "dealer", ["a", "b"]), PLAN, 2)

    def begin(part, prepare=lambda parties: None):
        parties = consortium("two")
        parties.settings.randomness.mode = RandomnessMode.stored
        parties.settings.randomness.store = str(tmp_path / "store")
        parties.settings.randomness.witness = str(tmp_path)
        prepare(parties)
        return parties, parties.run(part)

    return begin


def _taking(demands):
    def part(session):
        with stored.begin(session, PLAN) as taken, stored.provider(session, PLAN, taken) as provider:
            return [[array.copy() for array in provider.get(demand).shares] for demand in demands]

    return part


def test_sessions_are_taken_in_turn_and_fit_together(meet, tmp_path):
    masks = []
    for number in range(2):
        parties, results = meet(_taking(DEMANDS))
        first, second = results["a"], results["b"]
        r, shifted, top = (a + b for a, b in zip(first[0], second[0], strict=True))
        assert (shifted == r >> np.uint64(16)).all() and (top == r >> np.uint64(63)).all()
        masks.append((first[1][0] + second[1][0]).tobytes())
        for name in ("a", "b"):
            (entry,) = parties.entries(name, "stored")
            assert entry["index"] == number and len(entry["store"]) == 32
        assert not (parties.folder / "dealer").exists()
    assert masks[0] != masks[1]
    _, results = meet(_taking(DEMANDS))
    assert all("all 2 sessions of the store are used" in str(error) for error in results.values())
    assert any(isinstance(error, StoreError) for error in results.values())


@pytest.mark.parametrize(
    ("demands", "text"),
    [
        (DEMANDS[:2], "the task ended after 2 demands, before its plan"),
        ((*DEMANDS, Mask(1)), "the plan has nothing more here"),
    ],
    ids=["less", "more"],
)
def test_what_is_not_as_planned_ends_the_session(meet, demands, text):
    _, results = meet(_taking(demands))
    assert all(isinstance(error, RandomnessError | PeerLostError) and text in str(error) for error in results.values())


def test_a_session_that_is_not_needed_whole_ends_well(meet):
    def part(session):
        with stored.begin(session, PLAN) as taken, stored.provider(session, PLAN, taken) as provider:
            provider.get(DEMANDS[0])
            return provider.discard()

    _, results = meet(part)
    assert results == {"a": 2, "b": 2}
    parties, _ = meet(_taking(DEMANDS))
    assert parties.entries("a", "stored")[0]["index"] == 1


def test_a_session_whose_run_failed_is_used_up(meet):
    def fail(session):
        with stored.begin(session, PLAN):
            raise RandomnessError("something else")

    meet({"a": fail, "b": _taking(DEMANDS)})
    parties, _ = meet(_taking(DEMANDS))
    assert parties.entries("a", "stored")[0]["index"] == 1


def test_stores_of_different_runs_of_preprocess(meet, certificates, tmp_path):
    write_store(tmp_path / "other", sealers(certificates / "dealer", "dealer", ["a", "b"]), PLAN, 2)
    shutil.rmtree(tmp_path / "store" / "b")
    (tmp_path / "other" / "b").rename(tmp_path / "store" / "b")
    _, results = meet(_taking(DEMANDS))
    assert all("use different stores; use the folders of one run of preprocess" in str(e) for e in results.values())


def test_the_part_may_lie_anywhere(meet, tmp_path):
    """On a machine of its own a party has its own part only."""
    (tmp_path / "store" / "a").rename(tmp_path / "moved")

    def part(session):
        session.settings.randomness.store = str(tmp_path / ("moved" if session.me == "a" else "store"))
        return _taking(DEMANDS)(session)

    _, results = meet(part)
    assert all(isinstance(result, list) for result in results.values())


def test_a_missing_folder_is_found_at_once_and_not_named_to_peers(meet):
    def check(session):
        stored.check(session)
        return session.mesh.receive_json("a" if session.me == "b" else "b")

    def nowhere(parties):
        parties.settings.randomness.store = "/home/doe/store"

    _, results = meet(check, nowhere)
    assert any("set randomness.store to the path of its STORE/" in str(error) for error in results.values())
    assert not any("doe" in str(error) for error in results.values())
