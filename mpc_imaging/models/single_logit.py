"""A binary model that gives one logit z, as for `torch.nn.BCEWithLogitsLoss`: here it gives (0, z).

Cross-entropy over (0, z) is binary cross-entropy of z, so that everything behind the model may count on a score for
each of two classes. The zero costs nothing on shares.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class SingleLogit(nn.Module):
    """The same module, with the same parameters under the same names, that gives (N, 2) for (N, 1) or (N,).

    Weights of the module are those of this one, and the other way round.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # No child, whose name would stand before the names of all weights: its parts are those of this module.
        self.__dict__["_module"] = module
        for part in ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"):
            self.__dict__[part] = getattr(module, part)
        for hooks in ("_forward_hooks", "_forward_pre_hooks"):  # which `prepare` refuses
            self.__dict__[hooks] = getattr(module, hooks)
        self.train(module.training)

    def train(self, mode: bool = True) -> SingleLogit:
        """As `torch.nn.Module.train`."""
        self._module.training = mode
        return super().train(mode)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, 2) of images (N, ...): zeros, and the module's."""
        return F.pad(self._module.forward(images).reshape(-1, 1), (1, 0))
