"""Can this model run on shares? Every layer that cannot is reported, with the reason and a substitute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from mpc_imaging.models import operations, spatial
from mpc_imaging.models.calls import Weight, hooks_problem, resolve
from mpc_imaging.models.graph import layer_kind, layer_name, public_nodes
from mpc_imaging.models.passes import is_batch_norm
from mpc_imaging.models.problems import CannotRunSecurely, LayerProblem, NotBuiltYet

Secret = Callable[[Any], bool]
_Check = Callable[[dict[str, Any], Secret, bool], None]
_CHECKS: dict[Callable[..., Any], _Check] = {}


def _checks(*checked: Callable[..., Any]) -> Callable[[_Check], _Check]:
    """Register a check of the arguments of some operations: (arguments by name, is it secret?, training)."""

    def register(check: _Check) -> _Check:
        _CHECKS.update(dict.fromkeys(checked, check))
        return check

    return register


def find_problems(model: fx.GraphModule, training: bool) -> list[str]:
    """One line for each layer of a traced model that cannot run on shares; stricter if it is to be trained."""
    public = public_nodes(model.graph)
    problems = _tied_weights(model) if training else []
    for node in model.graph.nodes:
        module = model.get_submodule(node.target) if node.op == "call_module" else None
        try:
            if node not in public:
                _check_node(node, model, module, public, training)
        except LayerProblem as problem:
            problems.append(problem.line(layer_name(node), layer_kind(node, module)))
    return list(dict.fromkeys(problems))


def _check_node(
    node: fx.Node, model: fx.GraphModule, module: nn.Module | None, public: set[fx.Node], training: bool
) -> None:
    if node.op == "placeholder":
        return
    if node.op == "output":
        if not isinstance(node.args[0], fx.Node) or node.args[0] in public:
            raise NotBuiltYet("the model returns something else than one tensor", "return the logits only")
        return
    if node.op == "get_attr":
        if not _attribute(model, str(node.target)).is_floating_point():
            raise NotBuiltYet(
                "it is a buffer of integers or booleans", "use constants in __init__ or forward() instead"
            )
        return
    if training and node.meta.get("no_grad"):
        raise NotBuiltYet("it runs under torch.no_grad()", "freeze parameters with requires_grad_(False) instead")
    if module is not None and is_batch_norm(module):
        raise _batch_norm_problem(module, training)
    call = resolve(node, model)
    check = _CHECKS.get(call.operation)
    if check:
        check(call.arguments(), lambda value: _is_secret(value, public), training)


def _attribute(model: nn.Module, name: str) -> torch.Tensor:
    path, _, last = name.rpartition(".")
    return getattr(model.get_submodule(path), last)


def _is_secret(value: Any, public: set[fx.Node]) -> bool:
    return isinstance(value, Weight) or (isinstance(value, fx.Node) and value not in public)


def _tied_weights(model: nn.Module) -> list[str]:
    first: dict[int, str] = {}
    problems = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = first.setdefault(id(parameter), name)
        if owner != name:
            problem = NotBuiltYet(f"it is the same tensor as {owner}, and would be trained apart from it", "untie them")
            problems.append(problem.line(name, "Parameter"))
    return problems


def _batch_norm_problem(module: nn.Module, training: bool) -> LayerProblem:
    reason = "it needs the mean and variance of each batch, and an inverse square root of a secret"
    if training:
        return NotBuiltYet(
            reason, "use torchvision.ops.FrozenBatchNorm2d (fixed statistics), or a model without batch-norm"
        )
    if module.running_mean is None:
        return NotBuiltYet(reason, "train it with track_running_stats=True")
    return hooks_problem()


@_checks(spatial.max_pool1d, spatial.max_pool2d)
def _check_max_pool(arguments: dict[str, Any], secret: Secret, training: bool) -> None:
    if arguments["return_indices"]:
        raise NotBuiltYet("return_indices: the positions of maxima are secret", "leave return_indices out")
    if arguments["ceil_mode"] and arguments["dilation"] not in (1, (1,), (1, 1), [1, 1]):
        raise NotBuiltYet("ceil_mode with dilation", "use ceil_mode=False, or dilation=1")


@_checks(spatial.avg_pool1d, spatial.avg_pool2d)
def _check_avg_pool(arguments: dict[str, Any], secret: Secret, training: bool) -> None:
    if arguments["ceil_mode"]:
        raise NotBuiltYet(
            "ceil_mode: its last windows count fewer pixels", "use ceil_mode=False, with padding if needed"
        )
    if arguments.get("divisor_override") is not None:
        raise NotBuiltYet("divisor_override", "leave it out and multiply the result by a constant")


@_checks(spatial.interpolate)
def _check_interpolate(arguments: dict[str, Any], secret: Secret, training: bool) -> None:
    if arguments["mode"] not in ("nearest", "nearest-exact", "bilinear"):
        raise NotBuiltYet(f'mode="{arguments["mode"]}"', 'use mode="nearest" or mode="bilinear"')
    if arguments["antialias"]:
        raise NotBuiltYet("antialias=True", "use antialias=False, or average pooling to make images smaller")


@_checks(spatial.pad)
def _check_pad(arguments: dict[str, Any], secret: Secret, training: bool) -> None:
    if arguments["mode"] != "constant":
        raise NotBuiltYet(f'mode="{arguments["mode"]}": it pads with copies of values', 'use mode="constant"')
    sides = arguments["pad"]
    if isinstance(sides, tuple | list) and any(isinstance(side, int) and side < 0 for side in sides):
        raise NotBuiltYet("negative padding", "slice with x[:, :, a:b]")


@_checks(operations.softmax, operations.log_softmax)
def _check_softmax(arguments: dict[str, Any], secret: Secret, training: bool) -> None:
    if arguments["dim"] is None:
        raise NotBuiltYet("no dimension is given", "give dim=1")
    if arguments["dtype"] is not None:
        raise NotBuiltYet("shares have no such type", "leave dtype out")


@_checks(operations.div)
def _check_div(arguments: dict[str, Any], secret: Secret, training: bool) -> None:
    if secret(arguments["other"]):
        raise NotBuiltYet("it divides by a secret", "divide by a constant, or multiply by a parameter")
    if arguments["rounding_mode"] is not None:
        raise NotBuiltYet("rounding_mode", "leave it out")


@_checks(operations.pow)
def _check_pow(arguments: dict[str, Any], secret: Secret, training: bool) -> None:
    if arguments["exponent"] != 2 or not secret(arguments["input"]):
        raise NotBuiltYet("only squares are built", "write powers as products")


@_checks(operations.clamp)
def _check_clamp(arguments: dict[str, Any], secret: Secret, training: bool) -> None:
    if secret(arguments["min"]) or secret(arguments["max"]):
        raise NotBuiltYet("its bounds are secret", "use constant bounds")
    if arguments["min"] is None and arguments["max"] is None:
        raise NotBuiltYet("it has no bound", "give min or max")


@_checks(operations.getitem)
def _check_getitem(arguments: dict[str, Any], secret: Secret, training: bool) -> None:
    index = arguments["index"]
    for part in index if isinstance(index, tuple) else (index,):
        bounds = (part.start, part.stop, part.step) if isinstance(part, slice) else (part,)
        if any(secret(bound) for bound in bounds):
            raise CannotRunSecurely("its index is a tensor", "use integers and slices only")
        if isinstance(part, bool | list | tuple):
            raise NotBuiltYet("its index is a list or a boolean", "use integers and slices only")


@_checks(operations.dropout, operations.stochastic_depth)
def _check_dropout(arguments: dict[str, Any], secret: Secret, training: bool) -> None:
    if arguments["training"] and arguments["p"] != 0:
        raise NotBuiltYet("the parties have no common random mask",
                          "set its probability to 0" if training else "use it with training=self.training")  # fmt: skip


@_checks(operations.detach)
def _check_detach(arguments: dict[str, Any], secret: Secret, training: bool) -> None:
    if training:
        raise NotBuiltYet("it stops gradients", "freeze parameters with requires_grad_(False) instead")
