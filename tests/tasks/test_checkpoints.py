"""Checkpoints: parties as threads that save, are gone, and go on from what all of them hold."""

import json
import logging
from functools import partial

import pytest
import torch

from mpc_imaging.errors import ConfigError, DataError, PeerLostError, SessionError
from mpc_imaging.parties import sealed
from mpc_imaging.settings import TaskKind
from mpc_imaging.tasks import checkpoints as module
from mpc_imaging.tasks.checkpoints import Checkpoints, Point, Start, starting_point

COUNTS = {"a": {"train": 30}, "b": {"train": 20}}
STATE = {
    "weights.one": torch.arange(12).view(3, 4) << 40,
    "optimiser.one": torch.tensor(-(2**63)),
    "loss": torch.tensor(5),
}
HISTORY = [{"epoch": 1, "loss": 0.5, "val": None}]


def _shares(session, add=0):
    """Shares of the state, each value increased by ``add``."""
    return {name: session.zero_share(x.shape) + (x + add if session.first else 0) for name, x in STATE.items()}


@pytest.fixture
def trained(consortium, tmp_path):
    """A run whose parties saved some steps: its folder."""

    def make(steps=(10, 20), name="run", topology="two", change=lambda settings: None):
        parties = consortium(topology)
        parties.settings.task.kind = TaskKind.train
        parties.settings.checkpoint.every = 10
        change(parties.settings)

        def part(session):
            if session.rank is None:
                return None
            folder = tmp_path / name / "parties" / session.me
            folder.mkdir(parents=True)
            checkpoints = Checkpoints(session, folder)
            checkpoints.counts, checkpoints.plan = COUNTS, "plan"
            mine = steps[session.me] if isinstance(steps, dict) else steps
            return [
                checkpoints.save(Point(1, step % 7, step), _shares(session, step), HISTORY, {"epsilon": step / 10})
                for step in mine
            ]

        parties.all(part)
        return tmp_path / name

    return make


@pytest.fixture
def resume(consortium, tmp_path):
    """Parties that go on from a run: what each of them gets, or the error."""

    def make(run, topology="two", change=lambda settings: None, counts=COUNTS):
        parties = consortium(topology)
        parties.settings.task.kind = TaskKind.train
        parties.settings.resume = True
        parties.settings.checkpoint.path = str(run)
        change(parties.settings)

        def part(session):
            if session.me == "dealer":
                return None
            folder = tmp_path / "resumed" / session.me
            folder.mkdir(parents=True, exist_ok=True)
            checkpoints = None if session.rank is None else Checkpoints(session, folder)
            return starting_point(session, checkpoints, counts)

        results = parties.run(part)
        return {name: result for name, result in results.items() if name != "dealer"} | {"parties": parties}

    return make


def _file(run, party, step):
    return run / "parties" / party / "checkpoints" / f"step-{step:08d}.sealed"


def _key(run, party):
    return (run / "parties" / party / "share.key").read_bytes()


def _error(results, kind, *texts):
    """Nobody goes on, and somebody says why."""
    results = {name: result for name, result in results.items() if name != "parties"}
    assert all(isinstance(result, Exception) for result in results.values()), results
    said = [str(error) for error in results.values() if isinstance(error, kind)]
    for text in texts:
        assert any(text in one for one in said), results


@pytest.mark.parametrize("topology", ["two", "three", "outside"])
def test_the_sum_is_the_same_to_the_bit_and_the_shares_are_new(trained, resume, topology):
    run = trained(topology=topology)
    results = resume(run, topology)
    compute = results["parties"].settings.compute_parties()
    old = {name: sealed.unseal(_file(run, name, 20), _key(run, name)).tensors for name in compute}
    for name, value in STATE.items():
        assert torch.equal(sum(results[party].tensors[name] for party in compute), value + 20)
        assert torch.equal(sum(old[party][name] for party in compute), value + 20)
        for party in compute:
            assert (results[party].tensors[name] != old[party][name]).all()
    for party in compute:
        start = results[party]
        assert start.resumed and start.point == Point(1, 6, 20)
        assert start.history == HISTORY and start.privacy == {"epsilon": 2.0}
        (entry,) = results["parties"].entries(party, "resumed")
        assert entry["step"] == 20


def test_who_does_not_compute_learns_the_point(trained, resume):
    results = resume(trained(topology="outside"), "outside")
    for name in ("h1", "h2", "vendor"):
        assert results[name] == Start(Point(1, 6, 20), True)


def test_two_resumptions_share_nothing(trained, resume):
    run = trained()
    one, two = resume(run)["a"], resume(run)["a"]
    assert (one.tensors["weights.one"] != two.tensors["weights.one"]).all()


def test_the_latest_step_that_all_have(trained, resume):
    run = trained({"a": (10, 20, 30), "b": (10, 20)})
    results = resume(run)
    assert results["a"].point.step == results["b"].point.step == 20


def test_a_resumed_session_can_be_resumed(trained, resume, consortium, tmp_path):
    """And its own parts are left as they were: parts of shares, blank ones for a rehearsal."""
    start = resume(trained())["a"]
    assert set(start.part("weights.")) == {"one"} and start.part("weights.")["one"] is start.tensors["weights.one"]
    blank = start.blank()
    assert blank.point == start.point and blank.tensors.keys() == start.tensors.keys()
    assert not any(x.any() for x in blank.tensors.values())
    assert str(start.tensors["loss"].item()) not in repr(start)


def test_nothing_is_resumed_unless_asked(trained, resume):
    results = resume(trained(), change=lambda settings: setattr(settings, "resume", False))
    assert results["a"] == results["b"] == Start() and Start().point == (0, 0, 0)


def test_how_many_are_kept(trained):
    """Two at least: when a party has its newest, the others may have only the one before."""
    steps = (10, 20, 30, 40)
    for keep, left in ((1, 2), (2, 2), (3, 3)):
        run = trained(steps, f"keep{keep}", change=lambda s, keep=keep: setattr(s.checkpoint, "keep", keep))
        files = sorted(path.name for path in (run / "parties" / "a" / "checkpoints").iterdir())
        assert files == [f"step-{step:08d}.sealed" for step in steps[-left:]]


def test_when_one_is_due(consortium, tmp_path):
    parties = consortium("two")

    def part(session):
        if session.rank is None:
            return None
        checkpoints, due = Checkpoints(session, parties.folder / session.me), {}
        for every in (None, 3):
            session.settings.checkpoint.every = every
            due[every] = [step for step in range(1, 8) if checkpoints.due(step)]
        return due

    assert parties.all(part)["a"] == {None: [], 3: [3, 6]}


@pytest.mark.parametrize("place", ["", "parties", "parties/a", "parties/a/checkpoints"])
def test_where_checkpoints_lie(trained, resume, place):
    run = trained()
    results = resume(run)["parties"]
    results.settings.checkpoint.path = str(run / place)
    assert module.checkpoint_folder(results.settings, "a") == run / "parties" / "a" / "checkpoints"


# What is refused


def test_another_partys_file(trained, resume):
    run = trained((10,))
    _file(run, "b", 10).write_bytes(_file(run, "a", 10).read_bytes())
    _error(resume(run), DataError, "is a checkpoint of another party, not of b")


def test_other_steps(trained, resume):
    run = trained({"a": (10,), "b": (20,)})
    _error(resume(run), SessionError, "hold checkpoints of different steps; give both the same run's")


def test_other_runs(trained, resume):
    one, two = trained(), trained(name="other")
    (one / "parties" / "b").rename(one / "gone")
    (two / "parties" / "b").rename(one / "parties" / "b")
    _error(resume(one), SessionError, "hold checkpoints of different training runs")


def test_a_step_under_another_name(trained, resume):
    run = trained()
    for party in ("a", "b"):
        _file(run, party, 10).unlink()
        _file(run, party, 20).rename(_file(run, party, 30))
    _error(resume(run), DataError, "step-00000030.sealed is not the checkpoint that its name says")


def test_other_topologies(trained, resume):
    run = trained(topology="three")
    _error(resume(run), DataError, "was made by other compute parties", "with other settings in: topology")


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("task", lambda settings: setattr(settings.task, "lr", 0.5)),
        ("seed", lambda settings: setattr(settings, "seed", 1)),
        ("protocol", lambda settings: setattr(settings.protocol, "fraction_bits", 20)),
        ("privacy", lambda settings: setattr(settings.privacy, "noise_multiplier", 3.0)),
    ],
)
def test_other_settings(trained, resume, section, change):
    _error(resume(trained(), change=change), DataError, f"was made with other settings in: {section}; resume with")


def test_other_numbers_of_images(trained, resume):
    run = trained()
    counts = {"a": {"train": 31}, "b": {"train": 20}}
    _error(resume(run, counts=counts), DataError, "with other settings in: number of images")


def test_settings_that_may_change(trained, resume):
    def change(settings):
        settings.name, settings.checkpoint.every, settings.randomness.buffer_mb = "again", 7, 1
        settings.transport.timeout_s = 9.0

    assert resume(trained(), change=change)["a"].resumed


def test_another_version(trained, resume, monkeypatch):
    run = trained()
    monkeypatch.setattr(module.mpc_imaging, "__version__", "9.9")
    _error(resume(run), DataError, "was made by another version")


def test_other_plans(trained, resume):
    """Files of one session whose plans differ were never written together."""
    run = trained()
    for path in (_file(run, "b", 10), _file(run, "b", 20)):
        content = sealed.unseal(path, _key(run, "b"))
        sealed.seal(path, content.tensors, content.header | {"plan": "other"}, _key(run, "b"), content.notes)
    _error(resume(run), SessionError, "hold checkpoints of different")


def test_shares_that_do_not_belong_together(trained, resume):
    run = trained((10,))
    path = _file(run, "b", 10)
    content = sealed.unseal(path, _key(run, "b"))
    tensors = {name: x for name, x in content.tensors.items() if name != "loss"}
    sealed.seal(path, tensors, content.header, _key(run, "b"), content.notes)
    _error(resume(run), SessionError, "do not belong together; give the run folder")


def test_damaged_and_missing_files(trained, resume):
    run = trained((10,))
    path = _file(run, "b", 10)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    _error(resume(run), DataError, "step-00000010.sealed is damaged")
    path.unlink()
    _error(resume(run), DataError, "checkpoint.path: it has no checkpoint of b; give the run folder")


def test_damage_to_the_latest_is_told_and_not_passed_over_when_opened(trained, resume, caplog):
    """A file whose head cannot be read is left out; one whose content is damaged ends the session."""
    run = trained()
    _file(run, "b", 20).write_bytes(b"MPCSHARE")
    with caplog.at_level(logging.WARNING, "mpc_imaging.party"):
        results = resume(run)
    assert results["a"].point.step == results["b"].point.step == 10
    assert "not used: step-00000020.sealed is damaged" in caplog.text


def test_another_key(trained, resume, tmp_path):
    run = trained()
    (run / "parties" / "b" / "share.key").write_bytes(bytes(32))
    _error(resume(run), DataError, "step-00000020.sealed was sealed with another key")
    (run / "parties" / "b" / "share.key").unlink()
    _error(resume(run), ConfigError, "checkpoint.key_file")


def test_peers_that_send_nonsense(trained, consortium, tmp_path):
    run = trained()
    for message in (5, [[1]], {"a": 1}, [["x", "y"]]):
        parties = consortium("two")
        parties.settings.resume, parties.settings.checkpoint.path = True, str(run)
        parties.settings.task.kind = TaskKind.train

        def part(session, message):
            if session.me == "b":
                return session.swap(message)
            if session.me == "a":
                (tmp_path / "again").mkdir(exist_ok=True)
                return starting_point(session, Checkpoints(session, tmp_path / "again"), COUNTS)
            return None

        results = parties.run(partial(part, message=message))
        assert isinstance(results["a"], SessionError) and "no list of checkpoints" in str(results["a"])


@pytest.mark.parametrize("message", [None, [1, 2], [1, 2, -3], [1, 2, True], [1, 2, 3.0], {"step": 1}])
def test_points_that_are_none(consortium, message):
    parties = consortium("outside")
    parties.settings.resume, parties.settings.checkpoint.path = True, "."

    def part(session):
        if session.me == "a":
            session.mesh.send_json("h1", message)
        return starting_point(session, None, COUNTS) if session.me == "h1" else None

    error = parties.run(part)["h1"]
    assert isinstance(error, SessionError) and "a told h1 no place in training" in str(error)


def test_errors_that_peers_hear_name_no_file(trained, resume):
    run = trained((10,))
    _file(run, "b", 10).unlink()
    results = resume(run)
    assert isinstance(results["a"], PeerLostError) and "b: data problems; its own log says more" in str(results["a"])
    assert str(run) not in str(results["b"])


def test_headers_are_public_and_hold_no_more_than_they_need(trained):
    run = trained()
    header = sealed.read_header(_file(run, "a", 20))
    assert header.keys() == {
        "kind", "session", "party", "parties", "version", "settings", "fraction_bits", "epoch", "batch", "step", "plan",
        "privacy",
    }  # fmt: skip
    assert "0.5" not in json.dumps(header), "what was revealed to this party is encrypted"
