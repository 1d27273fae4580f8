"""Inputs of bounded length: what an owner does for its own patients before sharing, for `privacy.input_norm`."""

from __future__ import annotations

import torch

# Left of the bound for float32, to which lengths are rounded.
_SPARE = 2.0**-20


def clip_inputs(images: torch.Tensor, norm: float) -> torch.Tensor:
    """The images (N, ...), float32, each scaled down to Euclidean length ``norm`` if it is longer."""
    flat = images.flatten(1).double()
    factor = (norm * (1 - _SPARE) / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
    return (flat * factor).to(images.dtype).view(images.shape)
