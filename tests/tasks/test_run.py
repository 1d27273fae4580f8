"""The order of steps that one party follows, and the dealer's last word."""

import pytest

from mpc_imaging.errors import PeerLostError, SessionError
from mpc_imaging.randomness.provider import DemandLog
from mpc_imaging.settings import ProtocolName, RandomnessMode, TaskKind
from mpc_imaging.tasks import run
from mpc_imaging.transport.frames import Kind
from tests.transport.parties import together


def _with_dealer(parties, part):
    """The real dealer, and ``part`` at the compute parties; what each returned or raised."""

    def dealer():
        folder = parties.folder / "dealer"
        folder.mkdir(parents=True)
        certificates, listener = parties.certificates / "dealer", parties.listeners["dealer"]
        return run.run_party(parties.settings, "dealer", folder, certificates, listener, progress=False)

    jobs = {name: lambda name=name: parties.join(name, part) for name in parties.settings.compute_parties()}
    return together(jobs | {"dealer": dealer})


def _using(summaries):
    """Compute parties that ask for nothing, and say what they used (on_demand)."""

    def part(session):
        session.mesh.prepare({"dealer": 0})
        if session.me == session.compute[-1]:
            session.mesh.send("dealer", Kind.REQUEST, b"null")
        session.mesh.send_json("dealer", summaries[session.me])
        return session.mesh.receive_json("dealer")

    return part


def test_the_dealer_confirms_what_all_used(consortium):
    parties = consortium("two")
    parties.settings.randomness.mode = RandomnessMode.on_demand
    nothing = DemandLog().summary()
    results = _with_dealer(parties, _using({"a": nothing, "b": nothing}))
    assert results == {"a": "same", "b": "same", "dealer": None}
    (entry,) = parties.entries("dealer", "served")
    assert entry["demands"] == 0 and entry["digest"] == nothing["digest"]


@pytest.mark.parametrize("liar", ["a", "b"])
def test_no_party_leaves_well_if_they_used_different_randomness(consortium, liar):
    parties = consortium("two")
    parties.settings.randomness.mode = RandomnessMode.on_demand
    nothing = DemandLog().summary()
    results = _with_dealer(parties, _using({"a": nothing, "b": nothing} | {liar: nothing | {"demands": 1}}))
    assert isinstance(results["dealer"], SessionError) and f"{liar} used other randomness" in str(results["dealer"])
    for name in ("a", "b"):
        assert isinstance(results[name], PeerLostError) and f"{liar} used other randomness" in str(results[name])
    assert not parties.entries("dealer", "served")


def test_splits_that_a_task_needs(consortium):
    settings = consortium("two").settings
    settings.policy.reveal = {"metrics": ["receiver"]}
    assert run.needed_splits(settings) == ["test"]
    settings.task.kind = TaskKind.train
    assert run.needed_splits(settings) == ["train", "val", "test"]
    settings.task.split = "val"
    assert run.needed_splits(settings) == ["train", "val"]
    settings.policy.reveal = {"logits": ["receiver"]}
    settings.task.split = "train"
    assert run.needed_splits(settings) == ["train"], "nobody sees how validation goes"


def test_only_the_launcher_knows_of_one_machine(consortium, monkeypatch):
    """Loopback addresses are those of tunnels as well: a dealer uses all its cores unless it is told otherwise."""
    monkeypatch.setattr("mpc_imaging.randomness.pool.cores", lambda: 7)
    for one_machine, workers in ((True, 1), (False, 7)):
        parties = consortium("two")
        parties.one_machine = one_machine
        assert set(parties.all(run._workers).values()) == {workers}


def test_a_dealer_that_has_nothing_to_do_leaves(consortium):
    parties = consortium("two")
    parties.settings.protocol.name = ProtocolName.insecure_simulation
    assert set(_with_dealer(parties, lambda session: None).values()) == {None}
    assert [entry["event"] for entry in parties.entries("dealer")] == ["session", "end"]
