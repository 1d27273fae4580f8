"""Modules that the tests convert."""

from __future__ import annotations

import torch
from torch import nn

from mpc_imaging.models import SecureModule, prepare
from tests.models import plain_ops


class Apply(nn.Module):
    """A module whose forward is a function of the images and of two parameters."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(6, 4, 3, 3))
        self.row = nn.Parameter(torch.randn(10))

    def forward(self, x):
        return self.function(self, x)


def converted(module: nn.Module, training: bool = False) -> SecureModule:
    prepared = prepare(module, training=training)
    secure = SecureModule(prepared, plain_ops)
    secure.load({name: x for name, x in prepared.state_dict().items() if x.is_floating_point()})
    return secure


def randomise(module: nn.Module) -> nn.Module:
    """Give batch-norm statistics that matter."""
    for layer in module.modules():
        if getattr(layer, "running_mean", None) is not None:
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            if layer.affine:
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
    return module.eval()
