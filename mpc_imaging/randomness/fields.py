"""What demands are made of: arrays of shares, and references to masks that earlier demands brought."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import numpy as np
import torch

from mpc_imaging.randomness.streams import Stream


class Group(Enum):
    """How shares add up: modulo 2**64 (uint64), modulo 2**32 (uint32) or bitwise (uint8, eight packed bits)."""

    RING = 8
    RING32 = 4
    BITS = 1


_DTYPES = {Group.RING: np.uint64, Group.RING32: np.uint32, Group.BITS: np.uint8}


class Field(NamedTuple):
    """One array of shares of `size` elements (of BITS: bytes)."""

    group: Group
    size: int

    @property
    def dtype(self) -> type:
        """Type of the array's elements."""
        return _DTYPES[self.group]

    @property
    def octets(self) -> int:
        """Bytes of one share."""
        return self.group.value * self.size

    def draw(self, stream: Stream) -> np.ndarray:
        """A party's uniform share."""
        return stream.octets(self.octets).view(self.dtype)

    def add(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The sum in this field's group."""
        return a ^ b if self.group is Group.BITS else a + b

    def sub(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The difference in this field's group."""
        return a ^ b if self.group is Group.BITS else a - b


def packed(count: int) -> int:
    """Bytes that hold `count` packed bits."""
    return (count + 7) // 8


class MaskRef(NamedTuple):
    """A view of the mask that demand number `index`, a `Mask` of `count` elements, brought: size, stride and offset.

    A mask, as the output mask of a comparison, is its demand's first random field: so it is found again.
    """

    index: int
    count: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    @property
    def field(self) -> Field:
        """The whole mask."""
        return Field(Group.RING, self.count)

    def view(self, mask: np.ndarray) -> torch.Tensor:
        """The view of the mask's values, uint64 (count,), as int64 of `size`."""
        flat = torch.from_numpy(mask.view(np.int64))
        return torch.as_strided(flat, self.size, self.stride, self.offset)


class BitsRef(NamedTuple):
    """The output masks rho, packed, of the `count` comparisons of demand number `index`."""

    index: int
    count: int

    @property
    def field(self) -> Field:
        """The bits."""
        return Field(Group.BITS, packed(self.count))
