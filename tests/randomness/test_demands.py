"""Demands: the relations between fields in the clear, at the edges; and the demands that cannot be."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness import dcf, demands as d
from mpc_imaging.randomness.demands import Field, Group
from mpc_imaging.randomness.ring import BilinearOp
from mpc_imaging.randomness.streams import Stream

EDGES = np.array([0, 1, 2, 2**15, 2**16 - 1, 2**16, 2**62, 2**63 - 1, 2**63, 2**64 - 1], np.uint64)
KEY_ID = bytes(range(24))


def _packed(bits):
    return np.packbits(np.array(bits, np.uint8))


def _clear(demand, r=None):
    """Random fields in the clear; the mask r may be given."""
    stream = Stream(bytes(32))
    fields = [field.draw(stream) for field in demand.random()]
    if r is not None:
        fields[[field.group for field in demand.random()].index(Group.RING)] = r
    return fields


# Fields


@pytest.mark.parametrize("group", list(Group))
def test_sums_and_differences(group):
    field = Field(group, 10)
    stream = Stream(bytes(32))
    a, b = field.draw(stream), field.draw(stream)
    assert a.dtype == field.dtype and len(a) == 10 and a.nbytes == field.octets
    assert np.array_equal(field.sub(field.add(a, b), b), a)
    assert not np.array_equal(field.add(a, b), a)
    if group is Group.BITS:
        assert np.array_equal(field.add(a, b), a ^ b)
    else:
        total = [(int(x) + int(y)) % 2 ** (8 * group.value) for x, y in zip(a, b, strict=True)]
        assert field.add(a, b).tolist() == total


@pytest.mark.parametrize(("count", "octets"), [(0, 0), (1, 1), (7, 1), (8, 1), (9, 2), (64, 8)])
def test_packed_bits(count, octets):
    assert d.packed(count) == octets == len(np.packbits(np.zeros(count, np.uint8)))


def test_wider_fields_come_first_among_the_derived():
    """A message is cut into arrays without a copy: each starts at a multiple of its element's size."""
    kinds = [
        d.TruncationPair(3, 16), d.TruncationPair(3, 33), d.SignKeys(3, 32, 16, 2), d.SignKeys(3, 31, 33, 2),
        d.SignKeys(3, 32, 16, 1), d.Selection(3, 16, d.BitsRef(0, 3)), d.ComparisonMask(3), d.SharedBit(3),
    ]  # fmt: skip
    for demand in kinds:
        widths = [field.group.value for field in demand.derived()]
        assert widths == sorted(widths, reverse=True), demand.name
        assert demand.common_octets() % 8 == 0, demand.name


# References


@given(st.permutations([0, 1, 2]), st.integers(0, 2))
def test_a_reference_is_seen_as_torch_sees_the_view(order, start):
    base = torch.arange(24).view(2, 3, 4)
    view = base.permute(order)[:, :, start:]
    ref = d.MaskRef(5, 24, tuple(view.shape), view.stride(), view.storage_offset())
    assert torch.equal(ref.view(base.view(-1).numpy().view(np.uint64)), view)
    assert ref.field == Field(Group.RING, 24)


def test_references_find_the_first_random_field():
    for kind in (d.Mask(5), d.SignKeys(5, 32, 0, 0), d.ComparisonMask(5)):
        ref = d.MaskRef(0, 5, (5,), (1,)) if isinstance(kind, d.Mask) else d.BitsRef(0, 5)
        assert kind.random()[0] == ref.field


# Relations


def test_product():
    base = np.arange(1, 13, dtype=np.uint64) * np.uint64(2**61 + 7)
    x, y = d.MaskRef(0, 12, (3, 4), (4, 1)), d.MaskRef(0, 12, (4, 3), (1, 4))
    demand = d.Product(BilinearOp("matmul"), x, y)
    assert demand.shape() == (3, 3) and demand.derived() == [Field(Group.RING, 9)] and demand.random() == []
    a = torch.from_numpy(base.view(np.int64)).view(3, 4)
    assert np.array_equal(demand.derive(base, base)[0], (a @ a.t()).view(-1).numpy().view(np.uint64))
    assert demand.references() == [x, y]


@pytest.mark.parametrize("bits", [1, 16, 32, 33, 61])
def test_truncation_pair(bits):
    demand = d.TruncationPair(len(EDGES), bits)
    shifted, top = demand.derive(EDGES)
    assert shifted.tolist() == [int(r) >> bits for r in EDGES]
    assert top.tolist() == [int(r) >> 63 for r in EDGES]
    assert [part.dtype for part in (shifted, top)] == [field.dtype for field in demand.derived()]


def _check_hidden(rho, r, shift, hidden):
    rho, r = [int(v) for v in rho], [int(v) for v in r]
    if not shift:
        assert hidden[0].tolist() == [p * v for p, v in zip(rho, r, strict=True)]
        return
    shifted, rho_shifted, top, rho_top = (part.tolist() for part in hidden)
    assert shifted == [v >> shift for v in r] and top == [v >> 63 for v in r]
    assert rho_shifted == [p * (v >> shift) for p, v in zip(rho, r, strict=True)]
    assert rho_top == [p * (v >> 63) for p, v in zip(rho, r, strict=True)]


@pytest.mark.parametrize("shift", [0, 1, 16, 32, 33, 61])
def test_selection(shift):
    rho = [1, 0] * 5
    demand = d.Selection(10, shift, d.BitsRef(7, 10))
    hidden = demand.derive(EDGES, _packed(rho))
    _check_hidden(rho, EDGES, shift, hidden)
    assert [part.dtype for part in hidden] == [field.dtype for field in demand.derived()]


@pytest.mark.parametrize("output", list(d.Output))
@pytest.mark.parametrize(("bits", "shift"), [(64, 0), (9, 0), (32, 16), (48, 16), (9, 55), (31, 33)])
def test_sign_keys(bits, shift, output):
    """r' = -(r >> shift); its top bit is shared, and its low bits are what the comparison function compares with."""
    if output is d.Output.truncated and not shift:
        return
    demand = d.SignKeys(len(EDGES), bits, shift, int(output))
    clear = _clear(demand, EDGES)
    rho, *hidden, top = demand.derive(*clear)
    assert [part.dtype for part in (rho, *hidden, top)] == [field.dtype for field in demand.derived()]
    assert [len(part) for part in (rho, *hidden, top)] == [field.size for field in demand.derived()]
    assert np.array_equal(_packed(rho), clear[0] & _packed([1] * len(EDGES)))
    if output is d.Output.bit:
        assert not hidden
    else:
        _check_hidden(rho, EDGES, shift if output is d.Output.truncated else 0, hidden)
    negated = [-(int(r) >> shift) % 2**bits for r in EDGES]
    assert np.unpackbits(top, count=len(EDGES)).tolist() == [value >> (bits - 1) for value in negated]
    own = [[field.draw(Stream(bytes([rank]) * 32)) for field in demand.own()] for rank in (0, 1)]
    common = demand.common(clear, own, KEY_ID)
    assert len(common) == demand.common_octets() == len(EDGES) * dcf.correction_bytes(bits - 1)
    alpha = [value % 2 ** (bits - 1) for value in negated]
    for step in (-1, 0, 1):
        x = np.array([min(max(a + step, 0), 2 ** (bits - 1) - 1) for a in alpha], np.uint64)
        shares = [dcf.evaluate(i, own[i][0].reshape(-1, 16), common, x, bits - 1, KEY_ID) for i in (0, 1)]
        assert (shares[0] ^ shares[1]).tolist() == [int(p < a) for p, a in zip(x.tolist(), alpha, strict=True)]


@pytest.mark.parametrize("parties", [1, 3])
def test_keys_are_for_two_parties(parties):
    demand = d.SignKeys(3, 32, 0, 0)
    own = [[np.zeros(48, np.uint8)]] * parties
    with pytest.raises(RandomnessError, match=f"for 2 compute parties, not {parties}"):
        demand.common(_clear(demand), own, KEY_ID)


def test_comparison_mask():
    count = 1000
    demand = d.ComparisonMask(count)
    clear = _clear(demand)
    clear[1][: len(EDGES)] = EDGES
    rho, r, a, b, b2 = clear
    flag, product, tables, top, c, c2 = demand.derive(*clear)
    assert [part.dtype for part in (flag, product, tables, top, c, c2)] == [f.dtype for f in demand.derived()]
    assert [len(part) for part in (flag, product, tables, top, c, c2)] == [f.size for f in demand.derived()]
    tables = tables.view(np.uint16).reshape(d.CHUNKS, count)
    assert np.all(tables & (tables - np.uint16(1)) == 0) and np.all(tables)
    value = sum(np.log2(tables[k]).astype(np.uint64) << np.uint64(4 * k) for k in range(d.CHUNKS))
    assert np.array_equal(value, r & np.uint64(2**63 - 1))
    assert np.array_equal(np.unpackbits(top, count=count), r >> np.uint64(63))
    assert np.array_equal(np.unpackbits(rho, count=count), flag) and np.array_equal(product, flag * r)
    assert np.array_equal(c, a & b)
    plane = d.packed(count)
    rows = [a.reshape(-1, plane)[row] for row in d.second_operands()]
    assert np.array_equal(c2.reshape(-1, plane), [x & y for x, y in zip(rows, b2.reshape(-1, plane), strict=True)])


def test_and_gates_of_the_prefix_tree():
    """16 chunks: 8, 4, 2 and 1 pairs; all pairs but the lowest of a level need a second product."""
    assert d.and_planes() == (15, 15, 11)
    assert d.second_operands() == [*range(1, 8), *range(9, 12), 13]


def test_small_kinds():
    a, b = _clear(d.BinaryTriple(5))
    assert np.array_equal(d.BinaryTriple(5).derive(a, b)[0], a & b)
    (bits,) = _clear(d.SharedBit(13))
    assert d.SharedBit(13).derive(bits)[0].tolist() == np.unpackbits(bits, count=13).tolist()
    assert d.Mask(5).derived() == [] and d.Mask(5).derive(*_clear(d.Mask(5))) == []


def test_every_kind_has_its_own_name():
    assert set(d.KINDS) == {
        "mask", "product", "truncation", "sign", "selection", "comparison", "binary", "bit",
    }  # fmt: skip


# What cannot be


@pytest.mark.parametrize("bits", [-1, 0, 62, 64])
def test_truncations_that_cannot_be(bits):
    with pytest.raises(RandomnessError, match=f"truncation by {bits} bits: 1 to 61"):
        d.TruncationPair(5, bits)


@settings(max_examples=300)
@given(st.integers(-2, 70), st.integers(-2, 70), st.integers(-1, 4))
def test_comparisons_that_cannot_be(bits, shift, output):
    possible = 0 <= shift <= 61 and 9 <= bits <= 64 - shift and (output in (0, 1) or (output == 2 and shift > 0))
    if possible:
        assert d.SignKeys(5, bits, shift, output).bits == bits
    else:
        with pytest.raises(RandomnessError, match="a comparison"):
            d.SignKeys(5, bits, shift, output)


@pytest.mark.parametrize(("shift", "bits"), [(-1, 5), (62, 5), (3, 4)])
def test_selections_that_cannot_be(shift, bits):
    with pytest.raises(RandomnessError, match=f"a selection of 5 values by {bits} bits, shift {shift}"):
        d.Selection(5, shift, d.BitsRef(0, bits))


def test_products_whose_operands_do_not_fit():
    demand = d.Product(BilinearOp("matmul"), d.MaskRef(0, 6, (2, 3), (3, 1)), d.MaskRef(1, 6, (2, 3), (3, 1)))
    with pytest.raises(RandomnessError, match="do not fit"):
        demand.derived()
