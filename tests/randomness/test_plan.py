"""Plans: recorded, repeated, compared, counted and read back."""

import copy
import json

import pytest

from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness import plan as module
from mpc_imaging.randomness.correlations import message_octets
from mpc_imaging.randomness.demands import (
    BinaryTriple,
    BitsRef,
    ComparisonMask,
    Mask,
    MaskRef,
    Output,
    Product,
    Selection,
    SharedBit,
    SignKeys,
    TruncationPair,
)  # fmt: skip
from mpc_imaging.randomness.plan import Call, Plan, Segment, Tally, macs, tally
from mpc_imaging.randomness.ring import OPERATIONS, BilinearOp

MUL = BilinearOp("mul")


def _product(x, y, count=3):
    return Product(MUL, *(MaskRef(index, count, (count,), (1,)) for index in (x, y)))


# The weights' mask, a step that is called three times, and another one that calls a smaller one.
INNER = Segment(1, (Mask(3), _product(0, 1), TruncationPair(3, 16)))
OUTER = Segment(10, (Mask(3), Call(0, 2), _product(10, 0), SharedBit(5)))
ROOT = Segment(0, (Mask(3), Call(0, 3), Call(1, 2), BinaryTriple(2)))
PLAN = Plan(2, (INNER, OUTER, ROOT))


def test_iteration_moves_references_with_their_segment():
    demands = dict(PLAN)
    assert list(demands) == list(range(PLAN.count)) and PLAN.count == 1 + 9 + 2 * 9 + 1
    products = {n: (d.x.index, d.y.index) for n, d in demands.items() if isinstance(d, Product)}
    assert products == {
        2: (0, 1), 5: (0, 4), 8: (0, 7),
        # First call of the outer segment, from 10: two inner ones, then its own product with its own mask.
        12: (0, 11), 15: (0, 14), 17: (10, 0),
        21: (0, 20), 24: (0, 23), 26: (19, 0),
    }  # fmt: skip
    assert all(isinstance(demands[i], Mask) for pair in products.values() for i in pair)


def test_what_lies_between_an_inner_segment_and_the_outer_one_moves_with_the_outer_one():
    inner = Segment(6, (Mask(3), _product(5, 6)))
    outer = Segment(5, (Mask(3), Call(0, 2)))
    plan = Plan(2, (inner, outer, Segment(0, (Call(1, 2),))))
    assert [(n, d.x.index, d.y.index) for n, d in plan if isinstance(d, Product)] == [
        (2, 0, 1), (4, 0, 3), (7, 5, 6), (9, 5, 8),
    ]  # fmt: skip


@pytest.mark.parametrize("parties", [1, 2, 3, 5])
def test_octets_of_every_rank(parties):
    plan = Plan(parties, PLAN.segments)
    for rank in range(parties):
        assert plan.octets(rank) == sum(message_octets(d, n, rank, parties) for n, d in plan)


def test_selections_move_with_their_comparisons():
    step = Segment(0, (SignKeys(3, 32, 0, Output.bit), Selection(3, 0, BitsRef(0, 3))))
    plan = Plan(2, (step, Segment(0, (Call(0, 3),))))
    assert [d.rho.index for _, d in plan if isinstance(d, Selection)] == [0, 2, 4]


def test_octets_where_all_get_something():
    keys = Segment(0, (SignKeys(10, 32, 0, Output.value), Mask(3), TruncationPair(4, 16)))
    plan = Plan(2, (keys, Segment(0, (Call(0, 7),))))
    for rank in (0, 1):
        assert plan.octets(rank) == sum(message_octets(d, n, rank, 2) for n, d in plan)


def _for(demand):
    return {name: n for name, n in tally(demand, 1, 0, 2)._asdict().items() if n and name not in ("octets", "messages")}


def test_what_demands_are_for():
    assert PLAN.tally(0)[2:] == (0, 0, 7 * 3, 9 * 3)
    assert _for(SignKeys(10, 32, 16, Output.truncated)) == {"comparisons": 10, "levels": 240, "truncations": 10}
    assert _for(SignKeys(10, 32, 16, Output.bit)) == {"comparisons": 10, "levels": 240}
    assert _for(ComparisonMask(10)) == {"comparisons": 10}
    assert _for(Selection(3, 16, BitsRef(0, 3))) == {"truncations": 3}
    assert _for(Selection(3, 0, BitsRef(0, 3))) == {}
    assert tally(Mask(3), 0, 0, 2) == Tally() and tally(SharedBit(3), 0, 0, 2) == Tally(24, 1)
    assert tally(SharedBit(3), 1, 0, 2) == Tally(), "the correction went to the other party"


def test_tallies_by_label():
    labels = [["a", "b", "c"], ["d", None, "b", "e"], ["f", None, None, "g"]]
    tallies = PLAN.tallies(1, labels)
    assert {name: total.macs for name, total in tallies.items() if total.macs} == {"b": 9 * 3}
    assert sum(total.octets for total in tallies.values()) == PLAN.octets(1)
    assert sum(total.messages for total in tallies.values()) == sum(message_octets(d, n, 1, 2) > 0 for n, d in PLAN)


CONV = (("dilation", (1, 1)), ("groups", 2), ("padding", (1, 1)), ("stride", (2, 2)))
KERNEL = (("kernel", (3, 3)), ("padding", (1, 1)))


@pytest.mark.parametrize(
    ("op", "x", "y", "expected"),
    [
        (MUL, (4, 1), (1, 5), 20),
        (BilinearOp("matmul"), (7, 2, 3), (3, 5), 7 * 2 * 3 * 5),
        (BilinearOp("matmul"), (3,), (3,), 3),
        (BilinearOp("conv2d", CONV), (2, 4, 8, 8), (6, 2, 3, 3), 2 * 6 * 16 * 2 * 9),
        (BilinearOp("conv1d"), (2, 4, 8), (6, 4, 3), 2 * 6 * 6 * 4 * 3),
        (BilinearOp("conv_transpose2d"), (2, 4, 8, 8), (4, 3, 2, 2), 2 * 4 * 64 * 3 * 4),
        (BilinearOp("conv_transpose1d"), (2, 4, 8), (4, 3, 2), 2 * 4 * 8 * 3 * 2),
        (BilinearOp("conv2d_weight", KERNEL), (2, 4, 8, 8), (2, 6, 8, 8), 6 * 4 * 9 * 2 * 64),
    ],
    ids=lambda value: value.name if isinstance(value, BilinearOp) else "",
)
def test_multiply_accumulates(op, x, y, expected):
    assert macs(op, x, y) == expected


def test_every_operation_is_priced():
    assert set(OPERATIONS) == {
        "mul", "matmul", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "conv2d_weight",
    }, "an operation that is new here needs its formula in plan.macs, and a row above"  # fmt: skip


def test_json_round_trip():
    text = json.dumps(PLAN.to_json())
    read = Plan.from_json(json.loads(text))
    assert read == PLAN and read.digest == PLAN.digest and list(read) == list(PLAN)


def test_digests_tell_plans_apart():
    others = [
        Plan(3, PLAN.segments),
        Plan(2, (INNER, OUTER, Segment(0, ROOT.items[:-1]))),
        Plan(2, (INNER, OUTER, Segment(0, (*ROOT.items[:-1], BinaryTriple(3))))),
    ]
    assert len({plan.digest for plan in (PLAN, *others)}) == 4


GOOD = PLAN.to_json()


def _with(**changes):
    return copy.deepcopy(GOOD) | changes


@pytest.mark.parametrize(
    "data",
    [
        None, [], "plan", 3, {}, {"parties": 2}, _with(parties=0), _with(parties=True), _with(parties="2"),
        _with(parties=10**9), _with(segments=[]), _with(segments=None), _with(segments="ab"), _with(segments=[[0]]),
        _with(segments=[[0, None]]), _with(segments=[[0, "abc"]]), _with(segments=[[0, {"a": 1}]]),
        _with(segments=[[-1, []]]), _with(segments=[[10**30, []]]), _with(segments=[["0", []]]),
        _with(segments=[[0, [[]]]]), _with(segments=[[0, [3]]]), _with(segments=[[0, [["mask"]]]]),
        _with(segments=[[0, [["nothing", 3]]]]), _with(segments=[[0, [["mask", 10**12]]]]),
        _with(segments=[[0, [["mask", -1]]]]), _with(segments=[[0, [["mask", 2.5]]]]),
        _with(segments=[[0, [[0, 1]]]]), _with(segments=[[0, [[1, 1]]], [0, [["mask", 3]]]]),
        _with(segments=[[0, [["mask", 3]]], [0, [[0, 0]]]]), _with(segments=[[0, [["mask", 3]]], [0, [[0, -2]]]]),
        _with(segments=[[0, [["mask", 3]]], [0, [[0, 1.5]]]]), _with(segments=[[0, [["mask", 3]]], [0, [[0, 1, 1]]]]),
        _with(segments=[[0, [["mask", 3]]], [0, [[-1, 1]]]]),
        # Endless loops, endless lists, endless descents.
        _with(segments=[[0, []], [0, [[0, 10**9]]]]),
        _with(segments=[[0, [["mask", 3]]], [0, [[0, 10**10]]]]),
        _with(segments=[[0, [["mask", 3]]], *([0, [[n, 1000]]] for n in range(4))]),
        _with(segments=[[0, [["mask", 3]]], *([0, [[n, 1]]] for n in range(2000))]),
        _with(segments=[[0, []]] * (module.MAX_SEGMENTS + 1)),
        _with(segments=[[0, [0] * (module.MAX_ITEMS + 1)]]),
    ],
    ids=lambda data: repr(data)[:60],
)  # fmt: skip
def test_what_is_no_plan_is_refused(data):
    with pytest.raises(RandomnessError):
        Plan.from_json(data)


@pytest.mark.parametrize("demand", [_product(0, 1), _product(5, 0), Selection(3, 0, BitsRef(1, 3))], ids=str)
def test_references_to_later_demands_are_refused(demand):
    data = Plan(2, (Segment(0, (Mask(3), demand)),)).to_json()
    with pytest.raises(RandomnessError, match="demand 1 of the plan refers to one that comes later"):
        list(Plan.from_json(data))


def test_large_plans_are_read_without_expanding_them():
    plan = Plan(2, (Segment(0, (Mask(3),)), Segment(0, (Call(0, 10**8),))))
    read = Plan.from_json(plan.to_json())
    assert read.count == 10**8 and read.octets(0) == 0
    first = iter(read)
    assert next(first) == (0, Mask(3)) and next(first) == (1, Mask(3))
