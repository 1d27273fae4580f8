"""Arrays of any size and colour to what the model takes: channels, square size, normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

# Rec. 601 luma, the weights that DICOM's own YBR_FULL uses (PS3.3 C.7.6.3.1.2).
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


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
    height, width = images.shape[-2:]
    side = max(height, width)
    if height != width:
        top, left = (side - height) // 2, (side - width) // 2
        images = F.pad(images, (left, side - width - left, top, side - height - top))
    if side == size:
        return images
    flat = images.flatten(0, -4)
    flat = F.interpolate(flat, size=(size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    return flat.view(*images.shape[:-2], size, size)


def normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Return (images - mean) / std for images (..., C, H, W); mean and std have one entry, or one for each channel."""
    shape = (-1, 1, 1)
    return (images - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
