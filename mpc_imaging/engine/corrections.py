"""CrypTen's own functions, set right where they crash, or answer otherwise than torch, at the edges of their domains.

Scalars, tensors without elements, dimensions counted from the end, indices given twice, odd powers: nothing of this
costs the usual cases anything. `install` puts these in CrypTen's place; `tests/engine/conformance` compares with torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from mpc_imaging.engine import compat

crypten = compat.load()

from crypten.cryptensor import CrypTensor  # noqa: E402
from crypten.mpc.primitives import ArithmeticSharedTensor  # noqa: E402

if TYPE_CHECKING:
    from crypten.mpc import MPCTensor

_stock_prod, _stock_pow, _stock_var = CrypTensor.prod, CrypTensor.pow, CrypTensor.var
_stock_polynomial, _stock_cat, _stock_pad = CrypTensor.polynomial, crypten.cat, ArithmeticSharedTensor.pad
_stock_adaptive_avg, _stock_adaptive_max = CrypTensor.adaptive_avg_pool2d, CrypTensor.adaptive_max_pool2d


def axis(x: torch.Tensor | MPCTensor, dim: int) -> int:
    """`dim` counted from the front; a scalar counts as one dimension. Raises `IndexError` where there is none such."""
    count = max(x.dim(), 1)
    if not -count <= dim < count:
        raise IndexError(f"dimension {dim} of a tensor that has dimensions {-count} to {count - 1}")
    return dim % count


def power(self, p, **kwargs):
    """`pow`, whose odd powers above 3 are of one more: x.pow(5) is x**6, which spoils `erf`, too."""
    if isinstance(p, (int, float)) and p > 3 and p % 2 == 1:
        return self.pow(p - 1).mul(self)
    return _stock_pow(self, p, **kwargs)


def divided_into(self, y):
    """y / x, which CrypTen has in a list of names only, where Python does not look for operators."""
    return self.reciprocal().mul(y)


def raised(self, p):
    """x ** p, which CrypTen has in a list of names only, too."""
    return self.pow(p)


def polynomial(self, coeffs, func="mul"):
    """`polynomial`, whose result of a scalar and one coefficient has a dimension."""
    return self.mul(coeffs[0]) if len(coeffs) == 1 else _stock_polynomial(self, coeffs, func)


def prod(self, dim=None, keepdim=False):
    """`prod`, which takes no dimension of a scalar, and gives nothing for the product of nothing, which is 1."""
    if dim is None:
        return self.flatten().prod(dim=0)
    place = axis(self, dim)
    if self.dim() == 0:
        return self.clone()
    if self.size(place):
        return _stock_prod(self, place, keepdim)
    size = [1 if d == place else n for d, n in enumerate(self.size()) if keepdim or d != place]
    return self.new(torch.ones(size))


def mean(self, *args, **kwargs):
    """`mean`, which counts for no values how many of them each has. Raises `ZeroDivisionError` for the mean of none."""
    total = self.sum(*args, **kwargs)
    if self.dim() == 0 or total.nelement() == 0:
        return total
    return total.div(self.nelement() // total.nelement())


def variance(self, *args, **kwargs):
    """`var`, which counts as `mean` does."""
    if self.nelement():
        return _stock_var(self, *args, **kwargs)
    keepdim = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    return self.mean(args[0], keepdim=keepdim) if args else self.mean()


def public(name: str, function: Callable[..., MPCTensor], ours: Callable[..., MPCTensor]) -> Callable[..., MPCTensor]:
    """`softmax` or `log_softmax`: CrypTen's, `function`, where the answer is public, else `ours`."""

    def softmax(self: MPCTensor, dim: int, **kwargs: object) -> MPCTensor:
        place = axis(self, dim)
        if not self.nelement():
            return self.clone()
        if self.dim() == 0 or self.size(place) == 1:
            return function(self, place, **kwargs)
        return ours(self, place)

    softmax.__name__ = name
    return softmax


def _sides(x: MPCTensor, output_size: int | Sequence[int | None] | None) -> tuple[int, int]:
    """The size that an adaptive pool is asked for: of a number both sides, for None that of x."""
    if output_size is None or isinstance(output_size, int):
        output_size = (output_size, output_size)
    height, width = (x.size(i - 2) if side is None else side for i, side in enumerate(output_size))
    return height, width


def adaptive_avg_pool2d(self, output_size):
    """`adaptive_avg_pool2d`, which takes no single number, and for one side that is None keeps the other, too."""
    return _stock_adaptive_avg(self, _sides(self, output_size))


def adaptive_max_pool2d(self, output_size, return_indices=False):
    """`adaptive_max_pool2d`, which has the same faults, and one-hots of a wrong shape for windows of one element."""
    size = _sides(self, output_size)
    if return_indices and size == tuple(self.size()[-2:]):
        return self.clone(), self.new(torch.ones(*self.size(), 1, 1))
    return _stock_adaptive_max(self, size, return_indices)


def pad(self, pad, mode="constant", value=0):
    """`ArithmeticSharedTensor.pad`, which hands the share of a secret value to torch as a float, which rounds it."""
    if not isinstance(value, ArithmeticSharedTensor):
        return _stock_pad(self, pad, mode, value)
    result = _stock_pad(self, pad, mode, 0)
    beyond = torch.nn.functional.pad(torch.zeros_like(self.share), pad, value=1)
    result.share = result.share + beyond * value.encode(self.encoder).share
    return result


def cat(tensors, dim=0):
    """`crypten.cat`, which ignores the dimension of public tensors."""
    public = isinstance(tensors, list) and all(torch.is_tensor(tensor) for tensor in tensors)
    return torch.cat(tensors, dim) if public else _stock_cat(tensors, dim)


METHODS: dict[str, Callable[..., MPCTensor]] = {
    "pow": power,
    "__pow__": raised,
    "__rtruediv__": divided_into,
    "polynomial": polynomial,
    "prod": prod,
    "mean": mean,
    "var": variance,
    "adaptive_avg_pool2d": adaptive_avg_pool2d,
    "adaptive_max_pool2d": adaptive_max_pool2d,
}
