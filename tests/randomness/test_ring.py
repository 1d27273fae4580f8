"""Ring operations equal torch's own, modulo 2**64, over their parameters."""

import pytest
import torch
import torch.nn.functional as F

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


def test_shapes_without_computing():
    op = ring.BilinearOp("conv2d", (("stride", (2, 2)),))
    assert op.result_shape((2, 3, 9, 9), (4, 3, 3, 3)) == (2, 4, 4, 4)


def test_unknown_operation():
    with pytest.raises(RandomnessError, match="no bilinear operation 'eval'"):
        ring.BilinearOp("eval")
