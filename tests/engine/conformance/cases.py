"""What CrypTen's public API gives, beside torch: functions whose parameters name their inputs.

Inputs are shared by the first party; those whose names begin with ``p_`` are public. A case without a torch function of
its own is the same function on torch tensors. `close` says how near, with CrypTen's own criterion for approximations.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from mpc_imaging.engine import compat

crypten = compat.load()

from crypten.mpc import ptype  # noqa: E402

# How close, relative to the value and absolute; either suffices.
EXACT = (1e-4, 5e-4)  # a few units of 2**-16, which products add
LOOSE = (0.05, 0.005)  # CrypTen's own tests of its approximations
# CrypTen takes (1 + i x / 1024)**1024, which multiplies the rounding of x / 1024.
TRIGONOMETRY = (0.05, 2 * 1024 / 2**16)
# 2 % of the logarithm of a larger number, less that number's.
SHIFTED_LOG = (0.05, 0.05)


def _inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    values = {
        "x": 2 * normal(3, 4), "y": normal(3, 4), "row": normal(4), "v": normal(6), "w": normal(6),
        "m": normal(4, 5), "batch": normal(2, 3, 4), "batch2": normal(2, 4, 5), "scalar": normal(()),
        "positive": uniform(0.2, 5, 3, 4), "small": uniform(-2.5, 2.5, 3, 4), "unit": uniform(0.1, 0.9, 3, 4),
        "seq": normal(2, 3, 9), "kernel1": normal(4, 3, 3), "seq_t": normal(2, 4, 5), "grouped1": normal(6, 1, 3),
        "image": normal(2, 3, 8, 8), "kernel": normal(4, 3, 3, 3), "grouped": normal(6, 1, 3, 3),
        "image_t": normal(2, 4, 4, 4), "ties": torch.tensor([[1.0, 2, 2, 0], [3, 3, 3, 3], [0, -1, 0, -1]]),
        "signs": torch.tensor([-2.0, -(2.0**-16), 0, 2.0**-16, 3]), "near": torch.tensor([1.0, 1, 1, -1, 2]),
        "bits": torch.tensor([[1.0, 0, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1]]), "deep": uniform(0.5, 1.5, 3, 7),
        "whole": torch.tensor([5, -3, 2**20, 0]), "p_whole": torch.tensor([3, 7, -2, 4]),
    }  # fmt: skip
    values |= {f"p_{name}": values[name].clone() for name in ("x", "y", "m", "kernel", "positive", "bits", "scalar")}
    values["p_y"] = normal(3, 4)
    return values


INPUTS = _inputs()


@dataclass(frozen=True)
class Case:
    """`shared` on CrypTen's tensors, `plain` on torch's; `gradient`: the inputs' gradients are compared too.

    `given` are inputs of its own. `recorded`: the inputs want gradients, though the case itself sees to them.
    """

    shared: Callable[..., Any]
    plain: Callable[..., Any]
    close: tuple[float, float] = EXACT
    gradient: bool = False
    given: dict[str, torch.Tensor] | None = None
    recorded: bool = False

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """The inputs by name: those given, or those of `INPUTS` that the function's parameters name."""
        if self.given is not None:
            return self.given
        return {name: INPUTS[name] for name in inspect.signature(self.shared).parameters}


def case(shared: Callable[..., Any], plain: Callable[..., Any] | None = None, **options: Any) -> Case:
    """See `Case`."""
    return Case(shared, plain or shared, **options)


def gradient(shared: Callable[..., Any], plain: Callable[..., Any] | None = None, **options: Any) -> Case:
    """A case that also compares gradients."""
    return Case(shared, plain or shared, gradient=True, **options)


ARITHMETIC = {
    "add": gradient(lambda x, y: x + y),
    "add public": gradient(lambda x, p_y: x + p_y),
    "add public first": gradient(lambda p_y, x: x.__radd__(p_y), lambda p_y, x: p_y + x),
    "add number": gradient(lambda x: 1.5 + x + 2),
    "add broadcast": gradient(lambda x, row: x + row),
    "add public broadcast": gradient(lambda row, p_x: row + p_x),
    "write to what was broadcast": case(lambda row, p_x: (row + p_x).mul_(2).neg_()),
    "sub": gradient(lambda x, y: x - y),
    "sub number": gradient(lambda x: 1 - x),
    "mul": gradient(lambda x, y: x * y),
    "mul public": gradient(lambda x, p_y: x * p_y),
    "mul number": gradient(lambda x: x * 0.3 * 2),
    "mul broadcast": gradient(lambda x, row: x * row),
    "mul whole numbers": case(lambda whole, p_whole: whole * p_whole),
    "div": gradient(lambda x, positive: x / positive, close=LOOSE),
    "div public": gradient(lambda x, p_positive: x / p_positive),
    "div number": gradient(lambda x: x / 3),
    "div float": gradient(lambda x: x / 0.7),
    "div into number": gradient(lambda positive: positive.__rtruediv__(2), lambda positive: 2 / positive, close=LOOSE),
    "neg": gradient(lambda x: -x),
    "square": gradient(lambda x: x.square(), torch.square),
    "pow 2": gradient(lambda x: x.pow(2)),
    "pow 3": gradient(lambda small: small.pow(3)),
    "pow 4": gradient(lambda small: small.pow(4), close=(1e-3, 2e-3)),
    "pow 0": case(lambda x: x.pow(0)),
    "pow -1": gradient(lambda positive: positive.pow(-1), close=LOOSE),
    "pos_pow": case(lambda positive: positive.pos_pow(1.5), lambda positive: positive**1.5, close=(0.05, 0.05)),
    "sum": gradient(lambda x: x.sum()),
    "sum dim": gradient(lambda batch: batch.sum(1, keepdim=True)),
    "mean": gradient(lambda x: x.mean()),
    "mean dim": gradient(lambda batch: batch.mean(2)),
    "var": gradient(lambda x: x.var()),
    "var dim": gradient(lambda batch: batch.var(1)),
    "prod": case(lambda deep: deep.prod(), close=(1e-3, 2e-3)),
    "prod dim": case(lambda deep: deep.prod(0)),
    "cumsum": gradient(lambda x: x.cumsum(1)),
    "trace": gradient(lambda m: m[:, :4].trace()),
    "matmul": gradient(lambda x, m: x @ m),
    "matmul public": gradient(lambda x, p_m: x.matmul(p_m)),
    "matmul batched": gradient(lambda batch, batch2: batch.matmul(batch2)),
    "matmul vector": gradient(lambda x, row: x.matmul(row)),
    "dot": gradient(lambda v, w: v.dot(w)),
    "outer": gradient(lambda v, w: v.ger(w)),
    "norm": gradient(lambda x: x.norm(), close=LOOSE),
    "polynomial": gradient(lambda small: small.polynomial([1.0, -0.5, 0.25]), lambda x: x - x**2 / 2 + x**3 / 4),
    "conv1d": gradient(
        lambda seq, kernel1: seq.conv1d(kernel1, stride=2, padding=1),
        lambda seq, kernel1: F.conv1d(seq, kernel1, stride=2, padding=1),
    ),
    "conv1d groups": gradient(
        lambda seq, grouped1: seq.conv1d(grouped1, groups=3), lambda seq, grouped1: F.conv1d(seq, grouped1, groups=3)
    ),
    "conv2d": gradient(
        lambda image, kernel: image.conv2d(kernel, stride=2, padding=1),
        lambda image, kernel: F.conv2d(image, kernel, stride=2, padding=1),
    ),
    "conv2d dilated": gradient(
        lambda image, kernel: image.conv2d(kernel, dilation=2),
        lambda image, kernel: F.conv2d(image, kernel, dilation=2),
    ),
    "conv2d groups": gradient(
        lambda image, grouped: image.conv2d(grouped, groups=3, padding=(1, 0)),
        lambda image, grouped: F.conv2d(image, grouped, groups=3, padding=(1, 0)),
    ),
    "conv2d public": gradient(
        lambda image, p_kernel: image.conv2d(p_kernel), lambda image, p_kernel: F.conv2d(image, p_kernel)
    ),
    "conv_transpose1d": case(
        lambda seq_t, kernel1: seq_t.conv_transpose1d(kernel1, stride=2, padding=1),
        lambda seq_t, kernel1: F.conv_transpose1d(seq_t, kernel1, stride=2, padding=1),
    ),
    "conv_transpose2d": gradient(
        lambda image_t, kernel: image_t.conv_transpose2d(kernel, stride=2, padding=1, output_padding=1),
        lambda image_t, kernel: F.conv_transpose2d(image_t, kernel, stride=2, padding=1, output_padding=1),
    ),
}


def _one_hot_of_max(x: torch.Tensor, dim: int) -> torch.Tensor:
    return F.one_hot(x.argmax(dim), x.shape[dim]).movedim(-1, dim).float()


COMPARISONS = {
    "lt": case(lambda signs: signs < 0),
    "le": case(lambda signs: signs.le(0)),
    "gt": case(lambda signs: signs > 0),
    "ge": case(lambda signs: signs.ge(0)),
    "lt shared": case(lambda x, y: x.lt(y)),
    "ge public": case(lambda x, p_y: x >= p_y),
    "eq": case(lambda near, signs: near.eq(1)),
    "ne": case(lambda near: near != 1),
    "eq shared": case(lambda ties: ties.eq(ties.flip(1)), lambda ties: ties.eq(ties.flip(1))),
    "sign": case(lambda x: x.sign()),
    "abs": gradient(lambda x: x.abs()),
    "relu": gradient(lambda x: x.relu()),
    "hardtanh": gradient(lambda x: x.hardtanh(), lambda x: F.hardtanh(x)),
    "relu6": gradient(lambda x: (x * 3).relu6(), lambda x: F.relu6(x * 3)),
    "where": gradient(
        lambda p_bits, x, y: crypten.where(p_bits, x, y), lambda p_bits, x, y: torch.where(p_bits > 0, x, y)
    ),
    "where shared": gradient(
        lambda x, y: crypten.where(x.detach() > 0, x, y), lambda x, y: torch.where(x.detach() > 0, x, y)
    ),
    "where method": case(lambda x, p_bits, y: x.where(p_bits, y), lambda x, p_bits, y: torch.where(p_bits > 0, x, y)),
    "max": gradient(lambda x: x.max()),
    "max dim": case(lambda x: list(x.max(1)), lambda x: [x.amax(1), _one_hot_of_max(x, 1)]),
    "max dim keepdim": case(
        lambda x: list(x.max(dim=0, keepdim=True)), lambda x: [x.amax(0, keepdim=True), _one_hot_of_max(x, 0)]
    ),
    "max index": case(lambda x: list(x.max(dim=-1, one_hot=False)), lambda x: [x.amax(-1), x.argmax(-1)]),
    "max gradient dim": gradient(lambda x: x.max(1)[0], lambda x: x.max(1)[0]),
    "max of ties": case(lambda ties: ties.max(1)[0], lambda ties: ties.amax(1)),
    "one-hot of ties": case(lambda ties: ties.max(1)[1].sum(1), lambda ties: torch.ones(3)),
    "max of one": case(lambda scalar: scalar.max()),
    "min": gradient(lambda x: x.min()),
    "min dim": case(
        lambda x: list(x.min(1, keepdim=True)), lambda x: [x.amin(1, keepdim=True), _one_hot_of_max(-x, 1)]
    ),
    "argmax": case(lambda x: x.argmax(), lambda x: _one_hot_of_max(x.flatten(), 0).view(3, 4)),
    "argmax dim": case(lambda x: x.argmax(0), lambda x: _one_hot_of_max(x, 0)),
    "argmax index": case(lambda x: x.argmax(1, keepdim=True, one_hot=False), lambda x: x.argmax(1, keepdim=True)),
    "argmax flat index": case(lambda x: x.argmax(one_hot=False), lambda x: x.argmax()),
    "argmin": case(lambda x: x.argmin(1), lambda x: _one_hot_of_max(-x, 1)),
    "argmin index": case(lambda x: x.argmin(0, one_hot=False), lambda x: x.argmin(0)),
}


def _shared_windows(image: Any) -> list[Any]:
    value, hot = image.max_pool2d(2, return_indices=True)
    return [value, hot.sum((4, 5)), (hot * image.view(2, 3, 4, 2, 4, 2).permute(0, 1, 2, 4, 3, 5)).sum((4, 5))]


def _plain_windows(image: torch.Tensor) -> list[torch.Tensor]:
    value = F.max_pool2d(image, 2)
    return [value, torch.ones_like(value), value]


POOLING = {
    "avg_pool2d": gradient(lambda image: image.avg_pool2d(2), lambda image: F.avg_pool2d(image, 2)),
    "avg_pool2d padded": gradient(
        lambda image: image.avg_pool2d((3, 2), stride=2, padding=1), lambda image: F.avg_pool2d(image, (3, 2), 2, 1)
    ),
    "max_pool2d": gradient(lambda image: image.max_pool2d(2), lambda image: F.max_pool2d(image, 2)),
    "max_pool2d padded": gradient(
        lambda image: image.max_pool2d(3, stride=2, padding=1), lambda image: F.max_pool2d(image, 3, 2, 1)
    ),
    "max_pool2d ceil": gradient(
        lambda image: image.max_pool2d(3, stride=2, ceil_mode=True),
        lambda image: F.max_pool2d(image, 3, 2, ceil_mode=True),
    ),
    "max_pool2d dilated": gradient(
        lambda image: image.max_pool2d(2, stride=1, dilation=3), lambda image: F.max_pool2d(image, 2, 1, dilation=3)
    ),
    "max_pool2d indices": case(_shared_windows, _plain_windows),
    "adaptive_avg_pool2d": gradient(
        lambda image: image.adaptive_avg_pool2d((2, 4)), lambda image: F.adaptive_avg_pool2d(image, (2, 4))
    ),
    "adaptive_avg_pool2d overlapping": gradient(
        lambda image: image.adaptive_avg_pool2d((3, 5)), lambda image: F.adaptive_avg_pool2d(image, (3, 5))
    ),
    "adaptive_max_pool2d": gradient(
        lambda image: image.adaptive_max_pool2d((2, 4)), lambda image: F.adaptive_max_pool2d(image, (2, 4))
    ),
    "adaptive_max_pool2d overlapping": gradient(
        lambda image: image.adaptive_max_pool2d((3, 5)), lambda image: F.adaptive_max_pool2d(image, (3, 5))
    ),
}

_INDEX = torch.tensor([2, 0])
_SCATTER = torch.tensor([[0, 1, 2, 0], [2, 0, 1, 1], [1, 2, 0, 2]])


def _written(x: Any, y: Any) -> Any:
    x = x.clone()
    x[1, :2] = y[0, :2]
    x[2] = torch.tensor([1.0, 2, 3, 4])
    return x


SHAPES = {
    "view": gradient(lambda x: x.view(2, 6)),
    "reshape": gradient(lambda x: x.reshape(4, -1)),
    "flatten": gradient(lambda batch: batch.flatten(1)),
    "transpose": gradient(lambda batch: batch.transpose(0, 2)),
    "permute": gradient(lambda batch: batch.permute((2, 0, 1))),
    "t": gradient(lambda x: x.t()),
    "squeeze": gradient(lambda x: x.unsqueeze(1).squeeze(1)),
    "expand": case(lambda row: row.expand(3, 4)),
    "repeat": case(lambda x: x.repeat(2, 1)),
    "narrow": gradient(lambda x: x.narrow(1, 1, 2)),
    "index": gradient(lambda x: x[1:, ::2]),
    "write": case(_written),
    "index_select": gradient(lambda x: x.index_select(0, _INDEX)),
    "index_add": case(lambda x, y: x.index_add(0, _INDEX, y[:2])),
    "scatter": case(lambda x, y: x.scatter(0, _SCATTER, y)),
    "scatter_add": case(lambda x, y: x.scatter_add(0, _SCATTER, y)),
    "gather": gradient(lambda x: x.gather(0, _SCATTER)),
    "take": gradient(lambda x: x.take(_INDEX), lambda x: torch.take(x, _INDEX)),
    "flip": gradient(lambda x: x.flip((0, 1))),
    "roll": gradient(lambda x: x.roll(1, 1)),
    "unfold": case(lambda x: x.unfold(1, 2, 1)),
    "pad": gradient(lambda x: x.pad((1, 2), value=0.5), lambda x: F.pad(x, (1, 2), value=0.5)),
    "split": case(lambda x: list(x.split([1, 3], 1))),
    "unbind": case(lambda x: list(x.unbind(1))),
    "cat": gradient(lambda x, y: crypten.cat([x, y, x], 1), lambda x, y: torch.cat([x, y, x], 1)),
    "stack": gradient(lambda x, y: crypten.stack([x, y], 1), lambda x, y: torch.stack([x, y], 1)),
    "torch.cat": case(lambda x, y: torch.cat([x, y])),
    "clone": gradient(lambda x: x.clone()),
    "detach": gradient(lambda x: x * x.detach()),
}

APPROXIMATIONS = {
    "exp": gradient(lambda small: small.exp(), close=LOOSE),
    "log": gradient(lambda positive: positive.log(), close=LOOSE),
    "log in 0 to 1": case(lambda unit: unit.log(input_in_01=True), lambda unit: unit.log(), close=SHIFTED_LOG),
    "reciprocal": gradient(lambda x: (x + 6).reciprocal(), close=LOOSE),
    "reciprocal of negatives": case(lambda x: (x - 9).reciprocal(), close=LOOSE),
    "sqrt": gradient(lambda positive: positive.sqrt(), close=LOOSE),
    "inv_sqrt": case(lambda positive: positive.inv_sqrt(), lambda positive: positive.rsqrt(), close=LOOSE),
    "sigmoid": gradient(lambda x: x.sigmoid(), close=LOOSE),
    "tanh": gradient(lambda x: x.tanh(), close=LOOSE),
    "softmax": gradient(lambda x: x.softmax(1), close=LOOSE),
    "log_softmax": gradient(lambda x: x.log_softmax(1), close=LOOSE),
    "erf": gradient(lambda unit: unit.erf(), close=LOOSE),
    "sin": gradient(lambda small: small.sin(), close=TRIGONOMETRY),
    "cos": gradient(lambda small: small.cos(), close=TRIGONOMETRY),
}


def _opened_by_one(x: Any) -> Any:
    opened = x.get_plain_text(dst=0)
    assert (opened is None) == (crypten.communicator.get().get_rank() != 0)
    return INPUTS["x"] if opened is None else opened


def _binary(x: Any) -> Any:
    return x.to(ptype.binary)


BINARY = {
    "to binary and back": case(lambda x: _binary(x).to(ptype.arithmetic), lambda x: x),
    "open binary": case(_binary, lambda x: x),
    "and": case(lambda whole, p_whole: _words(whole) & p_whole, lambda whole, p_whole: whole & p_whole),
    "and shared": case(lambda whole: _words(whole) & _words(whole.flip(0)), lambda whole: whole & whole.flip(0)),
    "xor": case(lambda whole: _words(whole) ^ _words(whole.flip(0)), lambda whole: whole ^ whole.flip(0)),
    "or": case(lambda whole: _words(whole) | _words(whole.flip(0)), lambda whole: whole | whole.flip(0)),
    "not": case(lambda whole: ~_words(whole), lambda whole: ~whole),
    "shift left": case(lambda whole: _words(whole).lshift(3), lambda whole: whole << 3),
    "shift right": case(lambda whole: _words(whole).rshift(2), lambda whole: whole >> 2),
    "add": case(lambda whole: _words(whole).add(_words(whole.flip(0))), lambda whole: whole + whole.flip(0)),
    "sum": case(lambda whole: _words(whole).sum(0), lambda whole: whole.sum(0)),
    "lt": case(lambda whole: _words(whole).lt(_words(whole.flip(0))), lambda whole: (whole < whole.flip(0)).long()),
    "eq": case(lambda whole: _words(whole).eq(_words(whole)), lambda whole: torch.ones_like(whole)),
    "open to one party": case(_opened_by_one, lambda x: x),
    "random": case(lambda p_x: _in_unit(crypten.rand(500)), lambda p_x: torch.tensor([True, True])),
    "bernoulli": case(lambda p_bits: crypten.bernoulli(p_bits), lambda p_bits: p_bits),
    "weighted_index": case(lambda positive: positive.weighted_index(1).sum(1), lambda positive: torch.ones(3)),
}


def _in_unit(x: Any) -> torch.Tensor:
    values = x.get_plain_text()
    return torch.tensor([bool(values.min() >= 0 and values.max() < 1), bool(0.4 < values.mean() < 0.6)])


def _words(whole: Any) -> Any:
    """Whole numbers as a `BinarySharedTensor`; they come in as fixed point."""
    from crypten.mpc.primitives import BinarySharedTensor

    return BinarySharedTensor(whole.get_plain_text().long(), src=0)


GROUPS = {
    "arithmetic": ARITHMETIC,
    "comparison": COMPARISONS,
    "pooling": POOLING,
    "shape": SHAPES,
    "approximation": APPROXIMATIONS,
    "binary": BINARY,
}
CASES = {f"{group}: {name}": entry for group, cases in GROUPS.items() for name, entry in cases.items()}
