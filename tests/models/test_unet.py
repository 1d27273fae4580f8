"""The small U-Net: its shapes, that it converts, and that a graph of it computes the same."""

from __future__ import annotations

import pytest
import torch

from mpc_imaging.models import output_shape, prepare
from mpc_imaging.models.unet import UNetSmall
from tests.models.modules import converted


@pytest.mark.parametrize("pool", ["strided", "max"])
@pytest.mark.parametrize("up", ["nearest", "transposed"])
@pytest.mark.parametrize(("channels", "side", "depth", "convs"), [(1, 16, 2, 1), (3, 24, 3, 2)])
def test_converts_and_computes_the_same(channels, side, depth, convs, pool, up) -> None:
    torch.manual_seed(0)
    module = UNetSmall(channels, side, 4, depth, convs, pool, up).eval()
    images = torch.randn(2, channels, side, side)
    with torch.no_grad():
        torch.testing.assert_close(converted(module)(images), module(images))
    assert output_shape(prepare(module, training=False), (2, channels, side, side)) == (2, 1, side, side)
    assert converted(module, training=True).trainable() == [name for name, _ in module.named_parameters()]


def test_skips_carry_what_the_lowest_level_has_lost() -> None:
    """With nothing from below, a pixel's logit still depends on that pixel alone through 3x3 convolutions."""
    torch.manual_seed(1)
    module = UNetSmall(1, 16).eval()
    for up in module.ups:
        for parameter in up.parameters():
            torch.nn.init.zeros_(parameter)
    one, other = torch.zeros(2, 1, 1, 16, 16)
    other[0, 0, 3, 3] = 1
    with torch.no_grad():
        changed = (module(one) != module(other))[0, 0]
    assert changed[3, 3] and not changed[9:, 9:].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 30}, "not a multiple of 4"),
        ({"image_size": 0}, "not a multiple"),
        ({"depth": 0}, "1 or more"),
        ({"convs": 0}, "1 or more"),
        ({"pool": "mean"}, "write strided or max"),
        ({"up": "bilinear"}, "write nearest or transposed"),
    ],
)
def test_what_cannot_be_built_says_what_to_write(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        UNetSmall(**options)
