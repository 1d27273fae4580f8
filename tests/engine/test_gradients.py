"""Gradients of our gates against torch's, through CrypTen's autograd."""

import pytest
import torch
import torch.nn.functional as F


def convolve(x, w, **params):
    y = x.conv2d(w, **params).relu()
    y.backward(y.detach())
    return {"y": y, "x": x.grad, "w": w.grad}


@pytest.mark.parametrize(
    "params", [{}, {"stride": 2, "padding": 1}, {"padding": (2, 1), "dilation": 2}, {"groups": 2, "stride": (1, 2)}]
)
def test_convolution_and_relu(two, params):
    x, w = torch.randn(3, 4, 9, 8), torch.randn(6, 4 // params.get("groups", 1), 3, 3) / 4
    r = two.run(convolve, x, w, requires_grad=True, **params)
    x.requires_grad_(), w.requires_grad_()
    y = F.conv2d(x, w, **params).relu()
    y.backward(y.detach())
    for got, want in ((r["y"], y), (r["x"], x.grad), (r["w"], w.grad)):
        assert (got - want.double()).abs().max() < 5e-3


def transpose(x, w):
    y = x.conv_transpose2d(w, stride=2, padding=1, output_padding=1)
    y.backward(y.detach())
    return {"y": y, "x": x.grad, "w": w.grad}


def test_transposed_convolution(two):
    x, w = torch.randn(2, 4, 5, 5), torch.randn(4, 3, 3, 3) / 4
    r = two.run(transpose, x, w, requires_grad=True)
    x.requires_grad_(), w.requires_grad_()
    y = F.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1)
    y.backward(y.detach())
    for got, want in ((r["y"], y), (r["x"], x.grad), (r["w"], w.grad)):
        assert (got - want.double()).abs().max() < 5e-3


def pool(x, **params):
    y = x.max_pool2d(**params)
    y.backward(y.detach())
    return x.grad


@pytest.mark.parametrize("params", [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}])
def test_max_pool(parties, params):
    x = torch.randn(2, 3, 8, 8)
    grad = parties.run(pool, x, requires_grad=True, **params)
    x.requires_grad_()
    y = F.max_pool2d(x, **params)
    y.backward(y.detach())
    assert (grad - x.grad.double()).abs().max() < 1e-4


def pool_with_indices(x):
    y, hot = x.max_pool2d(2, return_indices=True)
    y.backward(y.detach())
    return {"grad": x.grad, "hot": hot}


def test_max_pool_with_indices(two):
    x = torch.randn(2, 3, 4, 4)
    r = two.run(pool_with_indices, x, requires_grad=True)
    y = F.max_pool2d(x, 2)
    windows = x.unfold(2, 2, 2).unfold(3, 2, 2)
    assert torch.equal(r["hot"], (windows == y[..., None, None]).double())
    x.requires_grad_()
    F.max_pool2d(x, 2).backward(y)
    assert (r["grad"] - x.grad.double()).abs().max() < 1e-4


def clamp(x):
    y = x.hardtanh(0, 6)
    y.backward(y.detach())
    return x.grad


def test_hardtanh(two):
    x = torch.randn(100) * 5
    grad = two.run(clamp, x, requires_grad=True)
    assert torch.allclose(grad.float(), torch.where((x > 0) & (x < 6), x, 0), atol=1e-3)


BOUNDS = torch.tensor([-1.0, -(2.0**-16), 0, 2.0**-16, 3, 6 - 2.0**-16, 6, 6 + 2.0**-16, 7])


def tied(x, name, arguments):
    y = getattr(x, name)(*arguments)
    y.backward(y.new(torch.full((9,), 2.0)))
    return x.grad


@pytest.mark.parametrize(
    ("name", "arguments", "plain"), [("relu", (), F.relu), ("hardtanh", (0, 6), F.relu6), ("relu6", (), F.relu6)]
)
def test_ties_are_torch_s_and_cost_no_rounds(two, name, arguments, plain):
    """One comparison and one selection, as ever: where x equals a bound, its gradient is 0."""
    grad = two.run(tied, BOUNDS, requires_grad=True, name=name, arguments=arguments)
    x = BOUNDS.clone().requires_grad_()
    plain(x).backward(torch.full((9,), 2.0))
    assert torch.equal(grad, x.grad.double())
    assert two.rounds == 3
