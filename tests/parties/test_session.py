"""Sessions: what parties must agree on, the keys they share, and what peers are told when one fails."""

import copy
import json

import pytest
import torch

import mpc_imaging
from mpc_imaging.errors import (
    ConfigError,
    DataError,
    EncodingError,
    ModelError,
    PeerLostError,
    PolicyError,
    SessionError,
)
from mpc_imaging.parties import session as module
from mpc_imaging.parties.session import public_cause
from mpc_imaging.settings import RandomnessMode
from mpc_imaging.transport import CertificateError


def test_pairs_share_keystreams_that_nobody_else_has(consortium):
    def part(session):
        return {
            (peer, purpose): bytes(session.stream(peer, purpose).octets(32))
            for peer in session.mesh.peers
            for purpose in ("one", "two")
        }

    drawn = consortium("three").all(part)
    for name, streams in drawn.items():
        for (peer, purpose), octets in streams.items():
            assert drawn[peer][name, purpose] == octets
    everything = {octets for streams in drawn.values() for octets in streams.values()}
    assert len(everything) == 2 * 6, "a stream of its own for each pair and purpose"
    other = consortium("three").all(part)
    assert everything.isdisjoint(octets for streams in other.values() for octets in streams.values()), "and session"


def test_no_dealer_is_met_where_randomness_is_stored(consortium):
    """Its listener is there, but nobody calls it, nor waits for it to agree on a plan."""
    parties = consortium("outside")
    parties.settings.randomness.mode = RandomnessMode.stored

    def part(session):
        session.agree_on_plan("5e" * 32 if session.rank is not None else None)
        return session.mesh.peers

    peers = parties.all(part)
    assert peers["a"] == ("h1", "h2", "vendor", "b") and peers["vendor"] == ("a", "b") and "dealer" not in peers


def test_a_keystream_goes_on_where_it_was(consortium):
    def part(session):
        first, second = (bytes(session.stream(session.mesh.peers[0], "p").octets(16)) for _ in range(2))
        return first != second

    assert all(consortium("two").all(part).values())


@pytest.mark.parametrize("topology", ["two", "three"])
def test_zero_shares_add_up_to_zero_and_are_fresh(consortium, topology):
    def part(session):
        return [session.zero_share(torch.Size([3, 2])) for _ in range(2)] if session.rank is not None else None

    shares = [value for value in consortium(topology).all(part).values() if value]
    for number in range(2):
        assert sum(share[number] for share in shares).tolist() == [[0, 0]] * 3
    assert all((share[0] != share[1]).all() and share[0].abs().min() > 0 for share in shares)


def test_ranks_and_links(consortium):
    seen = consortium("outside").all(lambda session: (session.rank, session.first, set(session.mesh.peers)))
    assert {name: rank for name, (rank, _, _) in seen.items() if rank is not None} == {"a": 0, "b": 1}
    assert [name for name, (_, first, _) in seen.items() if first] == ["a"]
    assert seen["h1"][2] == {"a", "b"}, "owners are linked to the compute parties only"
    assert seen["a"][2] == {"h1", "h2", "vendor", "b", "dealer"}


def test_owners_that_compare_their_images_are_linked(consortium):
    parties = consortium("outside")
    parties.settings.policy.reveal["duplicates"] = ["image_owner"]
    seen = parties.all(lambda session: set(session.mesh.peers))
    assert (seen["h1"], seen["h2"]) == ({"h2", "a", "b"}, {"h1", "a", "b"})
    assert seen["vendor"] == {"a", "b"}


@pytest.mark.parametrize(
    ("change", "section"),
    [
        (lambda s: setattr(s.protocol, "fraction_bits", 18), "protocol"),
        (lambda s: setattr(s, "seed", 7), "seed"),
        (lambda s: s.policy.reveal.update(logits=["receiver"]), "policy"),
        (lambda s: setattr(s.task, "batch_size", 3), "task"),
    ],
)
def test_a_mismatch_names_the_section(consortium, change, section):
    parties = consortium("two")
    changed = copy.deepcopy(parties.settings)
    change(changed)
    results = parties.run(lambda session: "met", settings={"b": changed})
    assert all(isinstance(result, SessionError | PeerLostError) for result in results.values())
    causes = [str(result) for result in results.values() if isinstance(result, SessionError)]
    assert causes and all(f"run different settings in: {section}; compare" in cause for cause in causes)
    assert not any(parties.folder.glob("*/ledger.jsonl")), "there was no session"


def test_private_settings_may_differ(consortium):
    parties = consortium("two")
    changed = copy.deepcopy(parties.settings)
    changed.data.path = "/home/b/scans"
    changed.transport.timeout_s = 7.0
    assert set(parties.all(lambda session: "met", settings={"b": changed}).values()) == {"met"}


def _with_hello(monkeypatch, change):
    """Let party b say something else in its first message."""
    send = module.Mesh.send_json

    def send_json(mesh, peer, message):
        send(mesh, peer, change(message) if mesh.me == "b" and "nonce" in message else message)

    monkeypatch.setattr(module.Mesh, "send_json", send_json)


def test_another_version_is_named(consortium, monkeypatch):
    _with_hello(monkeypatch, lambda hello: hello | {"version": "9.9\x1b[31m\nforged"})
    results = consortium("two").run(lambda session: "met")
    assert all(isinstance(results[name], SessionError | PeerLostError) for name in ("a", "dealer"))
    texts = [str(result) for result in results.values()]
    assert any(f"b runs version 9.9 [31m forged and a {mpc_imaging.__version__}; install" in text for text in texts)
    assert all("\x1b" not in text and "\n" not in text for text in texts)


@pytest.mark.parametrize(
    "hello",
    [
        [], "hello", {}, {"version": mpc_imaging.__version__, "settings": {}, "nonce": 3},
        {"version": mpc_imaging.__version__, "settings": 5, "nonce": "00"},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_what_is_no_handshake_is_refused(consortium, monkeypatch, hello):
    _with_hello(monkeypatch, lambda message: hello)
    results = consortium("two").run(lambda session: "met")
    assert any("b does not speak this package's handshake" in str(result) for result in results.values())
    assert all(isinstance(results[name], SessionError | PeerLostError) for name in ("a", "dealer"))


def test_a_short_nonce_is_refused(consortium, monkeypatch):
    _with_hello(monkeypatch, lambda hello: hello | {"nonce": "00" * 8})
    results = consortium("two").run(lambda session: "met")
    assert any("nonce of 8 bytes" in str(result) for result in results.values())


def test_sections_that_only_a_peer_has_are_not_repeated(consortium, monkeypatch):
    _with_hello(monkeypatch, lambda hello: hello | {"settings": hello["settings"] | {"\x1b[2J": "x"}})
    results = consortium("two").run(lambda session: "met")
    assert any("sections that a does not have" in str(result) for result in results.values())
    assert not any("\x1b" in str(result) for result in results.values())


def test_the_ledger_has_session_and_end(consortium):
    parties = consortium("two")
    parties.all(lambda session: None)
    for name in parties.names:
        first, last = parties.entries(name)
        assert (first["event"], last["event"]) == ("session", "end")
        assert first["party"] == name and first["version"] == mpc_imaging.__version__
        assert set(first["settings"]) >= {"policy", "protocol", "topology"}
    assert len({parties.entries(name)[0]["session"] for name in parties.names}) == 1


# What peers learn of a failure


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (DataError(["DOE_JANE.dcm: no pixels", "x"]), "data problems; its own log says more"),
        (ModelError(["there is no weights file /home/doe/w.pt"]), "model problems; its own log says more"),
        (ConfigError(["data.path: /home/doe"]), "configuration problems; its own log says more"),
        (CertificateError("/home/doe/party.key: missing"), "CertificateError; its own log says more"),
        (FileNotFoundError(2, "No such file", "/scans/DOE"), "FileNotFoundError; its own log says more"),
        (ValueError("invalid literal: 'DOE^JANE'"), "ValueError; its own log says more"),
        (KeyboardInterrupt(), "stopped by its operator"),
        (SessionError("a and b differ"), "a and b differ"),
        (PolicyError("the policy does not open logits to b"), "the policy does not open logits to b"),
        (EncodingError("a value is not finite"), "a value is not finite"),
    ],
)
def test_public_causes_name_no_file(error, cause):
    assert public_cause(error) == cause


@pytest.mark.parametrize("topology", ["two", "outside"])
def test_a_failure_ends_all_but_tells_no_file(consortium, topology):
    parties = consortium(topology)

    def fail(session):
        raise DataError(["row 3, /scans/DOE_JANE.dcm: no pixels"])

    def wait(session):
        return session.mesh.receive_json(session.compute[0], wait_s=float("inf"))

    waiting = {name: wait for name in parties.names if name != "a"}
    results = parties.run({"a": fail} | waiting)
    assert "DOE_JANE" in str(results["a"]), "the party itself is told everything"
    for name in waiting:
        assert isinstance(results[name], PeerLostError)
        assert str(results[name]).endswith("a: data problems; its own log says more")
        assert parties.entries(name, "abort")
    (entry,) = parties.entries("a", "abort")
    assert entry["cause"] == "data problems; its own log says more"
    assert not any("DOE" in path.read_text() for path in parties.folder.glob("*/*"))


def test_a_ledger_that_was_altered_stops_the_session_everywhere(consortium):
    parties = consortium("two")
    (parties.folder / "b").mkdir(parents=True)
    (parties.folder / "b" / "ledger.jsonl").write_text('{"number": 0}\n')
    results = parties.run(lambda session: session.mesh.receive_json(session.mesh.peers[0], wait_s=float("inf")))
    assert "not a ledger entry" in str(results["b"])
    assert all("not a ledger entry" in str(results[name]) for name in ("a", "dealer"))


def test_a_ledger_that_cannot_be_written_ends_the_session_everywhere(consortium, monkeypatch):
    """Nothing is left open: a disk that is full when the session ends is an error on every party that still listens."""
    parties = consortium("two")

    def fill_the_disk(session):
        def write(event, **details):
            raise OSError(28, "No space left on device")

        session.ledger.write = write

    results = parties.run({"b": fill_the_disk, "a": lambda session: session.mesh.receive_json("b")})
    assert isinstance(results["b"], OSError)
    assert "b: OSError; its own log says more" in str(results["a"])


def test_keys_are_not_printed(consortium):
    def part(session):
        return repr(session.stream(session.mesh.peers[0], "p"))

    assert set(consortium("two").all(part).values()) == {"Stream(key hidden)"}
