"""Fixed point: nearest number, exact way back for every ring element, typed errors at the edges."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mpc_imaging.engine.encoding import decode, encode, encode_number
from mpc_imaging.errors import EncodingError

BITS = [0, 1, 12, 16, 20, 30]


@pytest.mark.parametrize("bits", BITS)
@settings(deadline=None)
@given(value=st.floats(-(2.0**31), 2.0**31))
def test_nearest_number(bits, value):
    encoded = encode(torch.tensor(value, dtype=torch.float64), bits).item()
    # In exact integers: Python's round of a fraction ties to even as well.
    assert encoded == round(Fraction(value) * 2**bits)


@pytest.mark.parametrize("bits", BITS)
@settings(deadline=None)
@given(value=st.integers(-(2**53), 2**53))
def test_decoding_is_exact_and_encoding_its_inverse(bits, value):
    real = decode(torch.tensor(value), bits)
    assert real.item() == value / 2**bits
    assert encode(real, bits).item() == value


def test_shapes_and_types_are_kept():
    x = torch.randn(2, 3, 4)
    assert encode(x, 16).shape == x.shape and encode(x, 16).dtype == torch.int64
    assert decode(encode(x, 16), 16).dtype == torch.float64
    assert encode(torch.empty(0, 3), 16).shape == (0, 3)
    assert torch.equal(encode(x.half(), 16), encode(x.half().double(), 16))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2.0**46, -(2.0**46), 1e300])
def test_what_does_not_fit_is_refused(bad):
    x = torch.zeros(2, 3, dtype=torch.float64)
    x[1, 2] = bad
    with pytest.raises(EncodingError, match=r"2\*\*46 in size; scale the input or lower protocol.fraction_bits"):
        encode(x, 16)


def test_error_names_no_value():
    with pytest.raises(EncodingError) as caught:
        encode(torch.tensor([123456789.0**3]), 16)
    assert "12345" not in str(caught.value) and "e+" not in str(caught.value)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_that_fits(sign):
    largest = np.nextafter(2.0**46, 0)
    assert encode(torch.tensor(sign * largest, dtype=torch.float64), 16).item() == sign * (2**62 - 2**9)


# Values of the ring at which float64 or float32 begin to round, and where the ring ends.
EDGES = [0, *(sign * (2**k + d) for k in (23, 24, 52, 53, 60, 61, 62, 63) for d in (-1, 0, 1) for sign in (1, -1))]
RING = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([v for v in EDGES if -(2**63) <= v < 2**63]),
    # Halfway between two float32, and one more or less: by way of float64 these are rounded twice.
    st.builds(
        lambda k, m, d, sign: sign * ((2 * m + 1) * 2**k + d),
        st.integers(1, 38), st.integers(2**23, 2**24 - 1), st.sampled_from([-1, 0, 1]), st.sampled_from([1, -1]),
    ),
)  # fmt: skip
KINDS = {torch.float32: np.float32, torch.float64: np.float64}


def _nearest(value: Fraction, dtype: torch.dtype) -> float:
    """The float nearest to a fraction, ties to even, in exact arithmetic."""
    kind = KINDS[dtype]
    guess = kind(float(value))
    near = [guess, np.nextafter(guess, kind(-np.inf)), np.nextafter(guess, kind(np.inf))]
    error = min(abs(Fraction(float(f)) - value) for f in near)
    best = [f for f in near if abs(Fraction(float(f)) - value) == error]
    even = [f for f in best if int(f.view(np.uint32 if dtype == torch.float32 else np.uint64)) % 2 == 0]
    return float(best[0] if len(best) == 1 else even[0])


@pytest.mark.parametrize("dtype", KINDS)
@settings(deadline=None, max_examples=400)
@given(value=RING, bits=st.integers(0, 62))
def test_decoding_gives_the_nearest_float_of_every_ring_element(dtype, value, bits):
    # Many at once: torch converts long tensors by other instructions.
    decoded = decode(torch.full((67,), value), bits, dtype)
    assert decoded.dtype == dtype and decoded.unique().tolist() == [_nearest(Fraction(value, 2**bits), dtype)]


def test_float32_by_way_of_float64_is_rounded_twice():
    """Why `decode` is asked for float32."""
    value = torch.tensor(2**60 + 2**36 + 1)
    assert decode(value, 0, torch.float32).item() == 2**60 + 2**37
    assert decode(value, 0).float().item() == 2**60


@settings(deadline=None)
@given(value=st.integers(-(2**62) + 1, 2**62 - 1), bits=st.integers(0, 62))
def test_whole_numbers_are_exact(value, bits):
    if abs(value) < 2 ** (62 - bits):
        assert encode(torch.tensor(value), bits).item() == value << bits
    else:
        with pytest.raises(EncodingError):
            encode(torch.tensor(value), bits)


@settings(deadline=None)
@given(value=st.one_of(st.floats(-(2.0**63), 2.0**63), st.integers(-(2**63), 2**63)), bits=st.integers(0, 62))
def test_one_number_is_encoded_as_in_a_tensor(value, bits):
    try:
        exact = round(Fraction(value) * 2**bits)
        fits = abs(exact) < 2**62
    except (OverflowError, ValueError):
        fits = False
    if fits:
        assert encode_number(value, bits).item() == exact
        if isinstance(value, float):
            assert encode(torch.tensor(value, dtype=torch.float64), bits).item() == exact
    else:
        with pytest.raises(EncodingError):
            encode_number(value, bits)


@settings(deadline=None)
@given(value=st.floats(-(2.0**30), 2.0**30, width=32), bits=st.integers(0, 31))
def test_float32_is_encoded_as_its_exact_value(value, bits):
    assert encode(torch.tensor(value), bits).item() == round(Fraction(value) * 2**bits)


def test_complex_numbers_are_refused():
    with pytest.raises(TypeError, match="real numbers"):
        encode(torch.tensor([1j]), 16)
