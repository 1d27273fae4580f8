"""The small models: their shapes, and that they convert and compute the same on shares' operations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpc_imaging.models import output_shape, prepare, zoo
from tests.models.modules import converted

MODELS = [zoo.Logistic, zoo.MLP, zoo.SmallCNN, zoo.LeNet]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("channels", "side", "classes"), [(1, 28, 2), (3, 33, 5), (1, 16, 1)])
def test_converts_and_computes_the_same(model: type[nn.Module], channels: int, side: int, classes: int) -> None:
    torch.manual_seed(0)
    module = model(channels, side, classes).eval()
    x = torch.randn(3, channels, side, side)
    with torch.no_grad():
        torch.testing.assert_close(converted(module)(x), module(x))
    assert output_shape(prepare(module, training=False), (3, channels, side, side)) == (3, classes)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_can_be_trained(model: type[nn.Module]) -> None:
    module = model()
    assert converted(module, training=True).trainable() == [name for name, _ in module.named_parameters()]


def test_small_cnn_is_the_fixed_benchmark_net() -> None:
    module = zoo.SmallCNN(1, 28, 10)
    shapes = [tuple(x.shape) for x in module.parameters()]
    assert shapes == [(16, 1, 5, 5), (16,), (16, 16, 5, 5), (16,), (100, 256), (100,), (10, 100), (10,)]
    kinds = [type(layer).__name__ for layer in (*module.features, *module.classifier)]
    assert kinds == ["Conv2d", "ReLU", "MaxPool2d"] * 2 + ["Flatten", "Linear", "ReLU", "Linear"]


def test_mlp_is_the_fixed_benchmark_net() -> None:
    shapes = [tuple(x.shape) for x in zoo.MLP(1, 28, 10).parameters()]
    assert shapes == [(128, 784), (128,), (128, 128), (128,), (10, 128), (10,)]


@pytest.mark.parametrize(("model", "smallest"), [(zoo.SmallCNN, 16), (zoo.LeNet, 12)])
def test_images_that_are_too_small(model: type[nn.Module], smallest: int) -> None:
    assert model(1, smallest)(torch.zeros(1, 1, smallest, smallest)).shape == (1, 2)
    with pytest.raises(ValueError, match=f"at least {smallest}"):
        model(1, smallest - 1)


@pytest.mark.parametrize(("hidden", "sizes"), [(0, [(2, 30), (2,)]), (8, [(8, 30), (8,), (2, 8), (2,)])])
def test_a_head_takes_features(hidden: int, sizes: list[tuple[int, ...]]) -> None:
    head = zoo.Head(30, 2, hidden)
    assert head(torch.zeros(3, 30)).shape == (3, 2)
    assert [tuple(parameter.shape) for parameter in head.parameters()] == sizes
