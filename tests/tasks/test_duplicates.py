"""Owners find their common images before anything is shared, if the policy says so, and nobody else learns of it."""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import time

import pytest
import torch

from mpc_imaging.data import Split
from mpc_imaging.errors import DataError, DuplicateError, PeerLostError, PolicyError, SessionError
from mpc_imaging.protocols.intersection import IntersectionError, hash_to_group, intersect
from mpc_imaging.settings import Quality
from mpc_imaging.tasks import duplicates, inputs
from mpc_imaging.transport.frames import Kind
from mpc_imaging.transport.mesh import Mesh

# What each owner has in train and test, by letters.
HELD = {"a": ("xxyu", "z"), "b": ("zv", "x"), "c": ("y", "y"), "h1": ("xy", "z"), "h2": ("z", "xx")}
SPLITS = ("train", "test")


def digest(letter):
    return hashlib.sha256(letter.encode()).digest()


def split(owner, name, letters):
    ids = [f"{owner}-{name}-{row:05d}" for row in range(len(letters))]
    images = torch.zeros(len(letters), 1, 2, 2)
    return Split(images, torch.zeros(len(letters)), ids, contents=list(map(digest, letters)))


def own(owner):
    return {name: split(owner, name, letters) for name, letters in zip(SPLITS, HELD[owner], strict=True)}


@pytest.fixture
def comparing(consortium):
    """A consortium whose policy opens what owners have in common."""

    def make(topology):
        parties = consortium(topology)
        parties.settings.policy.reveal["duplicates"] = ["image_owner"]
        return parties

    return make


def counts(session, **changes):
    """What all owners have announced to all, or with changes what some have."""
    held = {owner: own(owner) for owner in session.settings.data_owners()} | changes
    return {owner: {name: len(rows) for name, rows in splits.items()} for owner, splits in held.items()}


def at_owners(session):
    if session.me in session.settings.data_owners():
        return duplicates.check(session, own(session.me), counts(session))
    return None


def found(*rows):
    return [{"kind": kind, "split": where, "count": count} for kind, where, count in rows]


def test_two_owners(comparing, caplog):
    caplog.set_level(logging.INFO, "mpc_imaging.party")
    parties = comparing("two")
    results = parties.all(at_owners)
    elsewhere = "also at {}, in another split there"
    assert results["a"] == found((elsewhere.format("b"), "train/test", 2), (elsewhere.format("b"), "test/train", 1))
    assert results["b"] == found((elsewhere.format("a"), "train/test", 1), (elsewhere.format("a"), "test/train", 1))
    assert "a-train-00001 of train is also at b, there in test" in caplog.text, "a repeat as well"
    assert "b-train-00000 of train is also at a, there in test" in caplog.text
    assert "3 of 5 images are also at b, 3 in another split" in caplog.text
    assert "a-train-00002" not in caplog.text and digest("x").hex() not in caplog.text


def test_three_owners_in_pairs(comparing):
    parties = comparing("three")
    results = parties.all(at_owners)
    # Of a's images c has y alone, in both splits.
    assert results["a"][2:] == found(("also at c", "train", 1), ("also at c, in another split there", "train/test", 1))
    assert results["c"][0:2] == found(("also at a", "train", 1), ("also at a, in another split there", "test/train", 1))
    assert results["b"][2:] == results["c"][2:] == [] or results["b"][-1]["count"] == 0
    assert results["c"][-1] == {"kind": "also at b", "split": "all", "count": 0}, "that nothing was found is said too"


def test_owners_that_do_not_compute_and_nobody_else_takes_part(comparing):
    parties = comparing("outside")
    results = parties.all(at_owners)
    assert [row["count"] for row in results["h1"]] == [1, 1] and [row["count"] for row in results["h2"]] == [1, 2]
    assert set(parties.sent("BLINDED")) == {("h1", "h2"), ("h2", "h1")}
    for name in ("a", "b", "vendor", "dealer"):
        assert not parties.entries(name, "reveal") and not parties.entries(name, "duplicates")


def test_the_ledger_says_who_compared_how_much(comparing):
    parties = comparing("two")
    results = parties.all(at_owners)
    (opened,), (counted,) = parties.entries("a", "reveal"), parties.entries("a", "duplicates")
    assert (opened["value"], opened["shape"], opened["to"]) == ("duplicates", [8], {"a": [0, 5], "b": [5, 8]})
    assert counted["peer"] == "b" and counted["findings"] == results["a"]
    assert opened["number"] < counted["number"]


def test_nothing_is_sent_unless_the_policy_lists_it(consortium):
    parties = consortium("two")
    assert parties.all(at_owners) == {"a": [], "b": [], "dealer": None}
    assert not parties.frames and not parties.entries("a", "reveal")


def test_what_is_sent_differs_in_each_session_and_shows_sizes_alone(comparing):
    seen = []
    for _ in range(2):
        parties = comparing("two")
        parties.all(at_owners)
        seen.append([(sender, payload) for sender, _, kind, payload in parties.frames if kind == "BLINDED"])
    first, second = ({sent[k : k + 32] for _, sent in run for k in range(0, len(sent), 32)} for run in seen)
    assert len(first) == len(second) > 0 and first.isdisjoint(second)
    sizes = sorted((sender, len(sent)) for sender, sent in seen[0])
    assert sizes == [("a", 32 * 5), ("a", 32 * 3 * 2), ("b", 32 * 3), ("b", 32 * 5 * 2)]


def test_off_takes_part_for_the_other_and_tells_nothing(comparing, caplog):
    caplog.set_level(logging.INFO, "mpc_imaging.party")
    parties = comparing("two")
    changed = copy.deepcopy(parties.settings)
    changed.data.quality = Quality.off
    results = parties.all(at_owners, settings={"b": changed})
    assert results["b"] == [] and not parties.entries("b", "duplicates")
    assert len(results["a"]) == 2 and parties.entries("b", "reveal")
    assert "b-train-00000 of train" not in caplog.text


def test_refuse_ends_the_run_for_all(comparing):
    """Nobody goes on: the others wait for every owner before they share, as here."""
    parties = comparing("two")
    changed = copy.deepcopy(parties.settings)
    changed.data.quality = Quality.refuse

    def part(session):
        result = at_owners(session)
        for peer in session.mesh.peers:
            session.mesh.send_json(peer, "ready")
        for peer in session.mesh.peers:
            session.mesh.receive_json(peer)
        return result

    results = parties.run(part, settings={"a": changed})
    assert isinstance(results["a"], DuplicateError)
    assert "a, train/test: 2 also at b, in another split there" in str(results["a"])
    assert "write data.quality=report" in str(results["a"])
    for name in ("b", "dealer"):
        assert isinstance(results[name], PeerLostError) and "cross-owner duplicates" in str(results[name])
        assert "also at" not in str(results[name]), "how many, and where, stays with the owner"


def test_refuse_is_content_where_nothing_is_common(comparing):
    parties = comparing("two")
    parties.settings.data.quality = Quality.refuse

    def part(session):
        letters = {"a": "x", "b": "y"}.get(session.me)
        announced = {"a": {"test": 1}, "b": {"test": 1}}
        return letters and duplicates.check(session, {"test": split(session.me, "test", letters)}, announced)

    assert parties.all(part)["a"] == found(("also at b", "all", 0))


def test_copies_of_an_image_are_not_compared(comparing):
    parties = comparing("two")
    parties.settings.data.augment.copies = 2

    def part(session):
        if session.me == "dealer":
            return None
        images = split(session.me, "train", "xy")
        ids = images.ids + [f"{name}-a1" for name in images.ids]
        copied = Split(torch.zeros(4, 1, 2, 2), images.labels, ids, contents=images.contents)
        return duplicates.check(session, {"train": copied}, {"a": {"train": 4}, "b": {"train": 4}})

    assert parties.all(part)["a"] == found(("also at b", "train", 2))


def test_images_that_cannot_be_compared_are_not_passed_over(comparing):
    bare = Split(torch.zeros(1, 1, 2, 2), torch.zeros(1), ["a-test-00000"])
    results = comparing("two").run(lambda session: duplicates.check(session, {"test": bare}, {}))
    assert isinstance(results["a"], DataError) and "images of test cannot be compared" in str(results["a"])


@pytest.mark.parametrize(
    "said",
    [
        None, [], {"train": 1}, {"train": 1, "test": 1, "val": 1}, {"train": -1, "test": 1}, {"train": "1", "test": 1},
        {"train": True, "test": 1}, {"train": 1, "test": 1e9}, {"train": 1, "test": 10**9},
    ],
)  # fmt: skip
def test_numbers_of_images_that_cannot_be(comparing, said):
    results = comparing("two").run({"a": at_owners, "b": lambda session: session.mesh.send_json("a", said)})
    assert isinstance(results["a"], SessionError)
    assert "b announced to a no numbers of images of train, test" in str(results["a"])


def in_order(session, cheat=lambda images: images):
    """The real steps of a session in which owners compare; ``cheat`` changes what b compares after it announced."""
    mine = own(session.me) if session.me in session.settings.data_owners() else None
    if session.me == session.settings.dealer():
        return session.mesh.receive_json("a", wait_s=math.inf)
    catalogue = inputs.announce(session, SPLITS, mine)
    if mine is not None:
        duplicates.check(session, cheat(mine) if session.me == "b" else mine, catalogue.counts)
    inputs.confirm(session, catalogue)
    if session.me == "a":
        session.mesh.send_json("dealer", "done")
    return catalogue.counts


def test_in_order_all_is_well(comparing):
    results = comparing("three").all(in_order)
    assert results["a"] == results["b"] == results["c"] and results["a"]["b"] == {"train": 2, "test": 1}


@pytest.mark.parametrize(("letters", "number"), [("zvq", 3), ("z", 1)], ids=["more", "fewer"])
def test_an_owner_compares_what_it_announced_and_nothing_else(comparing, letters, number):
    """To try images on the other's set that it does not have, an owner must announce and share them as its own."""
    parties = comparing("two")
    cheat = lambda images: images | {"train": split("b", "train", letters)}  # noqa: E731
    results = parties.run(lambda session: in_order(session, cheat))
    assert isinstance(results["a"], SessionError), results["a"]
    assert f"b would compare {number} images of train with a, and announced 2 to all" in str(results["a"])
    assert ("a", "b") not in parties.sent("BLINDED"), "and learns nothing"
    # By hand: the right number is said, and more elements are sent.
    parties = comparing("two")
    results = parties.run({"a": at_owners, "b": _says_right_and_sends_more})
    assert "BLINDED of 128 bytes where 96 were due (32 trailing)" in str(results["a"])


def _says_right_and_sends_more(session):
    session.mesh.send_json("a", {"train": 2, "test": 1})
    session.mesh.receive_json("a")
    points = [hash_to_group(b"", letter.encode()) for letter in "zvxq"]
    session.mesh.exchange(Kind.BLINDED, {"a": points}, {"a": 32 * 5})


def test_the_first_party_cannot_announce_otherwise_to_each(comparing, monkeypatch):
    """It passes the numbers on: b is told of fewer images than a then compares, c of none at all."""
    parties = comparing("three")
    send_json = Mesh.send_json

    def otherwise(self, peer, message):
        if self.me == "a" and peer == "c" and isinstance(message, dict) and "b" in message:
            message = copy.deepcopy(message)
            message["b"]["counts"]["train"] += 1
        send_json(self, peer, message)

    monkeypatch.setattr(Mesh, "send_json", otherwise)
    results = parties.run(in_order)
    assert isinstance(results["c"], SessionError)
    assert "b would compare 2 images of train with c, and announced 3 to all" in str(results["c"])


def test_nobody_goes_on_before_all_owners_have_compared(comparing, monkeypatch):
    """One pair finds what it does not accept: the others, long done, have shared nothing yet."""
    parties = comparing("outside")
    before = inputs.confirm
    done = []

    def slow(session, catalogue):
        if session.me == "h2":
            time.sleep(0.5)
            raise DuplicateError(["h2"])
        before(session, catalogue)
        done.append(session.me)

    monkeypatch.setattr(inputs, "confirm", slow)
    results = parties.run(in_order)
    assert isinstance(results["h2"], DuplicateError) and not done
    assert all(isinstance(results[name], PeerLostError) for name in ("h1", "vendor", "a", "b"))


def test_parties_that_were_told_different_numbers_do_not_go_on(comparing):
    parties = comparing("two")

    def part(session):
        if session.me == "dealer":
            return None
        shape = (1, 2, 2)
        inputs.confirm(session, inputs.Catalogue({"a": {"test": 1}, "b": {"test": 1 + (session.me == "b")}}, shape))
        return None

    results = parties.run(part)
    assert "was told other numbers of images" in str(results["a"]) + str(results["b"])
    assert not any(results[name] is None for name in "ab")


def test_a_malformed_point_names_the_peer_and_the_step(comparing, monkeypatch):
    def junk(mine, theirs, pair):
        if pair.me == "a":
            return intersect(mine, theirs, pair)
        pair.swap(b"\xff" * 32 * sum(map(len, mine.values())), 32 * sum(theirs.values()))
        return pair.swap(b"", 0)

    monkeypatch.setattr(duplicates, "intersect", junk)
    results = comparing("two").run(at_owners)
    assert isinstance(results["a"], IntersectionError)
    assert "b sent a no point of P-256 as number 0 of blinded images" in str(results["a"])
    assert isinstance(results["b"], PeerLostError) and "no point of P-256" in str(results["b"])


def test_too_few_points_are_refused_by_the_frame(comparing, monkeypatch):
    def short(mine, theirs, pair):
        return intersect(mine, theirs, pair) if pair.me == "a" else pair.swap(bytes(32), 32 * sum(theirs.values()))

    monkeypatch.setattr(duplicates, "intersect", short)
    results = comparing("two").run(at_owners)
    assert "BLINDED of 32 bytes where 96 were due" in str(results["a"])


def test_the_policy_is_asked_again_before_anything_is_sent(comparing):
    """A policy that a caller overlooked still shuts: only image_owner has rows of its own."""
    parties = comparing("two")
    parties.settings.policy.reveal["duplicates"] = ["a"]
    results = parties.run(at_owners)
    assert isinstance(results["a"], PolicyError) or isinstance(results["b"], PolicyError)
    assert not parties.sent("BLINDED")
