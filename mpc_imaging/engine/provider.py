"""CrypTen's `TupleProvider` on this package's correlated randomness, for CrypTen's own binary circuits."""

from __future__ import annotations

import numpy as np
import torch

from mpc_imaging.engine import compat
from mpc_imaging.protocols.context import Context
from mpc_imaging.randomness.correlations import BilinearTriple, BinaryTriple, SharedBit, SquarePair
from mpc_imaging.randomness.ring import BilinearOp

compat.load()

from crypten.mpc.primitives import ArithmeticSharedTensor, BinarySharedTensor  # noqa: E402
from crypten.mpc.provider.provider import TupleProvider  # noqa: E402


def _ring(words: np.ndarray, size) -> ArithmeticSharedTensor:
    return ArithmeticSharedTensor.from_shares(torch.from_numpy(words.view(np.int64)).view(size), precision=0)


def _binary(octets: np.ndarray, size) -> BinarySharedTensor:
    words = torch.from_numpy(np.ascontiguousarray(octets).view(np.int64)).view(size)
    return BinarySharedTensor.from_shares(words, precision=0)


class CrypTenProvider(TupleProvider):
    """Same results as CrypTen's own providers, with masks from the dealer."""

    NAME = "mpc_imaging"

    def __init__(self, ctx: Context) -> None:
        super().__init__()
        self._ctx = ctx

    def generate_additive_triple(self, size0, size1, op, device=None, *args, **kwargs):
        """a, b and op(a, b)."""
        bilinear = BilinearOp(op, tuple(sorted(kwargs.items())))
        a, b, c = self._ctx.provider.get(BilinearTriple(bilinear, tuple(size0), tuple(size1)))
        return _ring(a, size0), _ring(b, size1), _ring(c, bilinear.result_shape(size0, size1))

    def square(self, size, device=None):
        """r and r * r."""
        r, r2 = self._ctx.provider.get(SquarePair(torch.Size(size).numel()))
        return _ring(r, size), _ring(r2, size)

    def generate_binary_triple(self, size0, size1, device=None):
        """a, b and a & b on words, broadcast to one shape."""
        size = torch.broadcast_shapes(size0, size1)
        return tuple(_binary(part, size) for part in self._ctx.provider.get(BinaryTriple(size.numel())))

    def B2A_rng(self, size, device=None):
        """A random bit, as a ring element and as a binary share."""
        size = torch.Size(size)
        bits, ring = self._ctx.provider.get(SharedBit(size.numel()))
        words = torch.from_numpy(np.unpackbits(bits, count=size.numel()).astype(np.int64)).view(size)
        return _ring(ring, size), BinarySharedTensor.from_shares(words, precision=0)
