"""`crypten.nn` modules, losses and optimisers beside torch's: outputs, gradients, and parameters after steps.

`crypten.nn.from_pytorch` does not work on a current torch (its ONNX export is gone), so that modules are made as
CrypTen's own constructors do, and get torch's parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mpc_imaging.engine import compat
from tests.engine.conformance.cases import LOOSE

crypten = compat.load()

Outcome = dict[str, torch.Tensor]
# Gradients add up the roundings of many products, and steps those of gradients.
LAYER, STEPS = (1e-3, 1e-3), (2e-3, 4e-3)


@dataclass(frozen=True)
class Training:
    """Both give tensors by name; `shared` is called by all parties."""

    shared: Callable[[], Outcome]
    plain: Callable[[], Outcome]
    close: tuple[float, float] = LAYER


def _normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A torch module whose parameters, running means and variances are the same everywhere, and none is neutral."""
    module = make()
    with torch.no_grad():
        for i, (name, value) in enumerate(module.state_dict().items()):
            if value.is_floating_point():
                drawn = _normal(*value.shape, seed=100 + i)
                value.copy_(drawn.abs() + 0.5 if "var" in name else 0.4 * drawn)
    return module


def _encrypted(module: Any, source: nn.Module) -> Any:
    """A `crypten.nn` module with torch's values, in the same order, shared by the first party."""
    values = source.state_dict()
    for name in dict(module.named_parameters()) | dict(module.named_buffers()):
        holder, key = module, name
        while "." in key:
            child, key = key.split(".", 1)
            holder = dict(holder.named_children())[child]
        setter = holder.set_parameter if key in dict(holder.named_parameters(recurse=False)) else holder.set_buffer
        setter(key, values[name].clone())
    return module.encrypt(src=0)


def _layer(shared: Callable[[], Any], plain: Callable[[], nn.Module], *shape: int, train: bool = True, **options: Any):
    """A module on one input: its output, and the gradients of input and parameters if in training mode."""
    x = _normal(*shape)

    def ours() -> Outcome:
        module = _encrypted(shared(), _seeded(plain))
        module.train(train)
        secret = crypten.cryptensor(x, requires_grad=train)
        output = module(secret)
        outcome = {"output": output.get_plain_text()}
        if train:
            (output * output.detach()).sum().backward()
            outcome["input"] = secret.grad.get_plain_text()
            outcome |= {name: value.grad.get_plain_text() for name, value in module.named_parameters()}
        return outcome

    def theirs() -> Outcome:
        module = _seeded(plain).train(train)
        secret = x.clone().requires_grad_(train)
        output = module(secret)
        outcome = {"output": output.detach()}
        if train:
            (output * output.detach()).sum().backward()
            outcome["input"] = secret.grad
            outcome |= {name: value.grad for name, value in module.named_parameters()}
        return outcome

    return Training(ours, theirs, **options)


def _net(library: Any) -> Any:
    return library.Sequential(
        library.Conv2d(1, 3, 3, padding=1), library.ReLU(), library.MaxPool2d(2), library.Conv2d(3, 2, 3),
        library.ReLU(), library.Flatten(), library.Linear(8, 4), library.ReLU(), library.Linear(4, 3),
    )  # fmt: skip


LAYERS = {
    "Linear": _layer(lambda: crypten.nn.Linear(5, 3), lambda: nn.Linear(5, 3), 4, 5),
    "Conv1d": _layer(lambda: crypten.nn.Conv1d(2, 3, 3, padding=1), lambda: nn.Conv1d(2, 3, 3, padding=1), 2, 2, 7),
    "Conv2d": _layer(
        lambda: crypten.nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
        lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
        2,
        2,
        7,
        7,
    ),  # fmt: skip
    "BatchNorm2d": _layer(
        lambda: crypten.nn.BatchNorm2d(3), lambda: nn.BatchNorm2d(3), 2, 3, 4, 4, train=False, close=LOOSE
    ),
    "BatchNorm1d": _layer(lambda: crypten.nn.BatchNorm1d(3), lambda: nn.BatchNorm1d(3), 4, 3, train=False, close=LOOSE),
    "ReLU": _layer(lambda: crypten.nn.ReLU(), nn.ReLU, 3, 4),
    "Hardtanh": _layer(lambda: crypten.nn.Hardtanh(-0.5, 0.8), lambda: nn.Hardtanh(-0.5, 0.8), 3, 4),
    "ReLU6": _layer(lambda: crypten.nn.ReLU6(), nn.ReLU6, 3, 4),
    "Sigmoid": _layer(lambda: crypten.nn.Sigmoid(), nn.Sigmoid, 3, 4, close=LOOSE),
    "Softmax": _layer(lambda: crypten.nn.Softmax(1), lambda: nn.Softmax(1), 3, 4, close=LOOSE),
    "LogSoftmax": _layer(lambda: crypten.nn.LogSoftmax(1), lambda: nn.LogSoftmax(1), 3, 4, close=LOOSE),
    "MaxPool2d": _layer(
        lambda: crypten.nn.MaxPool2d(3, stride=2, padding=1), lambda: nn.MaxPool2d(3, 2, 1), 2, 2, 6, 6
    ),
    "AvgPool2d": _layer(lambda: crypten.nn.AvgPool2d(2), lambda: nn.AvgPool2d(2), 2, 2, 6, 6),
    "AdaptiveAvgPool2d": _layer(
        lambda: crypten.nn.AdaptiveAvgPool2d((2, 3)), lambda: nn.AdaptiveAvgPool2d((2, 3)), 2, 2, 6, 6
    ),
    "Dropout in evaluation": _layer(lambda: crypten.nn.Dropout(0.5), lambda: nn.Dropout(0.5), 3, 4, train=False),
    "Flatten": _layer(lambda: crypten.nn.Flatten(), lambda: nn.Flatten(), 2, 3, 4),
    "Sequential": _layer(lambda: _net(crypten.nn), lambda: _net(nn), 2, 1, 8, 8),
}


def _dropout() -> Outcome:
    """Dropped values are zero, others twice as large; so are their gradients."""
    x = crypten.cryptensor(torch.ones(1000), requires_grad=True)
    y = x.dropout(0.5)
    y.sum().backward()
    kept, grad = y.get_plain_text(), x.grad.get_plain_text()
    good = [torch.isin(kept.round(), torch.tensor([0.0, 2])).all(), torch.allclose(kept, grad, atol=1e-3)]
    return {"good": torch.stack([torch.as_tensor(g) for g in good]), "half": kept.mean().round()}


def _loss(shared: Callable[[], Any], plain: Callable[[], nn.Module], inputs: torch.Tensor, target: torch.Tensor):
    def ours() -> Outcome:
        x = crypten.cryptensor(inputs, requires_grad=True)
        loss = shared()(x, crypten.cryptensor(target))
        loss.backward()
        return {"loss": loss.get_plain_text().view(()), "gradient": x.grad.get_plain_text()}

    def theirs() -> Outcome:
        x = inputs.clone().requires_grad_()
        loss = plain()(x, target)
        loss.backward()
        return {"loss": loss.detach(), "gradient": x.grad}

    return Training(ours, theirs, LOOSE)


_CLASSES = nn.functional.one_hot(torch.tensor([2, 0, 1, 1]), 3).float()
LOSSES = {
    "MSELoss": _loss(lambda: crypten.nn.MSELoss(), nn.MSELoss, _normal(4, 3), _normal(4, 3, seed=2)),
    "L1Loss": _loss(lambda: crypten.nn.L1Loss(), nn.L1Loss, _normal(4, 3), _normal(4, 3, seed=2)),
    "BCELoss": _loss(lambda: crypten.nn.BCELoss(), nn.BCELoss, _normal(4, 3).sigmoid(), _CLASSES),
    "BCEWithLogitsLoss": _loss(lambda: crypten.nn.BCEWithLogitsLoss(), nn.BCEWithLogitsLoss, _normal(4, 3), _CLASSES),
    "CrossEntropyLoss": _loss(lambda: crypten.nn.CrossEntropyLoss(), nn.CrossEntropyLoss, _normal(4, 3), _CLASSES),
}


def _steps(grad_threshold: float | None = None, **options: Any) -> Training:
    """Three steps of `SGD`, on the net; CrypTen's may drop gradients from a threshold on."""
    images, labels = _normal(4, 1, 8, 8), _normal(4, 3, seed=2)

    def run(model: Any, inputs: Any, target: Any, loss: Any, optimiser: Any, most: float | None = None) -> None:
        for _ in range(3):
            optimiser.zero_grad()
            loss(model(inputs), target).backward()
            for parameter in model.parameters() if most is not None else ():
                parameter.grad[parameter.grad.abs() >= most] = 0
            optimiser.step()

    def ours() -> Outcome:
        model = _encrypted(_net(crypten.nn), _seeded(lambda: _net(nn)))
        model.train()
        optimiser = crypten.optim.SGD(model.parameters(), lr=0.1, grad_threshold=grad_threshold, **options)
        run(model, crypten.cryptensor(images), crypten.cryptensor(labels), crypten.nn.MSELoss(), optimiser)
        return {name: value.get_plain_text() for name, value in model.named_parameters()}

    def theirs() -> Outcome:
        model = _seeded(lambda: _net(nn))
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, **options)
        run(model, images, labels, nn.MSELoss(), optimiser, grad_threshold)
        return {name: value.detach() for name, value in model.named_parameters()}

    return Training(ours, theirs, STEPS)


def _graph() -> Training:
    """A value used twice: gradients add up."""

    def run(x: Any) -> Any:
        y = x.relu()
        return (y * x + y).sum()

    def ours() -> Outcome:
        x = crypten.cryptensor(_normal(3, 4), requires_grad=True)
        run(x).backward()
        return {"gradient": x.grad.get_plain_text()}

    def theirs() -> Outcome:
        x = _normal(3, 4).requires_grad_()
        run(x).backward()
        return {"gradient": x.grad}

    return Training(ours, theirs)


TRAINING = {
    **{f"nn: {name}": entry for name, entry in LAYERS.items()},
    "nn: Dropout in training": Training(
        _dropout, lambda: {"good": torch.tensor([True, True]), "half": torch.tensor(1.0)}
    ),
    **{f"loss: {name}": entry for name, entry in LOSSES.items()},
    "optimiser: SGD": _steps(),
    "optimiser: SGD with momentum": _steps(momentum=0.9),
    "optimiser: SGD with weight decay": _steps(weight_decay=0.05),
    "optimiser: SGD with Nesterov's momentum": _steps(momentum=0.9, nesterov=True),
    "optimiser: SGD with dampening": _steps(momentum=0.5, dampening=0.3),
    "optimiser: SGD with a threshold": _steps(grad_threshold=0.1),
    "autograd: a value used twice": _graph(),
}
