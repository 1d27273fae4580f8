"""Inputs up to the bound cannot overflow a layer, and hardly larger ones could."""

import pytest
import torch
from torch import nn

from mpc_imaging.engine.encoding import encode
from mpc_imaging.errors import ModelError
from mpc_imaging.models.convert import prepare
from mpc_imaging.models.headroom import bounded_inputs, half_bounds
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


def _bounds(module, bits=BITS):
    prepared = prepare(module, training=False)
    return (2 * half_bounds(prepared, bounded_inputs(prepared, bits), bits)).tolist()


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
    (bound,) = _bounds(module)
    worst = _worst(module, shape, bound)
    # Where windows do not overlap, an output of a transposed convolution takes one place of the kernel, not all four.
    assert 2 ** (58 if isinstance(module, nn.ConvTranspose2d) else 60) < worst < 2**61


def test_every_layer_of_a_model_has_a_bound_in_order():
    inputs = bounded_inputs(prepare(SmallCNN(), training=False), BITS)
    assert len(inputs) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in SmallCNN().modules())
    assert len({each.node for each in inputs}) == len(inputs) and {each.slot for each in inputs} == {0}
    assert min(_bounds(SmallCNN())) > 2**BITS * 100, "inputs beyond 100 fit into each"


def test_batch_norm_counts_folded_or_not():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2)).eval()
    with torch.no_grad():
        model[1].weight.fill_(1000)
        model[3].weight.fill_(50)
    first, second = _bounds(model)
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
        state[names[1]][0] = torch.nan
    with pytest.raises(ModelError) as caught:
        _bounds(model)
    lines = caught.value.problems
    for name, line in zip((names[0], names[1], names[-1]), lines, strict=False):
        assert line.startswith(name.removesuffix(".weight") + " (")
        assert "its weights are too large for protocol.fraction_bits=16: inputs beyond" in line
        assert "scale the weights down, or write fewer bits" in line
    assert f"{names[1]}: not all of its values are numbers below" in lines[4]


def test_weights_of_zero_allow_anything_that_fits():
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.zero_()
    assert _bounds(model)[0] > 2**40


class _Model(nn.Module):
    def __init__(self, forward, **weights):
        super().__init__()
        self.body = forward
        for name, value in weights.items():
            setattr(self, name, nn.Parameter(torch.as_tensor(value)))

    def forward(self, x):
        return self.body(self, x)


PRODUCT = 2.0**61 / 2**BITS
F = nn.functional


@pytest.mark.parametrize(
    ("forward", "slots", "bounds"),
    [
        (lambda m, x: x * 3, [0], [2.0**61 / 3]),
        (lambda m, x: 2.5 * x, [1], [PRODUCT / 2.5]),
        (lambda m, x: x * m.w, [0], [PRODUCT / 4]),
        (lambda m, x: m.w * x, [1], [PRODUCT / 4]),
        (lambda m, x: x @ m.w, [0], [PRODUCT / 5]),
        (lambda m, x: m.w @ x, [1], [PRODUCT / 7]),
        (lambda m, x: F.linear(x, m.w), [0], [PRODUCT / 7]),
        (lambda m, x: F.linear(input=x, weight=m.w, bias=m.b), ["input"], [(2.0**61 - 9 * 2.0**32) / 2**16 / 7]),
        (lambda m, x: F.leaky_relu(x, 3.0), [0], [PRODUCT / 3]),
        (lambda m, x: F.leaky_relu(x, 0.1), [0], [PRODUCT]),
        (lambda m, x: x / 3, [0], [2.0**37]),
        (lambda m, x: x / 0.3, [0], [0.3 * 2.0**37]),
        (lambda m, x: x.mean(1), [0], [2.0**37]),
        (lambda m, x: x.sum(1), [0], [2.0**37]),
        (lambda m, x: F.avg_pool2d(x, 3), [0], [2.0**37]),
        (lambda m, x: F.adaptive_avg_pool2d(x, 2), [0], [2.0**37]),
        (lambda m, x: F.interpolate(x, (9, 9), mode="bilinear"), [0], [2.0**37]),
        (lambda m, x: F.interpolate(x, scale_factor=2), [], []),
        (lambda m, x: x * x, [], []),
        (lambda m, x: F.linear(x, m.w, m.b + m.b), [], []),
        (lambda m, x: F.linear(x, m.w * 2, m.b), [], []),
        (lambda m, x: F.relu(x - 1), [], []),
    ],
)
def test_which_inputs_have_bounds(forward, slots, bounds):
    """Not those of a product of two activations, nor with weights or biases that are computed: results are watched."""
    model = _Model(forward, w=[[4.0, -3.0], [1.0, 2.0]], b=[9.0, 0.0])
    prepared = prepare(model, training=False)
    inputs = bounded_inputs(prepared, BITS)
    assert [each.slot for each in inputs] == slots
    assert (2 * half_bounds(prepared, inputs, BITS)).tolist() == pytest.approx(bounds, rel=0.002)
