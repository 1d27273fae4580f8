"""Arrays of any size and colour to what the model takes: channels, square size, normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

# Rec. 601 luma, the weights that DICOM's own YBR_FULL uses (PS3.3 C.7.6.3.1.2).
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_HALF = 0.5 - 1e-6  # sums of fractions are rounded


def match_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Give images (..., C, H, W) with C of 1 or 3 the wanted channels: grey is repeated, colour becomes luma."""
    have = image.shape[-3]
    if have == channels:
        return image
    if have == 1:
        return np.repeat(image, channels, axis=-3)
    return np.einsum("c,...chw->...hw", _LUMA, image)[..., np.newaxis, :, :]


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize images (..., C, H, W) in [0, 1] to (..., C, size, size), antialiased.

    The aspect is kept and nothing is cut off: the shorter side is padded with black on both sides, the image centred.
    """
    images = _squared(images)
    if images.shape[-1] == size:
        return images
    flat = images.flatten(0, -4)
    flat = F.interpolate(flat, size=(size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    return flat.view(*images.shape[:-2], size, size)


def resize_masks(masks: torch.Tensor, size: int) -> torch.Tensor:
    """Resize masks (N, H, W), bool, to (N, size, size) as `resize` does images: uint8 of 0 and 1.

    A pixel is marked if half of its area is. Nearest neighbour would look at one point of it, while the image's pixel
    is a mean: thin structures would come and go by chance.
    """
    return (_resampled(_squared(masks[:, None].float()), size)[:, 0] >= _HALF).to(torch.uint8)


def restore_masks(masks: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Undo `resize_masks`: masks (N, size, size) of 0 and 1 to bool (N, rows, columns), what was padded cut off."""
    side = max(rows, columns)
    found = _resampled(masks[:, None].float(), side)[:, 0] >= _HALF
    top, left = (side - rows) // 2, (side - columns) // 2
    return found[:, top : top + rows, left : left + columns]


def _resampled(masks: torch.Tensor, size: int) -> torch.Tensor:
    """How much of each new pixel is marked; between pixels it is interpolated, so that outlines are smooth."""
    side = masks.shape[-1]
    if size >= side:
        return F.interpolate(masks, size=(size, size), mode="bilinear", align_corners=False)
    # torch's mode="area" gives all pixels that a new one touches the same weight, which moves outlines.
    begin, end = (torch.arange(size)[:, None] + k for k in (0, 1))
    pixel = torch.arange(side)
    overlap = torch.minimum(end * side, (pixel + 1) * size) - torch.maximum(begin * side, pixel * size)
    weights = overlap.clamp(min=0).float() / side
    return weights @ masks @ weights.T


def _squared(images: torch.Tensor) -> torch.Tensor:
    """Pad the shorter side of images (N, C, H, W) with 0, alike on both sides."""
    height, width = images.shape[-2:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return F.pad(images, (left, side - width - left, top, side - height - top)) if height != width else images


def normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Return (images - mean) / std for images (..., C, H, W); mean and std have one entry, or one for each channel."""
    shape = (-1, 1, 1)
    return (images - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
