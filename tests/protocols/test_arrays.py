"""Ring elements as tensors and as words: the same memory, in the same order."""

import numpy as np
import torch

from mpc_imaging.protocols.arrays import joined, tensor, words


def test_words_and_back():
    x = torch.tensor([[0, 1, -1], [2**63 - 1, -(2**63), 5]])
    flat = words(x)
    assert flat.dtype == np.uint64 and flat.tolist() == [0, 1, 2**64 - 1, 2**63 - 1, 2**63, 5]
    assert torch.equal(tensor(flat, (2, 3)), x)


def test_contiguous_values_are_not_copied():
    x = torch.arange(6).view(2, 3)
    words(x)[4] = 99
    assert x[1, 1] == 99
    tensor(words(x), [6])[0] = 7
    assert x[0, 0] == 7


def test_others_are_taken_row_by_row():
    x = torch.arange(6).view(2, 3)
    assert words(x.t()).tolist() == [0, 3, 1, 4, 2, 5]
    assert words(x[:, 1:]).tolist() == [1, 2, 4, 5]
    assert words(torch.tensor(7).expand(3)).tolist() == [7, 7, 7]
    assert words(torch.tensor(-1)).tolist() == [2**64 - 1]


def test_nothing():
    empty = words(torch.empty(0, 3, dtype=torch.int64))
    assert empty.shape == (0,)
    assert tensor(empty, (0, 3)).shape == (0, 3)


def test_blocks_end_to_end():
    a, b = np.arange(3), np.arange(2)
    assert joined([a]) is a
    assert joined([a, b]).tolist() == [0, 1, 2, 0, 1]
