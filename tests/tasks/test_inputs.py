"""What owners announce and share, and what happens when a peer's words do not make sense."""

import pytest
import torch

from mpc_imaging.data import Split
from mpc_imaging.engine.encoding import decode
from mpc_imaging.errors import PeerLostError, SessionError
from mpc_imaging.parties.session import Session
from mpc_imaging.tasks import inputs
from mpc_imaging.tasks.inputs import Catalogue, announce, announce_ids, share_images

SPLITS = ("train", "test")
COUNTS = {"a": (3, 2), "b": (4, 0), "c": (1, 1), "h1": (0, 3), "h2": (2, 1)}


def _split(owner, split, count, size=2):
    generator = torch.Generator().manual_seed(sum(map(ord, owner + split)))
    return Split(
        torch.randn(count, 1, size, size, generator=generator),
        torch.arange(count) % 2,
        [f"{owner}-{split}-{row:05d}" for row in range(count)],
    )


def _own(parties, size=2):
    """Rows of every owner; some have none of a split."""
    owners = parties.settings.data_owners()
    return {o: {split: _split(o, split, n, size) for split, n in zip(SPLITS, COUNTS[o], strict=True)} for o in owners}


def _taking_part(part):
    """Everybody but the dealer, who is not asked."""
    return lambda session: part(session) if session.me != session.settings.dealer() else None


def _announcing(own):
    return _taking_part(lambda session: announce(session, SPLITS, own.get(session.me)))


@pytest.mark.parametrize("topology", ["two", "three", "outside"])
def test_everybody_learns_the_counts(consortium, topology):
    parties = consortium(topology)
    own = _own(parties)
    catalogues = parties.all(_announcing(own))
    expected = {owner: dict(zip(SPLITS, COUNTS[owner], strict=True)) for owner in own}
    assert catalogues.pop("dealer") is None
    for catalogue in catalogues.values():
        assert catalogue.counts == expected and catalogue.image_shape == (1, 2, 2)


def test_joint_order():
    catalogue = Catalogue({"a": {"test": 2}, "b": {"test": 0}, "c": {"test": 3}}, (1, 2, 2))
    assert catalogue.total("test") == 5
    assert catalogue.spans("test") == {"a": slice(0, 2), "b": slice(2, 2), "c": slice(2, 5)}


def test_a_split_that_nobody_has_is_named(consortium):
    parties = consortium("two")
    own = {owner: {"test": rows["test"], "val": _split(owner, "val", 0)} for owner, rows in _own(parties).items()}
    results = parties.run(_taking_part(lambda session: announce(session, ("test", "val"), own[session.me])))
    assert "no owner has an image of val" in str(results["a"]) and "no owner has an image of val" in str(results["b"])


def test_images_of_another_size_are_refused(consortium):
    parties = consortium("two")
    own = _own(parties) | {"b": _own(parties, size=3)["b"]}
    results = parties.run(_announcing(own))
    assert isinstance(results["a"], SessionError)
    assert "a has 1x2x2, b has 1x3x3; set these keys alike" in str(results["a"])
    assert isinstance(results["b"], PeerLostError) and "b has 1x3x3" in str(results["b"])


GOOD = {"counts": {"train": 4, "test": 0}, "shape": [1, 2, 2]}


@pytest.mark.parametrize(
    "said",
    [
        None, [], "counts", {}, {"counts": 3, "shape": [1, 2, 2]}, GOOD | {"counts": {"train": 4}},
        GOOD | {"counts": {"train": -1, "test": 0}}, GOOD | {"counts": {"train": 4.5, "test": 0}},
        GOOD | {"counts": {"train": True, "test": 0}}, GOOD | {"counts": {"train": "4", "test": 0}},
        GOOD | {"counts": {"train": 10**9, "test": 0}}, GOOD | {"shape": 4}, GOOD | {"shape": [1, -2, -2]},
        GOOD | {"shape": ["1", "2", "2"]}, GOOD | {"shape": []},
    ],
    ids=str,
)  # fmt: skip
def test_an_owner_that_announces_nonsense_ends_the_session(consortium, said):
    parties = consortium("two")
    own = _own(parties)

    def nonsense(session):
        session.mesh.send_json("a", said)
        return session.mesh.receive_json("a", wait_s=float("inf"))

    results = parties.run({"a": _announcing(own), "b": nonsense})
    assert isinstance(results["a"], SessionError)
    assert isinstance(results["b"], PeerLostError)


@pytest.mark.parametrize("table", [None, [GOOD], {"a": GOOD}, {"a": GOOD, "b": {}}, {"a": GOOD, "b": None}], ids=str)
def test_a_first_party_that_passes_on_nonsense_ends_the_session(consortium, table):
    parties = consortium("two")

    def nonsense(session):
        session.mesh.receive_json("b", wait_s=float("inf"))
        session.mesh.send_json("b", table)
        return session.mesh.receive_json("b", wait_s=float("inf"))

    results = parties.run({"b": _announcing(_own(parties)), "a": nonsense})
    assert isinstance(results["b"], SessionError) and str(results["b"]).startswith("a sent b no numbers of images")


def test_only_what_was_understood_is_passed_on(consortium):
    parties = consortium("outside")
    own = _own(parties)

    def reader(session):
        session.mesh.send_json("a", {"counts": {"train": 2, "test": 1}, "shape": [1, 2, 2]})
        return session.mesh.receive_json("a", wait_s=float("inf"))

    everybody = {name: _announcing(own) for name in parties.names}
    table = parties.all(everybody | {"h2": reader})["h2"]
    assert table["h2"] == {"counts": {"train": 2, "test": 1}, "shape": [1, 2, 2]}
    assert set(table) == {"h1", "h2"}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("h2", {"counts": {"train": 2, "test": 1, "patient": "DOE"}, "shape": [1, 2, 2]}),
        ("h2", {"counts": {"train": 2, "test": 1}, "shape": [1, 2, 2], "note": "DOE"}),
        ("vendor", {"note": "DOE"}),
    ],
    ids=str,
)
def test_what_nobody_asked_for_is_refused_and_not_passed_on(consortium, name, more):
    parties = consortium("outside")
    own = _own(parties)
    everybody = {party: _announcing(own) for party in parties.names}
    results = parties.run(everybody | {name: lambda session: session.mesh.send_json("a", more)})
    assert isinstance(results["a"], SessionError) and str(results["a"]).startswith(f"{name} sent a ")
    assert not any(b"DOE" in payload for sender, _, _, payload in parties.frames if sender == "a")


# Pseudonyms


def _naming(parties, own, recipients, catalogue=None, split="test"):
    counts = {owner: {s: len(rows[s]) for s in SPLITS} for owner, rows in own.items()}
    catalogue = catalogue or Catalogue(counts, (1, 2, 2))
    return _taking_part(
        lambda session: announce_ids(
            session, catalogue, split, own[session.me][split] if session.me in own else None, recipients
        )
    )


def test_recipients_learn_the_pseudonyms_of_all_owners(consortium, monkeypatch):
    monkeypatch.setattr(inputs, "IDS_PER_MESSAGE", 2)
    parties = consortium("outside")
    own = _own(parties)
    ids = parties.all(_naming(parties, own, ["h2", "vendor"]))
    assert ids["vendor"] == ids["h2"] == {owner: rows["test"].ids for owner, rows in own.items()}
    assert not ids["b"], "nor do others"
    assert "vendor" not in {to for sender, to in parties.sent("CONTROL") if sender != "a"}


def test_nobody_is_told_where_all_see_their_own_images_only(consortium):
    parties = consortium("outside")
    assert not any(parties.all(_naming(parties, _own(parties), [])).values())
    assert not parties.frames


@pytest.mark.parametrize(
    "names",
    [
        ["=cmd|' /C calc'!A0", "x", "y"], ["a b", "x", "y"], ["x\ny", "x", "y"], ["x" * 200, "x", "y"], ["", "x", "y"],
        ["x", "x", "y"], ["h2-test-00000", "x", "y"], ["x", "y"], ["x", "y", "z", "w"],
    ],
    ids=str,
)  # fmt: skip
def test_pseudonyms_that_could_be_something_else_are_refused(consortium, names):
    parties = consortium("outside")
    own = _own(parties)
    counts = {owner: {s: len(rows[s]) for s in SPLITS} for owner, rows in own.items()}
    own["h1"]["test"] = Split(own["h1"]["test"].images, own["h1"]["test"].labels, names)
    results = parties.run(_naming(parties, own, ["vendor"], Catalogue(counts, (1, 2, 2))))
    errors = [result for result in results.values() if isinstance(result, SessionError)]
    assert errors and isinstance(results["a"], SessionError)
    assert not any("calc" in str(error) for error in errors)


@pytest.mark.parametrize("message", [None, 3, {"h1": []}, [3, 4, 5]], ids=str)
def test_a_list_of_pseudonyms_is_a_list_of_strings(consortium, message):
    parties = consortium("outside")
    own = _own(parties)

    def nonsense(session):
        session.mesh.send_json("a", message)

    everybody = {name: _naming(parties, own, ["vendor"]) for name in parties.names}
    results = parties.run(everybody | {"h1": nonsense})
    assert isinstance(results["a"], SessionError)


# Images and labels


@pytest.mark.parametrize("topology", ["two", "three", "outside"])
@pytest.mark.parametrize("with_labels", [True, False])
def test_images_reconstruct_in_joint_order(consortium, topology, with_labels):
    """Owners without a row of a split share nothing, and keep their place."""
    parties = consortium(topology)
    own = _own(parties)
    bits = parties.settings.protocol.fraction_bits
    catalogue = Catalogue({owner: {s: len(rows[s]) for s in SPLITS} for owner, rows in own.items()}, (1, 2, 2))

    def part(session: Session):
        return {s: share_images(session, catalogue, s, own.get(session.me, {}).get(s), with_labels) for s in SPLITS}

    results = parties.all(_taking_part(part))
    compute = parties.settings.compute_parties()
    for split in SPLITS:
        images = decode(sum(results[name][split][0] for name in compute), bits)
        expected = torch.cat([rows[split].images for rows in own.values()])
        assert (images - expected).abs().max() <= 2.0 ** -(bits + 1)
        shares = [results[name][split][1] for name in compute]
        if with_labels:
            labels = torch.cat([rows[split].labels for rows in own.values()])
            assert torch.equal(decode(sum(shares), bits).argmax(1), labels)
            assert decode(sum(shares), bits).sum(1).tolist() == [1.0] * len(labels)
        else:
            assert shares == [None] * len(compute)
    for name in set(parties.names) - set(compute) - {"dealer"}:
        assert all(pair == (None, None) for pair in results[name].values())
    empty = {(owner, f"images {s}") for owner, rows in own.items() for s in SPLITS if not len(rows[s])}
    entries = {(entry["owner"], entry["value"]) for name in parties.names for entry in parties.entries(name, "input")}
    assert entries and not entries & empty
