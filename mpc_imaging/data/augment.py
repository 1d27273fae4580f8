"""What an owner does to its train images before it shares them: flips, shifts, rotations, brightness.

Each copy's draw is keyed by the public seed, the owner, the image's place in its data set and the copy's number: the
plaintext baseline gets the same images, and no image's draw depends on which others there are.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from mpc_imaging.data.rows import Row, shuffle_key
from mpc_imaging.settings import AugmentSettings


def augmented(
    images: torch.Tensor, ids: Sequence[str], rows: Sequence[Row], augment: AugmentSettings, seed: int, owner: str
) -> tuple[torch.Tensor, list[str]]:
    """Images (N, ..., C, H, W) in [0, 1] and their pseudonyms, then ``augment.copies - 1`` changed copies of all.

    ``rows``: that of each image. Image ``n + k * N`` is copy k of image n: its pseudonym has ``-a<k>`` at its end, its
    label stays.
    """
    names = [*ids, *(f"{name}-a{copy}" for copy in range(1, augment.copies) for name in ids)]
    return _with_copies(images, rows, augment, seed, owner, masks=False), names


def augmented_masks(
    masks: torch.Tensor, rows: Sequence[Row], augment: AugmentSettings, seed: int, owner: str
) -> torch.Tensor:
    """Masks (N, H, W) of 0 and 1, then those of the copies that `augmented` makes of their images.

    They move with their images, by the same draws; a rotated pixel takes the value of the nearest one.
    """
    return _with_copies(masks[:, None], rows, augment, seed, owner, masks=True)[:, 0]


def _with_copies(
    images: torch.Tensor, rows: Sequence[Row], augment: AugmentSettings, seed: int, owner: str, masks: bool
) -> torch.Tensor:
    copies, keys = [images], _keys(rows)
    for copy in range(1, augment.copies):
        drawn = [random.Random(shuffle_key(seed, "augment", owner, key, copy)) for key in keys]
        changed = [_changed(image, augment, draw, masks) for image, draw in zip(images, drawn, strict=True)]
        copies += [torch.stack(changed)] if changed else []
    return torch.cat(copies)


def _keys(rows: Sequence[Row]) -> list[str]:
    """What draws depend on: row and frame, which are the same in every run, as pseudonyms are not."""
    files = itertools.groupby(f"{row.origin}-{row.number}" for row in rows)
    return [f"{row}-{frame}" for row, same in files for frame, _ in enumerate(same)]


def _changed(image: torch.Tensor, augment: AugmentSettings, draw: random.Random, mask: bool) -> torch.Tensor:
    """An image (C, H, W), slices (S, C, H, W) alike, or a mask (1, H, W), changed as drawn; from outside comes 0."""
    if augment.flip and draw.random() < 0.5:
        image = image.flip(-1)
    if augment.brightness:
        offset = draw.uniform(-augment.brightness, augment.brightness)  # drawn for a mask too: the draws are the same
        image = image if mask else (image + offset).clamp(0, 1)
    if augment.rotate:
        from torchvision.transforms import InterpolationMode, functional

        angle = draw.uniform(-augment.rotate, augment.rotate)
        image = functional.rotate(image, angle, InterpolationMode.NEAREST if mask else InterpolationMode.BILINEAR)
    if augment.shift:
        most = min(augment.shift, *(side - 1 for side in image.shape[-2:]))
        right, down = (draw.randint(-most, most) for _ in range(2))
        image = F.pad(image, (right, -right, down, -down))
    return image
