"""How large the inputs of a model's operations may be, before a product or a sum leaves the range of fixed point.

A value of `bits` bits of fraction is a whole number of units of 2**-bits. With weights w and a bias b, an input of B
units at most makes results below B sum|w| 2**bits + |b| 4**bits, which hold twice the fraction. Truncation takes what
is below 2**62 in size, and a max-pool takes differences of two results; so B is chosen to keep results below 2**61. The
same holds for factors that are public. Averages take inputs below 2**37 units (`protocols.truncate.divide`). That
bounds are kept is checked on shares (`protocols.ranges`): then none of these operations has overflowed. Products of two
activations, and weights or biases that are computed from others, have no bounds here: their results are watched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from mpc_imaging.errors import ModelError
from mpc_imaging.models import operations, spatial
from mpc_imaging.models.calls import Call, Weight, resolve
from mpc_imaging.models.graph import layer_kind, layer_name, public_nodes

# Results stay below 2**RESULT_BITS in size, what is averaged at most 2**AVERAGE_BITS.
RESULT_BITS = 61
AVERAGE_BITS = 37
# Half of the largest bound there is, where weights are (almost) zero.
_MOST = 2**60

_AVERAGES = {
    operations.mean, operations.sum, spatial.avg_pool1d, spatial.avg_pool2d,
    spatial.adaptive_avg_pool1d, spatial.adaptive_avg_pool2d,
}  # fmt: skip
_RESIZES = {spatial.interpolate, spatial.adaptive_avg_pool1d, spatial.adaptive_avg_pool2d}
_TRANSPOSED = {spatial.conv_transpose1d, spatial.conv_transpose2d}
_LINEAR = {operations.linear, operations.flat_linear, spatial.conv1d, spatial.conv2d, *_TRANSPOSED}

# Of a weight in units, |w|: the sums that an output can be made of, as many as there are outputs.
_Sums = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class BoundedInput:
    """An input that is to stay below a bound, so that the operation's result is in range.

    node: its name in the graph, which is the same at all parties. slot: which argument, by place or by name. Either
    ``public``, half of the bound in units, or a weight and perhaps a bias, by their names in the state dict, from which
    it follows.
    """

    node: str
    slot: int | str
    name: str
    kind: str
    public: int | None = None
    weight: str | None = None
    bias: str | None = None
    sums: _Sums | None = None


def bounded_inputs(prepared: fx.GraphModule, bits: int) -> list[BoundedInput]:
    """Return the bounded inputs of a prepared model, in the order in which its operations run."""
    public, found = public_nodes(prepared.graph), []
    for node in prepared.graph.nodes:
        if not node.op.startswith("call_") or node in public:
            continue
        module = prepared.get_submodule(str(node.target)) if node.op == "call_module" else None
        place = (layer_name(node), layer_kind(node, module))
        for slot, rule in _rules(resolve(node, prepared), bits):
            found.append(BoundedInput(node.name, slot, *place, **rule))
    return found


def _rules(call: Call, bits: int) -> Iterator[tuple[int | str, dict[str, Any]]]:
    """Yield which arguments are bounded, and how."""
    given, operation = call.arguments(), call.operation
    slot = _slot(call, "input")
    if operation in _LINEAR or operation is operations.scale_shift:
        names = ("scale", "shift") if operation is operations.scale_shift else ("weight", "bias")
        weight, bias = (_name(given[key]) for key in names)
        if weight is not None and slot is not None and (bias is not None or given[names[1]] is None):
            groups = given["groups"] if operation in _TRANSPOSED else None
            yield slot, {"weight": weight, "bias": bias, "sums": _row_sums(groups)}
    elif operation in (operations.mul, operations.matmul):
        yield from _product(call, given, bits)
    elif slot is None:
        return
    elif operation is operations.leaky_relu:
        yield slot, _by_factor(max(1.0, abs(given["negative_slope"])), bits)
    elif operation is operations.div and operations.is_number(given["other"]):
        yield slot, {"public": _half(2.0**AVERAGE_BITS * min(1.0, abs(given["other"])))}
    elif operation in _AVERAGES or (operation is spatial.interpolate and given["mode"] == "bilinear"):
        most = RESULT_BITS - bits if operation in _RESIZES else AVERAGE_BITS
        yield slot, {"public": _half(2.0 ** min(AVERAGE_BITS, most))}


def _product(call: Call, given: dict[str, Any], bits: int) -> Iterator[tuple[int | str, dict[str, Any]]]:
    """Yield the rules of a product of an activation with a public number, or with a weight."""
    for one, other in (("input", "other"), ("other", "input")):
        slot, factor = _slot(call, one), given[other]
        if slot is None:
            continue
        if operations.is_number(factor) and abs(factor) > 1 and isinstance(factor, int):
            yield slot, {"public": _half(2.0**RESULT_BITS / abs(factor))}
        elif operations.is_number(factor) and not isinstance(factor, int):
            yield slot, _by_factor(abs(factor), bits)
        elif (weight := _name(factor)) is not None:
            axis = None if call.operation is operations.mul else (-2 if one == "input" else -1)
            yield slot, {"weight": weight, "sums": _entries if axis is None else (lambda w, axis=axis: _along(w, axis))}


def _by_factor(factor: float, bits: int) -> dict[str, Any]:
    return {"public": _half(2.0**RESULT_BITS / (factor * 2.0**bits + 0.5))}


def _half(bound: float) -> int:
    return min(int(bound * (1 - 2.0**-10) / 2), _MOST)


def _entries(w: torch.Tensor) -> torch.Tensor:
    return w.reshape(-1)


def _along(w: torch.Tensor, axis: int) -> torch.Tensor:
    return (w.sum(axis) if w.dim() > 1 else w.sum()).reshape(-1)


def _row_sums(groups: int | None) -> _Sums:
    """Return sums over all dimensions but that of the outputs: the first, of a transposed convolution the second."""

    def sums(w: torch.Tensor) -> torch.Tensor:
        if groups is None:
            return w.reshape(len(w), -1).sum(1)
        return w.reshape(groups, w.shape[0] // groups, w.shape[1], -1).sum((1, 3)).reshape(-1)

    return sums


def _slot(call: Call, parameter: str) -> int | str | None:
    """Return where the call has this parameter, if it is an activation."""
    names = list(call.arguments())
    if parameter not in names:
        return None
    place = names.index(parameter) - 1  # after the operations themselves, which come first
    slot = place if place < len(call.args) else parameter
    value = call.args[place] if isinstance(slot, int) else call.kwargs.get(parameter)
    return slot if isinstance(value, fx.Node) and value.op != "get_attr" else None


def _name(argument: object) -> str | None:
    if isinstance(argument, Weight):
        return argument.name
    return str(argument.target) if isinstance(argument, fx.Node) and argument.op == "get_attr" else None


def half_bounds(prepared: nn.Module, inputs: list[BoundedInput], bits: int) -> torch.Tensor:
    """Return half of what each input may be at most in size, in units of 2**-bits: int64 (inputs,).

    Raises `ModelError`, with a line for each layer, where not even inputs of size 1 fit, and for weights that are no
    numbers or so large that sums with them do not fit.
    """
    state, problems, halves = prepared.state_dict(), [], []
    for each in inputs:
        half = each.public if each.weight is None else _half_bound(state, each, bits)
        if each.weight is not None and 2 * half < 2**bits:
            most = max(2 * half, 0) / 2**bits
            problems.append(
                f"{each.name} ({each.kind}): its weights are too large for protocol.fraction_bits={bits}: inputs "
                f"beyond {most:.2g} would leave the range; scale the weights down, or write fewer bits"
            )
        halves.append(half)
    limit = 2 ** (RESULT_BITS - 2 * bits)
    for name, value in state.items():
        if value.is_floating_point() and not bool((value.detach().abs() < limit).all()):
            problems.append(f"{name}: not all of its values are numbers below {limit:,}; scale the weights down")
    if problems:
        raise ModelError(problems)
    return torch.tensor(halves, dtype=torch.int64)


def _half_bound(state: dict[str, torch.Tensor], each: BoundedInput, bits: int) -> int:
    # In float64 with a margin: sums of up to 2**40 terms are right to 2**-12, so that of the bound a thousandth goes.
    sizes = (state[each.weight].detach().double() * 2.0**bits).abs() + 0.5  # encoding rounds by half a unit at most
    sums = each.sums(sizes)
    shift = torch.zeros(())
    if each.bias is not None:
        shift = state[each.bias].detach().double().abs() * 4.0**bits + 2.0**bits
    smallest = ((2.0**RESULT_BITS - shift) / sums).min().item()
    return _half(smallest) if math.isfinite(smallest) else 0
