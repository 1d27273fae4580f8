"""Small models for square grey or colour images, or for features of them: few comparisons, no batch-norm."""

from __future__ import annotations

import torch
from torch import nn


class Logistic(nn.Module):
    """Multinomial logistic regression on the pixels: no comparison at all."""

    def __init__(self, in_channels: int = 1, image_size: int = 28, num_classes: int = 2) -> None:
        super().__init__()
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes)."""
        return self.classifier(images)


class MLP(nn.Module):
    """Two hidden layers of 128 with ReLU."""

    def __init__(self, in_channels: int = 1, image_size: int = 28, num_classes: int = 2) -> None:
        super().__init__()
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(in_channels * image_size**2, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes)."""
        return self.classifier(images)


class SmallCNN(nn.Module):
    """Two 5x5 convolutions with ReLU and max-pooling, then two linear layers; images of at least 16x16."""

    def __init__(self, in_channels: int = 1, image_size: int = 28, num_classes: int = 2) -> None:
        super().__init__()
        self.features, values = small_convolutions(in_channels, image_size)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(values, 100), nn.ReLU(), nn.Linear(100, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes)."""
        return self.classifier(self.features(images))


class LeNet(nn.Module):
    """LeNet-5 with ReLU; its average pooling needs no comparisons. Images of at least 12x12."""

    def __init__(self, in_channels: int = 1, image_size: int = 28, num_classes: int = 2) -> None:
        super().__init__()
        side = _side_after(image_size, (image_size // 2 - 4) // 2, smallest=12)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5, padding=2),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.AvgPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * side**2, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes)."""
        return self.classifier(self.features(images))


class Head(nn.Module):
    """The last layers over features of a public backbone: one linear layer, or a hidden one with ReLU before it.

    hidden: units of the hidden layer; 0 for none, which takes no comparison at all.
    """

    def __init__(self, features: int, num_classes: int = 2, hidden: int = 0) -> None:
        super().__init__()
        before = [nn.Linear(features, hidden), nn.ReLU()] if hidden else []
        self.classifier = nn.Sequential(*before, nn.Linear(hidden or features, num_classes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes) of features (N, F)."""
        return self.classifier(features)


def small_convolutions(in_channels: int, image_size: int) -> tuple[nn.Sequential, int]:
    """The convolutions of `SmallCNN`, and how many values they make of an image."""
    side = _side_after(image_size, ((image_size - 4) // 2 - 4) // 2, smallest=16)
    layers = nn.Sequential(
        nn.Conv2d(in_channels, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    return layers, 16 * side**2


def _side_after(image_size: int, side: int, smallest: int) -> int:
    if side < 1:
        raise ValueError(f"image_size is {image_size}, this model needs at least {smallest}")
    return side
