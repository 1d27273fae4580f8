"""Inputs up to the bound cannot overflow a layer, and hardly larger ones could."""

import pytest
import torch
from torch import nn

from mpc_imaging.engine.encoding import encode
from mpc_imaging.errors import ModelError
from mpc_imaging.models.convert import prepare
from mpc_imaging.models.headroom import input_bounds, linear_layers
from mpc_imaging.models.zoo import SmallCNN

BITS = 16


class _Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2, 3, 3))

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight)


# Each layer, its input's shape, and the function of torch that it is.
LAYERS = {
    "linear": (nn.Linear(20, 5), (1, 20)),
    "rows": (nn.Linear(20, 5, bias=False), (1, 3, 20)),
    "conv2d": (nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2), (1, 4, 9, 9)),
    "dilated": (nn.Conv2d(1, 2, 3, dilation=2), (1, 1, 9, 9)),
    "conv1d": (nn.Conv1d(3, 5, 4), (1, 3, 12)),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (1, 4, 5, 5)),
    "overlapping": (nn.ConvTranspose2d(2, 3, 3, stride=1), (1, 2, 6, 6)),
    "transposed 1d": (nn.ConvTranspose1d(2, 3, 3), (1, 2, 6)),
    "function": (_Functional(), (1, 2, 8, 8)),
}


def _worst(module, shape, size):
    """The largest result, exact in int64, over inputs of one size that have the signs of one output's weights."""
    state = {name: encode(value.detach(), BITS) for name, value in module.state_dict().items()}
    fixed = {name: value << BITS if name == "bias" else value for name, value in state.items()}
    probe = torch.zeros(shape, requires_grad=True)
    outputs, largest = module(probe).flatten(), 0
    for output in outputs:
        (gradient,) = torch.autograd.grad(output, probe, retain_graph=True)
        with torch.no_grad():
            result = torch.func.functional_call(module, fixed, (gradient.sign().long() * size,))
        largest = max(largest, int(result.abs().max()))
    return largest


@pytest.mark.parametrize(("module", "shape"), LAYERS.values(), ids=LAYERS.keys())
def test_the_bound_is_where_results_reach_their_limit(module, shape):
    prepared = prepare(module, training=False)
    layers = linear_layers(prepared)
    assert len(layers) == 1
    bound = 2 * input_bounds(prepared, layers, BITS).item()
    worst = _worst(module, shape, bound)
    # Where windows do not overlap, an output of a transposed convolution takes one place of the kernel, not all four.
    assert 2 ** (58 if isinstance(module, nn.ConvTranspose2d) else 60) < worst < 2**61


def test_every_layer_of_a_model_has_a_bound_in_order():
    prepared = prepare(SmallCNN(), training=False)
    layers = linear_layers(prepared)
    assert len(layers) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in SmallCNN().modules())
    assert len({layer.node for layer in layers}) == len(layers)
    bounds = 2 * input_bounds(prepared, layers, BITS)
    assert bool((bounds > 2**BITS * 100).all()), "inputs beyond 100 fit into each"


def test_batch_norm_counts_folded_or_not():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2)).eval()
    with torch.no_grad():
        model[1].weight.fill_(1000)
        model[3].weight.fill_(50)
    prepared = prepare(model, training=False)
    layers = linear_layers(prepared)
    first, second = (2 * input_bounds(prepared, layers, BITS)).tolist()
    rows = (model[0].weight.detach().abs().sum((1, 2, 3)) * 1000 / (1 + 1e-5) ** 0.5).max()
    assert first == pytest.approx(2**61 / (rows.item() * 2**BITS), rel=0.01)
    assert second == pytest.approx(2**61 / (50 * 2**BITS), rel=0.01)


def test_weights_without_room_name_their_layers_all_at_once():
    model = SmallCNN()
    state = model.state_dict()
    names = [name for name in state if name.endswith("weight")]
    with torch.no_grad():
        state[names[0]] *= 1e10
        state[names[-1]] *= 1e10
    prepared = prepare(model, training=False)
    with pytest.raises(ModelError) as caught:
        input_bounds(prepared, linear_layers(prepared), BITS)
    assert len(caught.value.problems) == 2
    for name, line in zip((names[0], names[-1]), caught.value.problems, strict=True):
        assert line.startswith(name.removesuffix(".weight") + " (")
        assert "its weights are too large for protocol.fraction_bits=16: inputs beyond" in line
        assert "scale the weights down, or write fewer bits" in line


def test_weights_of_zero_allow_anything_that_fits():
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.zero_()
    prepared = prepare(model, training=False)
    assert input_bounds(prepared, linear_layers(prepared), BITS).item() > 2**40
