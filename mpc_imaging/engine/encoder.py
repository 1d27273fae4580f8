"""CrypTen's `FixedPointEncoder` on `encoding`: its two methods, which `install` replaces."""

from __future__ import annotations

from typing import Any

import torch

from mpc_imaging.engine import compat, encoding
from mpc_imaging.errors import EncodingError

compat.load()

from crypten.cryptensor import CrypTensor  # noqa: E402  (CrypTen can only be imported after compat.load)


def _tensor(x: Any) -> torch.Tensor:
    """Numbers, lists and arrays as a tensor that loses nothing of them."""
    try:
        values = torch.as_tensor(x)
    except (ValueError, RuntimeError, OverflowError) as error:  # by version of torch
        if "overflow" not in str(error).lower():
            raise
        raise EncodingError("a whole number does not fit 64 bits; scale the input") from None
    # A list of floats became float32.
    return torch.tensor(x, dtype=torch.float64) if isinstance(x, list) and values.is_floating_point() else values


def encode(self, x, device=None):
    """Round to nearest, where CrypTen truncates toward zero, and floats in numpy arrays even to whole numbers.

    Takes numbers, lists, arrays and tensors; a `CrypTensor` comes back as it is. Without bits of fraction, whole
    numbers may be any ring elements, such as shares. Raises `EncodingError` for what is not finite or too large.
    """
    if isinstance(x, CrypTensor):
        return x
    bits = self._precision_bits
    if isinstance(x, (int, float)) and (bits or isinstance(x, float)):
        return encoding.encode_number(x, bits)
    x = _tensor(x)
    if bits == 0 and not x.is_floating_point() and not x.is_complex():
        return x.long()
    return encoding.encode(x, bits)


def decode(self, tensor):
    """The nearest float32, where CrypTen is off by one for some negative values; without fraction bits, int64.

    None, which those get who do not receive an opened value, stays None.
    """
    if tensor is None or self._precision_bits == 0:
        return tensor
    return encoding.decode(tensor, self._precision_bits, torch.float32)
