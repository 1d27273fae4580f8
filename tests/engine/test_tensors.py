"""The few functions that tasks need of CrypTen tensors."""

import pytest
import torch

from mpc_imaging.engine import tensors
from tests.engine.alone import alone


def test_share_and_tensor():
    share = torch.tensor([1 << 16, -(3 << 15)])
    with alone():
        x = tensors.from_share(share, requires_grad=True)
        assert tensors.share_of(x) is share and x.requires_grad
        assert torch.equal(x.get_plain_text(), torch.tensor([1.0, -1.5]))
        assert torch.equal(tensors.from_share(share, 15).get_plain_text(), torch.tensor([2.0, -3.0]))


@pytest.mark.parametrize("bits", [12, 16, 20])
def test_precision_and_scaled_bits(bits):
    with alone(fraction_bits=bits):
        assert tensors.precision() == bits
        bit = tensors.from_share(torch.tensor([0, 1]), 0)
        assert torch.equal(tensors.scaled_bit(bit, -0.375).get_plain_text(), torch.tensor([0, -0.375]))


def test_rescaling_truncates_once_and_leaves_the_original():
    share = torch.tensor([5 << 32, -(1 << 31)])
    with alone() as demands:
        x = tensors.from_share(share.clone(), 32)
        y = tensors.rescaled(x)
        assert torch.equal(y.share, torch.tensor([5 << 16, -(1 << 15)])) and demands == ["truncation"]
        assert torch.equal(x.share, share)
        assert tensors.rescaled(y) is y and len(demands) == 1


def test_one_hot_of_the_largest():
    with alone():
        hot = tensors.argmax_onehot(tensors.from_share(torch.tensor([[1, 5, 3], [7, 7, -9]])))
        assert torch.equal(hot.share, torch.tensor([[0, 1, 0], [1, 0, 0]]))
