"""Ring operations equal torch's own, modulo 2**64, over their parameters."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness import ring


def _wide(*shape):
    return torch.randint(-(2**63), 2**63 - 1, shape)


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("padding", [(0, 0), (2, 1)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 2)])
@pytest.mark.parametrize("groups", [1, 3])
def test_conv2d_and_its_gradients(stride, padding, dilation, groups):
    x, w = _wide(2, 6, 13, 11), _wide(9, 6 // groups, 3, 2)
    params = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    y = ring.conv2d(x, w, **params)
    assert torch.equal(y, F.conv2d(x, w, **params))
    # Gradients in float64 on small values, where both are exact.
    xs, ws = (x % 7).double().requires_grad_(), (w % 7).double().requires_grad_()
    ys = F.conv2d(xs, ws, **params)
    g = torch.randint(-5, 5, ys.shape)
    ys.backward(g.double())
    grad_w = ring.conv2d_weight((x % 7), g, kernel=(3, 2), **params)
    assert torch.equal(grad_w.double(), ws.grad)
    size = [(ys.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (w.shape[2 + i] - 1) + 1 for i in (0, 1)]
    extra = (x.shape[2] - size[0], x.shape[3] - size[1])
    grad_x = ring.conv_transpose2d(g, w % 7, output_padding=extra, **params)
    assert torch.equal(grad_x.double(), xs.grad)


@pytest.mark.parametrize("output_padding", [0, 1])
def test_one_dimension(output_padding):
    x, w = _wide(2, 4, 17), _wide(6, 2, 3)
    params = {"stride": (2,), "padding": (1,), "groups": 2}
    assert torch.equal(ring.OPERATIONS["conv1d"](x, w, **params), F.conv1d(x, w, **params))
    wt = _wide(4, 3, 3)
    params["output_padding"] = (output_padding,)
    assert torch.equal(ring.OPERATIONS["conv_transpose1d"](x, wt, **params), F.conv_transpose1d(x, wt, **params))


def _shape(op, x_shape, y_shape):
    """Of the result, or None if the operands do not fit: without computing, and with."""
    try:
        without = op.result_shape(x_shape, y_shape)
    except RandomnessError:
        without = None
    try:
        computed = op(torch.ones(x_shape, dtype=torch.int64), torch.ones(y_shape, dtype=torch.int64)).shape
    except RuntimeError:
        computed = None
    return without, computed


SIZES = st.lists(st.sampled_from([0, 1, 1, 2, 3]), max_size=4).map(tuple)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["mul", "matmul"]), SIZES, SIZES)
def test_shapes_of_products_without_computing(name, x_shape, y_shape):
    without, computed = _shape(ring.BilinearOp(name), x_shape, y_shape)
    assert without == computed


def _convolved(op, x_shape, y_shape):
    """The same; like torch's, our convolutions refuse a kernel that is larger than the image."""
    without, computed = _shape(op, x_shape, y_shape)
    return without, None if computed is not None and 0 in computed else computed


PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))
CONVOLUTION = st.fixed_dictionaries(
    {
        "stride": PAIR,
        "dilation": PAIR,
        "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)),
        "groups": st.sampled_from([1, 2]),
    }
)


@settings(max_examples=200, deadline=None)
@given(CONVOLUTION, PAIR, st.tuples(st.integers(3, 9), st.integers(3, 9)), st.sampled_from([2, 4]))
def test_shapes_of_convolutions_without_computing(params, kernel, size, channels):
    per_group = channels // params["groups"]
    op = ring.BilinearOp("conv2d", tuple(params.items()))
    x_shape, w_shape = (2, channels, *size), (6, per_group, *kernel)
    without, computed = _convolved(op, x_shape, w_shape)
    assert without == computed
    if computed is not None:
        weight = ring.BilinearOp("conv2d_weight", (("kernel", kernel), *params.items()))
        without, computed = _convolved(weight, x_shape, tuple(computed))
        assert without == computed == w_shape
    op = ring.BilinearOp("conv_transpose2d", (("output_padding", (1, 0)), *params.items()))
    without, computed = _convolved(op, x_shape, (channels, 3, *kernel))
    assert without == computed


@pytest.mark.parametrize(
    ("name", "params", "x_shape", "y_shape"),
    [
        ("mul", {}, (2, 3), (4,)),
        ("matmul", {}, (), (3,)),
        ("matmul", {}, (5, 2, 3), (4, 3, 2)),
        ("conv2d", {}, (1, 3, 5, 5), (4, 2, 3, 3)),
        ("conv2d", {"groups": 2}, (1, 4, 5, 5), (3, 2, 3, 3)),
        ("conv2d", {}, (1, 3, 5), (4, 3, 3)),
        ("conv2d", {}, (1, 1, 2, 2), (1, 1, 3, 1)),
        ("conv1d", {}, (1, 3, 5, 5), (4, 3, 3, 3)),
        ("conv_transpose2d", {}, (1, 3, 5, 5), (4, 3, 3, 3)),
        ("conv_transpose2d", {"padding": (3, 3)}, (1, 3, 2, 2), (3, 3, 3, 3)),
        ("conv2d", {}, (1, 0, 5, 5), (4, 0, 3, 3)),
        ("conv2d", {}, (1, 3, 5, 5), (0, 3, 3, 3)),
        ("conv2d", {"padding": (1, 1)}, (1, 1, 0, 5), (1, 1, 1, 1)),
        # More is cut off at the left than there is, and padded at the right.
        ("conv_transpose2d", {"padding": (0, 2), "output_padding": (0, 5)}, (1, 1, 1, 1), (1, 1, 1, 1)),
        ("conv2d_weight", {"kernel": (3, 3)}, (2, 3, 9, 9), (2, 0, 7, 7)),
        ("conv2d_weight", {"kernel": (3, 3)}, (2, 3, 9, 9), (3, 4, 7, 7)),
        ("conv2d_weight", {"kernel": (3, 3)}, (2, 3, 9, 9), (2, 4, 9, 9)),
    ],
)
def test_operands_that_do_not_fit(name, params, x_shape, y_shape):
    with pytest.raises(RandomnessError, match="do not fit"):
        ring.BilinearOp(name, tuple(params.items())).result_shape(x_shape, y_shape)


def test_shapes_of_one_dimension_without_computing():
    conv = ring.BilinearOp("conv1d", (("padding", (1,)), ("stride", (2,))))
    assert conv.result_shape((2, 3, 9), (4, 3, 3)) == (2, 4, 5)
    transposed = ring.BilinearOp("conv_transpose1d", (("output_padding", (1,)), ("stride", (2,))))
    assert transposed.result_shape((2, 3, 9), (3, 4, 3)) == (2, 4, 20)


def test_unknown_operation():
    with pytest.raises(RandomnessError, match="no bilinear operation 'eval'"):
        ring.BilinearOp("eval")


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (4,), ()])
def test_bytes_on_the_wire(shape):
    x = _wide(*shape)
    payload = bytearray(ring.octets(x))
    assert len(payload) == ring.size_of(shape) == 8 * x.numel()
    assert torch.equal(ring.from_octets(payload, shape), x)


def test_bytes_are_row_by_row():
    x = _wide(3, 4)
    assert bytes(ring.octets(x.t())) == bytes(ring.octets(x.t().contiguous())) != bytes(ring.octets(x))
    with pytest.raises(TypeError, match="int64, not torch.float32"):
        ring.octets(x.float())
