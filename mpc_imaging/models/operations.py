"""Element-wise, linear-algebra and shape operations: torch's own signatures, in terms of the engine's operations.

Each function takes `ops` (`mpc_imaging.engine.layers`, or plain torch in the tests) and then what the torch function of
that name takes. `ops` needs only few operations, with every hyper-parameter as plain numbers: sizes are resolved,
dimensions counted from the front, numbers put after tensors. Tensors may be of any kind that has a `shape`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mpc_imaging.models.problems import NotBuiltYet


def is_number(value: Any) -> bool:
    """Whether the value is a public number rather than a tensor."""
    return isinstance(value, int | float)


def front_dim(x: Any, dim: int) -> int:
    """The dimension counted from the front."""
    return dim % len(x.shape)


def _dims(x: Any, dim: int | Sequence[int] | None) -> tuple[int, ...]:
    every = range(len(x.shape))
    if dim is None:
        return tuple(every)
    return tuple(front_dim(x, d) for d in ([dim] if isinstance(dim, int) else dim))


# Element-wise


def identity(ops: Any, input: Any, memory_format: Any = None) -> Any:
    """The value itself: contiguous, float, nn.Identity."""
    return input


def clone(ops: Any, input: Any, memory_format: Any = None) -> Any:
    """The value itself, which is never overwritten here and needs no copy."""
    return input


def add(ops: Any, input: Any, other: Any, *, alpha: float = 1) -> Any:
    """Input + alpha * other; either may be a number."""
    if alpha != 1:
        other = mul(ops, other, alpha)
    return ops.add(other, input) if is_number(input) else ops.add(input, other)


def sub(ops: Any, input: Any, other: Any, *, alpha: float = 1) -> Any:
    """Input - alpha * other; either may be a number."""
    if alpha != 1:
        other = mul(ops, other, alpha)
    return ops.add(ops.mul(other, -1), input) if is_number(input) else ops.sub(input, other)


def mul(ops: Any, input: Any, other: Any) -> Any:
    """Product; either may be a number."""
    if is_number(input) and is_number(other):
        return input * other
    return ops.mul(other, input) if is_number(input) else ops.mul(input, other)


def div(ops: Any, input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    """Quotient by a public number."""
    return ops.div(input, other)


def neg(ops: Any, input: Any) -> Any:
    """The negative."""
    return ops.mul(input, -1)


def pow(ops: Any, input: Any, exponent: float = 2) -> Any:
    """The square."""
    return ops.mul(input, input)


def square(ops: Any, input: Any) -> Any:
    """The square."""
    return ops.mul(input, input)


def relu(ops: Any, input: Any, inplace: bool = False) -> Any:
    """Max(x, 0)."""
    return ops.relu(input)


def relu6(ops: Any, input: Any, inplace: bool = False) -> Any:
    """Min(max(x, 0), 6)."""
    return ops.hardtanh(input, 0, 6)


def hardtanh(ops: Any, input: Any, min_val: float = -1, max_val: float = 1, inplace: bool = False) -> Any:
    """Min(max(x, min_val), max_val)."""
    return ops.hardtanh(input, min_val, max_val)


def clamp(ops: Any, input: Any, min: float | None = None, max: float | None = None) -> Any:
    """Hardtanh, or a shifted ReLU where one bound is missing."""
    if min is not None and max is not None:
        return ops.hardtanh(input, min, max)
    if min is not None:
        return ops.relu(input) if min == 0 else add(ops, ops.relu(sub(ops, input, min)), min)
    return sub(ops, max, ops.relu(sub(ops, max, input)))


def leaky_relu(ops: Any, input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    """X where positive, else slope * x."""
    return ops.leaky_relu(input, negative_slope)


def sigmoid(ops: Any, input: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return ops.sigmoid(input)


def tanh(ops: Any, input: Any) -> Any:
    """Hyperbolic tangent."""
    return ops.tanh(input)


def softmax(ops: Any, input: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    """Softmax over one dimension."""
    return ops.softmax(input, front_dim(input, dim))


def log_softmax(ops: Any, input: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    """Log of the softmax over one dimension."""
    return ops.log_softmax(input, front_dim(input, dim))


def dropout(ops: Any, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """The value itself: dropout that would drop anything does not pass the checks."""
    return input


def stochastic_depth(ops: Any, input: Any, p: float, mode: str, training: bool = True) -> Any:
    """The value itself, as for dropout."""
    return input


def detach(ops: Any, input: Any) -> Any:
    """The value itself: outside training there is no gradient to stop."""
    return input


# Linear algebra


def linear(ops: Any, input: Any, weight: Any, bias: Any = None) -> Any:
    """Input (..., F) times weight (K, F) transposed, plus bias (K,)."""
    return ops.linear(input, weight, bias)


def flat_linear(ops: Any, input: Any, weight: Any, bias: Any = None) -> Any:
    """A linear layer that has absorbed a batch-norm, which was over the features only if the input is (N, F)."""
    if len(input.shape) != 2:
        raise NotBuiltYet(
            f"it is folded with its batch-norm, and its input has {len(input.shape)} dimensions",
            "flatten its input to (N, features)",
        )
    return ops.linear(input, weight, bias)


def matmul(ops: Any, input: Any, other: Any) -> Any:
    """Matrix product with broadcasting over the leading dimensions."""
    return ops.matmul(input, other)


def scale_shift(ops: Any, input: Any, scale: Any, shift: Any) -> Any:
    """A fixed scale (C,) and shift (C,) per channel of (N, C, ...)."""
    return ops.scale_shift(input, scale, shift, 1)


# Shapes


def flatten(ops: Any, input: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    """Dimensions start to end made one."""
    return ops.flatten(input, front_dim(input, start_dim), front_dim(input, end_dim))


def reshape(ops: Any, input: Any, *shape: Any) -> Any:
    """The same values in another shape, of which one size may be -1."""
    sizes = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
    return ops.reshape(input, _resolved(math.prod(input.shape), sizes))


def _resolved(count: int, sizes: Sequence[int]) -> tuple[int, ...]:
    known = math.prod(size for size in sizes if size != -1)
    return tuple(count // known if size == -1 else size for size in sizes)


def unflatten(ops: Any, input: Any, dim: int, sizes: Sequence[int]) -> Any:
    """One dimension split into several."""
    dim, shape = front_dim(input, dim), tuple(input.shape)
    return ops.reshape(input, (*shape[:dim], *_resolved(shape[dim], tuple(sizes)), *shape[dim + 1 :]))


def unsqueeze(ops: Any, input: Any, dim: int) -> Any:
    """A new dimension of size 1."""
    shape = list(input.shape)
    shape.insert(dim % (len(shape) + 1), 1)
    return ops.reshape(input, tuple(shape))


def squeeze(ops: Any, input: Any, dim: int | Sequence[int] | None = None) -> Any:
    """Without the named (or all) dimensions of size 1."""
    dims = _dims(input, dim)
    return ops.reshape(input, tuple(n for d, n in enumerate(input.shape) if d not in dims or n != 1))


def transpose(ops: Any, input: Any, dim0: int, dim1: int) -> Any:
    """Two dimensions exchanged."""
    return ops.transpose(input, front_dim(input, dim0), front_dim(input, dim1))


def permute(ops: Any, input: Any, *dims: Any) -> Any:
    """Dimensions in another order."""
    return ops.permute(input, _dims(input, dims if isinstance(dims[0], int) else dims[0]))


def mean(ops: Any, input: Any, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Any:
    """Mean over some or all dimensions."""
    return ops.mean(input, _dims(input, dim), keepdim)


def sum(ops: Any, input: Any, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Any:
    """Sum over some or all dimensions."""
    return ops.sum(input, _dims(input, dim), keepdim)


def cat(ops: Any, tensors: Sequence[Any], dim: int = 0) -> Any:
    """Tensors joined along a dimension."""
    return ops.cat(list(tensors), front_dim(tensors[0], dim))


def stack(ops: Any, tensors: Sequence[Any], dim: int = 0) -> Any:
    """Tensors joined along a new dimension."""
    dim = dim % (len(tensors[0].shape) + 1)
    return ops.cat([unsqueeze(ops, x, dim) for x in tensors], dim)


def split(ops: Any, tensor: Any, split_size_or_sections: int | Sequence[int], dim: int = 0) -> Any:
    """A tuple of pieces of the given size or sizes."""
    dim, step = front_dim(tensor, dim), split_size_or_sections
    if isinstance(step, int):
        length = tensor.shape[dim]
        step = [min(step, length - start) for start in range(0, length, step)]
    return ops.split(tensor, tuple(step), dim)


def chunk(ops: Any, input: Any, chunks: int, dim: int = 0) -> Any:
    """A tuple of at most so many pieces of one size; the last may be smaller."""
    return split(ops, input, math.ceil(input.shape[front_dim(input, dim)] / chunks), dim)


def getitem(ops: Any, input: Any, index: Any) -> Any:
    """A piece of a tuple of tensors, or the part of a tensor under integers, slices, None and Ellipsis."""
    return input[index] if isinstance(input, tuple | list) else ops.getitem(input, index)
