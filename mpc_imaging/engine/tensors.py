"""CrypTen tensors and shares: the few functions that tasks need, whatever protocol computes."""

from __future__ import annotations

import torch

from mpc_imaging.engine import compat

crypten = compat.load()

from crypten.gradients import AutogradFunction, register_function  # noqa: E402
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


def excess(x: MPCTensor) -> int:
    """Bits of fraction beyond the session's: a product keeps those of both operands until it is compared or used."""
    return max(0, x.encoder._precision_bits - precision())


def rescaled(x: MPCTensor) -> MPCTensor:
    """The same value at the session's precision: truncated, if it has excess bits."""
    return x.rescale() if excess(x) else x


class Rescale(AutogradFunction):
    """Truncates excess bits; the gradient is that of the identity."""

    @staticmethod
    def forward(ctx, input):
        """At most one round."""
        result = from_share(input.share)
        result._tensor.div_(2 ** excess(input))
        return result

    @staticmethod
    def backward(ctx, grad_output):
        """The gradient itself."""
        return grad_output


# CrypTen finds functions of tensors, and their gradients, by name.
register_function("rescale")(Rescale)
