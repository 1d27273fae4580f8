"""Beaver products equal the plain ones on the ring, for every operation."""

import pytest
import torch

from mpc_imaging.protocols import bilinear
from mpc_imaging.randomness.ring import BilinearOp
from tests.protocols.parties import run

CASES = [
    (BilinearOp("mul"), (3, 4), (4,)),
    (BilinearOp("matmul"), (5, 7), (7, 3)),
    (BilinearOp("matmul"), (2, 5, 7), (7, 3)),
    (BilinearOp("conv1d", (("stride", (2,)), ("padding", (1,)))), (2, 3, 11), (4, 3, 3)),
    (BilinearOp("conv2d", (("padding", (1, 1)), ("groups", 2))), (2, 4, 8, 9), (6, 2, 3, 3)),
    (BilinearOp("conv_transpose2d", (("stride", (2, 2)),)), (2, 4, 5, 5), (4, 3, 3, 3)),
    (BilinearOp("conv2d_weight", (("kernel", (3, 3)),)), (2, 4, 8, 9), (2, 5, 6, 7)),
]


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize(("op", "x_shape", "y_shape"), CASES, ids=lambda c: getattr(c, "name", None))
def test_product(op, x_shape, y_shape, parties):
    x, y = torch.randint(-(2**63), 2**63 - 1, x_shape), torch.randint(-(2**63), 2**63 - 1, y_shape)
    z, ctxs = run(lambda ctx, x, y: bilinear.multiply(ctx, op, x, y), parties, x, y)
    assert torch.equal(z, op(x, y))
    assert ctxs[0].channel.rounds == 1


def test_square():
    x = torch.randint(-(2**63), 2**63 - 1, (50,))
    z, _ = run(bilinear.square, 3, x)
    assert torch.equal(z, x * x)
