"""Private set intersection: right answers, nothing on the wire that repeats or tells, and no peer is believed."""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings, strategies as st

from mpc_imaging.protocols import intersection
from mpc_imaging.protocols.intersection import ELEMENT_BYTES, IntersectionError, Pair, hash_to_group, intersect
from tests.transport.parties import returned, together

Sets = Mapping[str, Sequence[bytes]]
Tamper = Callable[[int, bytes], bytes]
STEPS = ("blinded images", "doubly blinded images")


class Wire:
    """What a and b send each other, chunk by chunk; ``tamper(number, bytes)`` changes what b sends."""

    def __init__(self, tamper: Tamper = lambda number, sent: sent) -> None:
        self.sent: dict[str, list[bytes]] = {"a": [], "b": []}
        self.queues: dict[str, queue.Queue[bytes]] = {"a": queue.Queue(), "b": queue.Queue()}
        self._tamper = tamper

    def pair(self, me: str, context: bytes = b"session") -> Pair:
        peer = "b" if me == "a" else "a"

        def swap(outgoing: bytes, size: int) -> bytes:
            number = len(self.sent[me])
            self.sent[me].append(outgoing)
            self.queues[peer].put(outgoing if me == "a" else self._tamper(number, outgoing))
            return self.queues[me].get(timeout=10)

        return Pair(me, peer, context, swap)

    def elements(self, me: str, chunk: int) -> list[bytes]:
        sent = self.sent[me][chunk]
        return [sent[at : at + ELEMENT_BYTES] for at in range(0, len(sent), ELEMENT_BYTES)]


def sizes(sets: Sets) -> dict[str, int]:
    return {name: len(contents) for name, contents in sets.items()}


def run(a: Sets, b: Sets, wire: Wire | None = None) -> dict[str, Any]:
    wire = wire or Wire()

    def party(me: str, mine: Sets, theirs: Sets) -> Any:
        pair = wire.pair(me)
        try:
            return intersect(mine, sizes(theirs), pair)
        except IntersectionError:
            wire.queues[pair.peer].put(b"")  # nobody waits for one that stopped
            raise

    return together({"a": lambda: party("a", a, b), "b": lambda: party("b", b, a)})


def expected(mine: Sets, theirs: Sets) -> dict[str, list[frozenset[str]]]:
    return {
        name: [frozenset(n for n, held in theirs.items() if content and content in held) for content in contents]
        for name, contents in mine.items()
    }


contents = st.lists(st.sampled_from([b"", *(bytes([n]) for n in range(8))]), max_size=6)
owners = st.fixed_dictionaries({"train": contents, "test": contents})


@settings(max_examples=30, deadline=None)
@given(owners, owners)
def test_each_learns_what_the_other_has_too_and_in_which_set(a: Sets, b: Sets) -> None:
    results = run(a, b)
    assert returned(results["a"]) == expected(a, b)
    assert returned(results["b"]) == expected(b, a)


@pytest.mark.parametrize("counts", [(7, 2), (3, 9), (0, 4), (0, 0), (6, 6)])
def test_sets_of_several_chunks_and_empty_ones(counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intersection, "CHUNK", 4)
    a, b = ({"train": [b"%d" % n for n in range(count)], "test": [b"2"]} for count in counts)
    results = run(a, b)
    assert returned(results["a"]) == expected(a, b)
    assert returned(results["b"]) == expected(b, a)


A = {"train": [b"x", b"x", b"", b"y", b""], "test": [b"x", b"", b"z"]}
B = {"train": [b"z", b"u"], "test": [b"x"]}


def test_sizes_alone_can_be_seen_whatever_repeats_or_is_blank() -> None:
    """Repeats within a set, the same image in two sets, and blank ones look like any others."""
    wire = Wire()
    run(A, B, wire)
    assert [len(wire.elements("a", step)) for step in (0, 1)] == [8, 3 * 2]
    assert [len(wire.elements("b", step)) for step in (0, 1)] == [3, 8 * 2]
    everything = [element for me in "ab" for step in (0, 1) for element in wire.elements(me, step)]
    common = 2 + 1  # x is at a in two sets, z in one: each of these pairs is doubly blinded alike at both, and no other
    assert len(set(everything)) == len(everything) - common
    for element in everything:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x02" + element)


def test_nothing_sent_returns_in_another_session_and_hashes_are_of_this_one() -> None:
    first, second = Wire(), Wire()
    for wire in (first, second):
        run(A, B, wire)
    for step in (0, 1):
        assert set(first.elements("a", step)).isdisjoint(second.elements("a", step))
    assert hash_to_group(b"one", b"x") != hash_to_group(b"two", b"x")
    hashes = {hash_to_group(b"session", content) for content in (b"x", b"y", b"z", b"u")}
    sent = {element for me in "ab" for step in (0, 1) for element in first.elements(me, step)}
    assert hashes.isdisjoint(sent), "a hash without an exponent could be looked up by anybody"


def test_the_peer_cannot_tell_the_place_of_an_element() -> None:
    """Not even of a common one: the first of eight comes anywhere among those that a sends."""
    seen = set()
    for _ in range(12):
        wire = Wire()
        a, b = {"train": [bytes([n]) for n in range(8)]}, {"train": [b"\0"]}
        run(a, b, wire)
        (back,) = wire.elements("a", 1)  # b's only element, doubly blinded
        seen.add(wire.elements("b", 1).index(back))
    assert len(seen) > 1


def test_secrets_are_not_shown() -> None:
    own = intersection._Set.make([b"secret content"])
    list(own.blinded(b""))
    assert "secret" not in repr(own) and "_Set()" in repr(own)


def _off_the_curve() -> bytes:
    return next(x for n in range(1, 99) if intersection._point(x := n.to_bytes(32, "big")) is None)


P = 2**256 - 2**224 + 2**192 + 2**96 - 1


def _not_reduced() -> bytes:
    """The x of a point on the curve, plus the field's prime: no other encoding of a point may pass."""
    small = next(n for n in range(2**32) if intersection._point(n.to_bytes(32, "big")) is not None)
    return (P + small).to_bytes(32, "big")


BAD = {
    "off the curve": (_off_the_curve(), "no point of P-256 as number 1"),
    "not reduced": (_not_reduced(), "no point of P-256 as number 1"),
    "no field element": (b"\xff" * 32, "no point of P-256 as number 1"),
    "infinity": (b"", "bytes of"),
    "too long": (bytes(33), "bytes of"),
}


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_point_is_refused(kind: str, step: int) -> None:
    bad, problem = BAD[kind]

    def tamper(number: int, sent: bytes) -> bytes:
        return sent[:ELEMENT_BYTES] + bad + sent[2 * ELEMENT_BYTES :] if number == step else sent

    error = run(A, B, Wire(tamper))["a"]
    assert isinstance(error, IntersectionError)
    assert str(error).startswith("b sent a ") and problem in str(error) and STEPS[step] in str(error)


@pytest.mark.parametrize("step", [0, 1])
def test_the_same_point_twice_is_refused(step: int) -> None:
    """A peer that answers with one point for all would hide every duplicate."""

    def tamper(number: int, sent: bytes) -> bytes:
        return sent[:ELEMENT_BYTES] * (len(sent) // ELEMENT_BYTES) if number == step else sent

    error = run(A, B, Wire(tamper))["a"]
    assert isinstance(error, IntersectionError)
    assert f"b sent a the same point twice among its {STEPS[step]}" in str(error)


def test_a_mirror_is_refused() -> None:
    """One that sends back what it got would seem to have every image."""
    wire = Wire()
    mirror = {"b": lambda: wire.queues["a"].put(wire.queues["b"].get(timeout=10))}
    error = together({"a": lambda: intersect(B, sizes(B), wire.pair("a")), **mirror})["a"]
    assert isinstance(error, IntersectionError) and "a's own blinded images back" in str(error)
