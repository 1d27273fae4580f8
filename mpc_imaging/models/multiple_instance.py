"""Volumes as bags of slices (multiple-instance learning): one encoder for all slices, pooling over them, a linear head.

What pooling costs on shares, for S slices of F features: ``mean`` nothing but a truncation; ``max`` S - 1 comparisons
for each feature; the attentions a tanh for each of S x A values (and a sigmoid, if gated) and one softmax over S.
"""

from __future__ import annotations

import torch
from torch import nn

from mpc_imaging.models.zoo import small_convolutions


class MultipleInstance(nn.Module):
    """The convolutions of `zoo.SmallCNN` and a linear layer make features of each slice; slices of at least 16x16.

    pool: mean, max, attention or gated_attention. features: F, of a slice. attention: A, units of the attention.
    """

    def __init__(
        self,
        slices: int,
        in_channels: int = 1,
        image_size: int = 28,
        num_classes: int = 2,
        pool: str = "mean",
        features: int = 32,
        attention: int = 16,
    ) -> None:
        super().__init__()
        if not slices:
            raise ValueError("it takes volumes: write data.slices=N")
        pools = {
            "mean": lambda: MeanPool(slices),
            "max": lambda: MaxPool(slices),
            "attention": lambda: AttentionPool(slices, features, attention, gated=False),
            "gated_attention": lambda: AttentionPool(slices, features, attention, gated=True),
        }
        if pool not in pools:
            raise ValueError(f"pool={pool} is not one of {', '.join(pools)}")
        convolutions, values = small_convolutions(in_channels, image_size)
        self.encoder = nn.Sequential(convolutions, nn.Flatten(), nn.Linear(values, features))
        self.pool = pools[pool]()
        self.head = nn.Linear(features, num_classes)

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes) of volumes (N, S, C, H, W)."""
        return self.head(self.pool(self.encoder(volumes.flatten(0, 1))))


class MeanPool(nn.Module):
    """(N * S, F), before their ReLU, to (N, F): the mean over the slices of each volume."""

    def __init__(self, slices: int) -> None:
        super().__init__()
        self.activation, self.bags = nn.ReLU(), nn.Unflatten(0, (-1, slices))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The pooled features (N, F)."""
        return self.bags(self.activation(features)).mean(1)


class MaxPool(nn.Module):
    """(N * S, F), before their ReLU, to (N, F): the largest of each feature, with ReLU after it, which is S times less.

    The values are those of the other order, and so are the gradients unless all slices have a feature at zero.
    """

    def __init__(self, slices: int) -> None:
        super().__init__()
        self.bags, self.largest, self.activation = nn.Unflatten(0, (-1, slices)), nn.MaxPool1d(slices), nn.ReLU()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The pooled features (N, F)."""
        return self.activation(self.largest(self.bags(features).transpose(1, 2)).flatten(1))


class AttentionPool(nn.Module):
    """(N * S, F), before their ReLU, to (N, F): a mean over slices, weighted by a softmax over their scores.

    The score of a slice is w . tanh(V h); gated: w . (tanh(V h) * sigmoid(U h)). Attention-based deep
    multiple-instance learning: Ilse, Tomczak, Welling (ICML 2018), equations 8 and 9.
    """

    def __init__(self, slices: int, features: int, attention: int, gated: bool) -> None:
        super().__init__()
        self.activation, self.bags = nn.ReLU(), nn.Unflatten(0, (-1, slices))
        self.direction = nn.Sequential(nn.Linear(features, attention), nn.Tanh())
        self.gate = nn.Sequential(nn.Linear(features, attention), nn.Sigmoid()) if gated else None
        self.score = nn.Linear(attention, 1, bias=False)  # a softmax does not see a bias

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The pooled features (N, F)."""
        features = self.activation(features)
        hidden = self.direction(features)
        if self.gate is not None:
            hidden = hidden * self.gate(features)
        weights = self.bags(self.score(hidden)).softmax(1)  # (N, S, 1)
        return torch.matmul(weights.transpose(1, 2), self.bags(features)).flatten(1)
