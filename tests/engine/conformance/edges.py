"""Edges of CrypTen's API beside torch: scalars, tensors without elements, dimensions of size 1, and ties.

Most cases are made from lists of functions and of shapes. Where torch raises, or answers with what no fixed-point
number can hold (the mean of nothing), ours must raise too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from mpc_imaging.engine import compat
from tests.engine.conformance.cases import EXACT, LOOSE, TRIGONOMETRY, Case, _one_hot_of_max

crypten = compat.load()

SHAPES: dict[str, tuple[int, ...]] = {
    "scalar": (), "one": (1,), "empty": (0,), "empty rows": (0, 3), "empty columns": (3, 0), "ones": (1, 3, 1),
}  # fmt: skip


def _values(*shape: int, low: float = -2.0, high: float = 2.0) -> torch.Tensor:
    """Different values that fixed point holds exactly, none of them 0."""
    count = torch.Size(shape).numel()
    return ((low + (high - low) * (torch.arange(count) + 0.3) / max(count, 1)) * 64).round().div(64).view(shape)


def _case(shared: Callable[..., Any], plain: Callable[..., Any] | None = None, **options: Any) -> Case:
    return Case(shared, plain or shared, **options)


# Functions of each element

ELEMENTS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], tuple[float, float], bool]] = {}


def _element(
    name: str, shared: Any, plain: Any = None, close: tuple[float, float] = EXACT, gradient: bool = True
) -> None:
    ELEMENTS[name] = (shared, plain or shared, close, gradient)


for _name in ("neg", "square", "abs", "relu", "clone"):
    _element(_name, lambda x, name=_name: getattr(x, name)())
for _name in ("exp", "sigmoid", "tanh", "reciprocal"):
    _element(_name, lambda x, name=_name: getattr(x, name)(), close=LOOSE)
for _name in ("sin", "cos"):
    _element(_name, lambda x, name=_name: getattr(x, name)(), close=TRIGONOMETRY)
_element("log", lambda x: (x + 3).log(), close=LOOSE)
_element("sqrt", lambda x: (x + 3).sqrt(), close=LOOSE)
_element("inv_sqrt", lambda x: (x + 3).inv_sqrt(), lambda x: (x + 3).rsqrt(), close=LOOSE, gradient=False)
_element("erf", lambda x: (x / 4).erf(), close=LOOSE)
_element("hardtanh", lambda x: x.hardtanh(-0.5, 0.5), lambda x: F.hardtanh(x, -0.5, 0.5))
_element("relu6", lambda x: x.relu6(), lambda x: F.relu6(x))
_element("pow", lambda x: x.pow(3), close=(1e-3, 2e-3))
_element("pos_pow", lambda x: (x + 3).pos_pow(1.5), lambda x: (x + 3) ** 1.5, close=(0.05, 0.05))
_element("polynomial", lambda x: x.polynomial([1.0, -0.5]), lambda x: x - x**2 / 2)
_element("add", lambda x: x + 1.5)
_element("sub", lambda x: 1 - x)
_element("mul", lambda x: x * 0.3)
_element("div", lambda x: x / 3)
_element("sign", lambda x: x.sign(), gradient=False)
_element("lt", lambda x: x < 0, gradient=False)
_element("ge", lambda x: x >= 0.5, gradient=False)
_element("eq", lambda x: x == 0, gradient=False)
_element("ne", lambda x: x != 0, gradient=False)
_element("flatten", lambda x: x.flatten())
_element("reshape", lambda x: x.reshape(*x.size(), 1))
_element("view", lambda x: x.view(1, *x.size()))
_element("unsqueeze", lambda x: x.unsqueeze(-1))
_element("squeeze", lambda x: x.squeeze())
_element("flip", lambda x: x.flip(tuple(range(x.dim()))))
_element("pad", lambda x: x.pad((1, 2), value=0.5), lambda x: F.pad(x, (1, 2), value=0.5))
_element("cat", lambda x: crypten.cat([x, x], -1), lambda x: torch.cat([x, x], -1))
_element("stack", lambda x: crypten.stack([x, x], 0), lambda x: torch.stack([x, x], 0))
_element("dropout in evaluation", lambda x: x.dropout(0.5, training=False), lambda x: F.dropout(x, 0.5, False))
_element("repeat", lambda x: x.repeat(*[2] * max(x.dim(), 1)), gradient=False)
_element("to binary and back", lambda x: _through_binary(x), lambda x: x, gradient=False)


def _through_binary(x: Any) -> Any:
    return x.to(crypten.mpc.binary).to(crypten.mpc.arithmetic)


# Functions along a dimension, or over all elements

ALONG: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[float, float], bool]] = {
    "sum": (lambda x, d: x.sum(d), lambda x, d: x.sum(d), EXACT, True),
    "sum keepdim": (lambda x, d: x.sum(d, keepdim=True), lambda x, d: x.sum(d, keepdim=True), EXACT, True),
    "mean": (lambda x, d: x.mean(d), lambda x, d: x.mean(d), EXACT, True),
    "var": (lambda x, d: x.var(d), lambda x, d: _variance(x, d), EXACT, True),
    "prod": (lambda x, d: x.prod(d), lambda x, d: x.prod(d), (1e-3, 2e-3), False),
    "cumsum": (lambda x, d: x.cumsum(d), lambda x, d: x.cumsum(d), EXACT, True),
    "max": (lambda x, d: x.max(d)[0], lambda x, d: x.max(d)[0], EXACT, True),
    "max keepdim": (
        lambda x, d: list(x.max(d, keepdim=True)), lambda x, d: [x.amax(d, keepdim=True), _hot(x, d)], EXACT, False,
    ),
    "max index": (
        lambda x, d: list(x.max(d, one_hot=False)), lambda x, d: list(x.max(d)), EXACT, False,
    ),
    "max index keepdim": (
        lambda x, d: list(x.max(d, keepdim=True, one_hot=False)), lambda x, d: list(x.max(d, keepdim=True)), EXACT,
        False,
    ),
    "min": (lambda x, d: x.min(d)[0], lambda x, d: x.min(d)[0], EXACT, True),
    "min keepdim": (
        lambda x, d: list(x.min(d, keepdim=True)), lambda x, d: [x.amin(d, keepdim=True), _hot(-x, d)], EXACT, False,
    ),
    "min index": (lambda x, d: list(x.min(d, one_hot=False)), lambda x, d: list(x.min(d)), EXACT, False),
    "argmax": (lambda x, d: x.argmax(d), lambda x, d: _hot(x, d), EXACT, False),
    "argmax index": (lambda x, d: x.argmax(d, one_hot=False), lambda x, d: x.argmax(d), EXACT, False),
    "argmin": (lambda x, d: x.argmin(d), lambda x, d: _hot(-x, d), EXACT, False),
    "argmin index": (lambda x, d: x.argmin(d, one_hot=False), lambda x, d: x.argmin(d), EXACT, False),
    "softmax": (lambda x, d: x.softmax(d), lambda x, d: x.softmax(d), LOOSE, True),
    "log_softmax": (lambda x, d: x.log_softmax(d), lambda x, d: x.log_softmax(d), LOOSE, True),
    "norm": (lambda x, d: x.norm(dim=d), lambda x, d: x.norm(dim=d), LOOSE, False),
    "unbind": (lambda x, d: list(x.unbind(d)), lambda x, d: list(x.unbind(d)), EXACT, False),
    "squeeze": (lambda x, d: x.squeeze(d), lambda x, d: x.squeeze(d), EXACT, True),
    "narrow": (lambda x, d: x.narrow(d, 0, 1), lambda x, d: x.narrow(d, 0, 1), EXACT, True),
    "narrow to nothing": (lambda x, d: x.narrow(d, 0, 0), lambda x, d: x.narrow(d, 0, 0), EXACT, True),
    "index_select": (
        lambda x, d: x.index_select(d, torch.tensor([0])), lambda x, d: x.index_select(d, torch.tensor([0])), EXACT,
        True,
    ),
    "roll": (lambda x, d: x.roll(1, d), lambda x, d: x.roll(1, d), EXACT, True),
    "split": (lambda x, d: list(x.split(1, d)), lambda x, d: list(x.split(1, d)), EXACT, False),
}  # fmt: skip


def _variance(x: torch.Tensor, *dims: int) -> torch.Tensor:
    """The variance of one value is 0 here and in CrypTen; torch's is NaN, which fixed point has not."""
    count = x.numel() if not dims or not x.dim() else x.size(dims[0])
    if not x.numel():
        return x.mean(*dims)  # as empty, or as little a number, without a warning
    return (x * 0).sum(*dims) if count == 1 else x.var(*dims)


def _hot(x: torch.Tensor, dim: int) -> torch.Tensor:
    return _one_hot_of_max(x, dim) if x.dim() else torch.ones_like(x.max(dim)[0])


OVERALL = {
    "sum": (lambda x: x.sum(), lambda x: x.sum(), EXACT, True),
    "mean": (lambda x: x.mean(), lambda x: x.mean(), EXACT, True),
    "var": (lambda x: x.var(), lambda x: _variance(x), EXACT, True),
    "prod": (lambda x: x.prod(), lambda x: x.prod(), (1e-3, 2e-3), False),
    "max": (lambda x: x.max(), lambda x: x.max(), EXACT, True),
    "min": (lambda x: x.min(), lambda x: x.min(), EXACT, True),
    "argmax": (lambda x: x.argmax(), lambda x: _hot(x.flatten(), 0).view(x.shape), EXACT, False),
    "argmax index": (lambda x: x.argmax(one_hot=False), lambda x: x.argmax(), EXACT, False),
    "argmin": (lambda x: x.argmin(), lambda x: _hot(-x.flatten(), 0).view(x.shape), EXACT, False),
    "argmin index": (lambda x: x.argmin(one_hot=False), lambda x: x.argmin(), EXACT, False),
    "norm": (lambda x: x.norm(), lambda x: x.norm(), LOOSE, False),
    "t": (lambda x: x.t(), lambda x: x.t(), EXACT, True),
    "size": (lambda x: _sizes(x), lambda x: _sizes(x), EXACT, False),
}  # fmt: skip


def _sizes(x: Any) -> torch.Tensor:
    return torch.tensor([x.dim(), x.nelement(), x.numel(), *x.size(), *x.shape])


def _grid() -> dict[str, Case]:
    cases = {}
    for where, shape in SHAPES.items():
        x = _values(*shape)
        for name, (shared, plain, close, gradient) in (ELEMENTS | OVERALL).items():
            label = f"{name}{' of all' if name in OVERALL else ''}: {where}"
            cases[label] = _case(shared, plain, close=close, gradient=gradient, given={"x": x})
        for name, (shared, plain, close, gradient) in ALONG.items():
            # Each dimension; for scalars, the two that torch takes and one that it refuses.
            for dim in range(-1, max(len(shape), 2)):
                cases[f"{name} {dim}: {where}"] = _case(
                    lambda x, d=dim, f=shared: f(x, d), lambda x, d=dim, f=plain: f(x, d),
                    close=close, gradient=gradient, given={"x": x},
                )  # fmt: skip
    return cases


# Functions of two tensors

PAIRS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "scalars": ((), ()), "scalar and vector": ((), (3,)), "vector and scalar": ((3,), ()),
    "one and vector": ((1,), (3,)), "scalar and one": ((), (1,)), "column and row": ((3, 1), (1, 2)),
    "nothing": ((0,), (0,)),
    "nothing and scalar": ((0,), ()), "nothing and one": ((0, 3), (1,)), "row and nothing": ((1, 3), (0, 3)),
}  # fmt: skip
BOTH: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[float, float], bool]] = {
    "add": (lambda x, y: x + y, lambda x, y: x + y, EXACT, True),
    "sub": (lambda x, y: x - y, lambda x, y: x - y, EXACT, True),
    "mul": (lambda x, y: x * y, lambda x, y: x * y, EXACT, True),
    "div": (lambda x, y: x / (y + 3), lambda x, y: x / (y + 3), LOOSE, True),
    "lt": (lambda x, y: x < y, lambda x, y: x < y, EXACT, False),
    "eq": (lambda x, y: x == y, lambda x, y: x == y, EXACT, False),
    "where": (
        lambda x, y: crypten.where(x.detach() > 0, x, y), lambda x, y: torch.where(x.detach() > 0, x, y), EXACT, True,
    ),
}  # fmt: skip
PRODUCTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "vectors": ((3,), (3,)), "of size one": ((1, 1), (1, 1)), "no rows": ((0, 3), (3, 2)),
    "no columns": ((2, 3), (3, 0)),
    "nothing between": ((2, 0), (0, 3)), "vector and matrix": ((3,), (3, 2)), "matrix and vector": ((2, 3), (3,)),
    "batch of one": ((1, 2, 3), (1, 3, 2)), "no batch": ((0, 2, 3), (0, 3, 2)), "one and one": ((1,), (1,)),
    "vector and one column": ((3,), (3, 1)), "one row and vector": ((1, 3), (3,)),
    "batch and vector": ((2, 2, 3), (3,)), "vector and batch": ((3,), (2, 3, 2)),
    "batch and matrix": ((2, 2, 3), (3, 2)),
}  # fmt: skip


def _matmul(x: Any, y: Any) -> Any:
    return x.matmul(y)


def _pairs_of_tensors() -> dict[str, Case]:
    cases = {}
    for where, (first, second) in PAIRS.items():
        x, y = _values(*first), _values(*second, low=-1, high=2.5)
        for name, (shared, plain, close, gradient) in BOTH.items():
            options = {"close": close, "gradient": gradient}
            cases[f"{name}: {where}"] = _case(shared, plain, given={"x": x, "y": y}, **options)
            cases[f"{name} public: {where}"] = _case(shared, plain, given={"x": x, "p_y": y}, **options)
    for where, (first, second) in PRODUCTS.items():
        x, y = _values(*first), _values(*second, low=-1, high=2.5)
        cases[f"matmul: {where}"] = _case(_matmul, given={"x": x, "y": y}, gradient=True)
        cases[f"matmul public: {where}"] = _case(_matmul, given={"x": x, "p_y": y}, gradient=True)
    for where, size in (("one", 1), ("nothing", 0)):
        given = {"x": _values(size), "y": _values(size, low=-1, high=2.5)}
        cases[f"dot: {where}"] = _case(lambda x, y: x.dot(y), given=given, gradient=True)
        cases[f"ger: {where}"] = _case(lambda x, y: x.ger(y), given=given, gradient=True)
    return cases


# Values that are equal, or at a bound

ULP = 2.0**-16
BOUND = torch.tensor([-1 - ULP, -1, -1 + ULP, -ULP, 0, ULP, 1 - ULP, 1, 1 + ULP, 5.5, 6 - ULP, 6, 6 + ULP, 7])
EQUAL = torch.tensor([[1.0, 2, 2, 0, 2], [3, 3, 3, 3, 3], [0, -1, 0, -1, -1]])
WINDOWS = torch.tensor([[1.0, 1, 0, 2], [1, 1, 2, 2], [0, 0, -1, -1], [0, 0, -1, -1]]).expand(1, 2, 4, 4).contiguous()


def _tie(
    shared: Callable[..., Any], plain: Callable[..., Any] | None = None, gradient: bool = True, **given: Any
) -> Case:
    return _case(shared, plain, gradient=gradient, given=given)


TIES = {
    "relu": _tie(lambda x: x.relu(), x=BOUND),
    "relu of zeros": _tie(lambda x: x.relu(), x=torch.zeros(5)),
    "relu of a product": _tie(
        lambda x, p_w: x.matmul(p_w).relu(), x=torch.tensor([[0.0, 0], [1, 1], [1, 2]]), p_w=torch.tensor([[1.0], [-1]])
    ),
    "hardtanh": _tie(lambda x: x.hardtanh(), lambda x: F.hardtanh(x), x=BOUND),
    "hardtanh of other bounds": _tie(lambda x: x.hardtanh(-1, 6), lambda x: F.hardtanh(x, -1, 6), x=BOUND),
    "hardtanh of one bound": _tie(lambda x: x.hardtanh(1, 1), lambda x: F.hardtanh(x, 1, 1), x=BOUND),
    "hardtanh of fractions": _tie(lambda x: x.hardtanh(ULP, 1.0), lambda x: F.hardtanh(x, ULP, 1.0), x=BOUND),
    "relu6": _tie(lambda x: x.relu6(), lambda x: F.relu6(x), x=BOUND),
    "abs": _tie(lambda x: x.abs(), x=BOUND),
    "lt": _tie(lambda x: x < 1, x=BOUND, gradient=False),
    "le": _tie(lambda x: x <= 1, x=BOUND, gradient=False),
    "gt": _tie(lambda x: x > 1, x=BOUND, gradient=False),
    "ge": _tie(lambda x: x >= 1, x=BOUND, gradient=False),
    "eq": _tie(lambda x: x == 1, x=BOUND, gradient=False),
    "ne": _tie(lambda x: x != 1, x=BOUND, gradient=False),
    "lt of equals": _tie(lambda x, y: x < y, x=BOUND, y=BOUND, gradient=False),
    "ge of equals": _tie(lambda x, y: x >= y, x=BOUND, y=BOUND, gradient=False),
    "eq of equals": _tie(lambda x, y: x == y, x=BOUND, y=BOUND, gradient=False),
    "max": _tie(lambda x: x.max(1)[0], x=EQUAL),
    "max keepdim": _tie(lambda x: x.max(dim=0, keepdim=True)[0], x=EQUAL),
    "min": _tie(lambda x: x.min(1)[0], x=EQUAL),
    "argmax": _tie(lambda x: x.argmax(1), lambda x: _one_hot_of_max(x, 1), x=EQUAL, gradient=False),
    "argmin": _tie(lambda x: x.argmin(1, one_hot=False), lambda x: x.argmin(1), x=EQUAL, gradient=False),
    # torch shares this gradient out among equal values, which would take two comparisons more of each. Here the first
    # has it, as along a dimension; in CrypTen one that is drawn.
    "max of all": _tie(lambda x: x.max(), lambda x: x.max(0)[0], x=torch.tensor([1.0, 3, 0, 3])),
    "min of all": _tie(lambda x: x.min(), lambda x: x.min(0)[0], x=torch.tensor([1.0, 0, 3, 0])),
    "max_pool2d": _tie(lambda x: x.max_pool2d(2), lambda x: F.max_pool2d(x, 2), x=WINDOWS),
    "max_pool2d overlapping": _tie(
        lambda x: x.max_pool2d(3, stride=1, padding=1), lambda x: F.max_pool2d(x, 3, 1, 1), x=WINDOWS
    ),
    "max_pool2d of zeros": _tie(lambda x: x.max_pool2d(2), lambda x: F.max_pool2d(x, 2), x=torch.zeros(1, 1, 4, 4)),
    "adaptive_max_pool2d": _tie(
        lambda x: x.adaptive_max_pool2d((2, 2)), lambda x: F.adaptive_max_pool2d(x, (2, 2)), x=WINDOWS
    ),
    "adaptive_max_pool2d overlapping": _tie(
        lambda x: x.adaptive_max_pool2d((3, 3)), lambda x: F.adaptive_max_pool2d(x, (3, 3)), x=WINDOWS
    ),
    "softmax": _case(lambda x: x.softmax(1), close=LOOSE, gradient=True, given={"x": EQUAL}),
    "log_softmax": _case(lambda x: x.log_softmax(1), close=LOOSE, gradient=True, given={"x": EQUAL}),
}
EDGES = {
    **{f"edge: {name}": entry for name, entry in _grid().items()},
    **{f"edge of two: {name}": entry for name, entry in _pairs_of_tensors().items()},
    **{f"tie: {name}": entry for name, entry in TIES.items()},
}
