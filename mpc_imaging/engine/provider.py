"""CrypTen's `TupleProvider` on this package's correlated randomness, for CrypTen's own binary circuits."""

from __future__ import annotations

import numpy as np
import torch

from mpc_imaging.engine import compat
from mpc_imaging.protocols.context import Context
from mpc_imaging.randomness.demands import BinaryTriple, SharedBit

compat.load()

from crypten.mpc.primitives import ArithmeticSharedTensor, BinarySharedTensor  # noqa: E402
from crypten.mpc.provider.provider import TupleProvider  # noqa: E402


def _ring(words: np.ndarray, size) -> ArithmeticSharedTensor:
    return ArithmeticSharedTensor.from_shares(torch.from_numpy(words.view(np.int64)).view(size), precision=0)


def _binary(octets: np.ndarray, size) -> BinarySharedTensor:
    words = torch.from_numpy(np.ascontiguousarray(octets).view(np.int64)).view(size)
    return BinarySharedTensor.from_shares(words, precision=0)


class CrypTenProvider(TupleProvider):
    """What CrypTen's circuits ask for, with masks from the dealer. Arithmetic products do not come here (`gates`)."""

    NAME = "mpc_imaging"

    def __init__(self, ctx: Context) -> None:
        super().__init__()
        self._ctx = ctx

    def generate_binary_triple(self, size0, size1, device=None):
        """a, b and a & b on words, broadcast to one shape."""
        size = torch.Size(np.broadcast_shapes(size0, size1))  # torch's own imports hundreds of modules for this
        return tuple(_binary(part, size) for part in self._ctx.provider.get(BinaryTriple(size.numel())).shares)

    def B2A_rng(self, size, device=None):
        """A random bit, as a ring element and as a binary share."""
        size = torch.Size(size)
        bits, ring = self._ctx.provider.get(SharedBit(size.numel())).shares
        words = torch.from_numpy(np.unpackbits(bits, count=size.numel()).astype(np.int64)).view(size)
        return _ring(ring, size), BinarySharedTensor.from_shares(words, precision=0)
