"""The dealer and its clients over real meshes, each party in a thread: shares that add up, plans and requests that are
wrong, and parties that go."""

import json
import threading

import numpy as np
import pytest

from mpc_imaging.errors import MPCImagingError, PeerLostError, RandomnessError, SessionError
from mpc_imaging.randomness import correlations, dealer as dealer_module
from mpc_imaging.randomness.dealer import (
    PLAN_LIMIT,
    REQUEST_LIMIT,
    PlannedClient,
    RequestingClient,
    serve_requests,
    stream_plan,
)  # fmt: skip
from mpc_imaging.randomness.demands import (
    BinaryTriple,
    BitsRef,
    ComparisonMask,
    Mask,
    MaskRef,
    Product,
    Selection,
    SharedBit,
    SignKeys,
    TruncationPair,
)  # fmt: skip
from mpc_imaging.randomness.plan import Call, Plan, Segment
from mpc_imaging.randomness.ring import BilinearOp
from mpc_imaging.randomness.streams import fresh_key
from mpc_imaging.transport.frames import Kind
from tests.transport.parties import DEALER, A, B, returned, together

X, Y = MaskRef(0, 12, (3, 4), (4, 1)), MaskRef(1, 8, (4, 2), (2, 1))
DEMANDS = [
    Mask(12), Mask(8), Product(BilinearOp("matmul"), X, Y), TruncationPair(5, 16), ComparisonMask(21),
    Selection(21, 16, BitsRef(4, 21)), Mask(3), ComparisonMask(0), SignKeys(9, 32, 16, 2),
    Selection(9, 0, BitsRef(8, 9)), SharedBit(9), BinaryTriple(2), Mask(4),
]  # fmt: skip
PLAN = Plan(2, (Segment(0, tuple(DEMANDS)),))


def _planned(plan=PLAN):
    return lambda mesh, key, rank: PlannedClient(mesh, DEALER, key, rank, plan)


def _requesting(mesh, key, rank):
    return RequestingClient(mesh, DEALER, key, rank, 2)


def _serve(mesh, keys):
    return serve_requests(mesh, [A, B], keys).summary()


def _stream(mesh, keys):
    return stream_plan(mesh, [A, B], keys).digest


@pytest.fixture
def session(town):
    """`session(a, b, deal, clients)` runs two compute parties, functions of (client, mesh), beside the dealer: what
    each returned. `clients` makes a party's client, or one for each.

    As in a real session, whoever fails tells its peers the cause.
    """
    meshes = dict(zip((A, B, DEALER), town.meshes([A, B, DEALER]), strict=True))
    keys = [fresh_key(), fresh_key()]

    def party(rank, name, function, make):
        with meshes[name] as mesh:
            return function(make(mesh, keys[rank], rank), mesh)

    def deal(function):
        with meshes[DEALER] as mesh:
            return function(mesh, keys)

    def run(a, b, dealing, clients):
        make_a, make_b = clients if isinstance(clients, tuple) else (clients, clients)
        return together(
            {A: lambda: party(0, A, a, make_a), B: lambda: party(1, B, b, make_b), DEALER: lambda: deal(dealing)}
        )

    return run


@pytest.fixture
def requests(session):
    """A session in which the parties ask for what they need."""
    return lambda a, b: session(a, b, _serve, _requesting)


@pytest.fixture
def planned(session):
    """A session with a plan, or one for each party."""
    return lambda a, b, *plans: session(
        a, b, _stream, tuple(map(_planned, plans)) if len(plans) > 1 else _planned(*plans)
    )


def use(demands):
    def function(client, mesh):
        dealt = [client.get(demand) for demand in demands]
        client.finish()
        return dealt, client.log.summary()

    return function


def wait(client, mesh):
    mesh.receive_json(DEALER, wait_s=10)


def assert_adds_up(demands, first, second):
    totals = []
    for demand, a, b in zip(demands, first, second, strict=True):
        fields = [*demand.random(), *demand.derived()]
        totals.append([field.add(x, y) for field, x, y in zip(fields, a.shares, b.shares, strict=True)])
        count = len(demand.random())
        masks = [totals[ref.index][0] for ref in demand.references()]
        for got, want in zip(totals[-1][count:], demand.derive(*totals[-1][:count], *masks), strict=True):
            assert np.array_equal(got, want)
        assert np.array_equal(a.common, b.common) and a.key_id == b.key_id
        if demand.common_octets():
            assert np.array_equal(a.common, demand.common(totals[-1], [a.own, b.own], a.key_id))


# On request


def test_requested_shares_add_up(requests):
    results = requests(use(DEMANDS), use(DEMANDS))
    (first, log), (second, same) = returned(results[A]), returned(results[B])
    assert log == same == returned(results[DEALER])
    assert log["demands"] == len(DEMANDS)
    assert_adds_up(DEMANDS, first, second)


def test_no_randomness_is_handed_out_twice(requests):
    demand = TruncationPair(100, 40)
    results = requests(use([demand] * 3), use([demand] * 3))
    for party in (A, B):
        words = np.concatenate([np.concatenate(dealt.shares) for dealt in returned(results[party])[0]])
        assert len(np.unique(words)) == len(words) == 900


def test_nothing_but_masks(requests):
    results = requests(use([Mask(5)] * 3), use([Mask(5)] * 3))
    assert returned(results[DEALER]) == returned(results[A])[1] == returned(results[B])[1]


@pytest.mark.parametrize("other", [DEMANDS[:-1], [*DEMANDS[:-1], Mask(5)], [DEMANDS[1], DEMANDS[0], *DEMANDS[2:]]])
def test_parties_that_used_different_randomness(requests, other):
    """Everybody learns of it, not the dealer alone."""
    results = requests(use(other), use(DEMANDS))
    assert isinstance(results[DEALER], SessionError)
    assert str(results[DEALER]).startswith(f"{A} used other randomness than {DEALER} served")
    for party in (A, B):
        assert isinstance(results[party], PeerLostError)
        assert f"{A} used other randomness" in str(results[party])


def test_parties_that_are_out_of_step(requests):
    results = requests(use([]), use(DEMANDS))
    for party in (A, B, DEALER):
        assert isinstance(results[party], MPCImagingError)


def ask(payload):
    def function(client, mesh):
        mesh.send(DEALER, Kind.REQUEST, payload)
        mesh.receive(DEALER, Kind.CORRECTION, limit=1 << 20)

    return function


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff\xfe", b"{", b"[" * REQUEST_LIMIT, b"{}", b"[[]]", b"7", b'"comparison"', b'["comparison", 8]',
        b'[["comparison"]]', b'[["comparison", "8"]]', b'[["comparison", 1.5]]', b'[["store", 8]]',
        b'[["truncation", 8, 0]]', b'[["truncation", 8]]', b'[["mask", 8], ["bit", -8]]',
        b'[["product", "matmul", [], [0, 6, [2, 3], [3, 1], 0]]]', b"[null]", b'[{"mask": 8}]',
        b'[["sign", 8, 32, 16, 9]]',
        # References to itself and to what comes later.
        b'[["mask", 8], ["selection", 8, 0, [1, 8]]]', b'[["mask", 8], ["selection", 8, 0, [2, 8]]]',
        b'[["mask", 8], ["product", "mul", [], [0, 8, [8], [1], 0], [5, 8, [8], [1], 0]]]',
        b'[["selection", 8, 0, [-1, 8]]]', b'[["selection", 8, 0, [' + b"9" * 5000 + b", 8]]]",
    ],
    ids=lambda payload: repr(payload[:40]),
)  # fmt: skip
def test_malformed_requests(requests, payload):
    results = requests(wait, ask(payload))
    assert isinstance(results[DEALER], RandomnessError)
    # A cause that others may read: no echo of what was sent.
    assert payload.decode("latin1") not in str(results[DEALER])
    for party in (A, B):
        assert isinstance(results[party], PeerLostError) and str(results[DEALER]) in str(results[party])


@pytest.mark.parametrize(
    "demand",
    [
        ["comparison", 1 << 40],
        ["comparison", correlations.MAX_ELEMENTS // 2],
        ["sign", correlations.MAX_ELEMENTS // 8, 9, 0, 0],
        ["mask", correlations.MAX_ELEMENTS + 1],
        ["product", "mul", [], [0, 1, [1 << 15, 1], [0, 0], 0], [0, 1, [1, 1 << 15], [0, 0], 0]],
    ],
    ids=lambda demand: "-".join(map(str, demand[:2])),
)
def test_absurd_sizes_are_refused_before_memory_is_taken(requests, demand):
    results = requests(wait, ask(json.dumps([["mask", 1], demand]).encode()))
    assert isinstance(results[DEALER], RandomnessError)
    for party in (A, B):
        assert isinstance(results[party], PeerLostError)


def test_a_request_that_is_too_long(requests):
    results = requests(wait, ask(b" " * (REQUEST_LIMIT + 1)))
    assert isinstance(results[DEALER], MPCImagingError) and B in str(results[DEALER])


def leave(client, mesh):
    client.get(DEMANDS[0])


def test_speaker_that_leaves_early(requests):
    results = requests(wait, leave)
    assert isinstance(results[DEALER], PeerLostError) and B in str(results[DEALER])
    assert isinstance(results[A], PeerLostError)


def test_other_party_that_leaves_early(requests):
    results = requests(leave, use(DEMANDS))
    assert isinstance(results[DEALER], PeerLostError) and A in str(results[DEALER])
    assert isinstance(results[B], PeerLostError)


def fail(client, mesh):
    raise SessionError("hospital_b lost its shares")


def test_a_party_that_fails_tells_the_dealer_why(requests):
    results = requests(wait, fail)
    for party in (A, DEALER):
        assert isinstance(results[party], PeerLostError) and "lost its shares" in str(results[party])


# By a plan


def take(client, mesh):
    """Takes whatever comes, and waits for the end of the session."""
    client.prefetch(1 << 40)
    mesh.receive_json(DEALER, wait_s=10)


def test_planned_shares_add_up(planned):
    results = planned(use(DEMANDS), use(DEMANDS))
    (first, log), (second, same) = returned(results[A]), returned(results[B])
    assert returned(results[DEALER]) == PLAN.digest and log == same
    assert_adds_up(DEMANDS, first, second)


def test_repeated_segments(planned):
    step = Segment(1, (Mask(8), Product(BilinearOp("mul"), MaskRef(0, 8, (8,), (1,)), MaskRef(1, 8, (8,), (1,)))))
    plan = Plan(2, (step, Segment(0, (Mask(8), Call(0, 3), SharedBit(5)))))
    demands = [demand for _, demand in plan]
    assert len(demands) == 8
    results = planned(use(demands), use(demands), plan)
    assert_adds_up(demands, returned(results[A])[0], returned(results[B])[0])


@pytest.mark.parametrize("demands", [[], [Mask(5)]], ids=["nothing", "masks alone"])
def test_plans_without_messages(planned, demands):
    plan = Plan(2, (Segment(0, tuple(demands)),))
    results = planned(use(demands), use(demands), plan)
    for party in (A, B, DEALER):
        returned(results[party])


@pytest.mark.parametrize("limit", [0, 1, 1000, 1 << 40])
def test_prefetch(planned, limit):
    """Whatever is taken beforehand, the parties get the same; and with everything taken nobody waits any more."""

    def function(client, mesh):
        client.prefetch(limit)
        waited = client.waited_s
        assert (waited > 0) == (limit > 0)
        result = use(DEMANDS)(client, mesh)
        assert (client.waited_s == waited) == (limit == 1 << 40)
        return result

    results = planned(function, function)
    assert_adds_up(DEMANDS, returned(results[A])[0], returned(results[B])[0])


def test_prefetch_in_between(planned):
    def function(client, mesh):
        dealt = []
        for demand in DEMANDS:
            client.prefetch(200)
            dealt.append(client.get(demand))
        client.finish()
        return dealt

    results = planned(function, function)
    assert_adds_up(DEMANDS, returned(results[A]), returned(results[B]))


def test_all_parties_prefetch_as_far(planned):
    """Else one would wait for the dealer, the dealer for the other to take what comes first, and that for the one."""
    # Of even numbers the messages are for one party, until the last one.
    demands = [*[TruncationPair(1 << 19, 33), Mask(1)] * 8, Mask(1), SharedBit(8)]
    plan = Plan(2, (Segment(0, tuple(demands)),))

    def function(client, mesh):
        client.prefetch(1 << 25)
        (other,) = {A, B} - {mesh.me}
        mesh.exchange(Kind.OPENING, {other: [b"x"]}, {other: 1})
        for demand in demands:
            client.get(demand)
        client.finish()

    results = planned(function, function, plan)
    for party in (A, B, DEALER):
        returned(results[party])


@pytest.mark.parametrize("prefetch", [0, 1 << 30])
@pytest.mark.parametrize(
    ("demands", "message"),
    [
        ([Mask(12), SharedBit(9)], "demand 1 is bit, but the plan has mask here"),
        ([Mask(13)], "demand 0 is mask, but the plan has mask here"),
        ([*DEMANDS, Mask(3)], "demand 13 is mask, but the plan has nothing more here"),
    ],
)
def test_a_demand_that_is_not_planned(planned, demands, message, prefetch):
    def other(client, mesh):
        client.prefetch(prefetch)
        return use(demands)(client, mesh)

    results = planned(take, other)
    assert isinstance(results[B], RandomnessError) and message in str(results[B])
    for party in (A, DEALER):
        assert isinstance(results[party], PeerLostError) and message in str(results[party])


def test_parties_with_different_plans(planned):
    other = Plan(2, (Segment(0, (*DEMANDS[:-1], Mask(5))),))
    results = planned(use(DEMANDS), use(DEMANDS), other, PLAN)
    assert isinstance(results[DEALER], SessionError)
    assert str(results[DEALER]) == f"{A} and {B} made different plans; run all from the same version"
    for party in (A, B):
        assert isinstance(results[party], PeerLostError) and "made different plans" in str(results[party])


def test_a_dealer_with_another_plan(session):
    def cheat(mesh, keys):
        mesh.receive(B, Kind.REQUEST, limit=PLAN_LIMIT)
        for party in (A, B):
            mesh.receive_json(party)
        for party in (A, B):
            mesh.send_json(party, {"plan": "00" * 32})
        for party in (A, B):
            mesh.receive_json(party)

    results = session(wait, wait, cheat, _planned())
    for party in (A, B):
        assert isinstance(results[party], MPCImagingError)
    assert any(
        isinstance(results[party], SessionError) and f"{DEALER} deals by another plan" in str(results[party])
        for party in (A, B)
    )


class _Raw:
    """In the place of a client: sends a payload as its plan."""

    def __init__(self, payload):
        self.payload = payload

    def __call__(self, mesh, key, rank):
        if rank == 1:
            mesh.send(DEALER, Kind.REQUEST, self.payload)
        mesh.receive_json(DEALER, wait_s=10)


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff", b"[" * 100_000, b"{}", b"null", b'{"parties": 2}', b'{"parties": 2, "segments": []}',
        b'{"parties": "2", "segments": [[0, []]]}', b'{"parties": 2, "segments": [[0, [["mask", -1]]]]}',
        b'{"parties": 2, "segments": [[0, [[0, 1]]]]}', b'{"parties": 2, "segments": [[0, [["mask", 1099511627776]]]]}',
    ],
    ids=lambda payload: repr(payload[:60]),
)  # fmt: skip
def test_malformed_plans(session, payload):
    results = session(wait, wait, _stream, _Raw(payload))
    assert isinstance(results[DEALER], RandomnessError)
    for party in (A, B):
        assert isinstance(results[party], PeerLostError)


def test_a_plan_for_another_number_of_parties(session):
    plan = Plan(3, (Segment(0, tuple(DEMANDS[:3])),))
    results = session(wait, wait, _stream, _Raw(json.dumps(plan.to_json()).encode()))
    assert isinstance(results[DEALER], RandomnessError)
    assert str(results[DEALER]) == f"{B} sent {DEALER} a plan for 3 compute parties"
    for party in (A, B):
        assert isinstance(results[party], PeerLostError)


def test_a_plan_that_refers_to_what_comes_later(planned):
    plan = Plan(2, (Segment(0, (SharedBit(8), Selection(8, 0, BitsRef(2, 8)), SharedBit(8))),))
    results = planned(take, take, plan)
    assert isinstance(results[DEALER], RandomnessError)
    assert "demand 1 of the plan refers to one that comes later" in str(results[DEALER])


def test_a_party_that_ends_before_its_plan(planned):
    def end(client, mesh):
        client.get(DEMANDS[0])
        client.finish()

    results = planned(take, end)
    assert isinstance(results[B], RandomnessError) and "ended after 1 demands, before its plan" in str(results[B])
    for party in (A, DEALER):
        assert isinstance(results[party], PeerLostError) and "before its plan" in str(results[party])


@pytest.mark.parametrize("name", [A, B])
def test_a_party_that_leaves(planned, name):
    parties = {A: take, B: take, name: leave}
    results = planned(parties[A], parties[B])
    assert isinstance(results[DEALER], PeerLostError) and name in str(results[DEALER])


@pytest.mark.parametrize("name", [A, B])
def test_a_party_that_dies(planned, name):
    """Its connections break without a word, while the dealer has much to send."""
    plan = Plan(2, (Segment(0, (TruncationPair(1 << 20, 16),) * 40),))

    def die(client, mesh):
        client.get(TruncationPair(1 << 20, 16))
        for channel in mesh._channels.values():
            channel.close()

    parties = {A: take, B: take, name: die}
    results = planned(parties[A], parties[B], plan)
    assert isinstance(results[DEALER], PeerLostError) and name in str(results[DEALER])
    (other,) = {A, B} - {name}
    assert isinstance(results[other], MPCImagingError)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dealer")]


def test_a_party_that_fails_tells_the_others_why(planned):
    results = planned(take, fail)
    for party in (A, DEALER):
        assert isinstance(results[party], PeerLostError) and "lost its shares" in str(results[party])


@pytest.mark.parametrize(
    "message", [{"demands": 5}, {"demands": -1}, {"demands": True}, {"demands": 3, "more": 1}, None]
)
def test_a_party_says_how_much_of_its_plan_it_used(message):
    assert dealer_module._demands({"demands": 3}, A, 4) == 3, "fewer, where frames of a cine were dropped"
    with pytest.raises(SessionError, match=f"{A} did not say how much of its plan it used"):
        dealer_module._demands(message, A, 4)
