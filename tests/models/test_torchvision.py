"""Every torchvision classifier either converts, and then computes the same, or is reported layer by layer."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from mpc_imaging.errors import ModelError
from mpc_imaging.models import SecureModule, prepare
from tests.models import plain_ops

ALL = torchvision.models.list_models(module=torchvision.models)
# What these families need is reported: GELU, SiLU, Hardswish, layer norm, attention.
REPORTED = ("convnext", "efficientnet", "maxvit", "mobilenet_v3", "swin", "vit")
# One of each family for every run; the others are slow only because they are many.
QUICK = {
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32"),
}
SIDE = {"alexnet": 64, "inception_v3": 299, "shufflenet_v2_x1_0": 64}


def build(name: str, **kwargs: object) -> nn.Module:
    if name in ("googlenet", "inception_v3"):
        kwargs["init_weights"] = False  # the default warns, and is slow
    return torchvision.models.get_model(name, weights=None, **kwargs).eval()


@pytest.fixture
def sizes_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """RegNet computes its widths with tensors, whose values it needs while the weights are made without values."""
    parameters = torchvision.models.regnet.BlockParams
    original = parameters.from_init_params.__func__

    def on_cpu(cls: type, *args: object, **kwargs: object) -> object:
        with torch.device("cpu"):
            return original(cls, *args, **kwargs)

    monkeypatch.setattr(parameters, "from_init_params", classmethod(on_cpu))


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ALL])
def test_converts_or_reports_every_layer(name: str, sizes_on_cpu: None) -> None:
    with torch.device("meta"):
        module = build(name)
    try:
        prepared = prepare(module, training=False)
    except ModelError as error:
        assert name.startswith(REPORTED)
        layers = [line.split(" (")[0] for line in error.problems]
        assert len(set(layers)) == len(layers) > 5
        assert all(") , " not in line and "\n" not in line for line in error.problems)
        assert all("not built yet (" in line or "cannot run securely (" in line for line in error.problems)
        return
    assert not name.startswith(REPORTED)
    secure = SecureModule(prepared, plain_ops)
    secure.load({n: x for n, x in prepared.state_dict().items() if x.is_floating_point()})
    side = SIDE.get(name, 224)
    assert secure(torch.empty(2, 3, side, side, device="meta")).shape == (2, 1000)


COMPUTED = [
    *("alexnet", "densenet121", "googlenet", "mnasnet0_5", "mobilenet_v2", "regnet_y_400mf", "resnet18", "resnet50"),
    *("shufflenet_v2_x1_0", "squeezenet1_0", "vgg11_bn"),
]


@pytest.mark.parametrize("name", COMPUTED)
def test_computes_what_torch_computes(name: str) -> None:
    torch.manual_seed(0)
    kwargs = {"transform_input": True, "aux_logits": True} if name == "googlenet" else {}
    module = build(name, num_classes=7, **kwargs)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.1, 0.1)
    x = torch.randn(2, 3, SIDE.get(name, 45), SIDE.get(name, 45))
    with torch.no_grad():
        prepared = prepare(module, training=False)
        secure = SecureModule(prepared, plain_ops)
        secure.load({n: v for n, v in prepared.state_dict().items() if v.is_floating_point()})
        expected, actual = module(x), secure(x)
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert expected.std() > 0


def test_the_model_is_named_layer_by_layer_with_substitutes() -> None:
    with torch.device("meta"), pytest.raises(ModelError) as raised:
        prepare(build("mobilenet_v3_small"), training=False)
    problems = raised.value.problems
    assert problems[0].startswith("features.0.2 (Hardswish): not built yet (")
    assert problems[0].endswith(", replace nn.Hardswish by nn.ReLU")
    assert any("(Hardsigmoid)" in line and line.endswith("replace nn.Hardsigmoid by nn.Sigmoid") for line in problems)


def test_batch_norm_cannot_be_trained() -> None:
    with torch.device("meta"), pytest.raises(ModelError) as raised:
        prepare(build("resnet18"), training=True)
    assert len(raised.value.problems) == 20
    assert all("FrozenBatchNorm2d" in line for line in raised.value.problems)


def test_frozen_batch_norm_can() -> None:
    module = torchvision.models.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d, num_classes=2)
    secure = SecureModule(prepare(module, training=True), plain_ops)
    assert secure.trainable() == [name for name, _ in module.named_parameters()]
