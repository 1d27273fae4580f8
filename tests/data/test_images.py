"""Channels, size and normalisation."""

from __future__ import annotations

import numpy as np
import torch

from mpc_imaging.data.images import match_channels, normalise, resize, resize_masks


def test_resize_keeps_the_aspect_and_centres() -> None:
    wide = torch.ones(1, 1, 10, 20)
    square = resize(wide, 40)
    assert square.shape == (1, 1, 40, 40)
    rows = square[0, 0, :, 20]
    assert rows[:8].max() == 0 and rows[32:].max() == 0 and rows[12:28].min() == 1
    torch.testing.assert_close(square, square.flip(2))


def test_resize_is_antialiased() -> None:
    noise = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    assert resize(noise, 16).std() < 0.06  # without antialiasing it averages 4 of the 64 pixels, and 0.14 remains


def test_resize_leaves_images_of_the_right_size_alone() -> None:
    images = torch.rand(3, 2, 28, 28)
    assert resize(images, 28) is images


def test_normalise_by_channel_or_by_one_number() -> None:
    images = torch.full((2, 3, 4, 4), 0.5)
    assert normalise(images, [0.5], [0.25]).abs().max() == 0
    by_channel = normalise(images, [0.5, 0.25, 0.0], [1.0, 0.5, 0.25])
    torch.testing.assert_close(by_channel[0, :, 0, 0], torch.tensor([0.0, 0.5, 2.0]))


def test_match_channels_over_any_leading_axes() -> None:
    colour = np.random.default_rng(0).random((5, 3, 4, 4), dtype=np.float32)
    luma = match_channels(colour, 1)
    assert luma.shape == (5, 1, 4, 4)
    np.testing.assert_allclose(luma[2], match_channels(colour[2], 1), atol=1e-6)
    np.testing.assert_allclose(match_channels(luma, 3)[:, 1], luma[:, 0])


def test_a_mask_is_resized_as_its_image() -> None:
    """Padded on the same sides and as much; a pixel is marked if half of its area is."""
    mask = torch.zeros(2, 12, 20, dtype=torch.bool)
    mask[0, 2:8, 4:16] = True
    mask[1, 0:2, 0:3] = True
    for size in (5, 10, 20, 40, 17):
        image = resize(mask[:, None].float(), size)[:, 0]
        found = resize_masks(mask, size)
        assert found.dtype == torch.uint8 and found.shape == (2, size, size)
        at = torch.arange(float(size))
        for axis in (0, 1):
            there, here = image[0].sum(axis), found[0].float().sum(axis)
            assert abs((there * at).sum() / there.sum() - (here * at).sum() / here.sum()) < 0.3
    quarters = resize_masks(mask, 10)[1]
    assert quarters[2, 0] == 1 and quarters[2, 1] == 1, "4 and 2 of 4 pixels"
    assert quarters.sum() == 2
