"""What CrypTen's own circuits are given: the dealer's triples and bits, as CrypTen's tensors."""

import torch

from mpc_imaging.engine import compat


def _provider():
    return compat.load().mpc.get_default_provider()


def _words(*tensors):
    """Everything about a binary tensor that all parties together know, as exclusive-or: for the tests only."""
    return [tensor.reveal() for tensor in tensors]


def binary_triple():
    a, b, c = _words(*_provider().generate_binary_triple((3, 1), (4,)))
    assert a.shape == b.shape == c.shape == (3, 4)
    assert torch.equal(c, a & b)
    assert a.unique().numel() == 12, "words of 64 random bits"


def test_binary_triple(parties):
    parties.run(binary_triple)


def shared_bits():
    ring, word = _provider().B2A_rng((50, 5))
    bits = word.reveal()
    assert torch.equal(ring.reveal(), bits)
    assert ring.encoder._precision_bits == 0
    assert set(bits.flatten().tolist()) == {0, 1}
    # A mask of one bit: the share holds no more, since CrypTen opens whole words.
    assert set(word.share.flatten().tolist()) == {0, 1}


def test_shared_bits(parties):
    parties.run(shared_bits)
