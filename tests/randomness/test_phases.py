"""A session in phases over real meshes, each with a plan and keys of its own, and the dealer that follows."""

import numpy as np
import pytest

from mpc_imaging.errors import PeerLostError, RandomnessError, SessionError
from mpc_imaging.randomness import phases
from mpc_imaging.randomness.dealer import PhasedClient, stream_phases
from mpc_imaging.randomness.demands import BitsRef, Mask, MaskRef, Product, Selection, SignKeys, TruncationPair
from mpc_imaging.randomness.phases import Phases
from mpc_imaging.randomness.plan import Plan, Segment
from mpc_imaging.randomness.ring import BilinearOp
from mpc_imaging.randomness.streams import derive_key, fresh_key
from tests.randomness.test_dealer import assert_adds_up
from tests.transport.parties import DEALER, A, B, returned, together

FIRST = (Mask(4), TruncationPair(5, 16), SignKeys(9, 32, 16, 2), Selection(9, 0, BitsRef(2, 9)))
OTHER = (Mask(4), Product(BilinearOp("mul"), *[MaskRef(0, 4, (4,), (1,))] * 2), SignKeys(9, 32, 16, 2))
END = (TruncationPair(3, 8), Mask(1))
PLANS = Phases(tuple(Plan(2, (Segment(0, demands),)) for demands in (FIRST, OTHER, OTHER, END)))


@pytest.fixture
def session(town):
    """`session(a, b)` runs two compute parties, functions of a client, beside the dealer: what each returned."""
    meshes = dict(zip((A, B, DEALER), town.meshes([A, B, DEALER]), strict=True))
    secrets = [fresh_key(), fresh_key()]

    def key(rank, number):
        return derive_key(secrets[rank], b"", phases.purpose(number))

    def party(rank, name, function, plans):
        with meshes[name] as mesh:
            return function(PhasedClient(mesh, DEALER, lambda number: key(rank, number), rank, plans, 1000))

    def deal():
        with meshes[DEALER] as mesh:
            return stream_phases(mesh, [A, B], lambda number: [key(rank, number) for rank in (0, 1)])

    def run(a, b, plans_of_a=PLANS):
        return together({A: lambda: party(0, A, a, plans_of_a), B: lambda: party(1, B, b, PLANS), DEALER: deal})

    return run


def use(*demands):
    """Demands of each phase, the last of which is the end."""

    def function(client):
        dealt = []
        for number, mine in enumerate(demands):
            if number:
                client.next(end=number == len(demands) - 1)
            dealt.append([client.get(demand) for demand in mine])
        client.finish()
        return dealt

    return function


@pytest.mark.parametrize("taken", [(FIRST, OTHER, OTHER, END), (FIRST, OTHER, END), (FIRST, END)], ids=[4, 3, 2])
def test_shares_add_up_in_every_phase_that_is_not_left_out(session, taken):
    results = session(use(*taken), use(*taken))
    plans = returned(results[DEALER])
    assert [tuple(plan.segments[0].items) for plan in plans] == list(taken)
    for demands, first, second in zip(taken, returned(results[A]), returned(results[B]), strict=True):
        assert_adds_up(demands, first, second)


def test_no_phase_repeats_what_another_had(session):
    """Its masks nor the keys that comparisons use, though it has the same plan."""
    results = session(use(FIRST, OTHER, OTHER, END), use(FIRST, OTHER, OTHER, END))
    mine = returned(results[A])
    words = np.concatenate([mine[number][0].shares[0] for number in range(3)])
    assert len(np.unique(words)) == len(words) == 12
    assert len({dealt.key_id for phase in mine for dealt in phase}) == sum(map(len, mine))


@pytest.mark.parametrize(
    ("taken", "text"),
    [
        ((FIRST[:-1], END), "the task ended after 3 demands, before its plan"),
        ((FIRST, (*OTHER, Mask(1)), END), "the plan has nothing more here"),
        ((FIRST, OTHER, OTHER, OTHER, END), "phase 3 of the session is not planned"),
        ((FIRST, FIRST, END), "demand 1 is truncation, but the plan has product here"),
    ],
    ids=["less", "more", "one phase more", "another"],
)
def test_what_is_not_as_planned_ends_the_session(session, taken, text):
    results = session(use(*taken), use(*taken))
    errors = [results[A], results[B]]
    assert all(isinstance(error, RandomnessError | PeerLostError) and text in str(error) for error in errors)


def test_parties_must_be_in_the_same_phase(session):
    results = session(use(FIRST, OTHER, END), use(FIRST, END))
    assert isinstance(results[DEALER], SessionError) and "made different plans" in str(results[DEALER])
    assert all(isinstance(results[name], PeerLostError | SessionError) for name in (A, B))


def test_sums_and_digests():
    other = Phases(PLANS.plans[:-1])
    assert PLANS.count == 12 and PLANS.octets(0) == sum(plan.octets(0) for plan in PLANS.plans)
    assert PLANS.digest == phases.digest(PLANS.plans) != other.digest
