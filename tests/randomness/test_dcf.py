"""Distributed comparison: right everywhere, equal to a slow second implementation, and silent about alpha."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness import dcf
from tests.randomness import dcf_reference as reference

VECTORS = json.loads(reference.VECTORS.read_text())
KEY_ID = bytes(range(16))
SIGMAS = 5.5  # inputs are fixed, so a test that passes always does; ten thousands of counts are looked at


def words(values) -> np.ndarray:
    return np.array(values, np.uint64)


def fixed_roots(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (2, count, 16), dtype=np.uint8)


def uniform(count: int, bits: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**bits - 1, count, dtype=np.uint64, endpoint=True)


def compare(alpha: np.ndarray, x: np.ndarray, bits: int) -> np.ndarray:
    roots = fixed_roots(len(alpha))
    corrections = dcf.generate(alpha, bits, roots, KEY_ID)
    shares = [dcf.evaluate(party, roots[party], corrections, x, bits, KEY_ID) for party in (0, 1)]
    assert all(share.dtype == np.uint8 and share.max(initial=0) <= 1 for share in shares)
    return shares[0] ^ shares[1]


# Right.


@pytest.mark.parametrize("bits", [8, 9, 10])
def test_every_alpha_at_every_point(bits):
    alpha = np.arange(2**bits, dtype=np.uint64)
    roots = fixed_roots(len(alpha))
    corrections = dcf.generate(alpha, bits, roots, KEY_ID)
    for shift in range(2**bits):
        x = np.roll(alpha, shift)
        shares = [dcf.evaluate(party, roots[party], corrections, x, bits, KEY_ID) for party in (0, 1)]
        assert np.array_equal(shares[0] ^ shares[1], x < alpha)


@st.composite
def _edges(draw):
    bits = draw(st.integers(8, 64))
    top = 2**bits - 1
    number = st.one_of(st.sampled_from([0, 1, 127, 128, top // 2, top // 2 + 1, top - 1, top]), st.integers(0, top))
    alphas = draw(st.lists(number, min_size=1, max_size=8))
    pairs = [(alpha, x) for alpha in alphas for x in (0, alpha - 1, alpha, alpha + 1, top, draw(number))]
    return bits, [pair for pair in pairs if 0 <= pair[1] <= top]


@settings(max_examples=150, deadline=None)
@given(_edges())
def test_edges_of_every_width(case):
    bits, pairs = case
    alpha, x = (words(column) for column in zip(*pairs, strict=True))
    assert compare(alpha, x, bits).tolist() == [int(x < alpha) for alpha, x in pairs]


@pytest.mark.parametrize("bits", [31, 63, 64])
def test_chunks_meet_without_a_seam(bits):
    alpha = uniform(2 * dcf.CHUNK + 5, bits)
    x = uniform(len(alpha), bits, seed=2)
    x[::3] = alpha[::3]
    assert np.array_equal(compare(alpha, x, bits), x < alpha)


def test_parts_of_a_batch_are_made_and_used_on_their_own():
    bits, count = 20, 2 * dcf.CHUNK + 5
    alpha, x, roots = uniform(count, bits), uniform(count, bits, seed=2), fixed_roots(count)
    whole = dcf.generate(alpha, bits, roots, KEY_ID)
    part, width = slice(dcf.CHUNK, count), dcf.correction_bytes(bits)
    corrections = dcf.generate(alpha[part], bits, roots[:, part], KEY_ID, first_chunk=1)
    assert np.array_equal(corrections, whole[dcf.CHUNK * width :])
    for party in (0, 1):
        expected = dcf.evaluate(party, roots[party], whole, x, bits, KEY_ID)[part]
        share = dcf.evaluate(party, roots[party, part], corrections, x[part], bits, KEY_ID, first_chunk=1)
        assert np.array_equal(share, expected)


def test_received_bytes_need_no_alignment_and_inputs_stay_as_they_are():
    bits = 31
    alpha, x, roots = uniform(100, bits), uniform(100, bits, seed=2), fixed_roots(100)
    before = [array.copy() for array in (alpha, x, roots)]
    corrections = dcf.generate(alpha, bits, roots, KEY_ID)
    received = np.frombuffer(b"\0" + corrections.tobytes(), np.uint8, offset=1)
    expected = dcf.evaluate(1, roots[1], corrections, x, bits, KEY_ID)
    assert np.array_equal(dcf.evaluate(1, roots[1], received, x, bits, KEY_ID), expected)
    assert all(np.array_equal(array, copy) for array, copy in zip((alpha, x, roots), before, strict=True))


def test_no_elements():
    assert compare(words([]), words([]), 31).shape == (0,)


def test_bytes_delivered():
    assert dcf.correction_bytes(31) == 400
    assert len(dcf.generate(uniform(3, 31), 31, fixed_roots(3), KEY_ID)) == 3 * 400


# The same as the reference, today and in every later version.


def test_reference_gives_the_vectors():
    assert reference.make_vectors() == VECTORS


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: f"{case['bits']} bits")
def test_vectors(case):
    bits, key_id, chunk = case["bits"], bytes.fromhex(case["key_id"]), case["first_chunk"]
    count = len(case["alpha"])
    roots = np.array([list(bytes.fromhex(row)) for row in case["roots"]], np.uint8).reshape(2, count, 16)
    corrections = dcf.generate(words(case["alpha"]), bits, roots, key_id, chunk)
    assert corrections.tobytes().hex() == "".join(case["corrections"])
    for party in (0, 1):
        share = dcf.evaluate(party, roots[party], corrections, words(case["x"]), bits, key_id, chunk)
        assert share.tolist() == case["shares"][party]


# Silent about alpha.


def assert_unbiased(bits: np.ndarray) -> None:
    """Every column of bits (samples, positions), and the sum of every two neighbours, is a fair coin within chance."""
    columns = np.concatenate([bits, bits[:, 1:] ^ bits[:, :-1]], axis=1)
    deviation = np.abs(columns.mean(0) - 0.5) * 2 * np.sqrt(len(bits))
    assert deviation.max() < SIGMAS


def as_bits(corrections: np.ndarray, count: int) -> np.ndarray:
    """Correction bits (count, 8 * correction_bytes) of one chunk."""
    blocks = corrections.reshape(-1, count, 16).swapaxes(0, 1)
    return np.unpackbits(blocks.reshape(count, -1), axis=1, bitorder="little")


@pytest.mark.parametrize("alpha", [0, 2**31 - 1, 0b1010110011100011110000111110000, None])
def test_corrections_are_uniform_bytes_and_bits(alpha):
    count = dcf.CHUNK
    alphas = uniform(count, 31) if alpha is None else np.full(count, alpha, np.uint64)
    corrections = dcf.generate(alphas, 31, fixed_roots(count), KEY_ID)
    observed, expected = np.bincount(corrections, minlength=256), corrections.size / 256
    chi_squared = float(((observed - expected) ** 2 / expected).sum())
    assert abs(chi_squared - 255) < SIGMAS * np.sqrt(2 * 255)
    assert_unbiased(as_bits(corrections, count))


def test_no_correction_bit_goes_with_a_bit_of_alpha():
    bits, count = 31, dcf.CHUNK
    alpha = uniform(count, bits)
    key_bits = as_bits(dcf.generate(alpha, bits, fixed_roots(count), KEY_ID), count).astype(np.float32)
    alpha_bits = (alpha[:, None] >> np.arange(bits, dtype=np.uint64) & np.uint64(1)).astype(np.float32)
    agreement = (2 * alpha_bits - 1).T @ (2 * key_bits - 1) / np.sqrt(count)
    assert np.abs(agreement).max() < SIGMAS


@pytest.mark.parametrize("party", [0, 1])
@pytest.mark.parametrize("alpha", [0, 1023, 0b1100101011])
def test_a_party_cannot_unmask_corrections_with_its_own_blocks(party, alpha):
    # The blocks that it computes on alpha's path and beside it are those that went into the corrections.
    bits, count = 10, 800
    roots = fixed_roots(count)
    corrections = dcf.generate(np.full(count, alpha, np.uint64), bits, roots, KEY_ID).reshape(-1, count, 16)
    hash_, rows = reference.block_hash(KEY_ID, bits, 0), []
    for element in range(count):
        key = [int.from_bytes(block.tobytes(), "little") for block in corrections[:, element]]
        root, row = int.from_bytes(roots[party, element].tobytes(), "little"), []
        for correction, blocks in reference.walk(hash_, party, root, key, alpha, bits):
            row += [correction ^ block for block in blocks] + [correction ^ blocks[0] ^ blocks[-1]]
        rows.append([list(value.to_bytes(16, "little")) for value in row])
    octets = np.array(rows, np.uint8).reshape(count, -1)
    assert_unbiased(np.unpackbits(octets, axis=1))


@pytest.mark.parametrize("party", [0, 1])
@pytest.mark.parametrize("x", [0, 5, 6, 7, 127, 128, 2**30, 2**31 - 1])
def test_one_partys_share_is_a_fair_coin(party, x):
    count = dcf.CHUNK
    roots = fixed_roots(count)
    corrections = dcf.generate(np.full(count, 6, np.uint64), 31, roots, KEY_ID)
    share = dcf.evaluate(party, roots[party], corrections, np.full(count, x, np.uint64), 31, KEY_ID)
    assert_unbiased(share[:, None])


def test_every_chunk_key_id_and_width_has_its_own_cipher():
    alpha, roots = np.full(2 * dcf.CHUNK, 77, np.uint64), np.full((2, 2 * dcf.CHUNK, 16), 9, np.uint8)
    roots[1] = 3
    both = dcf.generate(alpha, 12, roots, KEY_ID).reshape(2, -1, dcf.CHUNK, 16)
    other_id = dcf.generate(alpha[:1], 12, roots[:, :1], KEY_ID[::-1]).reshape(-1, 16)
    wider = dcf.generate(alpha[:1] << np.uint64(1), 13, roots[:, :1], KEY_ID).reshape(-1, 16)
    first = both[0, :, 0]
    assert (both[0] == first[:, None]).all()  # within a chunk equal inputs give equal keys
    assert not any(np.array_equal(first[0], other[0]) for other in (both[1, :, 0], other_id, wider))


def test_hidden_blocks_under_one_key_stay_within_the_bound():
    levels = dcf.MAX_BITS - 7
    assert dcf.CHUNK * (2 * levels + 1) <= 2**19


# Strict.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 7}, "7 bits"),
        ({"bits": 65}, "65 bits"),
        ({"bits": 31.0}, "31.0 bits"),
        ({"key_id": b"short"}, "key id"),
        ({"key_id": "0123456789abcdef"}, "key id"),
        ({"first_chunk": -1}, "first_chunk is -1"),
        ({"points": words([[1, 2, 3]])}, r"uint64 \(1, 3\); give uint64 \(N,\)"),
        ({"points": np.array([1, 2, 3])}, "is int64"),
        ({"points": [1, 2, 3]}, "is a list"),
        ({"points": words([0, 1, 2**31])}, "values of more than 31 bits"),
    ],
)
def test_what_both_sides_refuse(change, message):
    args = {"bits": 31, "key_id": KEY_ID, "first_chunk": 0, "points": words([1, 2, 3]), **change}
    common = args["bits"], args["key_id"], args["first_chunk"]
    roots, corrections = fixed_roots(3), np.zeros(3 * 400, np.uint8)
    with pytest.raises(RandomnessError, match=message):
        dcf.generate(args["points"], common[0], roots, *common[1:])
    with pytest.raises(RandomnessError, match=message):
        dcf.evaluate(0, roots[0], corrections, args["points"], *common)


@pytest.mark.parametrize("roots", [fixed_roots(2), fixed_roots(3)[0], fixed_roots(3)[:, :, :15]])
def test_generate_refuses_other_roots(roots):
    with pytest.raises(RandomnessError, match=r"roots .* give uint8 \(2, 3, 16\)"):
        dcf.generate(words([1, 2, 3]), 31, roots, KEY_ID)


def test_generate_does_not_tell_alpha():
    with pytest.raises(RandomnessError) as caught:
        dcf.generate(words([987654321]), 8, fixed_roots(1), KEY_ID)
    assert "987654321" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"party": 2}, "party 0 or 1, not 2"),
        ({"party": "first"}, "not 'first'"),
        ({"roots": fixed_roots(3)}, "roots"),
        ({"roots": fixed_roots(2)[0]}, "roots"),
        ({"corrections": np.zeros(3 * 400 - 1, np.uint8)}, r"corrections .* \(1199,\); give uint8 \(1200,\)"),
        ({"corrections": np.zeros(3 * 400 + 16, np.uint8)}, "corrections"),
        ({"corrections": np.zeros((3, 400), np.uint8)}, "corrections"),
        ({"corrections": np.zeros(150, np.uint64)}, "corrections"),
        ({"corrections": bytes(1200)}, "corrections of a comparison is a bytes"),
    ],
)
def test_evaluate_refuses_other_keys(change, message):
    args = {"party": 0, "roots": fixed_roots(3)[0], "corrections": np.zeros(3 * 400, np.uint8), **change}
    with pytest.raises(RandomnessError, match=message):
        dcf.evaluate(args["party"], args["roots"], args["corrections"], words([1, 2, 3]), 31, KEY_ID)
