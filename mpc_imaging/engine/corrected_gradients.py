"""CrypTen's gradients, set right where they crash, or are otherwise than torch's, at the edges of their domains.

As `corrections`, which does so for the functions themselves; nothing of this costs the usual cases anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from mpc_imaging.engine import compat
from mpc_imaging.engine.corrections import axis

compat.load()

import crypten.gradients as stock  # noqa: E402

if TYPE_CHECKING:
    from crypten.mpc import MPCTensor


def inverse_broadcast(grad: MPCTensor, size: torch.Size) -> MPCTensor:
    """CrypTen's `_inverse_broadcast`, which leaves dimensions that were broadcast to nothing."""
    if grad.size() == size:
        return grad
    if len(size) == 0:
        return grad.sum()
    while grad.dim() > len(size):
        grad = grad.sum(0)
    for dim, length in enumerate(size):
        if length == 1 and grad.size(dim) != 1:
            grad = grad.sum(dim, keepdim=True)
    return grad


def _listed(dims: Sequence) -> tuple[int, ...]:
    """Dimensions given one by one or as one sequence, as torch takes them."""
    return tuple(dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims)


class Permute(stock.AutogradPermute):
    """CrypTen's takes one tuple of dimensions counted from the front."""

    @staticmethod
    def forward(ctx, input, *dims):
        """See torch."""
        return stock.AutogradPermute.forward(ctx, input, tuple(axis(input, dim) for dim in _listed(dims)))


class Flip(stock.AutogradFlip):
    """CrypTen's takes one tuple."""

    @staticmethod
    def forward(ctx, input, *dims):
        """See torch."""
        return stock.AutogradFlip.forward(ctx, input, _listed(dims))


class Narrow(stock.AutogradNarrow):
    """CrypTen's takes no dimension counted from the end."""

    @staticmethod
    def forward(ctx, input, dim, start, length):
        """See torch."""
        return stock.AutogradNarrow.forward(ctx, input, axis(input, dim), start, length)


class Squeeze(stock.AutogradSqueeze):
    """CrypTen's takes no dimension of a scalar."""

    @staticmethod
    def forward(ctx, input, dim=None):
        """See torch."""
        if input.dim():
            return stock.AutogradSqueeze.forward(ctx, input, dim=dim)
        if dim is not None:
            axis(input, dim)
        ctx.save_for_backward([])
        return input.squeeze()


def _scattered(grad: MPCTensor, places: torch.Tensor, size: torch.Size) -> MPCTensor:
    """Each gradient added at its place in a flat tensor, which is then shaped to `size`."""
    flat = grad.new(torch.zeros(size.numel()))
    return flat.index_add(0, places.flatten(), grad.flatten()).view(size)


class GetItem(stock.AutogradGetItem):
    """CrypTen's writes the gradients of elements that are indexed twice over each other."""

    @staticmethod
    def backward(ctx, grad_output):
        """Where indices are no numbers and slices, they may repeat, and the gradients add up."""
        size, index = ctx.saved_tensors
        parts = index if isinstance(index, tuple) else (index,)
        if all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in parts):
            return stock.AutogradGetItem.backward(ctx, grad_output)
        return _scattered(grad_output, torch.arange(size.numel()).view(size)[index], size)


class Take(stock.AutogradTake):
    """CrypTen's writes over each other, too; `dimension` is the method's name for what the gradient's has as `dim`."""

    @staticmethod
    def forward(ctx, input, index, dimension=None, dim=None):
        """See CrypTen's method."""
        dim = dimension if dim is None else dim
        return stock.AutogradTake.forward(ctx, input, index, None if dim is None else axis(input, dim))

    @staticmethod
    def backward(ctx, grad_output):
        """Of an index into the flat tensor; CrypTen's is right along a dimension."""
        size, index, dim = ctx.saved_tensors
        if dim is not None and len(size):
            return stock.AutogradTake.backward(ctx, grad_output)
        return _scattered(grad_output, index, size)


class Matmul(stock.AutogradMatMul):
    """CrypTen's takes no vector beside a batch of matrices."""

    @staticmethod
    def backward(ctx, grad_output):
        """A vector is a matrix of one row, or one column."""
        first, second = ctx.saved_tensors
        if first.dim() > 1 and second.dim() > 1:
            return stock.AutogradMatMul.backward(ctx, grad_output)
        x = first if first.dim() > 1 else first.unsqueeze(0)
        y = second if second.dim() > 1 else second.unsqueeze(1)
        batch = torch.broadcast_shapes(x.size()[:-2], y.size()[:-2])
        grad = grad_output.view(*batch, x.size(-2), y.size(-1))
        parts = (grad.matmul(y.transpose(-2, -1)), x), (x.transpose(-2, -1).matmul(grad), y)
        return tuple(
            inverse_broadcast(part, to.size()).view(of.size())
            for (part, to), of in zip(parts, (first, second), strict=True)
        )


class Sum(stock.AutogradSum):
    """CrypTen's takes one dimension, or all."""

    @staticmethod
    def forward(ctx, input, dim=None, keepdim=False):
        """See torch."""
        if not isinstance(dim, (list, tuple)):
            return stock.AutogradSum.forward(ctx, input, dim=dim, keepdim=keepdim)
        ctx.save_multiple_for_backward((input.size(), {axis(input, d) for d in dim}, keepdim))
        return input.sum(dim, keepdim=keepdim)

    @staticmethod
    def backward(ctx, grad_output):
        """The gradient wherever a value was added."""
        size, dim, _ = ctx.saved_tensors
        if not isinstance(dim, set):
            return stock.AutogradSum.backward(ctx, grad_output)
        return _spread(grad_output, size, dim)


class Mean(stock.AutogradMean):
    """CrypTen's takes one dimension, or all."""

    @staticmethod
    def forward(ctx, input, dim=None, keepdim=False):
        """See torch."""
        if not isinstance(dim, (list, tuple)):
            return stock.AutogradMean.forward(ctx, input, dim=dim, keepdim=keepdim)
        ctx.save_multiple_for_backward((input.size(), {axis(input, d) for d in dim}, keepdim))
        return input.mean(dim, keepdim=keepdim)

    @staticmethod
    def backward(ctx, grad_output):
        """The gradient over the number of values."""
        size, dim, _ = ctx.saved_tensors
        if not isinstance(dim, set):
            return stock.AutogradMean.backward(ctx, grad_output)
        return _spread(grad_output.div(math.prod(size[d] for d in dim)), size, dim)


def _spread(grad: MPCTensor, size: torch.Size, dims: set[int]) -> MPCTensor:
    """The same along each of these dimensions; a copy, since gradients are added up in place."""
    return grad.view(*(1 if d in dims else n for d, n in enumerate(size))).expand(*size).clone()


class Polynomial(stock.AutogradPolynomial):
    """CrypTen's multiplies the caller's coefficients themselves, and so those of the next call."""

    @staticmethod
    def backward(ctx, grad_output):
        """The derivative's coefficients are those of x**k, times k."""
        input, coeffs, func = ctx.saved_tensors
        coeffs = coeffs * torch.arange(1, len(coeffs) + 1)
        slope = input.polynomial(coeffs[1:], func) if len(coeffs) > 1 else input.new(torch.zeros(input.size()))
        return slope.add(coeffs[0]).mul(grad_output)


class PosPow(stock.AutogradPosPow):
    """CrypTen's derivative of x**p for a broken p is p x**(p (p - 1))."""

    @staticmethod
    def backward(ctx, grad_output):
        """p x**(p - 1), from the logarithm that the forward pass has saved."""
        saved, p = ctx.saved_tensors
        if isinstance(p, (int, float)) and int(p) == p:
            return stock.AutogradPosPow.backward(ctx, grad_output)
        return saved.mul(p - 1.0).exp().mul(p).mul(grad_output)


class Pow(stock.AutogradPow):
    """CrypTen multiplies x by an approximation of 1 / x for x**0, and takes x**-1 from x**-2."""

    @staticmethod
    def forward(ctx, input, power):
        """See torch."""
        if power > 0:
            return stock.AutogradPow.forward(ctx, input, power)
        result = input.pow(power)
        slope = input.new(torch.zeros(input.size())) if power == 0 else result.mul(input.reciprocal()).mul(power)
        ctx.save_multiple_for_backward([input, slope])
        return result


class Log(stock.AutogradLog):
    """CrypTen's has no `input_in_01`."""

    @staticmethod
    def forward(ctx, input, input_in_01=False):
        """See CrypTen's method."""
        ctx.save_multiple_for_backward([input, input_in_01])
        return input.log(input_in_01=input_in_01)

    @staticmethod
    def backward(ctx, grad_output):
        """1 / x."""
        input, input_in_01 = ctx.saved_tensors
        return grad_output.mul(input.reciprocal(input_in_01=input_in_01))


class Reciprocal(stock.AutogradReciprocal):
    """CrypTen's has no `input_in_01`."""

    @staticmethod
    def forward(ctx, input, input_in_01=False):
        """See CrypTen's method."""
        reciprocal = input.reciprocal(input_in_01=input_in_01)
        ctx.save_for_backward(reciprocal)
        return reciprocal


class AvgPool2d(stock.AutogradAvgPool2D):
    """CrypTen's method refuses `ceil_mode`; its gradient takes it and does not heed it."""

    @staticmethod
    def forward(ctx, input, kernel_size, stride=None, padding=0, ceil_mode=False):
        """Raises `NotImplementedError` for `ceil_mode`."""
        if ceil_mode:
            raise NotImplementedError("avg_pool2d has no ceil_mode here; pad the input, or write ceil_mode=False")
        return stock.AutogradAvgPool2D.forward(ctx, input, kernel_size, stride, padding)


class Norm(stock.AutogradNorm):
    """CrypTen's forgets to put the dimension of the norms back, along which it divides by them."""

    @staticmethod
    def backward(ctx, grad_output):
        """CrypTen's, with the dimension."""
        input, norm, p, dim, keepdim = ctx.saved_tensors
        if dim is not None and not keepdim:
            grad_output = grad_output.unsqueeze(dim)
            ctx.context[1] = norm if p == float("inf") else norm.unsqueeze(dim)
        return stock.AutogradNorm.backward(ctx, grad_output)


class Variance(stock.AutogradVariance):
    """CrypTen's counts how many values each of no variances has, and gives the gradient of a scalar a dimension."""

    @staticmethod
    def forward(ctx, self, *args, **kwargs):
        """See CrypTen's method."""
        if self.dim() and self.nelement():
            return stock.AutogradVariance.forward(ctx, self, *args, **kwargs)
        ctx.save_for_backward(self)
        return self.var(*args, **kwargs)

    @staticmethod
    def backward(ctx, grad_output):
        """Zero for one value, and nothing for none."""
        if len(ctx.saved_tensors) > 1:
            return stock.AutogradVariance.backward(ctx, grad_output)
        return grad_output.new(torch.zeros(ctx.saved_tensors[0].size()))


GRADIENTS: dict[str, type] = {
    "permute": Permute,
    "flip": Flip,
    "narrow": Narrow,
    "squeeze": Squeeze,
    "__getitem__": GetItem,
    "take": Take,
    "matmul": Matmul,
    "sum": Sum,
    "mean": Mean,
    "polynomial": Polynomial,
    "pow": Pow,
    "pos_pow": PosPow,
    "log": Log,
    "reciprocal": Reciprocal,
    "avg_pool2d": AvgPool2d,
    "norm": Norm,
    "var": Variance,
}
