"""CrypTen's dispatch, constructors and sharings as they are, less what costs time or precision at every call.

Found in a profile of a small inference: each access to an attribute of a tensor goes through two Python functions and
a configuration look-up; each result shares an empty tensor first, with masks drawn for it; each operation copies its
operand. `install` puts these functions in the place of CrypTen's. Comments say where CrypTen was wrong.
"""

from __future__ import annotations

from typing import Any

import torch

from mpc_imaging.engine import compat, gates
from mpc_imaging.errors import EncodingError

crypten = compat.load()

from crypten.common.tensor_types import is_int_tensor  # noqa: E402  (CrypTen can only be imported after compat.load)
from crypten.cryptensor import CrypTensor  # noqa: E402
from crypten.encoder import FixedPointEncoder  # noqa: E402
from crypten.gradients import FUNCTION_REGISTRY  # noqa: E402
from crypten.mpc import MPCTensor, ptype as kinds  # noqa: E402
from crypten.mpc.primitives import ArithmeticSharedTensor  # noqa: E402
from crypten.mpc.primitives.arithmetic import SENTINEL  # noqa: E402

# CrypTensor

_stock_attribute = CrypTensor.__getattribute__
_undispatched = frozenset(CrypTensor.PROTECTED_ATTRIBUTES) | {"_tensor", "ptype", "share", "encoder"}


def attribute(self, name):
    """`CrypTensor.__getattribute__`, where CrypTen neither records, renames nor validates: then it is a look-up."""
    if name in _undispatched:
        return object.__getattribute__(self, name)
    recorded = name in FUNCTION_REGISTRY and CrypTensor.AUTOGRAD_ENABLED
    if recorded or name[-1] == "_" or crypten.cfg.debug.validation_mode:
        return _stock_attribute(self, name)
    try:
        return object.__getattribute__(self, name)
    except AttributeError:
        return _stock_attribute(self, name)


# MPCTensor

_stock_initialise = MPCTensor.__init__


def initialise(self, tensor, ptype=kinds.arithmetic, device=None, *args, **kwargs):
    """`MPCTensor.__init__`, which means to share nothing for an empty list, but compares it by identity.

    With more arguments than that, such as a source that broadcasts the size, an empty list is a tensor like any other.
    """
    if isinstance(tensor, list) and not tensor and not args and not kwargs:
        CrypTensor.__init__(self)
        self._tensor, self.ptype = ptype.to_tensor().from_shares(torch.empty(0, dtype=torch.int64)), ptype
    else:
        _stock_initialise(self, tensor, ptype, device, *args, **kwargs)


def _wrapped(sharing: Any, ptype: Any) -> MPCTensor:
    result = object.__new__(MPCTensor)
    CrypTensor.__init__(result)
    result._tensor, result.ptype = sharing, ptype
    return result


def from_shares(share, precision=None, ptype=kinds.arithmetic):
    """`MPCTensor.from_shares`."""
    return _wrapped(ptype.to_tensor().from_shares(share, precision=precision), ptype)


def clone(self):
    """`MPCTensor.clone`."""
    return _wrapped(self._tensor.clone(), self.ptype)


def shallow_copy(self):
    """`MPCTensor.shallow_copy`."""
    return _wrapped(self._tensor, self.ptype)


def detach(self):
    """`MPCTensor.detach`, which stays in the graph: whatever uses it with its source never gets a gradient."""
    return clone(self)


_stock_item = CrypTensor.__getitem__


def item(self, index):
    """`x[index]`: Python finds it in the class, past CrypTen's dispatch, which silently cuts the graph there."""
    if CrypTensor.AUTOGRAD_ENABLED and self.requires_grad:
        return _stock_attribute(self, "__getitem__")(index)
    return _stock_item(self, index)


# FixedPointEncoder


def initialise_encoder(self, precision_bits=None):
    """`FixedPointEncoder.__init__`, whose `__setattr__` computes each of the two fields from the other, twice."""
    bits = crypten.cfg.encoder.precision_bits if precision_bits is None else precision_bits
    self.__dict__.update(_precision_bits=bits, _scale=int(2**bits))


# ArithmeticSharedTensor

_stock_share = ArithmeticSharedTensor.__init__
_ADDITIVE = ("add", "sub")


def share(self, tensor=None, size=None, broadcast_size=False, precision=None, src=0, device=None):
    """`ArithmeticSharedTensor.__init__`, which rounds whole numbers beyond 2**24: it turns them into float32 first.

    What cannot be encoded is refused where it is used, if it is (`Unencodable`); the party must be its source.
    """
    if src == SENTINEL:
        return
    encoder, encoded, refusal = FixedPointEncoder(precision), None, None
    if tensor is not None:
        try:
            encoded = encoder.encode(tensor)
        except EncodingError as error:
            if not torch.is_tensor(tensor):
                raise
            encoded, refusal = torch.zeros(tensor.shape, dtype=torch.int64), error
        if hasattr(tensor, "src"):  # the party that it belongs to, which CrypTen compares
            encoded.src = tensor.src
    _stock_share(self, encoded, size, broadcast_size, 0, src, device)
    self.encoder = encoder
    if refusal is not None and self.rank == src:
        self.__class__, self.refusal = Unencodable, refusal


class Unencodable(ArithmeticSharedTensor):
    """What its source could not encode: it has a size and can be written over, any other use raises `EncodingError`.

    `crypten.nn.init` wants that: parameters are made of `torch.empty`, whose memory holds anything, and then written.
    """

    @property
    def _tensor(self) -> torch.Tensor:
        raise self.refusal

    @_tensor.setter
    def _tensor(self, value: torch.Tensor) -> None:
        """A share takes the place of the zeros that stood for the tensor."""
        self.__class__ = ArithmeticSharedTensor
        self._tensor = value

    def copy_(self, other):
        """Become a copy of another tensor of the same size."""
        self._tensor, self.encoder = other.share.clone(), other.encoder

    def size(self, *args):
        """The size of what could not be encoded."""
        return self.__dict__["_tensor"].size(*args)

    def dim(self):
        """The number of its dimensions."""
        return len(self.size())

    def nelement(self):
        """The number of its elements."""
        return self.size().numel()

    numel = nelement


def arithmetic(self, y, op, inplace=False, *args, **kwargs):
    """`ArithmeticSharedTensor._arithmetic_function`: sums and products with `y`, shared or public."""
    if isinstance(y, ArithmeticSharedTensor):
        result = _sum(self, y, op) if op in _ADDITIVE else _product(self, y, op, *args, **kwargs)
    elif isinstance(y, (int, float)) or torch.is_tensor(y):
        result = _public(self, y, op, *args, **kwargs)
    else:
        raise TypeError(f"Cannot {op} {type(y)} with {type(self)}")
    if not inplace:
        return result
    if result.share.shape == self.share.shape:
        self.share.copy_(result.share)  # views of it change too
    else:
        self.share = result.share
    self.encoder = result.encoder
    return self


def _with(x, share, encoder=None):
    result = x.shallow_copy()
    result.share = share
    if encoder is not None:
        result.encoder = encoder
    return result


def _sum(x, y, op):
    """CrypTen rescales `y` itself, in place, where `x` has more bits of fraction."""
    if x.encoder.scale > y.encoder.scale:
        y = y.encode(x.encoder)
    elif x.encoder.scale < y.encoder.scale:
        x = x.encode(y.encoder)
    return _with(x, getattr(torch, op)(x.share, y.share))


def _product(x, y, op, *args, **kwargs):
    """CrypTen divides by the scale of `x` and says that the result has it, which is wrong where `y` has another."""
    result = _with(x, getattr(gates, op)(x, y, *args, **kwargs).share)
    if x.encoder.scale == 1:
        result.encoder = y.encoder
    elif y.encoder.scale > 1:
        result.div_(y.encoder.scale)
    return result


def _fraction(y):
    """Whether a public operand has fractions."""
    if torch.is_tensor(y):
        return y.is_floating_point() and bool(y.frac().any())
    return isinstance(y, float) and not y.is_integer()


def _public(x, y, op, *args, **kwargs):
    """CrypTen gives all parties but the first a result whose elements share memory, if `x` was broadcast.

    And where `x` has no bits of fraction, as the results of comparisons, it rounds `y` to whole numbers.
    """
    if x.encoder.scale == 1 and _fraction(y):
        encoder = FixedPointEncoder()
        if op not in _ADDITIVE:
            return _with(x, getattr(torch, op)(x.share, encoder.encode(y), *args, **kwargs), encoder)
        x = x.encode(encoder)
    y = x.encoder.encode(y)
    if op not in _ADDITIVE:
        result = _with(x, getattr(torch, op)(x.share, y, *args, **kwargs))
        return result if x.encoder.scale == 1 else result.div_(x.encoder.scale)
    if x.rank == 0:
        return _with(x, getattr(torch, op)(x.share, y))
    # A copy, since the result may be written to.
    return _with(x, x.share.clone() if y.dim() == 0 else torch.broadcast_tensors(x.share, y)[0].clone())


def mul(self, y):
    """`ArithmeticSharedTensor.mul`: with whole numbers no fraction arises, so nothing is truncated."""
    if isinstance(y, int) or is_int_tensor(y):
        return _with(self, self.share * y)
    return arithmetic(self, y, "mul")


def neg(self):
    """`ArithmeticSharedTensor.neg`."""
    return _with(self, -self.share)


def square(self):
    """`ArithmeticSharedTensor.square`."""
    result = _with(self, gates.square(self).share)
    return result if self.encoder.scale == 1 else result.div_(self.encoder.scale)


def _set_data(self, value):
    self.share = value


# `.data` of a torch tensor is the same memory with another count of writes. The protocols tell by that count whether a
# value has changed since it was masked.
data = property(lambda self: self.share, _set_data)


def divide(self, y):
    """`MPCTensor.div`."""
    if isinstance(y, MPCTensor):
        return self.mul(y.reciprocal())
    result = _wrapped(self._tensor.shallow_copy(), self.ptype)
    if torch.is_tensor(y):
        result.share = torch.broadcast_tensors(self.share, y)[0].clone()
    result._tensor.div_(y)
    return result
