"""What the network and each party see: every frame of a real inference is recorded and looked at.

Shares, masked openings and corrections must be uniform bytes, and runs on different images must look the same; the
dealer must receive nothing that depends on the images. With masking switched off the same checks must fail, or they
would prove nothing.
"""

import math
from collections import defaultdict

import numpy as np
import pytest

from mpc_imaging import settings as config
from mpc_imaging.transport.frames import Kind
from tests.security import recorder

MASKED = (Kind.SHARE, Kind.OPENING, Kind.CORRECTION)
# A false alarm once in a million runs, over the hundred or so tests that one run makes.
ALPHA = 1e-8

PARTIES = {
    "hospital": {"roles": ["data_owner", "receiver"]},
    "vendor": {"roles": ["model_owner"]},
    "cloud_a": {"roles": ["compute"]},
    "cloud_b": {"roles": ["compute"]},
    "dealer": {"roles": ["dealer"]},
}


def _settings(images_seed):
    return config.from_mapping(
        {
            "name": "frames",
            "topology": {"name": "test", "parties": PARTIES},
            "data": {
                "kind": "phantoms", "positive_class": 1, "image_size": 16,
                "phantoms": {"train": 8, "val": 4, "test": 12, "seed": images_seed},
            },
            "model": {
                "kwargs": {"in_channels": 1, "image_size": 16, "num_classes": 2},
                "weights": {"source": "pretrain"}, "pretrain": {"epochs": 1},
            },
            "task": {"batch_size": 6},
            "policy": {"reveal": {"logits": ["image_owner"], "metrics": ["receiver"], "range_ok": ["compute"]}},
        }
    )  # fmt: skip


def _run(folder, images_seed, masks_off=False):
    folder.mkdir()
    recorder.run(folder, _settings(images_seed), masks_off)
    return {name: recorder.frames(folder, name) for name in PARTIES}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on different images."""
    folder = tmp_path_factory.mktemp("runs")
    return _run(folder / "first", 1), _run(folder / "second", 2)


def _masked(run):
    """Masked payloads by (party, direction, peer, kind), joined."""
    streams = defaultdict(list)
    for name, seen in run.items():
        for direction, peer, kind, payload in seen:
            if kind in MASKED:
                streams[name, direction, peer, kind].append(payload)
    return {key: np.frombuffer(b"".join(parts), np.uint8) for key, parts in streams.items() if b"".join(parts)}


def _surprise(counts, expected):
    """Probability of counts at least this uneven: chi-squared, by the cube root of Wilson and Hilferty (1931)."""
    freedom = len(counts) - 1
    spread = 2 / (9 * freedom)
    ratio = ((counts - expected) ** 2 / expected).sum() / freedom
    return math.erfc((ratio ** (1 / 3) - 1 + spread) / math.sqrt(2 * spread)) / 2


def _is_uniform(octets):
    """Byte values, each bit of a 64-bit word, and repetition between neighbouring words."""
    if _surprise(np.bincount(octets, minlength=256), np.full(256, len(octets) / 256)) < ALPHA:
        return False
    words = octets[: len(octets) // 8 * 8].reshape(-1, 8)
    bits = np.unpackbits(words, axis=1)
    excess = np.abs(2 * bits.sum(axis=0, dtype=np.int64) - len(bits)).max(initial=0)
    if math.erfc(excess / math.sqrt(2 * max(len(bits), 1))) < ALPHA:
        return False
    same = int((words[1:] == words[:-1]).all(axis=1).sum())
    return same == 0


def test_masked_payloads_are_uniform(runs):
    for run in runs:
        streams = _masked(run)
        kinds = {(name, direction, kind) for name, direction, _, kind in streams}
        assert ("cloud_a", "sent", Kind.OPENING) in kinds and ("cloud_b", "received", Kind.OPENING) in kinds
        assert ("cloud_b", "received", Kind.CORRECTION) in kinds and ("dealer", "sent", Kind.CORRECTION) in kinds
        assert ("hospital", "sent", Kind.SHARE) in kinds and ("vendor", "sent", Kind.SHARE) in kinds
        for key, octets in streams.items():
            assert _is_uniform(octets), f"{key}: {len(octets)} bytes are not uniform"


def test_runs_on_different_images_cannot_be_told_apart(runs):
    first, second = (_masked(run) for run in runs)
    assert {k: len(v) for k, v in first.items()} == {k: len(v) for k, v in second.items()}, "sizes depend on the images"
    for key, a in first.items():
        a, b = np.bincount(a, minlength=256), np.bincount(second[key], minlength=256)
        total = a + b
        assert _surprise(np.concatenate([a, b]), np.concatenate([total, total]) / 2) > ALPHA, key


def test_the_dealer_receives_nothing_that_depends_on_images(runs):
    seen = [
        [(peer, kind, payload) for direction, peer, kind, payload in run["dealer"] if direction == "received"]
        for run in runs
    ]
    assert {kind for frames in seen for _, kind, _ in frames} == {Kind.CONTROL, Kind.HANDSHAKE, Kind.REQUEST}
    # The handshake holds a fresh nonce and a digest of the settings, which name the images' seed here.
    work = [[frame for frame in frames if b"nonce" not in frame[2]] for frames in seen]
    assert work[0] == work[1]
    assert {peer for frames in seen for peer, _, _ in frames} == {"cloud_a", "cloud_b"}, (
        "owners do not talk to the dealer"
    )


def test_owners_see_no_openings(runs):
    for name in ("hospital", "vendor"):
        kinds = {kind for direction, _, kind, _ in runs[0][name] if direction == "received"}
        assert kinds <= {Kind.CONTROL, Kind.HANDSHAKE, Kind.REVEAL}
    assert not any(kind is Kind.REVEAL for _, _, kind, _ in runs[0]["vendor"]), "the vendor is no receiver"


def test_the_checks_fail_without_masks(tmp_path):
    run = _run(tmp_path / "plain", 1, masks_off=True)
    streams = _masked(run)
    assert not _is_uniform(streams["cloud_a", "sent", "cloud_b", Kind.OPENING])
    assert not _is_uniform(streams["hospital", "sent", "cloud_b", Kind.SHARE])
