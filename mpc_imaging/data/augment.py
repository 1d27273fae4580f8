"""What an owner does to its train images before it shares them: flips, shifts, rotations, brightness.

Each copy's draw is keyed by the public seed, the owner, the image's pseudonym and the copy's number: the plaintext
baseline gets the same images, and no image's draw depends on which others there are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from mpc_imaging.data.rows import shuffle_key
from mpc_imaging.settings import AugmentSettings


def augmented(
    images: torch.Tensor, ids: Sequence[str], augment: AugmentSettings, seed: int, owner: str
) -> tuple[torch.Tensor, list[str]]:
    """Images (N, ..., C, H, W) in [0, 1] and their pseudonyms, then ``augment.copies - 1`` changed copies of all.

    Row ``n + k * N`` is copy k of row n: its pseudonym has ``-a<k>`` at its end, its label stays.
    """
    copies, names = [images], list(ids)
    for copy in range(1, augment.copies):
        drawn = [random.Random(shuffle_key(seed, "augment", owner, name, copy)) for name in ids]
        changed = [_changed(image, augment, draw) for image, draw in zip(images, drawn, strict=True)]
        copies += [torch.stack(changed)] if changed else []
        names += [f"{name}-a{copy}" for name in ids]
    return torch.cat(copies), names


def _changed(image: torch.Tensor, augment: AugmentSettings, draw: random.Random) -> torch.Tensor:
    """One image (C, H, W), or all slices (S, C, H, W) alike, changed as drawn; from outside comes black."""
    if augment.flip and draw.random() < 0.5:
        image = image.flip(-1)
    if augment.brightness:
        image = (image + draw.uniform(-augment.brightness, augment.brightness)).clamp(0, 1)
    if augment.rotate:
        from torchvision.transforms import InterpolationMode, functional

        angle = draw.uniform(-augment.rotate, augment.rotate)
        image = functional.rotate(image, angle, InterpolationMode.BILINEAR)
    if augment.shift:
        most = min(augment.shift, *(side - 1 for side in image.shape[-2:]))
        right, down = (draw.randint(-most, most) for _ in range(2))
        image = F.pad(image, (right, -right, down, -down))
    return image
