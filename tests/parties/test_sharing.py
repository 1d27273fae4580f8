"""Inputs: shares add up to the value, and go only where they must."""

import numpy as np
import pytest
import torch

from mpc_imaging.parties import sharing
from mpc_imaging.transport import FrameError

VALUE = torch.tensor([[1, -2, 3], [2**62, -(2**62), 0]])


def _share(owner, value=VALUE):
    """Every compute party's share, and None elsewhere."""

    def part(session):
        if session.me == owner:
            return sharing.share(session, "images test", value)
        return sharing.receive(session, owner, "images test", value.shape) if session.rank is not None else None

    return part


@pytest.mark.parametrize(
    ("topology", "owner"),
    [("two", "a"), ("two", "b"), ("three", "c"), ("outside", "h1"), ("outside", "vendor")],
)
def test_inputs_reconstruct(consortium, topology, owner):
    parties = consortium(topology)
    results = parties.all(_share(owner))
    shares = [share for share in results.values() if share is not None]
    assert {name for name, share in results.items() if share is not None} == set(parties.settings.compute_parties())
    assert torch.equal(sum(shares), VALUE)
    assert all((share != VALUE).all() for share in shares), "no party holds the value"


@pytest.mark.parametrize("topology", ["two", "three"])
def test_nothing_is_sent_when_the_owner_computes(consortium, topology):
    parties = consortium(topology)
    parties.all(_share("b"))
    assert not parties.frames


def test_an_outside_owner_sends_one_share_to_the_last_compute_party(consortium):
    parties = consortium("outside")
    results = parties.all(_share("h1"))
    ((*ends, payload),) = parties.frames
    assert ends == ["h1", "b", "SHARE"]
    assert torch.equal(torch.frombuffer(bytearray(payload), dtype=torch.int64).view(2, 3), results["b"])


def test_values_of_one_owner_have_fresh_masks(consortium):
    def part(session):
        return [_share("h1")(session) for _ in range(2)]

    first, second = consortium("outside").all(part)["a"]
    assert (first != second).all()


def test_owners_have_masks_of_their_own(consortium):
    """The same value of two owners does not cancel: their keystreams differ, also where both compute."""

    def part(session):
        return [_share(owner)(session) for owner in ("a", "b")]

    for one, other in (shares for shares in consortium("two").all(part).values() if shares[0] is not None):
        assert (one != other).all() and (one != -other).all()


def test_shares_are_uniform_bytes(consortium):
    value = torch.zeros(40_000, dtype=torch.int64)
    results = consortium("outside").all(_share("h1", value))
    for name in ("a", "b"):
        counts = np.bincount(results[name].numpy().view(np.uint8), minlength=256)
        expected = 8 * len(value) / 256
        assert ((counts - expected) ** 2 / expected).sum() < 400, "chi-squared with 255 degrees: once in 10^8"


@pytest.mark.parametrize("shape", [(0, 3), (), (1,)])
def test_shapes_at_the_edge(consortium, shape):
    value = torch.full(shape, 5)
    results = consortium("outside").all(_share("vendor", value))
    assert torch.equal(results["a"] + results["b"], value)


def test_other_strides_are_the_same_value(consortium):
    value = torch.arange(6).view(2, 3).t()
    results = consortium("outside").all(_share("h1", value))
    assert torch.equal(results["a"] + results["b"], value)


def test_a_share_of_another_size_is_refused(consortium):
    def part(session):
        if session.me == "h1":
            return sharing.share(session, "images test", VALUE)
        return sharing.receive(session, "h1", "images test", (2, 2)) if session.me == "b" else None

    results = consortium("outside").run(part)
    assert isinstance(results["b"], FrameError) and "SHARE of 48 bytes where 32 were due" in str(results["b"])


@pytest.mark.parametrize(("topology", "owner"), [("two", "a"), ("three", "a"), ("outside", "vendor")])
@pytest.mark.parametrize("shape", [(2, 3), (0,)])
def test_public_values_reach_every_compute_party(consortium, topology, owner, shape):
    value = torch.arange(6).view(2, 3) if shape == (2, 3) else torch.empty(0, dtype=torch.int64)
    parties = consortium(topology)

    def part(session):
        return sharing.broadcast(session, owner, "weights fc", value if session.me == owner else None, value.shape)

    for name, seen in parties.all(part).items():
        if name in parties.settings.compute_parties():
            assert torch.equal(seen, value)
            assert parties.entries(name, "public")[0]["owner"] == owner
        else:
            assert seen is None


def test_the_ledger_names_every_input_but_no_value(consortium):
    parties = consortium("outside")
    parties.all(_share("h1"))
    for name in ("h1", "a", "b"):
        (entry,) = parties.entries(name, "input")
        assert (entry["value"], entry["owner"], entry["shape"]) == ("images test", "h1", [2, 3])
        assert str(2**62) not in (parties.folder / name / "ledger.jsonl").read_text()
    for name in ("h2", "vendor", "dealer"):
        assert not parties.entries(name, "input")
