"""How demands become shares: they add up for any number of parties, messages have the sizes that everybody reckons
with, corrections are uniform, and what a peer asks for is checked."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness import correlations as c, dcf
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
from mpc_imaging.randomness.ring import BilinearOp
from mpc_imaging.randomness.streams import NumberedStreams, fresh_key

KEY_ID = bytes(range(16))


def ref(index, *size, count=None):
    """A reference to all of a mask of this shape."""
    strides, step = [], 1
    for n in reversed(size):
        strides, step = [step, *strides], step * n
    return MaskRef(index, step if count is None else count, size, tuple(strides))


CONV = BilinearOp("conv2d", (("groups", 1), ("stride", (2, 2))))
# A session; references are to the numbers in this list.
SESSION = [
    Mask(2 * 3 * 9 * 9), Mask(4 * 3 * 3 * 3), Product(CONV, ref(0, 2, 3, 9, 9), ref(1, 4, 3, 3, 3)),
    Product(BilinearOp("matmul"), MaskRef(1, 108, (3, 36), (36, 1)), MaskRef(1, 108, (36, 3), (1, 36))),
    TruncationPair(50, 16), TruncationPair(50, 40), ComparisonMask(53), Selection(53, 0, BitsRef(6, 53)),
    Selection(53, 16, BitsRef(6, 53)), BinaryTriple(20), SharedBit(21),
]  # fmt: skip
NOTHING = [
    Mask(0), TruncationPair(0, 3), ComparisonMask(0), SharedBit(0), BinaryTriple(0), Mask(0), Mask(0),
    Product(BilinearOp("matmul"), ref(5, 3, 0), ref(6, 0, 2)), Selection(0, 16, BitsRef(2, 0)),
]  # fmt: skip
KEYS = [SignKeys(21, bits, shift, output) for bits, shift in ((9, 0), (32, 16), (31, 33)) for output in (0, 1, 2)
        if shift or output < 2]  # fmt: skip
FOR_TWO = [*KEYS, Selection(21, 16, BitsRef(0, 21)), SignKeys(0, 32, 16, 2)]


def _deal(demands, parties, first=0):
    """All parties' `Dealt`s of each demand; checks the messages' sizes."""
    streams = [NumberedStreams(fresh_key()) for _ in range(parties)]
    dealt = []
    for index, demand in enumerate(demands, first):
        messages = [bytearray().join(message) for message in c.deal(demand, index, streams, KEY_ID)]
        assert [len(m) for m in messages] == [c.message_octets(demand, index, rank, parties) for rank in range(parties)]
        assert sum(map(len, messages)) == parties * demand.common_octets() + c.correction_octets(demand)
        dealt.append(
            [c.draw(demand, index, streams[rank], rank, parties, KEY_ID, messages[rank]) for rank in range(parties)]
        )
    return dealt


def _totals(demand, parts):
    """The sums of all fields."""
    totals = []
    fields = [*demand.random(), *demand.derived()]
    for field, *shares in zip(fields, *(part.shares for part in parts), strict=True):
        assert all(share.dtype == field.dtype and len(share) == field.size for share in shares)
        total = shares[0]
        for share in shares[1:]:
            total = field.add(total, share)
        totals.append(total)
    return totals


def _check_session(demands, parties, first=0):
    everything = _deal(demands, parties, first)
    totals = [_totals(demand, parts) for demand, parts in zip(demands, everything, strict=True)]
    for number, (demand, parts, total) in enumerate(zip(demands, everything, totals, strict=True)):
        count = len(demand.random())
        masks = [totals[reference.index - first][0] for reference in demand.references()]
        for got, want in zip(total[count:], demand.derive(*total[:count], *masks), strict=True):
            assert np.array_equal(got, want), (number, demand.name)
        assert {part.index for part in parts} == {first + number}
        assert len({part.common.tobytes() for part in parts}) == 1
        assert len({part.key_id for part in parts}) == 1
        if demand.common_octets():
            own = [part.own for part in parts]
            assert np.array_equal(parts[0].common, demand.common(total[:count], own, parts[0].key_id))
    return everything


@pytest.mark.parametrize("parties", [2, 3, 4, 5])
@pytest.mark.parametrize("demands", [SESSION, NOTHING], ids=["session", "nothing"])
def test_shares_add_up(demands, parties):
    _check_session(demands, parties)


def test_shares_of_keys_add_up():
    _check_session(FOR_TWO, 2)


@pytest.mark.parametrize("first", [1, 2, 3, 2**40])
def test_whoever_gets_the_correction(first):
    """The same demands at other numbers: shares add up whoever is the holder."""
    for parties in (2, 3):
        _check_session([c.relocated(demand, 0, first) for demand in SESSION], parties, first)


@pytest.mark.parametrize("parties", [2, 3, 4, 5])
def test_the_holder_alternates(parties):
    demand = TruncationPair(10, 16)
    for index in range(2 * parties):
        sizes = [c.message_octets(demand, index, rank, parties) for rank in range(parties)]
        assert sizes[c.holder(index, parties)] == sum(sizes) == c.correction_octets(demand) == 10 * (8 + 4)
    assert [c.holder(index, parties) for index in range(parties)] == list(range(parties))


def test_common_bytes_go_to_all():
    demand = SignKeys(10, 32, 16, Output.truncated)
    assert c.message_octets(demand, 4, 1, 2) == demand.common_octets() == 4000
    assert c.message_octets(demand, 4, 0, 2) == 4000 + 10 * (8 + 24) + 2


def test_masks_need_no_message():
    assert [c.message_octets(Mask(100), index, rank, 2) for index in (0, 1) for rank in (0, 1)] == [0] * 4


def test_demands_are_made_in_any_order():
    streams = [NumberedStreams(fresh_key()) for _ in range(3)]
    order = list(enumerate(SESSION))
    forward = {i: c.deal(demand, i, streams, KEY_ID) for i, demand in order}
    backward = {i: c.deal(demand, i, streams, KEY_ID) for i, demand in reversed(order)}
    for i in forward:
        assert [b"".join(m) for m in forward[i]] == [b"".join(m) for m in backward[i]]


def test_the_same_demand_twice_is_new_randomness():
    first, second = _deal([ComparisonMask(64)] * 2, 2)
    for a, b in zip(first, second, strict=True):
        assert not any(np.array_equal(x, y) for x, y in zip(a.shares, b.shares, strict=True))
    first, second = _deal([SignKeys(64, 32, 0, 0)] * 2, 2)
    assert first[0].key_id != second[0].key_id
    assert not np.array_equal(first[0].own[0], second[0].own[0])
    assert not np.array_equal(first[0].common, second[0].common)


def test_key_ids_belong_to_one_demand():
    ids = {part.key_id for parts in _deal([SignKeys(1, 32, 0, 0)] * 5, 2) for part in parts}
    assert len(ids) == 5 and all(len(key_id) > dcf.MIN_KEY_ID_BYTES and key_id.startswith(KEY_ID) for key_id in ids)


@pytest.mark.parametrize(
    "demand", [TruncationPair(20_000, 16), ComparisonMask(4_000), SignKeys(1_000, 32, 16, 2)], ids=lambda d: d.name
)
def test_messages_are_uniform(demand):
    """Whoever sees a message on its own sees random bytes."""
    streams = [NumberedStreams(fresh_key()) for _ in range(2)]
    for message in c.deal(demand, 0, streams, KEY_ID):
        octets = np.frombuffer(b"".join(message), np.uint8)
        if not len(octets):
            continue
        expected = len(octets) / 256
        assert ((np.bincount(octets, minlength=256) - expected) ** 2 / expected).sum() < 255 + 6 * (2 * 255) ** 0.5


def test_printing_shows_no_share():
    (parts,) = _deal([SharedBit(3)], 2)
    for part in parts:
        assert repr(part) == "Dealt(index=0, shares hidden)"


# Repeated segments


def test_relocation_moves_references_into_the_segment_only():
    product = Product(BilinearOp("mul"), ref(3, 5), ref(12, 5))
    moved = c.relocated(product, 10, 40)
    assert (moved.x.index, moved.y.index) == (3, 42)
    assert moved.x._replace(index=3) == product.x and moved.op == product.op
    assert c.relocated(moved, 40, 10) == product
    selection = Selection(5, 3, BitsRef(10, 5))
    assert c.relocated(selection, 10, 40) == Selection(5, 3, BitsRef(40, 5))
    assert c.relocated(selection, 11, 41) == selection
    for demand in (Mask(5), SharedBit(3), SignKeys(4, 32, 0, 0)):
        assert c.relocated(demand, 0, 100) == demand


# Demands as JSON


@pytest.mark.parametrize("demand", [*SESSION, *NOTHING, *FOR_TWO], ids=lambda d: d.name)
def test_json_round_trip(demand):
    assert c.from_json(json.loads(json.dumps(c.to_json(demand)))) == demand


def test_json_tells_everything():
    texts = [json.dumps(c.to_json(demand)) for demand in [*SESSION, *KEYS]]
    assert len(set(texts)) == len(texts)


@settings(deadline=None)
@given(st.recursive(st.none() | st.integers() | st.text(max_size=9) | st.floats(), lambda s: st.lists(s, max_size=5)))
def test_anything_else_is_refused(data):
    with pytest.raises(RandomnessError):
        c.from_json(data)


BIG = c.MAX_ELEMENTS


def flat(index, count, size=None, stride=None, offset=0):
    """A reference as JSON."""
    return [index, count, [count] if size is None else size, [1] if stride is None else stride, offset]


def product(op, x, y, *params):
    return ["product", op, [list(p) for p in params], x, y]


def image(index, *size):
    return c.to_json(Product(BilinearOp("mul"), ref(index, *size), ref(index, *size)))[3]


ABSURD = {
    "mask": ["mask", BIG + 1],
    "truncation": ["truncation", 1 << 40, 16],
    "tables": ["comparison", BIG // 2],
    "keys": ["sign", BIG // 8, 32, 0, 0],
    "roots": ["sign", BIG // 15, 9, 0, 0],
    "selection": ["selection", BIG + 1, 0, [0, BIG + 1]],
    "binary": ["binary", BIG],
    "bits": ["bit", BIG + 1],
    "referred mask": product("mul", flat(0, BIG + 1, [1]), flat(1, 1)),
    "broadcast view": product("mul", flat(0, 1, [1 << 15, 1 << 15], [0, 0]), flat(1, 1)),
    "broadcast product": product("mul", flat(0, 1 << 16, [1 << 16, 1], [1, 1]), flat(1, 1 << 16)),
    "outer product": product("matmul", flat(0, 1 << 16, [1 << 16, 1], [1, 1]), flat(1, 1 << 16, [1, 1 << 16], [1, 1])),
    "repeated operand": product(
        "matmul",
        flat(0, 1 << 26, [1 << 10, 1, 1, 1 << 16], [1 << 16, 1, 1, 1]),
        flat(1, 1 << 26, [1 << 10, 1 << 16, 1], [1 << 16, 1, 1]),
    ),
    "padding": product("conv2d", image(0, 1, 1, 4, 4), image(1, 1, 1, 2, 2), ["padding", [1 << 28, 1 << 28]]),
    # The result is small, the padded image is not.
    "padding that a stride skips": product(
        "conv2d", image(0, 1, 1, 4, 4), image(1, 1, 1, 4, 4), ["padding", [1 << 28] * 2], ["stride", [BIG, BIG]]
    ),
    "windows": product("conv2d", image(0, 1, 64, 512, 512), image(1, 1, 64, 256, 256)),
    # Sizes whose product is zero modulo 2**64.
    "overflow": product("conv2d", image(0, 1, 1, 0, 0), image(1, 1, 1, 1 << 14, 1 << 14), ["padding", [BIG, BIG]]),
    "overflow of the result": product("conv2d", image(0, 16, 0, 0, 0), image(1, 1, 0, 1, 1), ["padding", [BIG, BIG]]),
    "output padding": product(
        "conv_transpose2d", image(0, 1, 1, 4, 4), image(1, 1, 1, 2, 2), ["output_padding", [1 << 28, 1 << 28]]
    ),
    "padding that dilation undoes": product(
        "conv_transpose2d", image(0, 1, 1, 1, 1), image(1, 1, 1, 1, 2),
        ["dilation", [1, 1 << 14]], ["padding", [0, 1 << 13]], ["output_padding", [1 << 20, 0]],
    ),
    "windows of a transposed one": product(
        "conv_transpose2d", image(0, 1, 1 << 20, 1, 1), image(1, 1 << 20, 1, 2, 2), ["dilation", [1 << 9, 1 << 9]]
    ),
    "spread": product(
        "conv_transpose2d", image(0, 1, 1, 2, 2), image(1, 1, 1, 1, 1), ["stride", [1 << 20, 1 << 20]]
    ),
    "gradient": product(
        "conv2d_weight", image(0, 1, 64, 512, 512), image(1, 1, 1, 1, 1), ["kernel", [512, 512]]
    ),
}  # fmt: skip


@pytest.mark.parametrize("data", ABSURD.values(), ids=ABSURD)
def test_absurd_sizes(data):
    with pytest.raises(RandomnessError):
        c.from_json(json.loads(json.dumps(data)))


WRONG = {
    "no name": [],
    "unknown name": ["store", 8],
    "name that is a list": [["mask"], 8],
    "too short": ["truncation", 8],
    "too long": ["mask", 8, 8],
    "negative": ["comparison", -1],
    "text": ["comparison", "8"],
    "fraction": ["comparison", 8.5],
    "whole fraction": ["comparison", 8.0],
    "truth": ["comparison", True],
    "nothing": ["comparison", None],
    "bits of truncation": ["truncation", 10, 62],
    "bits of comparison": ["sign", 8, 8, 0, 0],
    "bits after a shift": ["sign", 8, 49, 16, 0],
    "output": ["sign", 8, 32, 16, 3],
    "truncated by nothing": ["sign", 8, 32, 0, 2],
    "bits of selection": ["selection", 8, 0, [0, 7]],
    "selection without bits": ["selection", 8, 0],
    "selection by two": ["selection", 8, 0, [0, 8], [1, 8]],
    "selection by no list": ["selection", 8, 0, 5],
    "selection by a negative": ["selection", 8, 0, [-1, 8]],
    "selection by a fraction": ["selection", 8, 0, [0.0, 8]],
    "operation": product("__import__", flat(0, 1), flat(1, 1)),
    "operation that is a list": product([], flat(0, 1), flat(1, 1)),
    "one operand": ["product", "mul", [], flat(0, 1)],
    "short reference": product("mul", [0, 1, [1], [1]], flat(1, 1)),
    "negative reference": product("mul", flat(-1, 1), flat(1, 1)),
    "text reference": product("mul", flat("0", 1), flat(1, 1)),
    "reference that is true": product("mul", flat(True, 1), flat(1, 1)),
    "sizes without strides": product("mul", flat(0, 4, [2, 2], [2]), flat(1, 1)),
    "negative stride": product("mul", flat(0, 4, [4], [-1]), flat(1, 1)),
    "negative offset": product("mul", flat(0, 4, [4], [1], -1), flat(1, 1)),
    "view past the end": product("mul", flat(0, 4, [4], [1], 1), flat(1, 1)),
    "stride past the end": product("mul", flat(0, 4, [2, 2], [3, 1]), flat(1, 1)),
    "sizes that do not fit": product("matmul", flat(0, 6, [2, 3], [3, 1]), flat(1, 6, [2, 3], [3, 1])),
    "parameter of another operation": product("mul", flat(0, 1), flat(1, 1), ["stride", [1, 1]]),
    "parameter that is text": product("conv2d", image(0, 1, 1, 4, 4), image(1, 1, 1, 2, 2), ["stride", "x"]),
    "parameter that is a fraction": product("conv2d", image(0, 1, 1, 4, 4), image(1, 1, 1, 2, 2), ["groups", 1.5]),
    "unknown parameter": product("conv2d", image(0, 1, 1, 4, 4), image(1, 1, 1, 2, 2), ["bias", 1]),
    "no stride": product("conv2d", image(0, 1, 1, 4, 4), image(1, 1, 1, 2, 2), ["stride", [0, 1]]),
    "no dilation": product("conv2d", image(0, 1, 1, 4, 4), image(1, 1, 1, 2, 2), ["dilation", [1, 0]]),
    "negative padding": product("conv2d", image(0, 1, 1, 4, 4), image(1, 1, 1, 2, 2), ["padding", [-1, 0]]),
    "negative groups": product("conv2d", image(0, 1, 1, 4, 4), image(1, 1, 1, 2, 2), ["groups", -1]),
    "no groups": product("conv2d", image(0, 1, 0, 4, 4), image(1, 1, 0, 2, 2), ["groups", 0]),
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
def test_requests_that_no_layer_makes(data):
    with pytest.raises(RandomnessError) as caught:
        c.from_json(data)
    assert "\n" not in str(caught.value)


PARAMS = {
    "mul": [], "matmul": [], "conv1d": ["stride", "padding", "dilation", "groups"],
    "conv2d": ["stride", "padding", "dilation", "groups"],
    "conv_transpose1d": ["stride", "padding", "dilation", "output_padding", "groups"],
    "conv_transpose2d": ["stride", "padding", "dilation", "output_padding", "groups"],
    "conv2d_weight": ["stride", "padding", "dilation", "kernel", "groups"],
}  # fmt: skip


@st.composite
def products(draw):
    """Requests for products, of which many fit and many do not, on views of masks of 60 elements."""
    name = draw(st.sampled_from(list(PARAMS)))
    wide = 1 if name.endswith("1d") else 2
    counts = st.lists(st.sampled_from([0, 1, 1, 1, 2, 3]), min_size=wide, max_size=wide)
    params = [
        [key, draw(st.sampled_from([1, 1, 1, 0, 2])) if key == "groups" else draw(counts)]
        for key in PARAMS[name] if draw(st.booleans())
    ]  # fmt: skip
    sizes = st.sampled_from([0, 1, 1, 2, 2, 3, 4])
    rank = st.just(wide + 2) if PARAMS[name] else st.integers(0, 4)
    references = []
    for index in (0, 1):
        size = draw(rank.flatmap(lambda n: st.lists(sizes, min_size=n, max_size=n)))
        strides = st.lists(st.integers(0, 7), min_size=len(size), max_size=len(size))
        references.append([index, 60, size, draw(strides), draw(st.sampled_from([0, 0, 1, 60]))])
    if draw(st.booleans()) and PARAMS[name]:
        # Channels that fit.
        references[1][2][0 if "transpose" in name else 1] = references[0][2][1]
    return product(name, *references, *params)


@settings(max_examples=400, deadline=None)
@given(products())
def test_what_is_accepted_can_be_dealt(data):
    """A peer's request either is refused or is dealt: nothing makes the dealer fail on the way."""
    try:
        demand = c.from_json(json.loads(json.dumps(data)))
    except RandomnessError:
        return
    assert c.from_json(c.to_json(demand)) == demand
    streams = [NumberedStreams(bytes([i]) * 32) for i in range(2)]
    messages = c.deal(demand, 2, streams, KEY_ID)
    assert [sum(map(len, message)) for message in messages] == [c.correction_octets(demand), 0]


def test_refusing_takes_no_memory():
    """Refusals, one after another, in a process that may not take much."""
    program = """
import json, resource, sys
from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness import correlations
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
for data in json.loads(sys.stdin.read()):
    try:
        correlations.from_json(data)
    except RandomnessError:
        continue
    sys.exit(f"accepted: {data}")
"""
    data = json.dumps([*ABSURD.values(), *WRONG.values()])
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_dealer_loads_nothing_that_it_does_not_need():
    program = """
import json, sys
from mpc_imaging.randomness import correlations, dealer
from mpc_imaging.randomness.streams import NumberedStreams, fresh_key
x, y = [0, 16, [1, 1, 4, 4], [16, 16, 4, 1], 0], [1, 4, [1, 1, 2, 2], [4, 4, 2, 1], 0]
demand = correlations.from_json(["product", "conv2d", [["padding", [1, 1]]], x, y])
correlations.deal(demand, 2, [NumberedStreams(fresh_key()), NumberedStreams(fresh_key())], bytes(16))
unwanted = {"crypten", "torchvision", "sklearn", "hydra", "sympy"}
print(json.dumps(sorted(unwanted & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
