"""Running a prepared graph: weights in, observers around, values freed."""

from __future__ import annotations

import weakref
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from mpc_imaging.errors import ModelError
from mpc_imaging.models import SecureModule, prepare
from tests.models import plain_ops
from tests.models.modules import Apply, converted


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
        self.head = nn.Linear(2 * 16, 3)
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, x):
        x = self.body(x)
        return self.head(x.view(x.size(0), -1)) + 1


def test_weights_are_named_as_in_the_prepared_state_dict() -> None:
    prepared = prepare(Model(), training=False)
    secure = SecureModule(prepared, plain_ops)
    assert list(secure.parameter_shapes()) == list(prepared.state_dict())
    assert secure.parameter_shapes()["head.weight"] == torch.Size([3, 32])


def test_every_wrong_weight_is_named() -> None:
    prepared = prepare(Model(), training=False)
    state = prepared.state_dict()
    state["head.bais"] = state.pop("head.bias")
    state["head.weight"] = state["head.weight"].T
    with pytest.raises(ModelError) as raised:
        SecureModule(prepared, plain_ops).load(state)
    assert raised.value.problems == [
        "head.bias is missing: give a tensor of shape (3,)",
        "head.weight has shape (32, 3), the model needs (3, 32)",
        "head.bais is no tensor of this model: did you mean head.bias?",
    ]


def test_it_does_not_run_without_weights() -> None:
    with pytest.raises(ModelError, match="no weights yet: call load"):
        SecureModule(prepare(Model(), training=False), plain_ops)(torch.zeros(1, 1, 6, 6))


def test_the_observer_surrounds_each_layer() -> None:
    secure = converted(Model().eval())
    events = []

    @contextmanager
    def observer(name: str, operation: str):
        events.append((name, operation))
        yield
        events.append("end")

    secure.observer = observer
    secure(torch.zeros(1, 1, 6, 6))
    assert events[1::2] == ["end"] * 5
    assert events[::2] == [
        ("body.0", "conv2d"),
        ("body.2", "relu"),
        ("view", "reshape"),
        ("head", "linear"),
        ("add", "add"),
    ]


def test_functions_are_named_by_the_module_that_calls_them() -> None:
    names = []
    secure = converted(nn.Sequential(nn.ReLU(), nn.Sequential(Apply(lambda self, x: torch.sigmoid(x) * self.row))))

    @contextmanager
    def observer(name: str, operation: str):
        names.append(name)
        yield

    secure.observer = observer
    secure(torch.zeros(1, 10))
    assert names == ["0", "1.0.sigmoid", "1.0.mul"]


def test_values_are_freed_after_their_last_use() -> None:
    alive = []

    class Counting:
        def __getattr__(self, name: str):
            return getattr(plain_ops, name)

        @staticmethod
        def relu(x: torch.Tensor) -> torch.Tensor:
            counts.append(sum(reference() is not None for reference in alive))
            y = torch.relu(x)
            alive.append(weakref.ref(y))
            return y

    counts: list[int] = []
    secure = SecureModule(prepare(nn.Sequential(*(nn.ReLU() for _ in range(6))), training=False), Counting())
    secure.load({})
    secure(torch.zeros(3))
    assert counts == [0, 1, 1, 1, 1, 1]


def test_tensors_need_nothing_but_a_shape() -> None:
    """Shares are no torch tensors: the interpreter may only read their shape and hand them to the operations."""

    class Share:
        def __init__(self, value: torch.Tensor) -> None:
            self._value = value

        @property
        def shape(self) -> torch.Size:
            return self._value.shape

    def unwrap(value):
        if isinstance(value, list):
            return [unwrap(v) for v in value]
        return value._value if isinstance(value, Share) else value

    def wrap(value):
        return tuple(map(Share, value)) if isinstance(value, tuple) else Share(value)

    class Ops:
        def __getattr__(self, name: str):
            return lambda *args: wrap(getattr(plain_ops, name)(*map(unwrap, args)))

    def forward(self, x):
        a, b = torch.nn.functional.max_pool2d(x, 3, 2, ceil_mode=True).chunk(2, dim=1)
        x = torch.stack([a.flatten(1), b.reshape(b.size(0), -1)], dim=1)
        return torch.cat([1 - x.unsqueeze(1), x[:, None] / 2], dim=-1).mean((1, 2)) + self.weight.sum()

    module = Apply(forward)
    prepared = prepare(module, training=False)
    secure = SecureModule(prepared, Ops())
    secure.load({name: Share(value) for name, value in prepared.state_dict().items()})
    x = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(secure(Share(x))._value, module(x))
