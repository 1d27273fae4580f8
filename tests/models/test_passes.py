"""Rewrites keep the function; batch-norm is folded exactly where that is right."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpc_imaging.models import prepare
from mpc_imaging.models.layers import FlatLinear, ScaleShift
from tests.models.modules import randomise


def layers(module: nn.Module) -> list[type]:
    prepared = prepare(module, training=False)
    return [type(prepared.get_submodule(n.target)) for n in prepared.graph.nodes if n.op == "call_module"]


FOLDED = [
    (nn.Sequential(nn.Conv2d(3, 4, 3, groups=1, bias=False), nn.BatchNorm2d(4)), [nn.Conv2d]),
    (nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)), [nn.Conv2d]),
    (nn.Sequential(nn.ConvTranspose2d(3, 6, 3, groups=3), nn.BatchNorm2d(6, affine=False)), [nn.ConvTranspose2d]),
    (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.BatchNorm2d(4)), [nn.Conv2d]),
    (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), [nn.Conv2d, nn.ReLU, ScaleShift]),
    (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), [ScaleShift, nn.Conv2d]),
    (nn.Sequential(nn.Flatten(), nn.Linear(75, 4), nn.BatchNorm1d(4)), [nn.Flatten, FlatLinear]),
]


@pytest.mark.parametrize(("module", "expected"), FOLDED)
def test_batch_norm_is_folded_into_the_layer_before(module: nn.Module, expected: list[type]) -> None:
    torch.manual_seed(0)
    module = randomise(module)
    assert layers(module) == expected
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(prepare(module, training=False)(x), module(x), rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_used_twice_is_not_folded() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.shared(self.shared(x)))

    class Branches(Twice):
        def forward(self, x):
            y = self.shared(x)
            return self.norm(y) + y

    x = torch.randn(2, 3, 5, 5)
    for module in (randomise(Twice()), randomise(Branches())):
        assert ScaleShift in layers(module)
        torch.testing.assert_close(prepare(module, training=False)(x), module(x))


def test_tied_weights_are_folded_apart() -> None:
    module = randomise(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1)))
    module[3].weight = module[0].weight
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(prepare(module, training=False)(x), module(x))


def test_unused_layers_are_not_shared() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            self.unused(x)
            return self.used(x)

    assert list(prepare(Unused(), training=False).state_dict()) == ["used.weight", "used.bias"]
