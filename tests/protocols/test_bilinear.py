"""Beaver products equal the plain ones on the ring, for every operation."""

import pytest
import torch

from mpc_imaging.errors import RandomnessError
from mpc_imaging.protocols import bilinear
from mpc_imaging.randomness.demands import Mask, Product
from mpc_imaging.randomness.ring import BilinearOp
from tests.protocols.parties import demands, run

CASES = [
    (BilinearOp("mul"), (3, 4), (4,)),
    (BilinearOp("matmul"), (5, 7), (7, 3)),
    (BilinearOp("matmul"), (2, 5, 7), (7, 3)),
    (BilinearOp("conv1d", (("stride", (2,)), ("padding", (1,)))), (2, 3, 11), (4, 3, 3)),
    (BilinearOp("conv2d", (("padding", (1, 1)), ("groups", 2))), (2, 4, 8, 9), (6, 2, 3, 3)),
    (BilinearOp("conv_transpose2d", (("stride", (2, 2)),)), (2, 4, 5, 5), (4, 3, 3, 3)),
    (BilinearOp("conv2d_weight", (("kernel", (3, 3)),)), (2, 4, 8, 9), (2, 5, 6, 7)),
]


@pytest.mark.parametrize("parties", [2, 3, 5])
@pytest.mark.parametrize(("op", "x_shape", "y_shape"), CASES, ids=lambda c: getattr(c, "name", None))
def test_product(op, x_shape, y_shape, parties):
    x, y = torch.randint(-(2**63), 2**63 - 1, x_shape), torch.randint(-(2**63), 2**63 - 1, y_shape)
    z, ctxs = run(lambda ctx, x, y: bilinear.multiply(ctx, op, x, y), parties, x, y)
    assert torch.equal(z, op(x, y))
    assert ctxs[0].channel.rounds == 1


def test_square_opens_one_value():
    x = torch.randint(-(2**63), 2**63 - 1, (50,))
    z, ctxs = run(lambda ctx, x: bilinear.multiply(ctx, BilinearOp("mul"), x, x), 3, x)
    assert torch.equal(z, x * x)
    assert [type(demand) for demand in demands(ctxs[0])] == [Mask, Product]


def test_a_weight_in_many_products_is_opened_once():
    w, x = torch.randint(-(2**63), 2**63 - 1, (7, 5)), torch.randint(-(2**63), 2**63 - 1, (3, 4, 7))
    op = BilinearOp("matmul")

    def program(ctx, w, x):
        return tuple(bilinear.multiply(ctx, op, batch.clone(), w) for batch in x)

    results, ctxs = run(program, 2, w, x)
    assert all(torch.equal(z, batch @ w) for z, batch in zip(results, x, strict=True))
    assert [demand.count for demand in demands(ctxs[0]) if isinstance(demand, Mask)] == [28, 35, 28, 28]


def test_gradients_take_the_masks_of_the_forward_product():
    """The forward product of a linear layer opens x and w; both gradients then open the output's gradient alone."""
    x, w, g = (torch.randint(-(2**63), 2**63 - 1, shape) for shape in ((4, 7), (5, 7), (4, 5)))
    op = BilinearOp("matmul")

    def program(ctx, x, w, g):
        y = bilinear.multiply(ctx, op, x, w.t())
        grad_x = bilinear.multiply(ctx, op, g, w)
        grad_w = bilinear.multiply(ctx, op, g.t(), x)
        return y, grad_x, grad_w

    (y, grad_x, grad_w), ctxs = run(program, 2, x, w, g)
    assert torch.equal(y, x @ w.t()) and torch.equal(grad_x, g @ w) and torch.equal(grad_w, g.t() @ x)
    assert ctxs[0].channel.rounds == 2
    assert [demand.count for demand in demands(ctxs[0]) if isinstance(demand, Mask)] == [28, 35, 20]


@pytest.mark.parametrize("name", ["mul", "matmul"])
def test_views_of_one_value_on_both_sides(name):
    x = torch.randint(-(2**63), 2**63 - 1, (6, 6))
    op = BilinearOp(name)
    z, ctxs = run(lambda ctx, x: bilinear.multiply(ctx, op, x, x.t()), 3, x)
    assert torch.equal(z, op(x, x.t()))
    assert [type(demand) for demand in demands(ctxs[0])] == [Mask, Product]


def test_shapes_that_do_not_fit():
    x, y = torch.ones(2, 3).long(), torch.ones(2, 3).long()
    with pytest.raises(RandomnessError, match="do not fit"):
        run(lambda ctx, x, y: bilinear.multiply(ctx, BilinearOp("matmul"), x, y), 2, x, y)


def test_operands_stay_as_they_are():
    x, y = torch.randint(-(2**63), 2**63 - 1, (2, 4, 4))

    def program(ctx, x, y):
        before = x.clone(), y.clone()
        for _ in range(2):
            bilinear.multiply(ctx, BilinearOp("matmul"), x, y).zero_()
        assert torch.equal(x, before[0]) and torch.equal(y, before[1])
        return bilinear.multiply(ctx, BilinearOp("matmul"), x, y)

    z, _ = run(program, 2, x, y)
    assert torch.equal(z, x @ y)
