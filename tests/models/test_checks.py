"""Whatever cannot run on shares is named, with a reason and a substitute that can be typed in."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

from mpc_imaging.errors import ModelError
from mpc_imaging.models import SecureModule, prepare
from tests.models import plain_ops
from tests.models.modules import Apply


def problems_of(module: nn.Module, training: bool = False) -> list[str]:
    with pytest.raises(ModelError) as raised:
        prepare(module, training=training)
    assert all("\n" not in line for line in raised.value.problems)
    return raised.value.problems


LAYERS = [
    (nn.GELU(), "replace nn.GELU by nn.ReLU"),
    (nn.SiLU(inplace=True), "replace nn.SiLU by nn.ReLU"),
    (nn.Hardswish(), "replace nn.Hardswish by nn.ReLU"),
    (nn.Softplus(), "replace nn.Softplus by nn.ReLU"),
    (nn.PReLU(), "replace nn.PReLU by nn.LeakyReLU"),
    (nn.LayerNorm(4), "replace nn.LayerNorm by nn.BatchNorm2d for inference, by nn.Identity for training"),
    (nn.GroupNorm(2, 4), "replace nn.GroupNorm by nn.BatchNorm2d for inference, by nn.Identity for training"),
    (nn.BatchNorm2d(4, track_running_stats=False), "train it with track_running_stats=True"),
    (nn.MultiheadAttention(4, 2), "use a convolutional model such as torchvision.models.resnet18"),
    (nn.LSTM(4, 4), "replace nn.LSTM by nn.Conv1d over time"),
    (nn.Conv3d(1, 1, 3), "replace nn.Conv3d by its 2-d layer over slices, as model=slices"),
    (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), 'use padding_mode="zeros"'),
    (nn.ReflectionPad2d(1), "replace nn.ReflectionPad2d by nn.ZeroPad2d"),
    (nn.ZeroPad2d(-1), "slice with x[:, :, a:b]"),
    (nn.AvgPool2d(2, ceil_mode=True), "use ceil_mode=False, with padding if needed"),
    (nn.AvgPool2d(2, divisor_override=3), "leave it out and multiply the result by a constant"),
    (nn.MaxPool2d(3, dilation=2, ceil_mode=True), "use ceil_mode=False, or dilation=1"),
    (nn.MaxPool2d(2, return_indices=True), "leave return_indices out"),
    (nn.AdaptiveMaxPool2d(1), "by nn.MaxPool2d with a fixed kernel, or by nn.AdaptiveAvgPool2d"),
    (nn.Upsample(scale_factor=2, mode="bicubic"), 'use mode="nearest" or mode="bilinear"'),
    (nn.Softmax(), "give dim=1"),
    (nn.LazyLinear(3), "give the sizes: nn.Linear, nn.Conv2d, nn.BatchNorm2d"),
    (nn.DataParallel(nn.ReLU()), "give its .module"),
    (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "torch.nn.utils.parametrize.remove_parametrizations"),
    (nn.Bilinear(2, 2, 2), "build it from convolution, linear, ReLU, pooling, add, multiply, concat and reshape"),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "substitute"), LAYERS, ids=lambda value: type(value).__name__)
def test_a_layer_that_cannot_run(layer: nn.Module, substitute: str) -> None:
    (line,) = problems_of(nn.Sequential(nn.Identity(), layer))
    assert line.startswith(f"1 ({type(layer).__name__}): not built yet (")
    assert line.endswith(substitute)


def test_embedding_can_never_run() -> None:
    (line,) = problems_of(nn.Sequential(nn.Embedding(10, 2)))
    assert line.startswith("0 (Embedding): cannot run securely (it looks up a table at a secret place)")


FUNCTIONS = [
    (lambda self, x: F.gelu(x), "gelu (F.gelu): not built yet", "replace F.gelu by nn.ReLU"),
    (lambda self, x: torch.exp(x), "exp (torch.exp): not built yet", "use torch.sigmoid or F.softmax"),
    (lambda self, x: x.argmax(1), "argmax (Tensor.argmax): not built yet", "can reveal predictions instead of logits"),
    (lambda self, x: x.abs(), "abs_1 (Tensor.abs): not built yet", "write F.relu(x) + F.relu(-x)"),
    (lambda self, x: x * (x > 0), "gt (operator.gt): not built yet", "write it with F.relu or torch.clamp"),
    (lambda self, x: 1 / x, "truediv (operator.truediv): not built yet", "multiply by a parameter"),
    (lambda self, x: x**3, "pow_1 (operator.pow): not built yet", "write powers as products"),
    (lambda self, x: x.T, "getattr_1 (Tensor.T): not built yet", "write it with reshape and permute"),
    (lambda self, x: x * x.sum().item(), "item (Tensor.item): cannot run securely", "decide it outside of the model"),
    (lambda self, x: x[x.long()], "long (Tensor.long): not built yet", "concat and reshape"),
    (lambda self, x: x[[0, 1]], "getitem (operator.getitem): not built yet", "use integers and slices only"),
    (lambda self, x: x[F.relu(x)], "getitem (operator.getitem): cannot run securely", "use integers and slices only"),
    (lambda self, x: F.pad(x, (1, 1), mode="reflect"), "pad (F.pad): not built yet", 'use mode="constant"'),
    (lambda self, x: F.dropout(x), "dropout (F.dropout): not built yet", "use it with training=self.training"),
    (lambda self, x: x.clamp(), "clamp (Tensor.clamp): not built yet", "give min or max"),
    (lambda self, x: x.clamp(self.row), "clamp (Tensor.clamp): not built yet", "use constant bounds"),
    (lambda self, x: F.softmax(x, 1, dtype=torch.float64), "softmax (F.softmax): not built yet", "leave dtype out"),
    (lambda self, x: x.mean(dim=1, dtype=torch.float), "mean (Tensor.mean): not built yet", "at its default"),
    (lambda self, x: F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True), "interpolate (F.interpolate)",
     "use antialias=False, or average pooling to make images smaller"),
    (lambda self, x: F.max_pool2d(x, 2, return_indices=True)[0], "max_pool2d_with_indices (F.", "return_indices out"),
    (lambda self, x: (x, x), "output (return value): not built yet", "return the logits only"),
    (lambda self, x: x.size(0), "output (return value): not built yet", "return the logits only"),
    (lambda self, x: x * torch.arange(10), "_tensor_constant0 (buffer): not built yet", "or forward() instead"),
    (lambda self, x: operator.iadd(x, 1) * 2, "iadd (operator.iadd): cannot run securely", "without inplace or +="),
    (lambda self, x: F.relu(x, inplace=True), "relu (F.relu): cannot run securely", "write it without inplace or +="),
    (lambda self, x: x.view(-1).relu_(), "relu_ (Tensor.relu_): cannot run securely", "write it without inplace or +="),
]  # fmt: skip


@pytest.mark.parametrize(("function", "start", "end"), FUNCTIONS, ids=lambda v: v if isinstance(v, str) else "")
def test_a_function_that_cannot_run(function, start: str, end: str) -> None:
    lines = problems_of(Apply(function))
    assert any(line.startswith(start) and line.endswith(end) for line in lines), lines


def test_overwriting_a_value_that_a_view_shows_again() -> None:
    def forward(self, x):
        y = x * 2
        rows = y.flatten(1)
        y += 1
        return rows * y.flatten(1)

    (line,) = problems_of(Apply(forward))
    assert "it overwrites a value that is used again through a view" in line


def test_all_problems_at_once_each_layer_once() -> None:
    shared = nn.GELU()
    module = nn.Sequential(shared, nn.Conv2d(1, 1, 3), nn.SiLU(), shared, nn.Sequential(nn.LayerNorm(3)))
    assert [line.split(" ")[0] for line in problems_of(module)] == ["0", "2", "4.0"]


def test_training_is_stricter() -> None:
    class Stops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)

        def forward(self, x):
            x = self.drop(self.norm(self.first(x)))
            with torch.no_grad():
                x = x * 2
            return self.second(x.detach())

    prepare(Stops(), training=False)
    lines = problems_of(Stops(), training=True)
    assert [line.split(":")[0] for line in lines] == [
        "second.weight (Parameter)",
        "norm (BatchNorm1d)",
        "drop (Dropout)",
        "mul (operator.mul)",
        "detach (Tensor.detach)",
    ]
    assert lines[2].endswith("set its probability to 0")


def test_hooks_are_not_silently_dropped() -> None:
    def double(module, args, output):
        return output * 2

    for path in ("", "0", "1"):
        module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
        module.get_submodule(path).register_forward_hook(double)
        (line,) = problems_of(module)
        assert "it has forward hooks, which are not traced" in line


RUNTIME = [
    (nn.Upsample(size=(9, 9)), r"nearest from \(4, 4\) to \(9, 9\) is not by whole factors"),
    (nn.Upsample(scale_factor=1.3, mode="bilinear"), r"scale_factor 1.3 of \(4, 4\) is no whole size"),
    (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), "it is folded with its batch-norm, and its input has 4 dim"),
]


@pytest.mark.parametrize(("layer", "message"), RUNTIME)
def test_a_layer_that_cannot_take_its_input(layer: nn.Module, message: str) -> None:
    prepared = prepare(nn.Sequential(layer.eval()), training=False)
    secure = SecureModule(prepared, plain_ops)
    secure.load(prepared.state_dict())
    with pytest.raises(ModelError, match=rf"^1 model problem: 0[.0]* \(\w+\): not built yet \({message}"):
        secure(torch.zeros(1, 3, 4, 4))


def test_an_assertion_of_the_model_is_one_line() -> None:
    def forward(self, x):
        torch._assert(x.shape[1] == 3, "images have three channels")
        return x

    secure = SecureModule(prepare(nn.Sequential(Apply(forward)), training=False), plain_ops)
    secure.load({})
    assert secure(torch.zeros(1, 3, 2, 2)).shape == (1, 3, 2, 2)
    with pytest.raises(ModelError, match="the model asserts that images have three channels"):
        secure(torch.zeros(1, 1, 2, 2))
