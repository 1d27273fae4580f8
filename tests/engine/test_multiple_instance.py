"""Pooling over the slices of a volume on shares: outputs and gradients are torch's."""

import pytest
import torch

from mpc_imaging.engine.tensors import no_grad
from mpc_imaging.models.convert import SecureModule, prepare
from mpc_imaging.models.multiple_instance import MultipleInstance

SLICES, SIDE = 3, 16


def module(pool):
    return MultipleInstance(SLICES, image_size=SIDE, num_classes=2, pool=pool, features=4, attention=3)


def run_on_shares(x, *values, pool, training):
    from mpc_imaging.engine import layers

    secure = SecureModule(prepare(module(pool), training), layers)
    secure.load(dict(zip(secure.parameter_shapes(), values, strict=True)))
    if not training:
        with no_grad():
            return {"y": secure(x)}
    y = secure(x)
    y.backward(y.detach())
    return {"y": y} | {name: secure.parameters[name].grad for name in secure.trainable()}


@pytest.mark.parametrize("pool", ["mean", "max", "attention", "gated_attention"])
@pytest.mark.parametrize("training", [False, True])
def test_pooling(precise, pool, training):
    torch.manual_seed(0)
    plain = module(pool)
    x = torch.randn(2, SLICES, 1, SIDE, SIDE)
    found = precise.run(
        run_on_shares, x, *plain.state_dict().values(), requires_grad=training, pool=pool, training=training
    )
    y = plain(x)
    assert (found.pop("y") - y.double()).abs().max() < 2e-4
    y.backward(y.detach())
    wanted = {name: p.grad for name, p in plain.named_parameters()} if training else {}
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        largest = wanted[name].abs().max().item()
        assert (gradient - wanted[name].double()).abs().max() < 2e-3 * max(largest, 0.05), name
