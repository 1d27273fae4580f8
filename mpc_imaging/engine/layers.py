"""The operations that `mpc_imaging.models.convert.SecureModule` interprets a network with, on CrypTen tensors.

Inputs and activations are shared; weights are shared, or public torch tensors (then linear layers cost one truncation and no
product). All sizes are normalised by the caller: tuples of int, no strings. Gradients flow through every function.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mpc_imaging.engine import approximations, compat

crypten = compat.load()

from crypten.mpc import MPCTensor  # noqa: E402

Weight = MPCTensor | torch.Tensor


def _with_bias(x: MPCTensor, bias: Weight | None, spatial: int) -> MPCTensor:
    return x if bias is None else x + bias.view(-1, *[1] * spatial)


def conv2d(x, w: Weight, b: Weight | None, stride, padding, dilation, groups: int):
    """(N, C, H, W) with (O, C / groups, kh, kw)."""
    return _with_bias(x.conv2d(w, stride=stride, padding=padding, dilation=dilation, groups=groups), b, 2)


def conv1d(x, w: Weight, b: Weight | None, stride, padding, dilation, groups: int):
    """(N, C, L) with (O, C / groups, k), as a 2-d convolution over a height of one."""
    y = x.unsqueeze(2).conv2d(
        w.unsqueeze(2), stride=(1, *stride), padding=(0, *padding), dilation=(1, *dilation), groups=groups
    )
    return _with_bias(y.squeeze(2), b, 1)


def conv_transpose2d(x, w: Weight, b: Weight | None, stride, padding, output_padding, groups: int, dilation):
    """(N, C, H, W) with (C, O / groups, kh, kw)."""
    y = x.conv_transpose2d(
        w, stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation
    )
    return _with_bias(y, b, 2)


def linear(x, w: Weight, b: Weight | None):
    """x @ w.T + b."""
    y = x.matmul(w.t())
    return y if b is None else y + b


def matmul(a, b):
    """Matrix product."""
    return a.matmul(b)


def add(a, b):
    """a + b."""
    return a + b


def sub(a, b):
    """a - b."""
    return a - b


def mul(a, b):
    """a * b, element-wise."""
    return a * b


def div(a, b):
    """a / b for a public number b."""
    return a / b


def relu(x):
    """max(x, 0)."""
    return x.relu()


def leaky_relu(x, slope: float):
    """x where positive, slope * x elsewhere."""
    positive = x.relu()
    return positive + (x - positive) * slope


def hardtanh(x, low: float, high: float):
    """min(max(x, low), high)."""
    return x.hardtanh(low, high)


def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return approximations.sigmoid(x)


def tanh(x):
    """2 sigmoid(2 x) - 1."""
    return approximations.sigmoid(x * 2) * 2 - 1


def softmax(x, dim: int):
    """Probabilities along `dim`."""
    return approximations.softmax(x, dim % x.dim())


def log_softmax(x, dim: int):
    """Their logarithms."""
    return approximations.log_softmax(x, dim % x.dim())


def max_pool2d(x, kernel, stride, padding, dilation):
    """Largest value of each window."""
    return x.max_pool2d(kernel, padding=padding, stride=stride, dilation=dilation)


def avg_pool2d(x, kernel, stride, padding, count_include_pad: bool = True):
    """Mean of each window; padding counts as zeros, or not at all."""
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


def adaptive_avg_pool2d(x, size):
    """Mean of windows that tile the input into `size` (oh, ow)."""
    h, w = x.shape[2:]
    if h % size[0] == 0 and w % size[1] == 0:
        kernel = (h // size[0], w // size[1])
        return x if kernel == (1, 1) else avg_pool2d(x, kernel, kernel, (0, 0))
    return _resize(x, _averaging(h, size[0]), _averaging(w, size[1]))


def _resize(x, rows: torch.Tensor, cols: torch.Tensor):
    """A public linear map along height (H, H') and width (W, W')."""
    return x.matmul(cols).transpose(2, 3).matmul(rows).transpose(2, 3)


def upsample_nearest(x, scale):
    """Each pixel repeated scale = (sh, sw) times."""
    for dim, times in ((2, scale[0]), (3, scale[1])):
        x = x.index_select(dim, torch.arange(x.shape[dim]).repeat_interleave(times))
    return x


def upsample_bilinear(x, size, align_corners: bool):
    """Bilinear interpolation to `size` (H', W'): a public linear map."""

    def matrix(length: int, out: int) -> torch.Tensor:
        unit = torch.eye(length).view(1, length, 1, length)
        resized = torch.nn.functional.interpolate(unit, (1, out), mode="bilinear", align_corners=align_corners)
        return resized.view(length, out)

    return _resize(x, matrix(x.shape[2], size[0]), matrix(x.shape[3], size[1]))


def pad(x, pad: Sequence[int], value: float):
    """Constant padding, last dimension first, as torch.nn.functional.pad."""
    return x.pad(tuple(pad), value=value)


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
    return x.permute(*dims)


def mean(x, dims, keepdim: bool):
    """Mean over dimensions."""
    return x.mean(tuple(dims), keepdim=keepdim)


def sum(x, dims, keepdim: bool):  # noqa: A001  (torch's name)
    """Sum over dimensions."""
    return x.sum(tuple(dims), keepdim=keepdim)


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


def scale_shift(x, scale: Weight, shift: Weight, channel_dim: int = 1):
    """x * scale + shift for each channel: a batch-norm with fixed statistics."""
    shape = [-1 if d == channel_dim else 1 for d in range(x.dim())]
    return x * scale.view(*shape) + shift.view(*shape)
