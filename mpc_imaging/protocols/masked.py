"""Masked values: a mask belongs to one version of a value, is opened once, and then serves any number of products.

`Masks` finds a value again by the tensor that holds its share, if that was not written to since (torch counts writes);
views such as a transposed weight find their base's mask. A `Masked` never looks at the share again, so no tensor that
changes can lead to a second opening under one mask: whoever writes to it in a way that torch does not count only gets
products with the old value.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mpc_imaging.protocols.arrays import tensor
from mpc_imaging.randomness.demands import Mask
from mpc_imaging.randomness.fields import MaskRef

if TYPE_CHECKING:
    from mpc_imaging.protocols.context import Context


@dataclass(frozen=True, repr=False)
class Masked:
    """A value x under mask a: this party's share of `mask`, and the public `opened` = x - a, both shaped like x."""

    ref: MaskRef
    mask: torch.Tensor
    opened: torch.Tensor

    def __repr__(self) -> str:
        return f"Masked(mask {self.ref.index}, shape={tuple(self.opened.shape)}, share hidden)"

    def view(self, size: Sequence[int], stride: Sequence[int], offset: int) -> Masked:
        """The same value seen through a view of its flat form."""
        ref = self.ref._replace(size=tuple(size), stride=tuple(stride), offset=offset)
        return Masked(
            ref,
            *(torch.as_strided(x, ref.size, ref.stride, x.storage_offset() + offset) for x in (self.mask, self.opened)),
        )


@dataclass
class _Entry:
    tensor: weakref.ref
    version: int
    masked: Masked | None = None  # flat


class Masks:
    """The masked values of a session whose tensors are alive."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def forget(self) -> None:
        """Mask everything anew from now on: the numbers of masks are those of one plan, and another begins."""
        self._entries.clear()

    def open(self, ctx: Context, shares: Sequence[torch.Tensor]) -> list[Masked]:
        """The masked form of each share (int64, any shapes); one round for all those that have none yet."""
        sources = [_source(share) for share in shares]
        entries = [self._entry(source) for source in sources]
        new = {id(entry): (entry, source) for entry, source in zip(entries, sources, strict=True) if not entry.masked}
        if new:
            _mask(ctx, list(new.values()))
        trios = zip(entries, shares, sources, strict=True)
        return [_seen(entry.masked, share, source) for entry, share, source in trios]

    def _entry(self, source: torch.Tensor) -> _Entry:
        key = id(source)
        entry = self._entries.get(key)
        if entry is None or entry.tensor() is not source or entry.version != source._version:
            # An older entry goes, and its reference with it: nobody calls back for that any more.
            entry = _Entry(weakref.ref(source, functools.partial(self._forget, key)), source._version)
            self._entries[key] = entry
        return entry

    def _forget(self, key: int, tensor: weakref.ref) -> None:
        # The number may be another tensor's by now.
        if key in self._entries and self._entries[key].tensor is tensor:
            del self._entries[key]


def _source(share: torch.Tensor) -> torch.Tensor:
    """The tensor whose mask serves `share`: its base if that has the same elements, in another order."""
    base = share._base
    if base is None or base.numel() != share.numel() or not base.is_contiguous() or 0 in share.stride():
        return share
    # After `set_`, as CrypTen writes in place, one of both is elsewhere: the view is no view any more.
    return base if base.untyped_storage().data_ptr() == share.untyped_storage().data_ptr() else share


def _mask(ctx: Context, new: list[tuple[_Entry, torch.Tensor]]) -> None:
    flats = [source.reshape(-1) for _, source in new]
    dealt = [ctx.provider.get(Mask(flat.numel())) for flat in flats]
    masks = [tensor(part.shares[0], flat.shape) for part, flat in zip(dealt, flats, strict=True)]
    opened = ctx.channel.open_ring([flat - mask for flat, mask in zip(flats, masks, strict=True)])
    for (entry, _), part, mask, value in zip(new, dealt, masks, opened, strict=True):
        count = mask.numel()
        entry.masked = Masked(MaskRef(part.index, count, (count,), (1,)), mask, value)


def _seen(masked: Masked, share: torch.Tensor, source: torch.Tensor) -> Masked:
    if share is source:
        strides, step = [], 1
        for size in reversed(share.shape):
            strides.append(step)
            step *= size
        return masked.view(share.shape, strides[::-1], 0)
    return masked.view(share.shape, share.stride(), share.storage_offset() - source.storage_offset())
