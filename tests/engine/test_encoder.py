"""CrypTen's encoder on our fixed point: what it takes, gives and refuses; and the faults of CrypTen's own."""

import numpy as np
import pytest
import torch

from mpc_imaging.engine import compat
from mpc_imaging.errors import EncodingError
from tests.engine.alone import alone

crypten = compat.load()

from crypten.encoder import FixedPointEncoder  # noqa: E402

ENCODINGS = torch.arange(-40 << 16, 0)
WORDS = torch.tensor([0, 1, -1, 2**53 + 1, -(2**53) - 1, 2**62, 2**63 - 1, -(2**63)])


def test_stock_decoding_is_off_by_one_and_ours_is_not():
    """CrypTen divides negative values by scale - 1: why `install` replaces `decode`."""
    exact = ENCODINGS.double() / 2**16
    stock = FixedPointEncoder(16).decode(ENCODINGS).double()
    assert int(((stock - exact).abs() > 0.5).sum()) == 780
    with alone():
        ours = FixedPointEncoder(16).decode(ENCODINGS)
    assert ours.dtype == torch.float32 and torch.equal(ours.double(), exact)


def test_stock_encoding_truncates_and_ours_rounds():
    x = torch.tensor([0.99999, -0.99999, 1 / 3, -2 / 3], dtype=torch.float64)
    nearest = torch.round(x * 2**16).long()
    assert not torch.equal(FixedPointEncoder(16).encode(x), nearest)
    assert FixedPointEncoder(16).encode(np.array([0.5])).item() == 0, "stock: floats of numpy even to whole numbers"
    with alone():
        encoder = FixedPointEncoder(16)
        for form in (x, x.tolist(), x.numpy()):
            assert torch.equal(encoder.encode(form), nearest)
        assert torch.equal(encoder.encode(x.float()), torch.round(x.float().double() * 2**16).long())
        assert torch.equal(encoder.encode([[1, 2], [3, -4]]), torch.tensor([[1, 2], [3, -4]]) << 16)
        assert encoder.encode([]).shape == (0,)
        for number, expected in ((0.99999, 65535), (3, 3 << 16), (True, 1 << 16), (np.float64(0.5), 1 << 15)):
            encoded = encoder.encode(number)
            assert encoded.item() == expected and encoded.shape == () and encoded.dtype == torch.int64
        for kind in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool):
            assert torch.equal(encoder.encode(torch.tensor([0, 1]).to(kind)), torch.tensor([0, 1 << 16]))


def test_stock_encoding_lets_nan_pass_and_ours_refuses():
    FixedPointEncoder(16).encode(torch.tensor([float("nan")]))
    bad = [torch.tensor([float("nan")]), float("nan"), float("inf"), 2.0**50, 2**50, [1.0, float("nan")], 1e300, 2**70]
    bad += [[2**70], np.array([np.inf]), torch.tensor([2**46]), torch.tensor([-(2**46)]), torch.tensor([-(2**63)])]
    with alone():
        for value in bad:
            with pytest.raises(EncodingError):
                FixedPointEncoder(16).encode(value)


def test_what_are_no_real_numbers():
    with alone():
        for value in ("text", torch.tensor([1j]), None):
            with pytest.raises((TypeError, RuntimeError)):
                FixedPointEncoder(16).encode(value)


def test_without_fraction_any_ring_element_passes_both_ways():
    with alone():
        encoder = FixedPointEncoder(0)
        for form in (WORDS, WORDS.tolist(), WORDS.numpy()):
            assert torch.equal(encoder.encode(form), WORDS)
        assert [encoder.encode(word).item() for word in WORDS.tolist()] == WORDS.tolist()
        decoded = encoder.decode(WORDS)
        assert decoded.dtype == torch.int64 and torch.equal(decoded, WORDS)
        assert encoder.encode(0.7).item() == 1
        with pytest.raises(EncodingError):
            encoder.encode(2**63)


def test_nothing_is_decoded_for_those_who_receive_nothing():
    with alone():
        assert FixedPointEncoder(16).decode(None) is None


def test_encrypted_tensors_pass():
    with alone():
        x = crypten.cryptensor(torch.ones(2))
        assert FixedPointEncoder(16).encode(x) is x
