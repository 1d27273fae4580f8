"""Distributed comparison function: keys for a secret alpha, each of which turns a public x into a share of [x < alpha].

Shares are bits, and their exclusive-or is the result.

Use: the dealer calls `generate` with the roots of both parties; it and a party expand that party's root from the
keystream that those two alone share. Both parties receive the same corrections, and party b calls `evaluate(b, ...)`
with its own root at the opened x. A root serves one alpha, ever; a key id serves one batch.

Construction: Boyle et al., EUROCRYPT 2021 (ePrint 2020/1392), section 3, figure 1, with the 1-bit payload beta = 1. A
tree of seeds follows the bits of x, highest first: off alpha's path both parties hold the same seed and the same bit t,
on it independent seeds and unequal t. Early termination (Boyle et al., CCS 2016, for point functions): the tree ends 7
levels above the leaves, where the last seed expands to the payload bits of the 128 points below it.

Blocks: 16 bytes, of which the low 3 bits of the first byte are control bits and the other 125 bits a seed. A seed s
expands to H(s), its left child, H(s ^ 1), its right child, and at the end H(s ^ 2), the payload bits (bit j % 8
of byte j // 8 is for point j). H is AES in Matyas-Meyer-Oseas mode, AES_k(block) ^ block. Of a child, bit 0 (if left)
or bit 1 (if right) is t and bit 2 is the payload share v. Of a correction, bits 0 and 1 correct t of a left and of a
right child, and bit 2 corrects v. The low 3 bits of a root are ignored; the t of a root is the party's number.

Corrections: uint8 (N * correction_bytes(bits),), one part after another for each `CHUNK` elements (n in the last part);
a part is uint8 (bits - 6, n, 16), level by level from the root, with the payload bits last. So the elements from any
multiple of `CHUNK` on can be generated, sent and evaluated on their own: see `first_chunk`.

Security (theorem 2 of the source; one semi-honest party): a party's root and the corrections together are pseudo-random
whatever alpha is. Every correction is masked by a block expanded from a seed which that party does not hold: the seed,
the lost child's t and v by the child off alpha's path, the kept child's t by that child, the payload bits by the last
block. The proof replaces the hidden blocks by random ones, from the root down. It needs H(s), H(s ^ 1), H(s ^ 2) of a
uniform hidden s to look random: correlation robustness, which MMO has if AES is an ideal cipher (Guo et al., IEEE S&P
2020). For T calls of the cipher and N hidden blocks under one AES key the advantage is at most T * N / 2**125, since a
call may hit any of them (the multi-instance attack of Guo et al., CRYPTO 2020). Hence each chunk has an AES key of its
own, public, hashed from the key id, the width and the chunk's number, and N = CHUNK * (2 * 57 + 1) < 2**19 for 64 bits,
fewer below: at most T / 2**106 over all chunks, as a call is for one key. The key id should be random, lest somebody
computes ahead.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness.dcf_tree import BLOCK_BYTES, LEAF_BITS, WORD, Encrypt, Evaluation, KeyGeneration

# Elements under one AES key, handled together: their scratch, 1.1 MB to generate and 0.4 MB to evaluate, stays in the
# L2 cache or close to it. Half as many cost a fifth more, since numpy's calls then weigh more; twice as many save a
# tenth but exceed the bound on hidden blocks.
CHUNK = 4096
KEPT_SIZES = 8
MIN_BITS, MAX_BITS = 8, 64
MIN_KEY_ID_BYTES = 16

Tree = TypeVar("Tree", KeyGeneration, Evaluation)


def correction_bytes(bits: int) -> int:
    """Bytes of corrections for one comparison: 16 for each level of the tree and 16 for the payload bits."""
    _check_bits(bits)
    return BLOCK_BYTES * (bits - LEAF_BITS + 1)


def generate(alpha: np.ndarray, bits: int, roots: np.ndarray, key_id: bytes, first_chunk: int = 0) -> np.ndarray:
    """The corrections, the same for both parties, uint8 (N * correction_bytes(bits),) as laid out above (dealer only).

    `alpha` is uint64 (N,), below 2**bits; `roots` is uint8 (2, N, 16), uniform, party 0's first; `key_id` is public,
    16 bytes or more. For a part of a batch, `first_chunk` is the number of its first chunk. Anything else raises
    `RandomnessError`.
    """
    _check_key(bits, key_id, first_chunk)
    _check_array("alpha", alpha, np.uint64, (None,))
    _check_range("alpha", alpha, bits)
    _check_array("roots", roots, np.uint8, (2, len(alpha), BLOCK_BYTES))
    corrections = np.empty(len(alpha) * correction_bytes(bits), np.uint8)
    seeds = np.ascontiguousarray(roots).view(WORD)
    for encrypt, part, levels in _chunks(corrections, len(alpha), bits, key_id, first_chunk):
        tree = _scratch(KeyGeneration, levels.shape[1])
        tree.run(encrypt, alpha[part], bits, seeds[:, part], levels)
    return corrections


def evaluate(
    party: int,
    roots: np.ndarray,
    corrections: np.ndarray,
    x: np.ndarray,
    bits: int,
    key_id: bytes,
    first_chunk: int = 0,
) -> np.ndarray:
    """Party 0's or 1's share of [x < alpha], uint8 (N,) of zeros and ones.

    `roots` is that party's, uint8 (N, 16); `x` is uint64 (N,), below 2**bits; `corrections`, `key_id` and
    `first_chunk` are those of `generate`. Raises `RandomnessError` for anything else.
    """
    if party not in (0, 1):
        raise RandomnessError(f"a comparison is evaluated by party 0 or 1, not {party!r}")
    _check_key(bits, key_id, first_chunk)
    _check_array("x", x, np.uint64, (None,))
    _check_range("x", x, bits)
    _check_array("roots", roots, np.uint8, (len(x), BLOCK_BYTES))
    _check_array("corrections", corrections, np.uint8, (len(x) * correction_bytes(bits),))
    shares = np.empty(len(x), np.uint8)
    seeds = np.ascontiguousarray(roots).view(WORD)
    for encrypt, part, levels in _chunks(np.ascontiguousarray(corrections), len(x), bits, key_id, first_chunk):
        tree = _scratch(Evaluation, levels.shape[1])
        tree.run(encrypt, party, x[part], bits, seeds[part], levels, shares[part])
    return shares


def _chunks(
    corrections: np.ndarray, count: int, bits: int, key_id: bytes, first_chunk: int
) -> Iterator[tuple[Encrypt, slice, np.ndarray]]:
    """Of each chunk: its cipher, its elements, and its corrections as words, (bits - 6, n, 2)."""
    words = corrections.view(WORD)
    width = correction_bytes(bits) // WORD.itemsize
    for chunk, start in enumerate(range(0, count, CHUNK), first_chunk):
        part = slice(start, min(start + CHUNK, count))
        levels = words[part.start * width : part.stop * width].reshape(width // 2, -1, 2)
        yield _cipher(key_id, bits, chunk), part, levels


_memory = threading.local()


def _scratch(kind: type[Tree], count: int) -> Tree:
    """Memory for `count` elements, kept for the next batch of this thread: taking it anew costs a tenth of a chunk."""
    kept = _memory.__dict__.setdefault(kind.__name__, {})
    if count not in kept:
        if len(kept) >= KEPT_SIZES:
            kept.clear()
        kept[count] = kind(count)
    return kept[count]


def _cipher(key_id: bytes, bits: int, chunk: int) -> Encrypt:
    """AES-128 of whole blocks under the chunk's public key."""
    label = b"mpc_imaging dcf v1" + bytes([bits]) + chunk.to_bytes(8, "little")
    key = hashlib.sha256(label + key_id).digest()[:16]
    return Cipher(algorithms.AES128(key), modes.ECB()).encryptor().update_into


def _check_bits(bits: int) -> None:
    if not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise RandomnessError(f"a comparison of {bits!r} bits is not possible; use {MIN_BITS} to {MAX_BITS}")


def _check_key(bits: int, key_id: bytes, first_chunk: int) -> None:
    _check_bits(bits)
    if not isinstance(key_id, bytes) or len(key_id) < MIN_KEY_ID_BYTES:
        raise RandomnessError(f"the key id of a comparison is {MIN_KEY_ID_BYTES} random bytes or more")
    if not isinstance(first_chunk, int) or not 0 <= first_chunk < 1 << 63:
        raise RandomnessError(f"first_chunk is {first_chunk!r}; it counts chunks from 0")


def _check_array(name: str, array: np.ndarray, dtype: type, shape: tuple[int | None, ...]) -> None:
    """A size of None may be anything."""
    wanted = f"{np.dtype(dtype)} {shape}".replace("None", "N")
    if not isinstance(array, np.ndarray):
        raise RandomnessError(f"{name} of a comparison is a {type(array).__name__}; give a numpy array, {wanted}")
    fits = len(shape) == array.ndim and all(w in (None, n) for w, n in zip(shape, array.shape, strict=True))
    if array.dtype != dtype or not fits:
        raise RandomnessError(f"{name} of a comparison is {array.dtype} {array.shape}; give {wanted}")


def _check_range(name: str, values: np.ndarray, bits: int) -> None:
    # The values stay out of the message: alpha is a secret.
    if len(values) and int(values.max()) >> bits:
        raise RandomnessError(f"{name} has values of more than {bits} bits; reduce modulo 2**{bits}")
