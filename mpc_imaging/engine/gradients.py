"""Gradients of the replaced gates, for CrypTen's autograd: the forward pass's comparisons serve the backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from mpc_imaging.engine import approximations, compat, corrected_gradients, gates
from mpc_imaging.engine.tensors import excess, from_share, precision, rescaled
from mpc_imaging.protocols import bilinear, compare, tournament, truncate
from mpc_imaging.protocols.selection import select
from mpc_imaging.protocols.sign import Sign
from mpc_imaging.randomness.ring import BilinearOp

compat.load()

import crypten.gradients as stock  # noqa: E402
from crypten.mpc import MPCTensor  # noqa: E402


class ReLU(stock.AutogradFunction):
    """Passes the gradient where x > 0."""

    @staticmethod
    def forward(ctx, input):
        """ReLU."""
        output, sign = gates.relu_with_sign(input)
        ctx.save_multiple_for_backward([sign.bits()])
        return output

    @staticmethod
    def backward(ctx, grad_output):
        """One round, which also truncates excess bits."""
        (sign,) = ctx.saved_tensors
        chosen = select(gates.context(), sign, grad_output.share, excess(grad_output))
        return gates.settled(chosen.selected(), grad_output)


def _chosen_twice(sign: Sign, grad: MPCTensor) -> Sign:
    """Two stacked comparisons, each with the gradient; one round."""
    return select(gates.context(), sign, torch.stack([grad.share, grad.share]), excess(grad))


class Hardtanh(stock.AutogradFunction):
    """Passes the gradient between the bounds, and not where x equals one, as torch does.

    That matters for what is rounded already: a product is truncated by chance in the comparison's own rounds, so it is
    at a bound only by chance.
    """

    @staticmethod
    def forward(ctx, input, min_val=-1, max_val=1, *, min_value=None, max_value=None):
        """Clamp; CrypTen's method has the bounds as `min_value` and `max_value`."""
        low, high = gates.bounds(min_val, max_val, min_value, max_value)
        if low == high:
            ctx.save_multiple_for_backward([None])
            return gates.constant(input, low)
        output, sign = gates.hardtanh_with_sign(input, low, high)
        ctx.save_multiple_for_backward([sign.bits()])
        return output

    @staticmethod
    def backward(ctx, grad_output):
        """The gradient where x > min_val less that where x >= max_val; one round."""
        (sign,) = ctx.saved_tensors
        if sign is None:
            return from_share(torch.zeros_like(grad_output.share))
        return gates.settled(compare.inside(_chosen_twice(sign, grad_output)), grad_output)


class ReLU6(Hardtanh):
    """CrypTen's multiplies by its comparisons, in two rounds more."""

    @staticmethod
    def forward(ctx, input):
        """Clamp between 0 and 6."""
        return Hardtanh.forward(ctx, input, 0, 6)


class Abs(stock.AutogradFunction):
    """Where x is 0, the gradient is 0, as torch's; CrypTen's is 1. It takes a second comparison, in the same rounds."""

    @staticmethod
    def forward(ctx, input):
        """|x|."""
        output, sign = gates.abs_with_sign(input)
        ctx.save_multiple_for_backward([sign.bits()])
        return output

    @staticmethod
    def backward(ctx, grad_output):
        """The gradient where x > 0 less that where x < 0; one round."""
        (sign,) = ctx.saved_tensors
        positive, negative = _chosen_twice(sign, grad_output).selected()
        return gates.settled(positive - negative, grad_output)


class MaxPool2d(stock.AutogradFunction):
    """Sends the gradient down the tournament that found the maximum."""

    @staticmethod
    def forward(ctx, input, kernel_size, padding=0, stride=None, dilation=1, ceil_mode=False, return_indices=False):
        """Max-pool of (..., H, W), and perhaps the one-hots of its windows, which have no gradient."""
        windows = gates.Windows(input.size(), kernel_size, stride, padding, dilation, ceil_mode)
        output, levels = gates.max_pool_levels(input, windows)
        ctx.save_multiple_for_backward([windows, [sign.bits() for sign in levels]])
        if not return_indices:
            return output
        indices = gates.window_onehots(windows, levels, output)
        ctx.mark_non_differentiable(indices)
        return output, indices

    @staticmethod
    def backward(ctx, grad_output, *_):
        """One round for each level of comparisons."""
        windows, levels = ctx.saved_tensors
        share = grad_output.share.unsqueeze(windows.place)
        share = tournament.distribute(gates.context(), share, levels, windows.place)
        return from_share(windows.scatter(share), grad_output.encoder._precision_bits)


class Layer(stock.AutogradFunction):
    """A linear or convolutional layer with shared weights, whose result keeps the fraction bits of both operands."""

    @staticmethod
    def forward(ctx, input, kernel, bias, op):
        """op(input, kernel) + bias; `op` is matmul with the kernel transposed, conv2d or conv_transpose2d."""
        ctx.save_multiple_for_backward([input, kernel, bias, op])
        share = bilinear.multiply(gates.context(), op, input.share, _oriented(kernel, op))
        if bias is not None:
            share += (bias.share << kernel.encoder._precision_bits).view(-1, *[1] * _spatial(op))
        return from_share(share, input.encoder._precision_bits + kernel.encoder._precision_bits)

    @staticmethod
    def backward(ctx, grad_output):
        """Gradients for the input, where it has one, the kernel and the bias: one round to open, one to truncate."""
        input, kernel, bias, op = ctx.saved_tensors
        grad = rescaled(grad_output)
        bits = grad.encoder._precision_bits + precision()
        grad_input, grad_parameters = grad_output, _parameter_gradients(input, kernel, bias, op, grad)
        # The first layer's input is data: nobody asks for its gradient.
        if input.requires_grad:
            grad_input = from_share(_input_gradient(op, input.share, grad.share, kernel.share), bits)
            if not _takes_excess(input):
                grad_input = rescaled(grad_input)
        return grad_input, *grad_parameters


@dataclass(frozen=True)
class Recorded:
    """A layer's input and the gradient of its output, image by image, whose product is its kernel's gradient."""

    op: BilinearOp
    input: MPCTensor
    grad: MPCTensor
    kernel: MPCTensor
    bias: MPCTensor | None


_recorded: list[Recorded] | None = None


@contextlib.contextmanager
def recording() -> Iterator[list[Recorded]]:
    """Backward passes meanwhile list their layers, whose parameters get gradients of zero: for `clipping`."""
    global _recorded
    _recorded = []
    try:
        yield _recorded
    finally:
        _recorded = None


def _parameter_gradients(
    input: MPCTensor, kernel: MPCTensor, bias: MPCTensor | None, op: BilinearOp, grad: MPCTensor
) -> list[MPCTensor]:
    """Of the kernel and of the bias, if there is one."""
    if _recorded is not None:
        _recorded.append(Recorded(op, input, grad, kernel, bias))
        return [from_share(torch.zeros_like(p.share)) for p in (kernel, bias) if p is not None]
    bits = grad.encoder._precision_bits + precision()
    grad_kernel = from_share(_kernel_gradient(op, input.share, grad.share, kernel.share), bits)
    if bias is None:
        return [grad_kernel]
    channel = grad.dim() - 1 - _spatial(op)
    return [grad_kernel, grad.sum([d for d in range(grad.dim()) if d != channel])]


def _spatial(op: BilinearOp) -> int:
    return 0 if op.name == "matmul" else 2


def _oriented(kernel: MPCTensor, op: BilinearOp) -> torch.Tensor:
    return kernel.share.t() if op.name == "matmul" else kernel.share


def _kernel_gradient(op: BilinearOp, x: torch.Tensor, grad: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    ctx = gates.context()
    if op.name == "matmul":
        return bilinear.multiply(ctx, op, grad.flatten(0, -2).t(), x.flatten(0, -2))
    params = {**_without(op, "output_padding"), "kernel": tuple(kernel.shape[2:])}
    weight = BilinearOp.of("conv2d_weight", **params)
    # A transposed convolution is the gradient of one whose input and result change places.
    return bilinear.multiply(ctx, weight, *((grad, x) if op.name == "conv_transpose2d" else (x, grad)))


def _input_gradient(op: BilinearOp, x: torch.Tensor, grad: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    ctx = gates.context()
    if op.name == "matmul":
        return bilinear.multiply(ctx, op, grad, kernel)
    params = _without(op, "output_padding")
    if op.name == "conv_transpose2d":
        return bilinear.multiply(ctx, BilinearOp.of("conv2d", **params), grad, kernel)
    params["output_padding"] = _left_over(x.shape, grad.shape, kernel.shape, **params)
    return bilinear.multiply(ctx, BilinearOp.of("conv_transpose2d", **params), grad, kernel)


def _left_over(
    x: Sequence[int], grad: Sequence[int], kernel: Sequence[int], stride, padding, dilation, groups: int
) -> tuple[int, ...]:
    """Rows and columns of a convolution's input (shapes are given) that its stride has left over."""
    reach = [dilation[i] * (kernel[2 + i] - 1) + 1 for i in (0, 1)]
    return tuple(x[2 + i] - (grad[2 + i] - 1) * stride[i] + 2 * padding[i] - reach[i] for i in (0, 1))


def _without(op: BilinearOp, name: str) -> dict:
    return {key: value for key, value in op.params if key != name}


# Their gradients are the same values elsewhere.
_SHAPES = ("flatten", "reshape", "view", "squeeze", "unsqueeze", "transpose", "permute", "t", "rescale")


def _takes_excess(input: MPCTensor) -> bool:
    """Whether the gradient for `input` goes to a function above, which truncates it with less than a round more."""
    while input.children and getattr(input.grad_fn, "name", None) in _SHAPES:
        input = input.children[0]
    return input.grad_fn in (ReLU, Hardtanh, MaxPool2d, Layer)


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
        params = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        # The first layer's input is data: nobody asks for its gradient.
        grad_input = grad_output
        if not isinstance(input, MPCTensor) or input.requires_grad:
            extra = _left_over(input.size(), grad_output.size(), kernel.size(), **params)
            grad_input = grad_output.conv_transpose2d(kernel, output_padding=extra, **params)
        if not isinstance(kernel, MPCTensor):
            return grad_input
        op = BilinearOp.of("conv2d", **params)
        return grad_input, _truncated(_kernel_gradient(op, input.share, grad_output.share, kernel.share), kernel)


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
        op = BilinearOp.of("conv_transpose2d", **params)
        return grad_input, _truncated(_kernel_gradient(op, input.share, grad_output.share, kernel.share), kernel)


class LogSoftmax(stock.AutogradFunction):
    """CrypTen's, but for its exponential, which is off by percents and is then multiplied by a sum of gradients."""

    @staticmethod
    def forward(ctx, input, dim):
        """Logarithms of probabilities along `dim`."""
        logarithms = input.log_softmax(dim)
        ctx.save_multiple_for_backward([logarithms, dim])
        return logarithms

    @staticmethod
    def backward(ctx, grad_output):
        """The gradient less the probabilities times its sum."""
        logarithms, dim = ctx.saved_tensors
        if grad_output.dim() == 0 or grad_output.size(dim) == 1:
            return grad_output * 0
        total = grad_output.sum(dim, keepdim=True).expand(*grad_output.size())
        return grad_output - approximations.exp_nonpositive(logarithms) * total


def _truncated(share: torch.Tensor, like: MPCTensor) -> MPCTensor:
    bits = like.encoder._precision_bits
    return from_share(truncate.truncate(gates.context(), share, bits), bits)


_OURS = {
    "relu": ReLU,
    "hardtanh": Hardtanh,
    "relu6": ReLU6,
    "abs": Abs,
    "max_pool2d": MaxPool2d,
    "layer": Layer,
    "conv2d": Conv2d,
    "conv_transpose2d": ConvTranspose2d,
    "log_softmax": LogSoftmax,
    **corrected_gradients.GRADIENTS,
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
