"""A small U-Net for segmentation: one logit for each pixel, of whether it belongs to the structure."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

# How feature maps shrink, and how they grow again.
POOLS = ("strided", "max")
UPS = ("nearest", "transposed")


class UNetSmall(nn.Module):
    """An encoder and a decoder with skip connections (Ronneberger et al., MICCAI 2015, figure 1), without batch-norm.

    width: channels at full size; each of the ``depth`` levels below has twice as many. convs: 3x3 convolutions with
    ReLU at each level. pool: ``strided`` convolutions, which need no comparison of their own, or ``max`` of 2x2. up:
    ``nearest`` neighbours after a convolution, or ``transposed`` convolutions. ``image_size`` is a multiple of
    2**depth, and fixed: every size is then known before any image is.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 128,
        width: int = 8,
        depth: int = 2,
        convs: int = 2,
        pool: str = "strided",
        up: str = "nearest",
    ) -> None:
        super().__init__()
        _check(image_size, depth, convs, pool, up)
        widths = [width * 2**level for level in range(depth + 1)]
        self.encoder = nn.ModuleList([_block(in_channels, width, convs)])
        self.downs, self.ups, self.decoder = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for fewer, more in zip(widths, widths[1:], strict=False):
            self.downs.append(_down(fewer, pool))
            self.encoder.append(_block(fewer, more, convs))
        for fewer, more in reversed(list(zip(widths, widths[1:], strict=False))):
            self.ups.append(_up(more, fewer, up))
            self.decoder.append(_block(2 * fewer, fewer, convs))
        self.head = nn.Conv2d(width, 1, 1)
        for module in _convolutions(self):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
        nn.init.xavier_normal_(self.head.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, 1, H, W) of images (N, C, H, W)."""
        x, skips = self.encoder[0](images), []
        for down, block in zip(self.downs, self.encoder[1:], strict=True):
            skips.append(x)
            x = block(down(x))
        for up, block in zip(self.ups, self.decoder, strict=True):
            x = block(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)


def _check(image_size: int, depth: int, convs: int, pool: str, up: str) -> None:
    if depth < 1 or convs < 1:
        raise ValueError(f"depth is {depth} and convs {convs}; both are 1 or more")
    if image_size < 1 or image_size % 2**depth:
        raise ValueError(f"image_size is {image_size}, not a multiple of {2**depth}, by which {depth} levels divide it")
    for name, value, known in (("pool", pool, POOLS), ("up", up, UPS)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; write {' or '.join(known)}")


def _block(before: int, after: int, convs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(convs):
        layers += [nn.Conv2d(before if index == 0 else after, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def _down(channels: int, pool: str) -> nn.Module:
    if pool == "strided":
        return nn.Conv2d(channels, channels, 2, stride=2)
    return nn.MaxPool2d(2)


def _up(before: int, after: int, up: str) -> nn.Module:
    if up == "transposed":
        return nn.ConvTranspose2d(before, after, 2, stride=2)
    # The convolution comes first: it is linear within a pixel, and there are four times fewer of them.
    return nn.Sequential(nn.Conv2d(before, after, 1), nn.Upsample(scale_factor=2, mode="nearest"))


def _convolutions(module: nn.Module) -> Iterator[nn.Conv2d | nn.ConvTranspose2d]:
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            yield part
