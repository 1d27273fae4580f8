"""What follows from an opened, masked bit: every case of b and rho, by hand."""

import itertools

import numpy as np
import pytest
import torch

from mpc_imaging.protocols.sign import Sign
from mpc_imaging.randomness.streams import Stream, fresh_key


def _shared(values):
    stream = Stream(fresh_key())
    first = stream.words(len(values))
    return first, np.array(values, np.int64).view(np.uint64) - first


VALUES = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
CASES = list(itertools.product([0, 1], [0, 1], VALUES))
B, RHO, V = (np.array(column) for column in zip(*CASES, strict=True))


@pytest.fixture
def signs():
    """Two parties' `Sign`s of all cases, of shape (4, 6)."""
    parts = zip(_shared(RHO), _shared(V), _shared(RHO * V), strict=True)
    beta = (B ^ RHO).astype(np.uint64)
    shape = torch.Size([4, len(VALUES)])
    return [Sign(shape, rank == 0, (), beta, *part) for rank, part in enumerate(parts)]


def _sum(signs, method):
    a, b = (getattr(sign, method)() for sign in signs)
    assert a.shape == b.shape == (4, len(VALUES))
    return (a + b).view(-1).numpy()


def test_bit_and_products(signs):
    assert np.array_equal(_sum(signs, "bit"), B)
    assert np.array_equal(_sum(signs, "value"), V)
    assert np.array_equal(_sum(signs, "selected"), B * V)
    assert np.array_equal(_sum(signs, "relu"), (1 - B) * V)


def test_results_are_new_arrays(signs):
    before = [(s.beta.copy(), s.rho.copy(), s.v.copy(), s.rho_v.copy()) for s in signs]
    for method in ("bit", "selected", "relu"):
        for sign in signs:
            getattr(sign, method)().zero_()
    for sign, arrays in zip(signs, before, strict=True):
        for array, copy in zip((sign.beta, sign.rho, sign.v, sign.rho_v), arrays, strict=True):
            assert np.array_equal(array, copy)


def test_bits_keep_no_value(signs):
    bare = [sign.bits() for sign in signs]
    assert all(sign.v is None and sign.rho_v is None for sign in bare)
    assert np.array_equal(_sum(bare, "bit"), B)


def test_nothing():
    sign = Sign.of_nothing(torch.Size([0, 3]), True)
    for method in ("bit", "value", "selected", "relu"):
        assert getattr(sign, method)().shape == (0, 3)


def test_printing_shows_no_share(signs):
    for sign in signs:
        text = repr(sign)
        assert "object at" in text and not any(str(word) in text for word in sign.rho)
