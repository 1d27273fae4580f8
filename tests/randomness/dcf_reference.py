"""A second implementation of the distributed comparison, slow and plain: one element, Python's integers, no numpy.

Figure 1 of Boyle et al., EUROCRYPT 2021, in the format of `mpc_imaging.randomness.dcf`; a block is an integer
of 128 bits. `python -m tests.randomness.dcf_reference` writes the vectors again: only ever for a new format.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

VECTORS = Path(__file__).parent / "vectors" / "dcf_v1.json"

Hash = Callable[[int], int]


def block_hash(key_id: bytes, bits: int, chunk: int) -> Hash:
    label = b"mpc_imaging dcf v1" + bytes([bits]) + chunk.to_bytes(8, "little")
    aes = Cipher(algorithms.AES(hashlib.sha256(label + key_id).digest()[:16]), modes.ECB()).encryptor()
    return lambda block: int.from_bytes(aes.update(block.to_bytes(16, "little")), "little") ^ block


def parse(block: int, side: int) -> tuple[int, int, int]:
    """Seed, t and v of a left (0) or right (1) child, or of a correction on that side."""
    return block >> 3, block >> side & 1, block >> 2 & 1


def generate(hash_: Hash, alpha: int, bits: int, roots: tuple[int, int]) -> list[int]:
    seeds, ts, value, corrections = [root >> 3 for root in roots], [0, 1], 0, []
    for level in range(bits - 7):
        keep = alpha >> (bits - 1 - level) & 1
        lose = 1 - keep
        children = [[parse(hash_(seed << 3 | side), side) for side in (0, 1)] for seed in seeds]
        (s0, _, v0), (s1, _, v1) = children[0][lose], children[1][lose]
        seed_correction = s0 ^ s1
        value_correction = v0 ^ v1 ^ value ^ (lose == 0)
        t_left = children[0][0][1] ^ children[1][0][1] ^ keep ^ 1
        t_right = children[0][1][1] ^ children[1][1][1] ^ keep
        corrections.append(seed_correction << 3 | value_correction << 2 | t_right << 1 | t_left)
        value ^= children[0][keep][2] ^ children[1][keep][2] ^ value_correction
        for party in (0, 1):
            seed, t, _ = children[party][keep]
            seeds[party] = seed ^ (seed_correction if ts[party] else 0)
            ts[party] = t ^ (ts[party] & (t_right if keep else t_left))
    payload = sum(1 << j for j in range(128) if (j < alpha % 128) != bool(value))
    return [*corrections, hash_(seeds[0] << 3 | 2) ^ hash_(seeds[1] << 3 | 2) ^ payload]


def walk(
    hash_: Hash, party: int, root: int, corrections: list[int], x: int, bits: int
) -> Iterator[tuple[int, list[int]]]:
    """On the way to x: the correction and the blocks that the party computes there, as it has them before correcting.

    Returns the party's share of [x < alpha].
    """
    seed, t, value = root >> 3, party, 0
    for level, correction in enumerate(corrections[:-1]):
        side = x >> (bits - 1 - level) & 1
        children = [hash_(seed << 3 | 0), hash_(seed << 3 | 1)]
        yield correction, children
        seed, new_t, v = parse(children[side], side)
        if t:
            seed_correction, t_correction, v_correction = parse(correction, side)
            seed, new_t, v = seed ^ seed_correction, new_t ^ t_correction, v ^ v_correction
        t, value = new_t, value ^ v
    payload = hash_(seed << 3 | 2)
    yield corrections[-1], [payload]
    return value ^ (payload ^ (corrections[-1] if t else 0)) >> (x % 128) & 1


def evaluate(hash_: Hash, party: int, root: int, corrections: list[int], x: int, bits: int) -> int:
    steps = walk(hash_, party, root, corrections, x, bits)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def make_vectors() -> dict:
    """All vectors, by the reference alone, from a fixed seed."""
    rng, cases = random.Random(1), []
    for bits, chunk in ((8, 0), (9, 1), (31, 0), (48, 2**32), (63, 3), (64, 7)):
        top = 2**bits - 1
        alphas = [0, top, rng.randrange(1, top), rng.randrange(1, top), rng.randrange(1, top)]
        points = [0, top, alphas[2] - 1, alphas[3], alphas[4] + 1]
        roots = [[rng.randbytes(16) for _ in alphas] for _ in (0, 1)]
        key_id = rng.randbytes(24)
        hash_ = block_hash(key_id, bits, chunk)
        pairs = [tuple(int.from_bytes(root, "little") for root in pair) for pair in zip(*roots, strict=True)]
        keys = [generate(hash_, alpha, bits, pair) for alpha, pair in zip(alphas, pairs, strict=True)]
        shares = [
            [evaluate(hash_, b, pair[b], key, x, bits) for key, pair, x in zip(keys, pairs, points, strict=True)]
            for b in (0, 1)
        ]
        case = {"bits": bits, "first_chunk": chunk, "key_id": key_id.hex(), "alpha": alphas, "x": points}
        case["roots"] = [b"".join(row).hex() for row in roots]
        levels = zip(*keys, strict=True)
        case["corrections"] = [b"".join(block.to_bytes(16, "little") for block in row).hex() for row in levels]
        cases.append({**case, "shares": shares})
    return {"primitive": "distributed comparison function", "version": 1, "cases": cases}


if __name__ == "__main__":
    VECTORS.parent.mkdir(exist_ok=True)
    VECTORS.write_text(json.dumps(make_vectors(), indent=1) + "\n")
