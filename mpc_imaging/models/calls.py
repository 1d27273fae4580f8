"""What each node of a traced model computes: from torch's modules, functions and methods to our operations."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from mpc_imaging.models import operations, spatial
from mpc_imaging.models.graph import layer_kind
from mpc_imaging.models.layers import FlatLinear, ScaleShift
from mpc_imaging.models.problems import NotBuiltYet
from mpc_imaging.models.substitutes import unsupported

_signature = functools.cache(inspect.signature)

_MODULES: dict[type[nn.Module], Callable[..., Any]] = {
    nn.Conv1d: spatial.conv1d,
    nn.Conv2d: spatial.conv2d,
    nn.ConvTranspose1d: spatial.conv_transpose1d,
    nn.ConvTranspose2d: spatial.conv_transpose2d,
    nn.Linear: operations.linear,
    FlatLinear: operations.flat_linear,
    ScaleShift: operations.scale_shift,
    nn.ReLU: operations.relu,
    nn.ReLU6: operations.relu6,
    nn.Hardtanh: operations.hardtanh,
    nn.LeakyReLU: operations.leaky_relu,
    nn.Sigmoid: operations.sigmoid,
    nn.Tanh: operations.tanh,
    nn.Softmax: operations.softmax,
    nn.LogSoftmax: operations.log_softmax,
    nn.MaxPool1d: spatial.max_pool1d,
    nn.MaxPool2d: spatial.max_pool2d,
    nn.AvgPool1d: spatial.avg_pool1d,
    nn.AvgPool2d: spatial.avg_pool2d,
    nn.AdaptiveAvgPool1d: spatial.adaptive_avg_pool1d,
    nn.AdaptiveAvgPool2d: spatial.adaptive_avg_pool2d,
    nn.Upsample: spatial.interpolate,
    nn.UpsamplingNearest2d: spatial.interpolate,
    nn.UpsamplingBilinear2d: spatial.interpolate,
    nn.ConstantPad1d: spatial.pad,
    nn.ConstantPad2d: spatial.pad,
    nn.ZeroPad1d: spatial.pad,
    nn.ZeroPad2d: spatial.pad,
    nn.Flatten: operations.flatten,
    nn.Unflatten: operations.unflatten,
    nn.Identity: operations.identity,
    nn.Dropout: operations.dropout,
    nn.Dropout1d: operations.dropout,
    nn.Dropout2d: operations.dropout,
    nn.AlphaDropout: operations.dropout,
    nn.FeatureAlphaDropout: operations.dropout,
}

# Where a module's attribute is not named as the argument of the function is.
_ATTRIBUTES = {"pad": "padding", "sizes": "unflattened_size"}

_ALIASES = {
    "iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "truediv": "div", "true_divide": "div",
    "divide": "div", "subtract": "sub", "multiply": "mul", "negative": "neg", "mm": "matmul", "bmm": "matmul",
    "clip": "clamp", "view": "reshape", "swapaxes": "transpose", "swapdims": "transpose", "concat": "cat",
    "concatenate": "cat", "contiguous": "identity", "float": "identity", "dropout1d": "dropout", "dropout2d": "dropout",
    "alpha_dropout": "dropout", "feature_alpha_dropout": "dropout",
}  # fmt: skip

_IN_PLACE_OPERATORS = {"iadd", "isub", "imul", "itruediv"}

# Functions of these modules, and methods of tensors, are known by their names.
_TORCH = {"torch", "torch.functional", "torch.nn.functional", "torch._C._nn", "_operator"}
_TORCHVISION = {("torchvision.ops.stochastic_depth", "stochastic_depth"): operations.stochastic_depth}

_NAMED: dict[str, Callable[..., Any]] = {
    name: function
    for module in (operations, spatial)
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if not name.startswith("_") and next(iter(_signature(function).parameters)) == "ops"
}


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer, by its name in the state dict of the model."""

    name: str


@dataclass(frozen=True)
class Call:
    """One operation with its arguments: constants, `fx.Node`s for the results of earlier nodes, and `Weight`s."""

    operation: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    in_place: bool = False

    @property
    def name(self) -> str:
        """The operation's name, such as ``conv2d``."""
        return self.operation.__name__

    def arguments(self) -> dict[str, Any]:
        """Arguments by name, defaults included. Raises `NotBuiltYet` for one that the operation does not know."""
        try:
            bound = _signature(self.operation).bind(None, *self.args, **self.kwargs)
        except TypeError as error:
            raise NotBuiltYet(f"{self.name}: {error}", "leave that argument at its default") from error
        bound.apply_defaults()
        return dict(bound.arguments)


def resolve(node: fx.Node, root: nn.Module) -> Call:
    """The operation that a call node stands for. Raises `LayerProblem` if there is none."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        call = _module_call(module, str(node.target), node)
    else:
        call = _function_call(node)
    if call.arguments().get("inplace"):
        call = dataclasses.replace(call, in_place=True)
    return call


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module runs more than its ``forward``."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def hooks_problem() -> NotBuiltYet:
    """What to say of a module with hooks."""
    return NotBuiltYet("it has forward hooks, which are not traced", "remove them, or write them into forward()")


def _module_call(module: nn.Module, name: str, node: fx.Node) -> Call:
    kind = type(module).__name__
    operation = _MODULES.get(type(module))
    if operation is None:
        raise unsupported(f"nn.{kind}" if type(module).__module__.startswith("torch.nn.") else kind, kind)
    if has_hooks(module):
        raise hooks_problem()
    if getattr(module, "padding_mode", "zeros") != "zeros":
        raise NotBuiltYet(f'padding_mode="{module.padding_mode}"', 'use padding_mode="zeros"')
    if len(node.args) + len(node.kwargs) > 1:
        raise NotBuiltYet("it is called with more than its input", "give it the input only")
    return Call(operation, node.args, {**_module_arguments(module, name, operation), **node.kwargs})


def _module_arguments(module: nn.Module, name: str, operation: Callable[..., Any]) -> dict[str, Any]:
    values = {}
    for parameter in list(_signature(operation).parameters)[2:]:
        attribute = _ATTRIBUTES.get(parameter, parameter)
        if not hasattr(module, attribute):
            continue
        value = getattr(module, attribute)
        values[parameter] = Weight(f"{name}.{attribute}") if isinstance(value, torch.Tensor) else value
    return values


def _function_call(node: fx.Node) -> Call:
    home = getattr(node.target, "__module__", "")
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    plain = name.rstrip("_")
    if node.op == "call_method" or home in _TORCH:
        operation = _NAMED.get(_ALIASES.get(plain, plain))
    else:
        operation = _TORCHVISION.get((home, name))
    if operation is None:
        raise unsupported(layer_kind(node, None), node.args[1] if node.target is getattr else plain)
    return Call(operation, node.args, node.kwargs, in_place=name != plain or name in _IN_PLACE_OPERATORS)
