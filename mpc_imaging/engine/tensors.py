"""CrypTen tensors and shares: the few functions that tasks need, whatever protocol computes."""

from __future__ import annotations

import torch

from mpc_imaging.engine import compat

crypten = compat.load()

from crypten.mpc import MPCTensor  # noqa: E402

no_grad = crypten.no_grad


def from_share(share: torch.Tensor, bits: int | None = None, requires_grad: bool = False) -> MPCTensor:
    """A tensor around this party's int64 share; `bits` of fraction, None for the session's precision."""
    tensor = MPCTensor.from_shares(share, precision=bits)
    tensor.requires_grad = requires_grad
    return tensor


def share_of(tensor: MPCTensor) -> torch.Tensor:
    """This party's share, int64, of the tensor's shape; not a copy."""
    return tensor.share


def argmax_onehot(tensor: MPCTensor) -> MPCTensor:
    """One-hot of the largest value in each row (N, K), as integers 0 and 1 without a scale."""
    return tensor.argmax(dim=1, one_hot=True)


def scaled_bit(bit: MPCTensor, value: float) -> MPCTensor:
    """A shared bit (an integer without a scale) times a public number; CrypTen would round the number to an integer."""
    return from_share(bit.share * round(value * 2 ** precision()))


def precision() -> int:
    """The session's bits of fraction."""
    return crypten.cfg.encoder.precision_bits


def rescaled(x: MPCTensor) -> MPCTensor:
    """The same value at the session's precision; a product with public weights, left unscaled, is truncated here."""
    excess = x.encoder._precision_bits - precision()
    if excess <= 0:
        return x
    result = from_share(x.share.clone())
    result._tensor.div_(2**excess)
    return result
