"""Keystreams: the right cipher, no repetition, nothing that leaks a key."""

import copy
import pickle

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from mpc_imaging.randomness.streams import NumberedStreams, Stream, derive_key, fresh_key


def test_is_aes_256_ctr_from_zero():
    key = bytes(range(32))
    count = (1 << 18) + 5  # across the internal block of zeros
    expected = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(count))
    assert Stream(key).octets(count).tobytes() == expected


def test_known_answer():
    # AES-256 of the all-zero block under the all-zero key (FIPS 197 / NIST AESAVS).
    assert Stream(bytes(32)).octets(16).tobytes().hex() == "dc95c078a2408989ad48a21492842087"


def test_draws_go_on_where_the_last_ended():
    key = fresh_key()
    a, b = Stream(key), Stream(key)
    parts = np.concatenate([a.octets(3), a.octets(20), a.words(4).view(np.uint8)])
    assert np.array_equal(parts, b.octets(55))


def test_shapes():
    assert Stream(fresh_key()).ring((2, 3)).shape == (2, 3)
    assert Stream(fresh_key()).ring((0, 3)).shape == (0, 3)


def test_labels_and_salts_part_keys():
    secret = fresh_key()
    keys = {derive_key(secret, salt, label) for salt in (b"a", b"b") for label in ("x", "y")}
    assert len(keys) == 4


def test_key_length():
    with pytest.raises(ValueError, match="32 bytes"):
        Stream(b"short")


def test_a_stream_is_neither_printed_nor_copied():
    stream = Stream(fresh_key())
    assert "hidden" in repr(stream)
    with pytest.raises(TypeError, match="repeat"):
        pickle.dumps(stream)


def test_a_number_is_the_upper_half_of_the_counter():
    key, number = bytes(range(32)), 0x0123456789ABCDEF
    start = number.to_bytes(8, "big") + bytes(8)
    expected = Cipher(algorithms.AES256(key), modes.CTR(start)).encryptor().update(bytes(100))
    assert NumberedStreams(key).number(number).octets(100).tobytes() == expected
    assert np.array_equal(NumberedStreams(key).number(0).octets(100), Stream(key).octets(100))


def test_numbered_streams_are_drawn_in_any_order_and_as_often_as_needed():
    key, numbers = fresh_key(), [5, 0, 2**64 - 1, 1, 256, 5]
    streams, others = NumberedStreams(key), NumberedStreams(key)
    drawn = {number: streams.number(number).octets(50).tobytes() for number in numbers}
    for number in reversed(numbers):
        again = others.number(number)
        assert again.octets(20).tobytes() + again.octets(30).tobytes() == drawn[number]


def test_numbered_streams_have_nothing_in_common():
    """Neither with each other nor with those of another key; not even long ones."""
    count = 1 << 16
    streams = [NumberedStreams(key).number(i) for key in (bytes(32), bytes([1]) * 32) for i in (0, 1, 2, 1 << 32)]
    words = np.stack([stream.words(count) for stream in streams])
    assert len(np.unique(words)) == words.size
    bits = np.unpackbits(words.view(np.uint8), axis=1).astype(np.float32) * 2 - 1
    agreement = bits @ bits.T / np.sqrt(bits.shape[1])
    np.fill_diagonal(agreement, 0)
    assert np.abs(agreement).max() < 5


@pytest.mark.parametrize("number", [-1, 1 << 64])
def test_numbers_that_there_are_not(number):
    with pytest.raises(OverflowError):
        NumberedStreams(fresh_key()).number(number)


def test_numbered_streams_are_neither_printed_nor_copied():
    key = fresh_key()
    streams = NumberedStreams(key)
    assert repr(streams) == "NumberedStreams(key hidden)"
    with pytest.raises(TypeError, match="repeat"):
        pickle.dumps(streams)
    with pytest.raises(TypeError, match="repeat"):
        copy.deepcopy(streams)
    with pytest.raises(ValueError, match="32 bytes, not 5") as caught:
        NumberedStreams(b"short")
    assert "short" not in str(caught.value)


def _generated(seed):
    return torch.randint(-(2**63), 2**63 - 1, (4,), generator=torch.Generator().manual_seed(seed))


def test_torch_seed_does_not_decide_shares():
    """The flaw of CrypTen's generator that streams replace: seeds 2**32 apart give the same masks."""
    assert torch.equal(_generated(12345), _generated(12345 + (7 << 32)))
    draws = []
    for _ in range(2):
        torch.manual_seed(12345)
        np.random.seed(12345)
        draws.append(Stream(fresh_key()).ring((4,)))
    assert not torch.equal(*draws)
