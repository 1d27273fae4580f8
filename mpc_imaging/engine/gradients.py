"""Gradients of the replaced gates, for CrypTen's autograd: the forward pass's comparisons serve the backward pass."""

from __future__ import annotations

from mpc_imaging.engine import compat, gates
from mpc_imaging.engine.tensors import from_share
from mpc_imaging.protocols import bilinear, tournament, truncate
from mpc_imaging.randomness.ring import BilinearOp

compat.load()

import crypten.gradients as stock  # noqa: E402
from crypten.mpc import MPCTensor  # noqa: E402


class ReLU(stock.AutogradFunction):
    """Passes the gradient where x >= 0."""

    @staticmethod
    def forward(ctx, input):
        """ReLU."""
        output, positive = gates.relu_with_bit(input)
        ctx.save_for_backward(positive)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        """One product with a bit."""
        (positive,) = ctx.saved_tensors
        return grad_output.mul(positive)


class Hardtanh(stock.AutogradFunction):
    """Passes the gradient between the bounds."""

    @staticmethod
    def forward(ctx, input, min_val=-1, max_val=1):
        """Clamp."""
        output, inside = gates.hardtanh_with_bit(input, min_val, max_val)
        ctx.save_for_backward(inside)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        """One product with a bit."""
        (inside,) = ctx.saved_tensors
        return grad_output.mul(inside)


class MaxPool2d(stock.AutogradFunction):
    """Sends the gradient down the tournament that found the maximum."""

    @staticmethod
    def forward(ctx, input, kernel_size, padding=0, stride=None, dilation=1, ceil_mode=False, return_indices=False):
        """Max-pool of (N, C, H, W); one-hots of the windows have no gradient and raise `NotImplementedError`."""
        if return_indices:
            raise NotImplementedError(
                "max_pool2d with return_indices has no gradient here; call it on a detached tensor"
            )
        windows = gates.Windows(input.size(), kernel_size, stride, padding, dilation, ceil_mode)
        output, levels = gates.max_pool_levels(input, windows)
        ctx.save_multiple_for_backward([windows, levels])
        return output

    @staticmethod
    def backward(ctx, grad_output):
        """One product with a bit for each comparison."""
        windows, levels = ctx.saved_tensors
        share = tournament.distribute(gates.context(), grad_output.share.unsqueeze(2), levels, 2)
        return from_share(windows.scatter(share), grad_output.encoder._precision_bits)


class Conv2d(stock.AutogradFunction):
    """One product for the kernel's gradient; CrypTen convolves with one group for each image and channel."""

    @staticmethod
    def forward(ctx, input, kernel, stride=1, padding=0, dilation=1, groups=1):
        """Convolution of (N, C, H, W) with (O, C / groups, kh, kw)."""
        stride, padding, dilation = (gates._pairs(v, 2) for v in (stride, padding, dilation))
        ctx.save_multiple_for_backward([input, kernel, stride, padding, dilation, groups])
        return input.conv2d(kernel, stride=stride, padding=padding, dilation=dilation, groups=groups)

    @staticmethod
    def backward(ctx, grad_output):
        """Gradients for the input, where it has one, and the kernel."""
        input, kernel, stride, padding, dilation, groups = ctx.saved_tensors
        size = [
            (grad_output.size(2 + i) - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel.size(2 + i) - 1) + 1
            for i in (0, 1)
        ]
        extra = (input.size(2) - size[0], input.size(3) - size[1])
        # The first layer's input is data: nobody asks for its gradient.
        grad_input = grad_output
        if not isinstance(input, MPCTensor) or input.requires_grad:
            grad_input = grad_output.conv_transpose2d(
                kernel, stride=stride, padding=padding, output_padding=extra, groups=groups, dilation=dilation
            )
        if not isinstance(kernel, MPCTensor):
            return grad_input
        params = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        return grad_input, _kernel_gradient(input, grad_output, kernel, params)


class ConvTranspose2d(stock.AutogradFunction):
    """CrypTen has none: its transposed convolution would silently cut the graph."""

    @staticmethod
    def forward(ctx, input, kernel, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
        """Transposed convolution of (N, C, H, W) with (C, O / groups, kh, kw)."""
        stride, padding, output_padding, dilation = (
            gates._pairs(v, 2) for v in (stride, padding, output_padding, dilation)
        )
        ctx.save_multiple_for_backward([input, kernel, stride, padding, dilation, groups])
        return input.conv_transpose2d(
            kernel, stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation
        )

    @staticmethod
    def backward(ctx, grad_output):
        """The convolution that it transposes, and that one's kernel gradient with the operands swapped."""
        input, kernel, stride, padding, dilation, groups = ctx.saved_tensors
        params = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        grad_input = grad_output.conv2d(kernel, **params)
        if not isinstance(kernel, MPCTensor):
            return grad_input
        return grad_input, _kernel_gradient(grad_output, input, kernel, params)


def _kernel_gradient(x: MPCTensor, grad: MPCTensor, kernel: MPCTensor, params: dict) -> MPCTensor:
    op = BilinearOp("conv2d_weight", tuple(sorted({"kernel": tuple(kernel.shape[2:]), **params}.items())))
    share = bilinear.multiply(gates.context(), op, x.share, grad.share)
    bits = kernel.encoder._precision_bits
    return from_share(truncate.truncate(gates.context(), share, bits), bits)


_OURS = {
    "relu": ReLU,
    "hardtanh": Hardtanh,
    "max_pool2d": MaxPool2d,
    "conv2d": Conv2d,
    "conv_transpose2d": ConvTranspose2d,
}
_replaced: dict[str, type | None] = {}


def register() -> None:
    """Put these functions into CrypTen's registry."""
    unregister()
    for name, function in _OURS.items():
        _replaced[name] = stock.FUNCTION_REGISTRY.get(name)
        function.name = name
        stock.FUNCTION_REGISTRY[name] = function


def unregister() -> None:
    """CrypTen's own functions again."""
    for name, function in _replaced.items():
        if function is None:
            del stock.FUNCTION_REGISTRY[name]
        else:
            stock.FUNCTION_REGISTRY[name] = function
    _replaced.clear()
