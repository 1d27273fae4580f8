"""The operations that `mpc_imaging.models.convert.SecureModule` interprets a network with, on CrypTen tensors.

Inputs and activations are shared; weights are shared, or public torch tensors (then linear layers communicate
nothing). All sizes are normalised by the caller: tuples of int, no strings. Gradients flow through every
function.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mpc_imaging.engine import approximations, compat, gates, tensors
from mpc_imaging.engine.encoding import encode
from mpc_imaging.randomness.ring import BilinearOp

crypten = compat.load()

from crypten.mpc import MPCTensor  # noqa: E402

Weight = MPCTensor | torch.Tensor

in_range, inputs_in_range = gates.in_range, gates.inputs_in_range


def _rescaling(function: Callable[..., Any]) -> Callable[..., Any]:
    """Brings shared arguments to the session's precision first (see `_public_product`)."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return function(*(_rescaled(arg) for arg in args), **kwargs)

    return wrapped


def _rescaled(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_rescaled(entry) for entry in value]
    return tensors.rescaled(value) if isinstance(value, MPCTensor) else value


def _public_product(op: BilinearOp, x: MPCTensor, w: torch.Tensor, b: torch.Tensor | None, spatial: int) -> MPCTensor:
    """A linear layer with public weights: local.

    The result keeps twice the fraction bits until the next comparison or product. So the layer itself costs no
    communication, and where a max-pool follows, fewer values are truncated.
    """
    bits = tensors.precision()
    share = op(tensors.rescaled(x).share, encode(w, bits))
    y = tensors.from_share(share, 2 * bits)
    return y if b is None else y + b.view(-1, *[1] * spatial)


def _product(name: str, x: MPCTensor, w: Weight, b: Weight | None, spatial: int, params: dict[str, Any]) -> MPCTensor:
    """A linear layer; the result keeps twice the fraction bits, too (`gradients.Layer`)."""
    op = BilinearOp.of(name, **params)
    if isinstance(w, torch.Tensor):
        return gates.watch(_public_product(op, x, w.t() if name == "matmul" else w, b, spatial))
    if gates.installed():
        return gates.watch(tensors.rescaled(x).layer(w, b, op))
    y = getattr(x, name)(w.t() if name == "matmul" else w, **params)  # CrypTen as it came
    return y if b is None else y + b.view(-1, *[1] * spatial)


def open_weights(weights: Sequence[Weight]) -> None:
    """Mask and open shared weights in one round, before the first product that they enter."""
    if gates.installed():
        shares = [w.share for w in weights if isinstance(w, MPCTensor)]
        gates.context().masks.open(gates.context(), shares)


def conv2d(x, w: Weight, b: Weight | None, stride, padding, dilation, groups: int):
    """Convolution of x (N, C, H, W) with w (O, C / groups, kh, kw), plus b (O,): (N, O, H', W')."""
    return _product(
        "conv2d", x, w, b, 2, {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    )


def conv1d(x, w: Weight, b: Weight | None, stride, padding, dilation, groups: int):
    """Convolution of x (N, C, L) with w (O, C / groups, k), plus b (O,): a 2-d one over a height of one."""
    params = {"stride": (1, *stride), "padding": (0, *padding), "dilation": (1, *dilation), "groups": groups}
    return _product("conv2d", x.unsqueeze(2), w.unsqueeze(2), b, 2, params).squeeze(2)


def conv_transpose2d(x, w: Weight, b: Weight | None, stride, padding, output_padding, groups: int, dilation):
    """Transposed convolution of x (N, C, H, W) with w (C, O / groups, kh, kw), plus b (O,): (N, O, H', W')."""
    params = {
        "stride": stride,
        "padding": padding,
        "output_padding": output_padding,
        "groups": groups,
        "dilation": dilation,
    }
    return _product("conv_transpose2d", x, w, b, 2, params)


def linear(x, w: Weight, b: Weight | None):
    """x @ w.T + b for x (..., F), w (K, F), b (K,): (..., K)."""
    return _product("matmul", x, w, b, 0, {})


@_rescaling
def matmul(a, b):
    """Matrix product (..., M, K) @ (..., K, N), broadcast as torch.matmul does."""
    return gates.watch(a.matmul(b))


@_rescaling
def add(a, b):
    """a + b."""
    return a + b


@_rescaling
def sub(a, b):
    """a - b."""
    return a - b


@_rescaling
def mul(a, b):
    """a * b, element-wise."""
    return gates.watch(a * b)


@_rescaling
def div(a, b):
    """a / b for a public number b."""
    return a / b


def relu(x):
    """max(x, 0)."""
    return x.relu()


@_rescaling
def leaky_relu(x, slope: float):
    """x where positive, slope * x elsewhere."""
    positive = x.relu()
    return positive + (x - positive) * slope


def hardtanh(x, low: float, high: float):
    """min(max(x, low), high) for public bounds."""
    return x.hardtanh(low, high)


@_rescaling
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return approximations.sigmoid(x)


@_rescaling
def tanh(x):
    """2 sigmoid(2 x) - 1."""
    return approximations.sigmoid(x * 2) * 2 - 1


@_rescaling
def softmax(x, dim: int):
    """Probabilities along `dim`."""
    return approximations.softmax(x, dim % x.dim())


@_rescaling
def log_softmax(x, dim: int):
    """Their logarithms."""
    return approximations.log_softmax(x, dim % x.dim())


def max_pool2d(x, kernel, stride, padding, dilation):
    """Largest value of each window of (N, C, H, W); sizes are pairs. Values must stay below 2**62 in fixed point."""
    return x.max_pool2d(kernel, padding=padding, stride=stride, dilation=dilation)


@_rescaling
def avg_pool2d(x, kernel, stride, padding, count_include_pad: bool = True):
    """Mean of each window of (N, C, H, W); padding counts as zeros, or not at all. Sizes are pairs."""
    y = x.avg_pool2d(kernel, stride=stride, padding=padding)
    if count_include_pad or padding == (0, 0):
        return y
    inside = torch.nn.functional.avg_pool2d(torch.ones(1, 1, *x.shape[2:]), kernel, stride, padding)
    return y * inside.reciprocal()


def _averaging(size: int, out: int) -> torch.Tensor:
    """(size, out) matrix of torch's adaptive average: output j is the mean of rows floor(j s) to ceil((j + 1) s)."""
    matrix = torch.zeros(size, out)
    for j in range(out):
        start, stop = j * size // out, -(-(j + 1) * size // out)
        matrix[start:stop, j] = 1 / (stop - start)
    return matrix


@_rescaling
def adaptive_avg_pool2d(x, size):
    """Mean of windows that tile (N, C, H, W) into `size` (oh, ow), which may overlap."""
    h, w = x.shape[2:]
    if h % size[0] == 0 and w % size[1] == 0:
        kernel = (h // size[0], w // size[1])
        return x if kernel == (1, 1) else avg_pool2d(x, kernel, kernel, (0, 0))
    return _resize(x, _averaging(h, size[0]), _averaging(w, size[1]))


def _resize(x, rows: torch.Tensor, cols: torch.Tensor):
    """A public linear map along height (H, H') and width (W, W')."""
    return x.matmul(cols).transpose(2, 3).matmul(rows).transpose(2, 3)


def upsample_nearest(x, scale):
    """Each pixel of (N, C, H, W) repeated `scale` (sh, sw) times."""
    for dim, times in ((2, scale[0]), (3, scale[1])):
        x = x.index_select(dim, torch.arange(x.shape[dim]).repeat_interleave(times))
    return x


@_rescaling
def upsample_bilinear(x, size, align_corners: bool):
    """Bilinear interpolation of (N, C, H, W) to `size` (H', W'): a public linear map."""

    def matrix(length: int, out: int) -> torch.Tensor:
        unit = torch.eye(length).view(1, length, 1, length)
        resized = torch.nn.functional.interpolate(unit, (1, out), mode="bilinear", align_corners=align_corners)
        return resized.view(length, out)

    return _resize(x, matrix(x.shape[2], size[0]), matrix(x.shape[3], size[1]))


@_rescaling
def pad(x, pad: Sequence[int], value: float):
    """Constant padding, last dimension first, as torch.nn.functional.pad."""
    return x.pad(tuple(pad), value=value)


@_rescaling
def cat(xs, dim: int):
    """Concatenation."""
    return crypten.cat(list(xs), dim=dim)


def flatten(x, start: int, end: int):
    """One dimension instead of start to end."""
    return x.flatten(start, end)


def reshape(x, shape):
    """Another shape of as many elements."""
    return x.reshape(*shape)


def transpose(x, a: int, b: int):
    """Two dimensions swapped."""
    return x.transpose(a, b)


def permute(x, dims):
    """Dimensions in another order."""
    return x.permute(tuple(dims))


@_rescaling
def mean(x, dims, keepdim: bool):
    """Mean over dimensions."""
    return _as_one(x, dims).mean(-1).reshape(_left(x, dims, keepdim))


@_rescaling
def sum(x, dims, keepdim: bool):  # noqa: A001  (torch's name)
    """Sum over dimensions."""
    return _as_one(x, dims).sum(-1).reshape(_left(x, dims, keepdim))


def _as_one(x, dims):
    """These dimensions made one, the last: CrypTen knows the gradients of reductions over a single one only."""
    rest = [d for d in range(x.dim()) if d not in dims]
    return x.permute((*rest, *dims)).reshape(*(x.size(d) for d in rest), -1)


def _left(x, dims, keepdim: bool) -> tuple[int, ...]:
    return tuple(1 if d in dims else x.size(d) for d in range(x.dim()) if keepdim or d not in dims)


def getitem(x, index):
    """Indexing by public indices."""
    return x[index]


def split(x, sizes: Sequence[int], dim: int):
    """Parts of given sizes."""
    parts, start = [], 0
    for size in sizes:
        parts.append(x.narrow(dim, start, size))
        start += size
    return parts


@_rescaling
def scale_shift(x, scale: Weight, shift: Weight, channel_dim: int = 1):
    """x * scale + shift with scale and shift (C,) along `channel_dim`: a batch-norm with fixed statistics."""
    shape = [-1 if d == channel_dim else 1 for d in range(x.dim())]
    return gates.watch(x * scale.view(*shape) + shift.view(*shape))
