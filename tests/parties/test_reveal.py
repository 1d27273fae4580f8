"""Reveals: only what the policy lists, only to those it names, and never without an entry in the ledger."""

import pytest
import torch

from mpc_imaging.errors import PolicyError
from mpc_imaging.parties import reveal as module
from mpc_imaging.parties.policy import allowed_rows
from mpc_imaging.parties.reveal import reveal

LOGITS = torch.arange(10).view(5, 2) - 4


def _spans(parties):
    owners = parties.settings.data_owners()
    spans = {owner: slice(2 * i, 2 * i + 2) for i, owner in enumerate(owners)}
    return spans | {owners[-1]: slice(spans[owners[-1]].start, 5)}


def _opening(parties, value="logits", content=LOGITS):
    """Each compute party but the first holds noise, the first what is left."""
    compute = parties.settings.compute_parties()
    generator = torch.Generator().manual_seed(1)
    shares = {name: torch.randint(-(2**60), 2**60, content.shape, generator=generator) for name in compute[1:]}
    shares[compute[0]] = content - sum(shares.values())

    def part(session):
        return reveal(session, value, shares.get(session.me), content.shape, _spans(parties))

    return shares, part


def _got(results):
    return {name: result.tolist() for name, result in results.items() if result is not None}


@pytest.mark.parametrize("topology", ["two", "three", "outside"])
def test_image_owners_get_their_rows(consortium, topology):
    parties = consortium(topology)
    parties.settings.policy.reveal = {"logits": ["image_owner"]}
    results = _got(parties.all(_opening(parties)[1]))
    assert results == {owner: LOGITS[rows].tolist() for owner, rows in _spans(parties).items()}


@pytest.mark.parametrize(
    ("topology", "recipients"),
    [("two", ["a"]), ("two", ["b"]), ("three", ["b", "c"]), ("outside", ["vendor"]), ("outside", ["h2", "vendor"])],
)
def test_a_named_party_gets_all_rows_and_others_nothing(consortium, topology, recipients):
    parties = consortium(topology)
    parties.settings.policy.reveal = {"logits": recipients}
    results = _got(parties.all(_opening(parties)[1]))
    assert results == dict.fromkeys(recipients, LOGITS.tolist())
    senders = set(parties.settings.compute_parties())
    assert sorted(parties.sent("REVEAL")) == sorted((s, to) for s in senders for to in recipients if s != to)


def test_the_widest_entry_wins(consortium):
    parties = consortium("outside")
    parties.settings.policy.reveal = {"logits": ["image_owner", "receiver"]}
    results = _got(parties.all(_opening(parties)[1]))
    assert results == {"h1": LOGITS[:2].tolist(), "h2": LOGITS.tolist(), "vendor": LOGITS.tolist()}


@pytest.mark.parametrize("content", [torch.tensor(-7), torch.tensor([1, 2, 3]), torch.arange(12).view(3, 2, 2)])
def test_any_shape(consortium, content):
    parties = consortium("outside")
    parties.settings.policy.reveal = {"loss": ["vendor"]}
    opened = parties.all(_opening(parties, "loss", content)[1])["vendor"]
    assert torch.equal(opened, content) and opened.shape == content.shape


def test_an_owner_without_rows_gets_none_and_nothing_is_sent_to_it(consortium):
    parties = consortium("outside")
    parties.settings.policy.reveal = {"logits": ["image_owner"]}
    shares, _ = _opening(parties)
    spans = {"h1": slice(0, 5), "h2": slice(5, 5)}
    results = parties.all(lambda session: reveal(session, "logits", shares.get(session.me), LOGITS.shape, spans))
    assert torch.equal(results["h1"], LOGITS)
    assert results["h2"].shape == (0, 2)
    assert {to for _, to in parties.sent("REVEAL")} == {"h1"}


@pytest.mark.parametrize(("topology", "recipient"), [("two", "b"), ("three", "c"), ("outside", "vendor")])
def test_what_a_recipient_gets_is_rerandomised(consortium, topology, recipient):
    """Two openings of the same shares send other bytes, and never a share itself."""
    payloads = []
    for _ in range(2):
        parties = consortium(topology)
        parties.settings.policy.reveal = {"logits": [recipient]}
        shares, part = _opening(parties)
        parties.all(part)
        payloads.append({sender: payload for sender, _, kind, payload in parties.frames if kind == "REVEAL"})
        for sender, payload in payloads[-1].items():
            sent = torch.frombuffer(bytearray(payload), dtype=torch.int64).view(5, 2)
            assert (sent != shares[sender]).all()
    assert all((payloads[0][sender] != payloads[1][sender]) for sender in payloads[0])


def test_a_recipient_gets_only_its_rows_of_each_share(consortium):
    parties = consortium("outside")
    parties.settings.policy.reveal = {"logits": ["image_owner"]}
    parties.all(_opening(parties)[1])
    sizes = {(sender, to): len(payload) for sender, to, kind, payload in parties.frames if kind == "REVEAL"}
    assert sizes == {("a", "h1"): 32, ("b", "h1"): 32, ("a", "h2"): 48, ("b", "h2"): 48}


def test_the_ledger_says_what_went_to_whom_before_it_went(consortium, monkeypatch):
    parties = consortium("outside")
    parties.settings.policy.reveal = {"logits": ["image_owner", "vendor"]}
    swap = module._swap

    def checked(session, *arguments):
        assert parties.entries(session.me, "reveal"), "nothing moves before the entry is on disk"
        return swap(session, *arguments)

    monkeypatch.setattr(module, "_swap", checked)
    parties.all(_opening(parties)[1])
    everybody = {"h1": [0, 2], "h2": [2, 5], "vendor": [0, 5]}
    for name in ("a", "b"):
        (entry,) = parties.entries(name, "reveal")
        assert (entry["value"], entry["shape"], entry["to"]) == ("logits", [5, 2], everybody)
    for name, rows in everybody.items():
        assert parties.entries(name, "reveal")[0]["to"] == {name: rows}
    assert not parties.entries("dealer", "reveal")


@pytest.mark.parametrize("policy", [{}, {"metrics": ["receiver"]}, {"logits": []}])
def test_what_the_policy_does_not_list_is_not_opened(consortium, policy):
    parties = consortium("two")
    parties.settings.policy.reveal = policy
    assert _got(parties.all(_opening(parties)[1])) == {}
    assert not parties.frames and not any(parties.entries(name, "reveal") for name in parties.names)


def _refused(parties, part):
    """Everybody refuses: nothing is sent, and the ledger has no reveal."""
    results = parties.run(part)
    assert all(isinstance(results[name], PolicyError) for name in parties.settings.compute_parties())
    assert not parties.sent("REVEAL")
    assert not any(parties.entries(name, "reveal") for name in parties.names)


def test_a_value_that_no_policy_can_name_is_refused(consortium):
    parties = consortium("two")
    parties.settings.policy.reveal = {"logits": ["image_owner"]}
    _refused(parties, _opening(parties, "images")[1])


@pytest.mark.parametrize("more", [{"b": slice(0, 5)}, {"a": slice(0, 3)}, {"dealer": slice(0, 1)}])
def test_rows_beyond_the_policy_are_refused(consortium, monkeypatch, more):
    """Should the code that chooses rows ever be wrong, the check before the opening stops it."""
    parties = consortium("two")
    parties.settings.policy.reveal = {"logits": ["image_owner"]}
    _, part = _opening(parties)
    once = module.policy.require

    def too_many(settings, value, spans, total):
        return allowed_rows(settings, value, spans, total) | more

    monkeypatch.setattr(
        module, "policy", type("policy", (), {"allowed_rows": staticmethod(too_many), "require": staticmethod(once)})
    )
    _refused(parties, lambda session: part(session) if session.rank is not None else None)
