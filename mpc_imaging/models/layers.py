"""Layers that take the place of batch-norm: plain torch modules, so that a prepared model still runs in plaintext."""

from __future__ import annotations

import torch
from torch import nn


class ScaleShift(nn.Module):
    """x * scale + shift per channel of (N, C, ...); the scale (C,) and shift (C,) are fixed, never trained."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, scale: torch.Tensor, shift: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The scaled and shifted input, in its shape."""
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return x * self.scale.reshape(shape) + self.shift.reshape(shape)


class FlatLinear(nn.Linear):
    """A linear layer that has absorbed a batch-norm; that is right for inputs (N, F) only."""
