"""`crypten.nn` beside torch: what `training` leaves out, `crypten.nn.init`, and how tensors are shared."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mpc_imaging.engine import compat
from tests.engine.conformance.cases import LOOSE
from tests.engine.conformance.edges import BOUND
from tests.engine.conformance.training import _CLASSES, LAYER, Outcome, Training, _layer, _loss, _normal

crypten = compat.load()

from crypten.mpc import MPCTensor, ptype  # noqa: E402


def _stateless(
    shared: Callable[[], Any], plain: Callable[..., Any], *inputs: Any, recorded: bool = True, **options: Any
) -> Training:
    """A module without parameters on float tensors, which are secret, and others, as they are; gradients, too."""
    secret = [torch.is_tensor(x) and x.is_floating_point() for x in inputs]

    def ours() -> Outcome:
        given = [crypten.cryptensor(x, requires_grad=recorded) if s else x for x, s in zip(inputs, secret, strict=True)]
        output = shared().encrypt()(given if len(given) > 1 else given[0])
        if torch.is_tensor(output):
            return {"output": output}
        if output.requires_grad:
            output.sum().backward()
        gradients = {
            f"gradient {i}": x.grad.get_plain_text() for i, x in enumerate(given) if secret[i] and x.grad is not None
        }
        return {"output": output.get_plain_text()} | gradients

    def theirs() -> Outcome:
        given = [x.clone().requires_grad_(recorded) if s else x for x, s in zip(inputs, secret, strict=True)]
        output = plain(*given)
        if output.requires_grad:
            output.sum().backward()
        gradients = {f"gradient {i}": x.grad for i, x in enumerate(given) if secret[i] and x.grad is not None}
        return {"output": output.detach()} | gradients

    return Training(ours, theirs, **options)


_X, _Y = _normal(3, 4), _normal(3, 4, seed=2)
_POSITIVE = _normal(3, 4, seed=3).abs() + 0.5
_IMAGES = _normal(2, 3, 4, 4)
_INDICES = torch.tensor([[1, 2], [0, 1]])


def _gemm(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    return 0.5 * a.t() @ b.t() + 2 * c


STATELESS = {
    "Add": _stateless(lambda: crypten.nn.Add(), lambda x, y: x + y, _X, _Y),
    "Sub": _stateless(lambda: crypten.nn.Sub(), lambda x, y: x - y, _X, _Y),
    "Mul": _stateless(lambda: crypten.nn.Mul(), lambda x, y: x * y, _X, _Y),
    "Div": _stateless(lambda: crypten.nn.Div(), lambda x, y: x / y, _X, _POSITIVE, close=LOOSE),
    "Pow": _stateless(lambda: crypten.nn.Pow(), lambda x, p: x ** p.item(), _X, torch.tensor(3)),
    "Sqrt": _stateless(lambda: crypten.nn.Sqrt(), torch.sqrt, _POSITIVE, close=LOOSE),
    "Exp": _stateless(lambda: crypten.nn.Exp(), torch.exp, _X, close=LOOSE),
    "Erf": _stateless(lambda: crypten.nn.Erf(), torch.erf, _X / 2, close=LOOSE),
    "Mean": _stateless(lambda: crypten.nn.Mean(dim=1, keepdim=True), lambda x: x.mean(1, keepdim=True), _X),
    "Mean of several": _stateless(lambda: crypten.nn.Mean([2, 3]), lambda x: x.mean((2, 3)), _IMAGES),
    "Sum": _stateless(lambda: crypten.nn.Sum(dim=[0, -1], keepdim=True), lambda x: x.sum((0, -1), True), _IMAGES),
    "Transpose": _stateless(lambda: crypten.nn.Transpose([2, 0, 3, 1]), lambda x: x.permute(2, 0, 3, 1), _IMAGES),
    "Squeeze": _stateless(lambda: crypten.nn.Squeeze(1), lambda x: x.squeeze(1), _X.unsqueeze(1)),
    "Unsqueeze": _stateless(lambda: crypten.nn.Unsqueeze(-1), lambda x: x.unsqueeze(-1), _X),
    "Slice": _stateless(lambda: crypten.nn.Slice([1, 0], [3, 2], axes=[0, -1]), lambda x: x[1:3, :2], _X),
    "Expand": _stateless(
        lambda: crypten.nn.Expand(), lambda x, s: x.expand(2, 4), _X[:1], torch.tensor([2, 4]), recorded=False
    ),
    "Cast": _stateless(lambda: crypten.nn.Cast(torch.float32), lambda x: x * 1, _X),
    "Range": _stateless(lambda: crypten.nn.Range(), lambda *x: torch.arange(*x), 1, 7, 2),
    "Equal": _stateless(lambda: crypten.nn.Equal(), lambda x, y: (x == y).float(), _X, _X.abs()),
    "Where": _stateless(
        lambda: crypten.nn.Where(), lambda c, x, y: torch.where(c > 0, x, y), (_X > 0).long(), _X, _Y
    ),
    "Flatten": _stateless(lambda: crypten.nn.Flatten(axis=2), lambda x: x.view(6, 16), _IMAGES),
    "Shape": _stateless(lambda: crypten.nn.Shape(dim=1), lambda x: torch.tensor(3), _IMAGES.long()),
    "Concat": _stateless(lambda: crypten.nn.Concat(1), lambda x, y: torch.cat([x, y], 1), _X, _Y),
    "Reshape": _stateless(lambda: crypten.nn.Reshape(shape=(2, 6)), lambda x: x.reshape(2, 6), _X),
    "Gather": _stateless(
        lambda: crypten.nn.Gather(1, indices=_INDICES), lambda x: x[:, _INDICES], _X
    ),
    "ConstantPad1d": _stateless(
        lambda: crypten.nn.ConstantPad1d((1, 2), 0.5, mode="constant"), lambda x: F.pad(x, (1, 2), value=0.5), _X
    ),
    "ConstantPad2d": _stateless(
        lambda: crypten.nn.ConstantPad2d(1, -1, mode="constant"), lambda x: F.pad(x, (1, 1, 1, 1), value=-1), _IMAGES
    ),
    "ConstantPad3d": _stateless(
        lambda: crypten.nn.ConstantPad3d((0, 1, 2, 0, 1, 0), 0.0, mode="constant"),
        lambda x: F.pad(x, (0, 1, 2, 0, 1, 0)), _IMAGES,
    ),
    "Gemm": _stateless(
        lambda: crypten.nn.Gemm(alpha=0.5, beta=2.0, trans_a=True, trans_b=True), _gemm,
        _normal(5, 3), _normal(2, 5), _normal(3, 2),
    ),
    "MatMul": _stateless(lambda: crypten.nn.MatMul(), lambda x, y: x @ y, _X, _normal(4, 2)),
    "Conv": _stateless(
        lambda: crypten.nn.Conv(stride=1, padding=1, dilation=1, groups=1),
        lambda x, w, b: F.conv2d(x, w, b, padding=1), _IMAGES, _normal(2, 3, 3, 3), _normal(2),
    ),
    "GlobalAveragePool": _stateless(
        lambda: crypten.nn.GlobalAveragePool(), lambda x: x.mean((2, 3), keepdim=True), _IMAGES, recorded=False
    ),
    "CosineSimilarity": _stateless(
        lambda: _pair(crypten.nn.CosineSimilarity(dim=1, eps=1e-8)), lambda x, y: F.cosine_similarity(x, y), _X, _Y,
        close=LOOSE,
    ),
    "Constant": _stateless(lambda: crypten.nn.Constant(1.5), lambda x: torch.tensor(1.5), _X),
    "ConstantOfShape": _stateless(
        lambda: crypten.nn.ConstantOfShape(2.0), lambda s: torch.full((2, 3), 2.0), torch.tensor([2, 3])
    ),
    "ReLU of ties": _stateless(lambda: crypten.nn.ReLU(inplace=False), F.relu, BOUND),
    "Hardtanh of ties": _stateless(
        lambda: crypten.nn.Hardtanh(min_val=-1.0, max_val=6.0, inplace=False), lambda x: F.hardtanh(x, -1, 6), BOUND
    ),
    "ReLU6 of ties": _stateless(lambda: crypten.nn.ReLU6(inplace=False), F.relu6, BOUND),
}  # fmt: skip


class _pair:
    """`CosineSimilarity` takes two arguments, not a list, and needs no encryption."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def encrypt(self) -> Callable[[Sequence[Any]], Any]:
        """See `Module.encrypt`."""
        return lambda given: self._module(*given)


LAYERS = {
    "Linear without bias": _layer(lambda: crypten.nn.Linear(5, 3, bias=False), lambda: nn.Linear(5, 3, False), 4, 5),
    "Linear of one": _layer(lambda: crypten.nn.Linear(1, 1), lambda: nn.Linear(1, 1), 1, 1),
    "Conv1d": _layer(
        lambda: crypten.nn.Conv1d(3, 3, 3, stride=2, padding=2, dilation=2, groups=3, bias=False),
        lambda: nn.Conv1d(3, 3, 3, stride=2, padding=2, dilation=2, groups=3, bias=False), 2, 3, 9,
    ),
    "Conv2d": _layer(
        lambda: crypten.nn.Conv2d(2, 3, (3, 2), stride=(2, 1), dilation=(1, 2), bias=False),
        lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), dilation=(1, 2), bias=False), 2, 2, 7, 6,
    ),
    "Conv2d of one pixel": _layer(lambda: crypten.nn.Conv2d(2, 3, 1), lambda: nn.Conv2d(2, 3, 1), 1, 2, 1, 1),
    "BatchNorm3d": _layer(
        lambda: crypten.nn.BatchNorm3d(3, eps=1e-3, momentum=0.2), lambda: nn.BatchNorm3d(3, eps=1e-3), 2, 3, 2, 2, 2,
        train=False, close=LOOSE,
    ),
    "BatchNorm1d in training": _layer(
        lambda: crypten.nn.BatchNorm1d(3, eps=1e-3, momentum=0.2), lambda: nn.BatchNorm1d(3, eps=1e-3), 8, 3,
        close=(0.05, 0.03),
    ),
    "BatchNorm2d in training": _layer(
        lambda: crypten.nn.BatchNorm2d(2, eps=1e-3, momentum=0.2), lambda: nn.BatchNorm2d(2, eps=1e-3), 4, 2, 3, 3,
        close=(0.05, 0.03),
    ),
    "AvgPool2d": _layer(
        lambda: crypten.nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=False), lambda: nn.AvgPool2d(3, 2, 1), 2, 2, 6, 6
    ),
    "MaxPool2d": _layer(
        lambda: crypten.nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), 2, 2, 6, 6,
    ),
    "AdaptiveAvgPool2d of one side": _layer(
        lambda: crypten.nn.AdaptiveAvgPool2d(output_size=(None, 2)), lambda: nn.AdaptiveAvgPool2d((None, 2)), 1, 2, 5, 6
    ),
    "AdaptiveMaxPool2d": _layer(
        lambda: crypten.nn.AdaptiveMaxPool2d(output_size=2), lambda: nn.AdaptiveMaxPool2d(2), 2, 2, 5, 6
    ),
    "Dropout2d in evaluation": _layer(
        lambda: crypten.nn.Dropout2d(p=0.5, inplace=False), lambda: nn.Dropout2d(0.5), 2, 3, 4, 4, train=False
    ),
    "Dropout3d in evaluation": _layer(
        lambda: crypten.nn.Dropout3d(p=0.5, inplace=False), lambda: nn.Dropout3d(0.5), 2, 3, 2, 2, 2, train=False
    ),
    "Dropout in evaluation": _layer(
        lambda: crypten.nn.Dropout(p=0.5, inplace=False), lambda: nn.Dropout(0.5), 3, 4, train=False
    ),
}  # fmt: skip


def _channels() -> Outcome:
    """`DropoutNd` drops whole channels, and doubles the others."""
    module = crypten.nn.DropoutNd(p=0.5, inplace=False).encrypt().train()
    output = module(crypten.cryptensor(torch.ones(4, 50, 3, 3))).get_plain_text()
    alike = output == output[:, :, :1, :1]
    values = torch.isin(output.round(), torch.tensor([0.0, 2]))
    return {"good": torch.stack([alike.all(), values.all(), (output.mean() - 1).abs() < 0.3])}


def _containers() -> Outcome:
    """Lists, dictionaries, graphs and parameters of modules."""
    x = crypten.cryptensor(_X)
    listed = crypten.nn.ModuleList(modules=[crypten.nn.ReLU(), crypten.nn.Flatten(axis=0)]).encrypt()
    named = crypten.nn.ModuleDict(modules={"relu": crypten.nn.ReLU()}).encrypt()
    graph = crypten.nn.Graph("x", "y", modules=None, graph=None)
    graph.add_module("h", crypten.nn.ReLU(), ["x"])
    graph.add_module("y", crypten.nn.Add(), ["x", "h"])
    graph.encrypt()
    parameter = crypten.nn.Parameter(_Y, trainable=True).encrypt()
    constant = crypten.nn.Parameter(_Y, trainable=False)
    multiplied = crypten.nn.MatMul(weight=_Y.t().contiguous()).encrypt()
    for module in listed:
        x2 = module(x)
    return {
        "list": x2.get_plain_text(), "dict": named["relu"](x).get_plain_text(), "graph": graph(x).get_plain_text(),
        "parameter": parameter(x).get_plain_text(), "plain": constant(None), "product": multiplied(x).get_plain_text(),
        "trained": torch.tensor([parameter.requires_grad, len(list(constant.parameters())) > 0]),
    }  # fmt: skip


def _plain_containers() -> Outcome:
    return {
        "list": _X.view(1, -1), "dict": _X.relu(), "graph": _X + _X.relu(), "parameter": _Y, "plain": _Y,
        "product": _X @ _Y.t(), "trained": torch.tensor([True, False]),
    }  # fmt: skip


def _skipped(shared: Callable[[], Any], plain: Callable[[], nn.Module], x: torch.Tensor) -> Training:
    """A loss whose value is not computed; its gradient is."""
    entry = _loss(shared, plain, x, _CLASSES)

    def ours() -> Outcome:
        return {"gradient": entry.shared()["gradient"]}

    return Training(ours, lambda: {"gradient": entry.plain()["gradient"]}, LOOSE)


class _Rappor(nn.Module):
    """CrypTen's randomised response, in torch."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `crypten.nn.loss.RAPPORLoss`."""
        p = x.sigmoid()
        return F.binary_cross_entropy(0.8 * p + 0.2 * (1 - p), y)


LOSSES = {
    "BCELoss without its value": _skipped(
        lambda: crypten.nn.BCELoss(reduction="mean", skip_forward=True), nn.BCELoss, _normal(4, 3).sigmoid()
    ),
    "BCEWithLogitsLoss without its value": _skipped(
        lambda: crypten.nn.BCEWithLogitsLoss(reduction="mean", skip_forward=True), nn.BCEWithLogitsLoss, _normal(4, 3)
    ),
    "CrossEntropyLoss without its value": _skipped(
        lambda: crypten.nn.CrossEntropyLoss(reduction="mean", skip_forward=True), nn.CrossEntropyLoss, _normal(4, 3)
    ),
    "RAPPORLoss without its value": _skipped(
        lambda: crypten.nn.loss.RAPPORLoss(alpha=0.8, reduction="mean", skip_forward=True), _Rappor, _normal(4, 3)
    ),
    "RAPPORLoss": _loss(lambda: crypten.nn.loss.RAPPORLoss(0.8), _Rappor, _normal(4, 3), _CLASSES),
    # Values that are equal have no gradient, as in torch; in CrypTen as it comes they have one.
    "L1Loss of ties": _loss(
        lambda: crypten.nn.L1Loss(reduction="mean", skip_forward=False), nn.L1Loss, _X, torch.where(_X > 0, _X, _Y)
    ),
    "MSELoss of ties": _loss(lambda: crypten.nn.MSELoss(reduction="mean", skip_forward=False), nn.MSELoss, _X, _X),
    "MSELoss of one": _loss(lambda: crypten.nn.MSELoss(), nn.MSELoss, _X[:1, :1], _Y[:1, :1]),
    "CrossEntropyLoss of ties": _loss(
        lambda: crypten.nn.CrossEntropyLoss(), nn.CrossEntropyLoss, torch.zeros(4, 3), _CLASSES
    ),
}


# crypten.nn.init

# Initialisers, the fewest dimensions that torch has each for, and arguments.
INITIALISERS: dict[str, tuple[int, tuple[float, ...]]] = {
    "constant_": (0, (0.5,)), "ones_": (0, ()), "zeros_": (0, ()), "normal_": (0, ()), "uniform_": (0, ()),
    "trunc_normal_": (0, ()), "kaiming_normal_": (2, ()), "kaiming_uniform_": (2, ()), "xavier_normal_": (2, ()),
    "xavier_uniform_": (2, ()), "orthogonal_": (2, ()), "sparse_": (2, (0.2,)), "dirac_": (3, ()),
}  # fmt: skip
SIZES = ((), (1,), (5,), (1, 1), (1, 5), (5, 5), (5, 5, 5), (2, 3, 3, 3))


def _initialisations(draw: Callable[[str, torch.Size, tuple[float, ...]], torch.Tensor]) -> Outcome:
    """Every initialiser for every size that torch has it for, from the same seed."""
    found = {}
    for name, (fewest, arguments) in INITIALISERS.items():
        for size in SIZES:
            if len(size) >= fewest and (name != "sparse_" or len(size) == 2):
                torch.manual_seed(0)
                found[f"{name} {size}"] = draw(name, torch.Size(size), arguments)
    return found


def _wild(size: torch.Size) -> torch.Tensor:
    """What uninitialised memory may hold: among others NaN, infinity, and what no fixed-point number reaches."""
    count = size.numel()
    return torch.tensor([float("nan"), float("inf"), 1e30, -3e38, 0.5]).repeat(count // 5 + 1)[:count].view(size)


def _initialised(name: str, size: torch.Size, arguments: tuple[float, ...]) -> torch.Tensor:
    fresh = crypten.cryptensor(_wild(size))
    result = getattr(crypten.nn.init, name)(fresh, *arguments)
    assert result is fresh
    return (result + 0).get_plain_text()


def _plainly_initialised(name: str, size: torch.Size, arguments: tuple[float, ...]) -> torch.Tensor:
    return getattr(nn.init, name)(torch.empty(size), *arguments)


# Sharing


def _rank() -> int:
    return crypten.communicator.get().get_rank()


def _sharings() -> Outcome:
    """One party's tensor: the others give its size, a tensor of its size, or nothing and get its size from it."""
    source = crypten.communicator.get().get_world_size() - 1
    mine = _rank() == source
    whole = torch.tensor([5, -3, 2**20])
    found = {
        "broadcast": MPCTensor(_X if mine else [], src=source, broadcast_size=True),
        "broadcast by the first": MPCTensor([] if _rank() else _X, src=0, broadcast_size=True),
        "broadcast of nothing": MPCTensor(torch.empty(0, 3) if mine else [], src=source, broadcast_size=True),
        "broadcast of a scalar": MPCTensor(torch.tensor(1.5) if mine else [], src=source, broadcast_size=True),
        "broadcast of an empty tensor's": crypten.cryptensor(
            _X if mine else torch.empty(0), src=source, broadcast_size=True
        ),
        "size": MPCTensor(_X if mine else torch.empty(3, 4), size=(3, 4), src=source),
        "precision": MPCTensor(whole if mine else torch.zeros(3), precision=0, src=source),
        "fraction": MPCTensor(_X if mine else torch.zeros(3, 4), precision=20, src=source, device="cpu"),
        "kind": MPCTensor(whole, ptype=ptype.binary),
        "kind of broadcast": MPCTensor(whole if mine else [], ptype=ptype.binary, src=source, broadcast_size=True),
        "list": crypten.cryptensor([1.0, 2.5], requires_grad=True),
        "number": crypten.cryptensor(2.5),
        "nothing": crypten.cryptensor([]),
        "nothing of the last": MPCTensor([], src=source),
    }
    opened = {name: x.get_plain_text() for name, x in found.items()}
    wanted = MPCTensor([] if not mine else _X, src=source, broadcast_size=True, requires_grad=True)
    (wanted * wanted).sum().backward()
    return opened | {"gradient": wanted.grad.get_plain_text()}


def _plain_sharings() -> Outcome:
    whole = torch.tensor([5, -3, 2**20])
    return {
        "broadcast": _X, "broadcast by the first": _X, "broadcast of nothing": torch.empty(0, 3),
        "broadcast of a scalar": torch.tensor(1.5), "broadcast of an empty tensor's": _X, "size": _X,
        "precision": whole, "fraction": _X, "kind": whole, "kind of broadcast": whole, "list": torch.tensor([1.0, 2.5]),
        "number": torch.tensor(2.5), "nothing": torch.empty(0), "nothing of the last": torch.empty(0),
        "gradient": 2 * _X,
    }  # fmt: skip


def _saved() -> Outcome:
    """Shares and public tensors through files, as CrypTen's functions write and read them."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "x.pt")
        crypten.save_from_party(obj=_X, f=path, src=0)
        x = crypten.load_from_party(f=path if _rank() == 0 else None, src=0)
        y = crypten.load_from_party(preloaded=_Y if _rank() == 0 else None, src=0, encrypted=False)
        crypten.save(_Y, path)
        plain = crypten.load(path)
    return {"x": x.get_plain_text(), "y": y.get_plain_text(), "plain": plain}


MODULES = {
    **{f"nn: {name}": entry for name, entry in STATELESS.items()},
    **{f"nn: {name}": entry for name, entry in LAYERS.items()},
    "nn: DropoutNd in training": Training(_channels, lambda: {"good": torch.tensor([True, True, True])}),
    "nn: containers": Training(_containers, _plain_containers, LAYER),
    **{f"loss: {name}": entry for name, entry in LOSSES.items()},
    "init: all": Training(lambda: _initialisations(_initialised), lambda: _initialisations(_plainly_initialised)),
    "sharing: all": Training(_sharings, _plain_sharings),
    "sharing: files": Training(_saved, lambda: {"x": _X, "y": _Y, "plain": _Y}),
}
