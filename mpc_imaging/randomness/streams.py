"""Keystreams: AES-256-CTR from `cryptography`, the only source of randomness for shares and masks.

Two parties that hold the same key draw the same stream, so a share that can be random is never sent. Keys are fresh for
each session and never leave the process; every use of a key has its own label, so no two purposes share a keystream.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
import torch
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
# Zeros that fit the L2 cache are encrypted again and again, instead of a zeroed array of the output's size.
_ZEROS = memoryview(bytes(1 << 18))


def fresh_key() -> bytes:
    """A key of 32 bytes from the operating system."""
    return secrets.token_bytes(KEY_BYTES)


def derive_key(secret: bytes, salt: bytes, label: str) -> bytes:
    """A key of 32 bytes for one purpose, by HKDF-SHA256 (RFC 5869)."""
    return HKDF(hashes.SHA256(), KEY_BYTES, salt, label.encode()).derive(secret)


class Stream:
    """One AES-256-CTR keystream; whoever holds the key and draws in the same order draws the same values.

    Streams of one key with different numbers are independent: the number is the upper half of the counter block.
    """

    def __init__(self, key: bytes, number: int = 0) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a stream key has {KEY_BYTES} bytes, not {len(key)}")
        start = number.to_bytes(8, "big") + bytes(8)
        self._cipher = Cipher(algorithms.AES256(key), modes.CTR(start)).encryptor()

    def __repr__(self) -> str:
        return "Stream(key hidden)"

    def __reduce__(self) -> tuple:
        raise TypeError("a keystream cannot be copied or pickled: the copy would repeat its values")

    def octets(self, count: int) -> np.ndarray:
        """`count` uniform bytes, uint8 (count,)."""
        # update_into wants room for one block more than it writes, but not in stream modes: CTR writes what it reads.
        out = np.empty(count, np.uint8)
        view = memoryview(out)
        for start in range(0, count, len(_ZEROS)):
            size = min(len(_ZEROS), count - start)
            self._cipher.update_into(_ZEROS[:size], view[start : start + size])
        return out

    def words(self, count: int) -> np.ndarray:
        """`count` uniform ring elements, uint64 (count,)."""
        return self.octets(8 * count).view(np.uint64)

    def ring(self, shape: Sequence[int]) -> torch.Tensor:
        """Uniform ring elements as an int64 tensor of `shape`."""
        shape = torch.Size(shape)
        return torch.from_numpy(self.words(shape.numel()).view(np.int64)).view(shape)


class NumberedStreams:
    """The streams of one key, a separate one for each number from 0: drawn in any order, and as often as needed."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a stream key has {KEY_BYTES} bytes, not {len(key)}")
        self._key = key

    def __repr__(self) -> str:
        return "NumberedStreams(key hidden)"

    def __reduce__(self) -> tuple:
        raise TypeError("a stream key cannot be copied or pickled: the copy would repeat its values")

    def number(self, number: int) -> Stream:
        """The stream of this number, from its beginning."""
        return Stream(self._key, number)
