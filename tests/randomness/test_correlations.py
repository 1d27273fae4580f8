"""Correlated randomness: the relations hold, the dealer's corrections are uniform, and requests are checked."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness import correlations as c
from mpc_imaging.randomness.ring import BilinearOp
from mpc_imaging.randomness.streams import Stream, fresh_key

CONV = c.BilinearTriple(BilinearOp("conv2d", (("groups", 1), ("stride", (2, 2)))), (2, 3, 9, 9), (4, 3, 3, 3))
DEMANDS = [CONV, c.SquarePair(50), c.TruncationPair(50, 16), c.ComparisonMask(53), c.BinaryTriple(20), c.SharedBit(21)]
NOTHING = [c.BilinearTriple(BilinearOp("matmul"), (3, 0), (0, 2)), c.SquarePair(0), c.ComparisonMask(0), c.SharedBit(0)]


def _deal(demand, parties):
    keys = [fresh_key() for _ in range(parties)]
    correction = c.correct(demand, [Stream(key) for key in keys], parties - 1)
    payload = bytearray(b"".join(c.pack(correction)))
    assert len(payload) == c.correction_octets(demand)
    shares = [
        c.draw(demand, Stream(key), c.unpack(demand, payload) if rank == parties - 1 else None, rank == parties - 1)
        for rank, key in enumerate(keys)
    ]
    fields = [*demand.random(), *demand.derived()]
    totals = []
    for field, parts in zip(fields, zip(*shares, strict=True), strict=True):
        total = parts[0]
        for part in parts[1:]:
            total = field.add(total, part)
        totals.append(total)
    return totals


@pytest.mark.parametrize("parties", [2, 3, 5])
@pytest.mark.parametrize("demand", DEMANDS + NOTHING, ids=lambda d: d.name)
def test_shares_of_derived_fields_add_up(demand, parties):
    totals = _deal(demand, parties)
    count = len(demand.random())
    for got, want in zip(totals[count:], demand.derive(*totals[:count]), strict=True):
        assert np.array_equal(got, want)


def test_one_hot_tables_follow_the_mask():
    r, *_, tables, top, _, _, flag, product = _deal(c.ComparisonMask(1000), 2)
    tables = tables.view(np.uint16).reshape(c.CHUNKS, 1000)
    value = sum(np.log2(tables[k]).astype(np.uint64) << np.uint64(4 * k) for k in range(c.CHUNKS))
    assert np.array_equal(value, r & np.uint64(2**63 - 1))
    assert np.array_equal(np.unpackbits(top, count=1000), r >> np.uint64(63))
    assert np.array_equal(product, flag * r)


@pytest.mark.parametrize("demand", [c.TruncationPair(20_000, 16), c.ComparisonMask(4_000)], ids=lambda d: d.name)
def test_corrections_are_uniform(demand):
    """Whoever sees a correction on its own sees random bytes."""
    keys = [fresh_key() for _ in range(2)]
    octets = np.concatenate(
        [np.frombuffer(b, np.uint8) for b in c.pack(c.correct(demand, [Stream(k) for k in keys], 1))]
    )
    counts = np.bincount(octets, minlength=256)
    expected = len(octets) / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * (2 * 255) ** 0.5


@pytest.mark.parametrize("demand", DEMANDS, ids=lambda d: d.name)
def test_json_round_trip(demand):
    assert c.from_json(json.loads(json.dumps(c.to_json(demand)))) == demand


@settings(deadline=None)
@given(st.recursive(st.none() | st.integers() | st.text(max_size=9) | st.floats(), lambda s: st.lists(s, max_size=5)))
def test_anything_else_is_refused(data):
    with pytest.raises(RandomnessError):
        c.from_json(data)


@pytest.mark.parametrize(
    "data",
    [
        ["comparison", 1 << 40],
        ["comparison", -1],
        ["truncation", 10, 62],
        ["bilinear", "__import__", [], [1], [1]],
        ["bilinear", "matmul", [], [1 << 20, 1 << 20], [1 << 20, 1 << 20]],
        ["bilinear", "matmul", [], [2, 3], [2, 3]],
        ["bilinear", "conv2d", [["stride", "x"]], [1, 1, 4, 4], [1, 1, 2, 2]],
        ["bilinear", "conv2d", [["stride", [0, 1]]], [1, 1, 4, 4], [1, 1, 2, 2]],
        ["bilinear", "conv2d", [["groups", -1]], [1, 1, 4, 4], [1, 1, 2, 2]],
        # Sizes whose product is zero modulo 2**64.
        ["bilinear", "conv2d", [["padding", [1 << 29, 1 << 29]]], [1, 1, 0, 0], [1, 1, 1 << 28, 16]],
        ["bilinear", "conv_transpose2d", [["output_padding", [1 << 28, 1 << 28]]], [1, 1, 4, 4], [1, 1, 2, 2]],
    ],
)
def test_requests_that_no_layer_makes(data):
    with pytest.raises(RandomnessError):
        c.from_json(data)


def test_a_dealer_loads_nothing_that_it_does_not_need():
    program = """
import json, sys
from mpc_imaging.randomness import correlations, dealer
from mpc_imaging.randomness.streams import Stream, fresh_key
demand = correlations.from_json(["bilinear", "conv2d", [["padding", [1, 1]]], [1, 1, 4, 4], [1, 1, 2, 2]])
correlations.correct(demand, [Stream(fresh_key()), Stream(fresh_key())], 1)
unwanted = {"crypten", "torchvision", "sklearn", "hydra", "sympy"}
print(json.dumps(sorted(unwanted & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_bilinear_triple_of_int64():
    a, b, product = _deal(CONV, 2)
    x, w = torch.from_numpy(a.view(np.int64)).view(CONV.x_shape), torch.from_numpy(b.view(np.int64)).view(CONV.y_shape)
    expected = torch.nn.functional.conv2d(x, w, stride=2)
    assert torch.equal(torch.from_numpy(product.view(np.int64)).view(expected.shape), expected)
