"""Whole models that overflow are noticed, and those that do not are right: between real processes."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mpc_imaging.engine import gates, layers
from mpc_imaging.engine.tensors import from_share, no_grad, precision, rescaled
from mpc_imaging.models import headroom
from mpc_imaging.models.convert import SecureModule, prepare
from mpc_imaging.protocols.coins import TossedCoins
from mpc_imaging.protocols.ranges import RangeCheck


class _Model(nn.Module):
    """``body(self, x)`` with weights (1, 1) of these sizes: a and fc for F.linear, p as it is."""

    def __init__(self, body, a=1.0, fc=1.0, p=1.0, b=0.0):
        super().__init__()
        self.body = body
        for name, value in {"a": [[a]], "fc": [[fc]], "p": [p], "b": [b]}.items():
            setattr(self, name, nn.Parameter(torch.tensor(value)))

    def forward(self, x):
        return self.body(self, x)


def _image(value, side=1):
    return torch.full((1, 1, side, side), float(value))


def _pooled(m, x):
    return F.linear(F.adaptive_avg_pool2d(F.relu(x * m.p), 1).flatten(1), m.fc)


# Models with an input. Those that fit must come out right, the others be told; without bounds of inputs each of the
# latter came out wrong, and was said to be in range.
FIT = {
    "mean of 224 x 224": (_Model(lambda m, x: F.linear(x.mean((2, 3)), m.fc)), _image(255, 224)),
    "pooled 12-bit image": (_Model(_pooled), _image(1500, 112)),
    "division": (_Model(lambda m, x: F.linear((F.linear(x.flatten(1), m.a) / 3), m.fc), a=1000.0), _image(200)),
    "bilinear": (_Model(lambda m, x: F.interpolate(x, size=(4, 4), mode="bilinear").flatten(1)), _image(255, 2)),
    "hardtanh": (_Model(lambda m, x: F.hardtanh(F.linear(x.flatten(1), m.a), -5e8, 5e8) / 1000.0), _image(1900)),
}
OVERFLOW = {
    "layer scale": (_Model(lambda m, x: F.linear(F.linear(x.flatten(1), m.a) * m.p, m.fc), p=65536.0), _image(65536)),
    "public factor": (_Model(lambda m, x: F.linear(x.flatten(1) * 65536.0, m.fc)), _image(65536)),
    "parameter on the right": (_Model(lambda m, x: x.flatten(1) @ m.a, a=65536.0), _image(65536)),
    "keywords": (_Model(lambda m, x: F.linear(input=x.flatten(1), weight=m.a), a=65536.0), _image(65536)),
    "bilinear": (_Model(lambda m, x: F.interpolate(x, size=(4, 4), mode="bilinear").flatten(1)), _image(2.0**32, 2)),
    "division": (_Model(lambda m, x: x.flatten(1) / 3), _image(2.0**23)),
    "mean": (_Model(lambda m, x: x.mean((2, 3))), _image(2.0**23, 7)),
}


def run(x, *shares, name, cases):
    """The output, and whether all values were in range."""
    model = {"fit": FIT, "overflow": OVERFLOW}[cases][name][0].eval()
    prepared, before = prepare(model, training=False), gates.context()
    gates.set_context(replace(before, check=RangeCheck(TossedCoins(b"session"))))
    try:
        inputs = headroom.bounded_inputs(prepared, precision())
        halves = headroom.half_bounds(prepared, inputs, precision()) if inputs else []
        secure = SecureModule(prepared, layers)
        secure.load(dict(zip(prepared.state_dict(), shares, strict=True)))
        secure.bounds = {each.node: {each.slot: 2 * int(half)} for each, half in zip(inputs, halves, strict=True)}
        with no_grad():
            y = rescaled(secure(x))
        return {"y": y, "fits": from_share(gates.range_verdict().bits[:1], 0)}
    finally:
        gates.set_context(before)


def _run(parties, cases, name):
    model, x = {"fit": FIT, "overflow": OVERFLOW}[cases][name]
    state = prepare(model.eval(), training=False).state_dict()
    return model, x, parties.run(run, x, *state.values(), name=name, cases=cases)


@pytest.mark.parametrize("name", FIT)
def test_what_fits_is_right(two, name):
    model, x, result = _run(two, "fit", name)
    assert result["fits"].tolist() == [1]
    with torch.no_grad():
        assert torch.allclose(result["y"].float(), model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", OVERFLOW)
def test_what_overflows_is_told(two, name):
    assert _run(two, "overflow", name)[2]["fits"].tolist() == [0]
