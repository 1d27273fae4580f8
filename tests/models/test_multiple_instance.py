"""Volumes as bags of slices: shapes, what pooling means, and that the network converts."""

from __future__ import annotations

import pytest
import torch

from mpc_imaging.models import output_shape, prepare
from mpc_imaging.models.multiple_instance import AttentionPool, MaxPool, MeanPool, MultipleInstance
from tests.models.modules import converted

POOLS = ["mean", "max", "attention", "gated_attention"]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("slices", "channels", "side", "classes"), [(4, 1, 16, 2), (1, 3, 17, 5)])
def test_converts_and_computes_the_same(pool: str, slices: int, channels: int, side: int, classes: int) -> None:
    torch.manual_seed(0)
    module = MultipleInstance(slices, channels, side, classes, pool).eval()
    x = torch.randn(3, slices, channels, side, side)
    with torch.no_grad():
        torch.testing.assert_close(converted(module)(x), module(x))
    assert output_shape(prepare(module, training=True), tuple(x.shape)) == (3, classes)
    assert converted(module, training=True).trainable() == [name for name, _ in module.named_parameters()]


@pytest.mark.parametrize("pool", POOLS)
def test_the_order_of_slices_does_not_matter_and_volumes_do_not_mix(pool: str) -> None:
    torch.manual_seed(0)
    module = MultipleInstance(4, 1, 16, 2, pool).eval()
    x = torch.randn(3, 4, 1, 16, 16)
    with torch.no_grad():
        y = module(x)
        torch.testing.assert_close(module(x[:, [2, 0, 3, 1]]), y)
        torch.testing.assert_close(module(x[1:2]), y[1:2])


def test_what_pooling_means() -> None:
    features = torch.tensor([[1.0, -1.0], [3.0, -2.0], [0.0, 5.0], [2.0, 1.0]])  # two volumes of two slices
    torch.testing.assert_close(MeanPool(2)(features), torch.tensor([[2.0, 0.0], [1.0, 3.0]]))
    torch.testing.assert_close(MaxPool(2)(features), torch.tensor([[3.0, 0.0], [2.0, 5.0]]))
    attention = AttentionPool(2, features=2, attention=3, gated=True)
    torch.nn.init.zeros_(attention.score.weight)
    torch.testing.assert_close(attention(features), MeanPool(2)(features))
    with torch.no_grad():  # all of the weight on the slice whose first feature is largest
        attention.direction[0].weight.copy_(torch.tensor([[9.0, 0.0]] * 3))
        attention.score.weight.fill_(99.0)
    torch.testing.assert_close(attention(torch.tensor([[1.0, 4.0], [0.0, 7.0]])), torch.tensor([[1.0, 4.0]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"slices": None}, "write data.slices=N"), ({"slices": 4, "pool": "median"}, "is not one of mean, max")],
)
def test_what_it_cannot_be(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultipleInstance(**arguments)
