"""Owners take turns to say whose frames come next; everybody hears the same, and computes the same images."""

import time

import pytest
import torch

from mpc_imaging.data.prefetch import Prefetcher
from mpc_imaging.engine.encoding import decode
from mpc_imaging.errors import DataError, PeerLostError, SessionError
from mpc_imaging.settings import StreamSettings, TaskKind
from mpc_imaging.tasks.feed import RehearsedFeed, SessionFeed, Step, planned_steps
from mpc_imaging.tasks.inputs import Catalogue
from tests.data.test_prefetch import Clip

COUNTS = {"a": 3, "b": 5, "h1": 2, "h2": 4}


def _catalogue(parties, counts=COUNTS):
    owners = parties.settings.data_owners()
    return Catalogue({owner: {"test": counts[owner]} for owner in owners}, (1, 2, 2))


@pytest.fixture
def streaming(consortium):
    """Lets the parties of a topology stream clips; for each party what it heard, and its shares of each step."""

    def make(topology, clips=None, counts=COUNTS, spoil=None, **stream):
        parties = consortium(topology)
        parties.settings.task.kind = TaskKind.stream
        parties.settings.task.stream = StreamSettings(**stream)
        parties.settings.policy.reveal = {"logits": ["image_owner"]}
        catalogue = _catalogue(parties, counts)
        clips = clips or {owner: Clip(count) for owner, count in counts.items()}

        def part(session):
            if session.me not in {*session.compute, *session.settings.data_owners()}:
                return None
            reader = None
            if session.me in session.settings.data_owners():
                reader = Prefetcher(clips[session.me], session.settings.task.stream.queue, stream.get("fps"))
            feed, heard = SessionFeed(session, catalogue, reader), []
            if spoil is not None:
                spoil(session, feed)
            with feed:
                while (step := feed.next()) is not None:
                    heard.append((step, feed.share(step), feed.arrivals()))
            return heard

        return parties, parties.run(part)

    return make


def _joined(results, compute):
    """The images of each step, from all shares."""
    return [
        decode(sum(parts), 16)[:, 0, 0, 0].tolist()
        for parts in zip(*([share for _, share, _ in results[name]] for name in compute), strict=True)
    ]


@pytest.mark.parametrize("topology", ["two", "three", "outside"])
def test_owners_take_turns(streaming, topology):
    counts = COUNTS | {"c": 0}
    parties, results = streaming(topology, counts=counts)
    owners, compute = parties.settings.data_owners(), parties.settings.compute_parties()
    heard = [step for step, _, _ in results[compute[0]]]
    rounds = range(max(counts.values()))
    assert heard == [Step(owner, (n,)) for n in rounds for owner in owners if n < counts[owner]]
    assert _joined(results, compute) == [[float(step.frames[0])] for step in heard]
    for name in {*owners, *compute}:
        assert [step for step, _, _ in results[name]] == heard, name
        for step, share, arrivals in results[name]:
            assert (share is None) == (name not in compute)
            assert len(arrivals) == (name == step.owner)
    for name in compute:
        inputs = parties.entries(name, "input")
        assert [entry["owner"] for entry in inputs] == [owner for owner in owners if counts[owner]]
        assert all(entry["shape"] == [counts[entry["owner"]], 1, 2, 2] for entry in inputs)


def test_the_last_step_of_an_owner_is_filled_up_with_black(streaming):
    _, results = streaming("two", frames_per_step=2)
    heard = [step for step, _, _ in results["a"]]
    assert heard == [Step("a", (0, 1)), Step("b", (0, 1)), Step("a", (2,)), Step("b", (2, 3)), Step("b", (4,))]
    assert _joined(results, "ab") == [[0, 1], [0, 1], [2, 0], [2, 3], [4, 0]]
    assert planned_steps({"a": 3, "b": 5, "c": 0}, 2) == {"a": 2, "b": 3, "c": 0}


def test_a_live_owner_that_has_nothing_yet_lets_the_others_go_on(streaming):
    counts = {"a": 2, "b": 20}
    slow = Clip(2)
    load = slow._load
    slow._load = lambda number: (time.sleep(0.3), load(number))[1]
    _, results = streaming("two", {"a": slow, "b": Clip(20)}, counts, fps=200.0, queue=20)
    owners = [step.owner for step, _, _ in results["b"]]
    assert "a" in owners and owners.index("a") > 3
    assert owners == [step.owner for step, _, _ in results["a"]]


def test_frames_that_are_dropped_are_not_announced(streaming):
    def busy(session, feed):
        take = feed._own
        feed._own = lambda: (time.sleep(0.05), take())[1]

    _, results = streaming("two", counts={"a": 30, "b": 1}, spoil=busy, fps=500.0, queue=2)
    frames = [step.frames[0] for step, _, _ in results["b"] if step.owner == "a"]
    assert frames == sorted(set(frames)) and 2 <= len(frames) < 20
    assert frames[-1] == 29 and _joined(results, "ab")[-1] == [29.0]


@pytest.mark.parametrize("victim", ["a", "b"])
def test_a_reader_that_fails_ends_all_with_its_owner_named(streaming, victim):
    clips = {name: Clip(5, fails=2 if name == victim else None) for name in "ab"}
    other = "b" if victim == "a" else "a"
    _, results = streaming("two", clips, {"a": 5, "b": 5})
    assert isinstance(results[victim], DataError) and "frame 2" in str(results[victim])
    for name in (other, "dealer"):
        if name == other:
            assert isinstance(results[name], PeerLostError)
            assert f"{victim}: data problems; its own log says more" in str(results[name])


def test_an_owner_that_reads_nothing_says_so_itself(streaming):
    hanging = Clip(3)
    hanging._load = lambda number: time.sleep(2)

    def impatient(session, feed):
        feed._limit_s = 0.2

    _, results = streaming("two", {"a": Clip(3), "b": hanging}, {"a": 3, "b": 3}, spoil=impatient)
    assert isinstance(results["b"], SessionError) and str(results["b"]).startswith("b read no frame within 0.2 s")
    assert isinstance(results["a"], PeerLostError) and "b read no frame" in str(results["a"])


@pytest.mark.parametrize("said", [[3], [-1], [0, 1], [1, 0], [True], ["0"], [0.5], {}, 7, "0", [[0]]])
def test_announcements_that_cannot_be(streaming, said):
    def lie(session, feed):
        if session.me == "b":
            own = feed._own
            feed._own = lambda: own() and said

    _, results = streaming("two", counts={"a": 3, "b": 3}, spoil=lie)
    assert isinstance(results["a"], SessionError) and str(results["a"]).startswith("b announced frames that it cannot")


def test_a_rehearsal_has_every_frame(consortium):
    parties = consortium("two")
    parties.settings.task.stream.frames_per_step = 2
    catalogue = _catalogue(parties)

    def part(session):
        return None if session.me == "dealer" else list(iter(RehearsedFeed(session, catalogue).next, None))

    results = parties.all(part)
    assert results["a"] == results["b"]
    assert [(step.owner, step.frames) for step in results["a"]] == [
        ("a", (0, 1)), ("a", (2,)), ("b", (0, 1)), ("b", (2, 3)), ("b", (4,)),
    ]  # fmt: skip


def test_pixels_that_fixed_point_cannot_hold(streaming):
    bright = Clip(3)
    bright._load = lambda number: torch.full((1, 2, 2), 1e30)
    _, results = streaming("two", {"a": bright, "b": Clip(3)}, {"a": 3, "b": 3})
    assert type(results["a"]).__name__ == "EncodingError"
    assert isinstance(results["b"], PeerLostError) and "not finite or not below" in str(results["b"])
