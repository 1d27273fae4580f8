"""The dealer and its clients over real meshes, each party in a thread: agreement, bad requests, parties that go."""

import json

import numpy as np
import pytest

from mpc_imaging.errors import MPCImagingError, PeerLostError, RandomnessError, SessionError
from mpc_imaging.randomness import correlations as c
from mpc_imaging.randomness.dealer import REQUEST_LIMIT, DealerClient, serve
from mpc_imaging.randomness.ring import BilinearOp
from mpc_imaging.randomness.streams import Stream, fresh_key
from mpc_imaging.transport.frames import Kind
from tests.transport.parties import DEALER, A, B, returned, together

DEMANDS = [
    c.BilinearTriple(BilinearOp("matmul"), (3, 4), (4, 2)), c.TruncationPair(5, 16), c.ComparisonMask(21),
    c.SquarePair(3), c.ComparisonMask(0), c.SharedBit(9),
]  # fmt: skip


@pytest.fixture
def session(town):
    """`session(a, b)` runs two compute parties, functions of (client, mesh), beside the dealer: what each returned.

    As in a real session, whoever fails tells its peers the cause.
    """
    meshes = dict(zip((A, B, DEALER), town.meshes([A, B, DEALER]), strict=True))
    keys = [fresh_key(), fresh_key()]

    def party(rank, name, function):
        with meshes[name] as mesh:
            return function(DealerClient(mesh, DEALER, Stream(keys[rank]), holder=rank == 1), mesh)

    def deal():
        with meshes[DEALER] as mesh:
            return serve(mesh, [A, B], [Stream(key) for key in keys])

    def run(a, b):
        return together({A: lambda: party(0, A, a), B: lambda: party(1, B, b), DEALER: deal})

    return run


def use(demands):
    def function(client, mesh):
        shares = [client.get(demand) for demand in demands]
        client.finish()
        return shares, client.log.summary()

    return function


def test_parties_get_shares_that_add_up(session):
    results = session(use(DEMANDS), use(DEMANDS))
    (first, log), (second, same) = returned(results[A]), returned(results[B])
    assert log == same == returned(results[DEALER]).summary()
    assert log["demands"] == len(DEMANDS)
    for demand, a, b in zip(DEMANDS, first, second, strict=True):
        fields = [*demand.random(), *demand.derived()]
        totals = [field.add(x, y) for field, x, y in zip(fields, a, b, strict=True)]
        count = len(demand.random())
        for got, want in zip(totals[count:], demand.derive(*totals[:count]), strict=True):
            assert np.array_equal(got, want)


def test_no_randomness_is_handed_out_twice(session):
    demand = c.SquarePair(100)
    results = session(use([demand] * 3), use([demand] * 3))
    for party in (A, B):
        words = np.concatenate([np.concatenate(shares) for shares in returned(results[party])[0]])
        assert len(np.unique(words)) == len(words) == 600


@pytest.mark.parametrize("other", [DEMANDS[:-1], [*DEMANDS[:-1], c.SharedBit(10)], DEMANDS[::-1], []])
def test_parties_that_used_different_randomness(session, other):
    """Everybody learns of it, not the dealer alone."""
    results = session(use(other), use(DEMANDS))
    assert isinstance(results[DEALER], SessionError)
    assert str(results[DEALER]).startswith(f"{A} used other randomness than {DEALER} served")
    for party in (A, B):
        assert isinstance(results[party], PeerLostError)
        assert f"{A} used other randomness" in str(results[party])


def ask(payload):
    def function(client, mesh):
        mesh.send(DEALER, Kind.REQUEST, payload)
        mesh.receive(DEALER, Kind.CORRECTION, limit=1 << 20)

    return function


def wait(client, mesh):
    mesh.receive_json(DEALER, wait_s=10)


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff\xfe", b"{", b"[" * REQUEST_LIMIT, b"{}", b"[]", b"7", b'"comparison"', b'["comparison"]',
        b'["comparison", "8"]', b'["comparison", 1.5]', b'["store", 8]', b'["truncation", 8, 0]', b'["truncation", 8]',
        b'["bilinear", "matmul", [], [2, 3]]', b'["bilinear", "eval", [], [2, 3], [3, 2]]',
        b'["bilinear", "conv2d", [["bias", 1]], [1, 1, 4, 4], [1, 1, 2, 2]]',
    ],
    ids=lambda payload: repr(payload[:40]),
)  # fmt: skip
def test_malformed_requests(session, payload):
    results = session(wait, ask(payload))
    assert isinstance(results[DEALER], RandomnessError)
    # A cause that others may read: no echo of what was sent.
    assert payload.decode("latin1") not in str(results[DEALER])
    for party in (A, B):
        assert isinstance(results[party], PeerLostError) and str(results[DEALER]) in str(results[party])


@pytest.mark.parametrize(
    "demand",
    [
        ["comparison", 1 << 40],
        ["comparison", c.MAX_ELEMENTS // 2],
        ["square", c.MAX_ELEMENTS + 1],
        ["bilinear", "mul", [], [1 << 16, 1], [1, 1 << 16]],
        ["bilinear", "matmul", [], [1 << 20, 1], [1, 1 << 20]],
        [
            "bilinear",
            "conv2d",
            [["padding", [1 << 28, 1 << 28]], ["stride", [1 << 29] * 2]],
            [1, 1, 4, 4],
            [1, 1, 4, 4],
        ],
    ],
    ids=lambda demand: "-".join(map(str, demand[:2])),
)
def test_absurd_sizes_are_refused_before_memory_is_taken(session, demand):
    results = session(wait, ask(json.dumps(demand).encode()))
    assert isinstance(results[DEALER], RandomnessError)
    for party in (A, B):
        assert isinstance(results[party], PeerLostError)


def test_a_request_that_is_too_long(session):
    results = session(wait, ask(b" " * (REQUEST_LIMIT + 1)))
    assert isinstance(results[DEALER], MPCImagingError) and B in str(results[DEALER])


def leave(client, mesh):
    client.get(DEMANDS[0])


def test_holder_that_leaves_early(session):
    results = session(wait, leave)
    assert isinstance(results[DEALER], PeerLostError) and B in str(results[DEALER])
    assert isinstance(results[A], PeerLostError)


def test_other_party_that_leaves_early(session):
    results = session(leave, use(DEMANDS))
    assert isinstance(results[DEALER], PeerLostError) and A in str(results[DEALER])
    assert isinstance(results[B], PeerLostError)


def test_a_party_that_fails_tells_the_dealer_why(session):
    def fail(client, mesh):
        raise SessionError("hospital_b lost its shares")

    results = session(wait, fail)
    for party in (A, DEALER):
        assert isinstance(results[party], PeerLostError) and "lost its shares" in str(results[party])
