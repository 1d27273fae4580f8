"""Fixed point: nearest number, exact way back, typed errors at the edges; and the faults of CrypTen's own."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mpc_imaging.engine import compat
from mpc_imaging.engine.encoding import decode, encode
from mpc_imaging.errors import EncodingError
from tests.engine.alone import alone

compat.load()

from crypten.encoder import FixedPointEncoder  # noqa: E402

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


ENCODINGS = torch.arange(-40 << 16, 0)


def test_stock_decoding_is_off_by_one_and_ours_is_not():
    """CrypTen divides negative values by scale - 1: why `install` replaces `decode`."""
    exact = ENCODINGS.double() / 2**16
    stock = FixedPointEncoder(16).decode(ENCODINGS).double()
    assert int(((stock - exact).abs() > 0.5).sum()) == 780
    with alone():
        ours = FixedPointEncoder(16).decode(ENCODINGS).double()
    assert torch.equal(ours, exact)


def test_stock_encoding_truncates_and_ours_rounds():
    x = torch.tensor([0.99999, -0.99999, 1 / 3, -2 / 3], dtype=torch.float64)
    nearest = torch.round(x * 2**16).long()
    assert not torch.equal(FixedPointEncoder(16).encode(x), nearest)
    assert FixedPointEncoder(16).encode(np.array([0.5])).item() == 0, "stock: floats of numpy even to whole numbers"
    with alone():
        encoder = FixedPointEncoder(16)
        for form in (x, x.tolist(), x.numpy()):
            assert torch.equal(encoder.encode(form), nearest)
        assert encoder.encode(0.99999).item() == 65535
        assert encoder.encode(3).item() == 3 << 16


def test_stock_encoding_lets_nan_pass_and_ours_refuses():
    FixedPointEncoder(16).encode(torch.tensor([float("nan")]))
    with alone():
        for bad in (torch.tensor([float("nan")]), float("inf"), 2.0**50, 2**50, [1.0, float("nan")]):
            with pytest.raises(EncodingError):
                FixedPointEncoder(16).encode(bad)


def test_shares_pass_an_encoder_without_fraction_unchanged():
    words = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63)])
    with alone():
        assert torch.equal(FixedPointEncoder(0).encode(words), words)
