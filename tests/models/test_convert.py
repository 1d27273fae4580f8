"""A converted model computes what the torch module computes, for every operation that is built."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

from mpc_imaging.errors import ModelError
from mpc_imaging.models import SecureModule, output_shape, prepare
from tests.models import plain_ops
from tests.models.modules import Apply, converted, randomise

IMAGES = (2, 4, 12, 10)
SIGNALS = (2, 4, 15)


def check_same(module: nn.Module, shape: tuple[int, ...]) -> SecureModule:
    torch.manual_seed(0)
    module = randomise(module)
    x = torch.randn(shape)
    with torch.no_grad():
        secure = converted(module)
        torch.testing.assert_close(secure(x.clone()), module(x.clone()), rtol=1e-4, atol=1e-4)
    return secure


LAYERS = {
    "conv2d": (nn.Conv2d(4, 6, 3), IMAGES),
    "conv2d strided": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), IMAGES),
    "conv2d grouped": (nn.Conv2d(4, 8, 3, groups=4, bias=False), IMAGES),
    "conv2d same": (nn.Conv2d(4, 6, 3, padding="same"), IMAGES),
    "conv2d same, even kernel": (nn.Conv2d(4, 6, (4, 3), padding="same", dilation=(1, 2)), IMAGES),
    "conv2d valid": (nn.Conv2d(4, 6, 3, padding="valid"), IMAGES),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), SIGNALS),
    "conv1d same": (nn.Conv1d(4, 6, 4, padding="same"), SIGNALS),
    "transposed conv2d": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), IMAGES),
    "transposed conv2d grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2), IMAGES),
    "transposed conv1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), SIGNALS),
    "linear": (nn.Linear(10, 3), IMAGES),
    "relu": (nn.ReLU(), IMAGES),
    "relu6": (nn.ReLU6(), IMAGES),
    "hardtanh": (nn.Hardtanh(-0.5, 0.7), IMAGES),
    "leaky relu": (nn.LeakyReLU(0.2), IMAGES),
    "sigmoid": (nn.Sigmoid(), IMAGES),
    "tanh": (nn.Tanh(), IMAGES),
    "softmax": (nn.Softmax(dim=-1), IMAGES),
    "log-softmax": (nn.LogSoftmax(dim=1), IMAGES),
    "max-pool2d": (nn.MaxPool2d(2), IMAGES),
    "max-pool2d padded": (nn.MaxPool2d((3, 2), stride=2, padding=(1, 0), dilation=(1, 2)), IMAGES),
    "max-pool2d ceil": (nn.MaxPool2d(3, stride=2, ceil_mode=True), (2, 4, 12, 9)),
    "max-pool2d ceil, padded": (nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), (2, 4, 12, 9)),
    "max-pool2d ceil, last window dropped": (nn.MaxPool2d(2, stride=3, ceil_mode=True, padding=1), (1, 1, 5, 7)),
    "max-pool1d": (nn.MaxPool1d(3, padding=1), SIGNALS),
    "max-pool1d ceil": (nn.MaxPool1d(4, ceil_mode=True), SIGNALS),
    "avg-pool2d": (nn.AvgPool2d(3, stride=2, padding=1), IMAGES),
    "avg-pool2d without padding counted": (nn.AvgPool2d((3, 2), padding=1, count_include_pad=False), IMAGES),
    "avg-pool1d": (nn.AvgPool1d(3, stride=2, padding=1), SIGNALS),
    "adaptive avg-pool2d": (nn.AdaptiveAvgPool2d(1), IMAGES),
    "adaptive avg-pool2d uneven": (nn.AdaptiveAvgPool2d((5, None)), IMAGES),
    "adaptive avg-pool1d": (nn.AdaptiveAvgPool1d(3), SIGNALS),
    "upsample nearest": (nn.Upsample(scale_factor=(2, 3)), IMAGES),
    "upsample nearest to a size": (nn.UpsamplingNearest2d(size=(24, 10)), IMAGES),
    "upsample bilinear": (nn.Upsample(scale_factor=2.0, mode="bilinear"), IMAGES),
    "upsample bilinear to a size": (nn.Upsample(size=(7, 13), mode="bilinear", align_corners=True), IMAGES),
    "zero pad": (nn.ZeroPad2d((1, 2, 0, 3)), IMAGES),
    "constant pad": (nn.ConstantPad1d(2, -1.5), SIGNALS),
    "flatten": (nn.Flatten(), IMAGES),
    "flatten some": (nn.Flatten(1, -2), IMAGES),
    "unflatten": (nn.Unflatten(1, (2, -1)), IMAGES),
    "identity": (nn.Sequential(nn.Identity(), nn.Linear(10, 2), nn.Dropout(0.5, inplace=True)), IMAGES),
    "batch-norm2d": (nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), IMAGES),
    "batch-norm1d": (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4)), SIGNALS),
    "conv, batch-norm": (nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(True)), IMAGES),
    "conv1d, batch-norm": (nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), SIGNALS),
    "transposed conv, batch-norm": (
        nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
        IMAGES,
    ),
    "linear, batch-norm": (nn.Sequential(nn.Flatten(), nn.Linear(480, 5), nn.BatchNorm1d(5)), IMAGES),
    "linear on sequences, batch-norm": (nn.Sequential(nn.Linear(15, 6), nn.BatchNorm1d(4)), SIGNALS),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_layer_computes_what_torch_computes(name: str) -> None:
    check_same(*LAYERS[name])


def _shuffle(self, x):
    n, c, h, w = x.size()
    return torch.transpose(x.view(n, 2, c // 2, h, w), 1, 2).contiguous().view(n, -1, h, w)


def _overwritten(self, x):
    y = F.conv2d(x, self.weight)
    shortcut = y
    y = F.relu(y, inplace=True)
    y += 1
    return shortcut * y


def _swapped(self, x):
    first, second = x.chunk(2, dim=-2)
    return torch.cat([second, first, x.chunk(5, dim=2)[3]], dim=-2)


def _attention(self, x):
    b, c = x.shape[0], x.shape[1]
    q = x.reshape(b, c, -1)
    scores = torch.matmul(q, q.transpose(1, 2)) / math.sqrt(c)
    return torch.bmm(F.softmax(scores, dim=-1), q).view(x.shape)


FUNCTIONS = {
    "conv2d": lambda self, x: F.conv2d(x, self.weight, stride=2, padding=1),
    "transposed conv2d": lambda self, x: F.conv_transpose2d(x[:, :1], self.weight[:1].transpose(1, 0)[:1]),
    "linear": lambda self, x: F.linear(x, self.row),
    "pools": lambda self, x: F.avg_pool2d(F.max_pool2d(x, 3, 2, 1), 2) + F.adaptive_avg_pool2d(x, (3, 2)),
    "pool of the input's size": lambda self, x: F.avg_pool2d(x, x.size()[2:]).flatten(1),
    "activations": lambda self, x: F.relu6(x) + F.hardtanh(x) + F.leaky_relu(x, 0.3) + torch.sigmoid(x) + x.tanh(),
    "clamps": lambda self, x: torch.clamp(x, -0.3, 0.4) + x.clamp(min=0) + x.clamp(min=0.2) + torch.clip(x, max=0.1),
    "softmaxes": lambda self, x: x.softmax(-1) + torch.log_softmax(x, 1) + F.softmax(x, dim=2),
    "arithmetic": lambda self, x: (1 - x) * 2 + x / 4 - -x + 3 - (0.5 + x) + torch.sub(x, x, alpha=2),
    "scaled addition": lambda self, x: x.add(x, alpha=0.5) + torch.add(1, x),
    "square": lambda self, x: x**2 + x.pow(2) + x.square(),
    "broadcast": lambda self, x: x * self.row + self.row,
    "constant": lambda self, x: x * torch.tensor([0.25]) + torch.ones(10),
    "in place": _overwritten,
    "in place on a fresh value": lambda self, x: (x * 2).mul_(3).relu_().sub_(1),
    "in place on a copy": lambda self, x: x.clone().add_(1) * x,
    "mean": lambda self, x: x.mean([2, 3]) + x.mean((2, 3), keepdim=True).squeeze() + torch.mean(x, -1).sum(2),
    "mean of all": lambda self, x: x.mean() + x.sum(),
    "cat": lambda self, x: torch.cat([x, x * 2], 1) + torch.concat((x, x), dim=-3),
    "stack": lambda self, x: torch.stack([x, x * 2], dim=-1),
    "chunk": lambda self, x: x.chunk(3, dim=2)[2] * 2,
    "uneven chunks": _swapped,
    "split": lambda self, x: x.split(3, dim=1)[1] + torch.split(x, [1, 3], 1)[0],
    "slices": lambda self, x: x[:, 1:3, ::2, None, -1] + x[..., 0][:, 2:, 0:6].unsqueeze(-1),
    "shapes": lambda self, x: torch.flatten(x.permute(0, 2, 3, 1).unsqueeze(-2).squeeze(3), start_dim=1, end_dim=2),
    "swapaxes": lambda self, x: torch.swapaxes(x, 1, -1).reshape((x.shape[0], -1)),
    "channel shuffle": _shuffle,
    "attention by hand": _attention,
    "pad": lambda self, x: F.pad(x, (1, 0, 2, 1)) + F.pad(x, [1, 0, 2, 1], value=0.5),
    "interpolate": lambda self, x: F.interpolate(x, scale_factor=2) + F.interpolate(x, (24, x.size(3) * 2)),
    "interpolate between": lambda self, x: F.interpolate(x, x.size(2) * 2, mode="bilinear", align_corners=True),
    "dropout": lambda self, x: F.dropout(x, 0.5, training=self.training) + F.dropout2d(x, 0.5, self.training),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_computes_what_torch_computes(name: str) -> None:
    check_same(Apply(FUNCTIONS[name]), IMAGES)


def test_an_overwritten_value_that_is_used_again_is_the_new_one() -> None:
    """Torch's relu_ changes the tensor that the shortcut holds too; a naive interpreter returns another product."""
    x = torch.randn(IMAGES)
    module = Apply(_overwritten).eval()
    y = F.conv2d(x, module.weight)
    assert not torch.allclose(y * (y.relu() + 1), module(x))
    torch.testing.assert_close(converted(module)(x), module(x))


def test_further_arguments_of_forward_keep_their_defaults() -> None:
    class Optional(nn.Module):
        def forward(self, x, mask=None, double=True):
            x = x if mask is None else x * mask
            return x * 2 if double else x

    check_same(Optional(), IMAGES)


def test_prepare_leaves_the_module_alone() -> None:
    module = randomise(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout()))
    before = copy.deepcopy(module.state_dict())
    module.train()
    prepare(module, training=False)
    assert [type(layer) for layer in module] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Dropout]
    assert all(layer.training for layer in module.modules())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_names_and_shapes_depend_on_the_architecture_alone() -> None:
    def module(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        convolution = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4))
        return randomise(nn.Sequential(nn.BatchNorm2d(4), convolution, nn.Dropout(), nn.Flatten(), nn.Linear(320, 2)))

    first, second = (SecureModule(prepare(module(seed), training=False), plain_ops) for seed in (0, 1))
    assert first.parameter_shapes() == second.parameter_shapes()
    assert list(first.parameter_shapes()) == ["0.scale", "0.shift", "1.0.weight", "1.0.bias", "4.weight", "4.bias"]


def test_training_keeps_every_parameter_trainable_and_follows_the_gradients() -> None:
    module = nn.Sequential(nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Dropout(0.0), nn.Flatten(), nn.Linear(160, 2))
    with torch.no_grad():  # the caller's mode is not the model's
        secure = converted(module, training=True)
    assert secure.trainable() == ["0.weight", "0.bias", "4.weight", "4.bias"]
    secure.parameters = {name: x.clone().requires_grad_() for name, x in secure.parameters.items()}
    x = torch.randn(IMAGES)
    secure(x).square().sum().backward()
    module(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(secure.parameters[name].grad, parameter.grad)


def test_training_keeps_frozen_batch_norm_fixed() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    module = nn.Sequential(nn.Conv2d(4, 2, 3), FrozenBatchNorm2d(2), nn.ReLU())
    module[0].bias.requires_grad_(False)
    module[1].running_mean.normal_()
    secure = converted(module, training=True)
    assert secure.trainable() == ["0.weight"]
    assert list(secure.parameter_shapes()) == ["0.weight", "0.bias", "1.scale", "1.shift"]
    x = torch.randn(IMAGES)
    torch.testing.assert_close(secure(x), module(x))


def test_training_traces_the_branches_of_training() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.auxiliary = nn.Linear(10, 2), nn.Linear(10, 2)

        def forward(self, x):
            return self.main(x) + self.auxiliary(x) if self.training else self.main(x)

    assert len(converted(Auxiliary(), training=True).parameters) == 4
    assert len(converted(Auxiliary(), training=False).parameters) == 2


def test_output_shape() -> None:
    prepared = prepare(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)), training=False)
    assert output_shape(prepared, (7, 3, 8, 8)) == (7, 5)
    with pytest.raises(ModelError, match=r"does not take images of shape \(7, 1, 8, 8\)"):
        output_shape(prepared, (7, 1, 8, 8))


def test_an_untraceable_model_is_one_line_with_the_place() -> None:
    class Branches(nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                return x
            return -x

    with pytest.raises(
        ModelError, match=r"Branches\): cannot run securely \(at test_convert.py:\d+: TraceError: "
    ) as raised:
        prepare(Branches(), training=False)
    assert len(raised.value.problems) == 1 and "\n" not in str(raised.value)


def test_noise_is_not_frozen_into_a_constant() -> None:
    module = Apply(lambda self, x: x + torch.randn(10))
    state = torch.random.get_rng_state()
    with pytest.raises(ModelError, match=r"forward\(\) draws random numbers"):
        prepare(module, training=False)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_of_two_inputs_is_one_line() -> None:
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(ModelError, match="let forward\\(\\) take one tensor"):
        prepare(Two(), training=False)
