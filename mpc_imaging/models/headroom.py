"""How large the inputs of a model's linear layers may be, given their weights, before fixed point overflows.

With weights w and a bias b of `bits` bits of fraction, an input of size B at most makes results below
B sum|w| + |b| 2**bits, which hold twice the fraction. Truncation takes what is below 2**62 in size, and a max-pool
takes differences of two results; so B is chosen to keep results below 2**61. That bounds are kept is checked on shares
(`protocols.ranges`): then no product has overflowed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from mpc_imaging.errors import ModelError
from mpc_imaging.models import operations, spatial
from mpc_imaging.models.calls import Weight, resolve
from mpc_imaging.models.graph import layer_kind, layer_name, public_nodes

# Results stay below 2**RESULT_BITS in size. The most that half a bound can be, where weights are (almost) zero.
RESULT_BITS = 61
_MOST = 2**61 - 1

_LINEAR = {
    operations.linear, operations.flat_linear, operations.scale_shift,
    spatial.conv1d, spatial.conv2d, spatial.conv_transpose1d, spatial.conv_transpose2d,
}  # fmt: skip


@dataclass(frozen=True)
class LinearLayer:
    """A layer whose result is linear in its first argument; names of its weight and bias in the state dict.

    node: its name in the graph, which is the same at all parties. per: dimension of the weight that counts outputs,
    within each of ``groups``.
    """

    node: str
    name: str
    kind: str
    weight: str
    bias: str | None
    per: int
    groups: int


def linear_layers(prepared: fx.GraphModule) -> list[LinearLayer]:
    """Return the layers with weights of a prepared model, in the order in which they run."""
    public, layers = public_nodes(prepared.graph), []
    for node in prepared.graph.nodes:
        if not node.op.startswith("call_") or node in public:
            continue
        call = resolve(node, prepared)
        if call.operation not in _LINEAR or not call.args or not isinstance(call.args[0], fx.Node):
            continue
        given = call.arguments()
        scaled = call.operation is operations.scale_shift
        weight, bias = (_name(given[key]) for key in (("scale", "shift") if scaled else ("weight", "bias")))
        if weight is None:
            continue
        transposed = call.operation in (spatial.conv_transpose1d, spatial.conv_transpose2d)
        module = prepared.get_submodule(node.target) if node.op == "call_module" else None
        groups = given["groups"] if transposed else 1
        name, kind = layer_name(node), layer_kind(node, module)
        layers.append(LinearLayer(node.name, name, kind, weight, bias, int(transposed), groups))
    return layers


def _name(argument: object) -> str | None:
    if isinstance(argument, Weight):
        return argument.name
    return str(argument.target) if isinstance(argument, fx.Node) and argument.op == "get_attr" else None


def input_bounds(prepared: nn.Module, layers: list[LinearLayer], bits: int) -> torch.Tensor:
    """Return half of what each layer's inputs may be at most in size, in units of 2**-bits: int64 (layers,).

    Raises `ModelError`, with a line for each layer, where not even inputs of size 1 fit.
    """
    state, problems, halves = prepared.state_dict(), [], []
    for layer in layers:
        half = _half_bound(state[layer.weight], None if layer.bias is None else state[layer.bias], layer, bits)
        if 2 * half < 2**bits:
            most = max(2 * half, 0) / 2**bits
            problems.append(
                f"{layer.name} ({layer.kind}): its weights are too large for protocol.fraction_bits={bits}: inputs "
                f"beyond {most:.2g} would leave the range; scale the weights down, or write fewer bits"
            )
        halves.append(half)
    if problems:
        raise ModelError(problems)
    return torch.tensor(halves, dtype=torch.int64)


def _half_bound(weight: torch.Tensor, bias: torch.Tensor | None, layer: LinearLayer, bits: int) -> int:
    # In float64 with a margin: sums of up to 2**40 terms are right to 2**-12, so that of the bound a thousandth goes.
    sizes = (weight.detach().double() * 2.0**bits).abs() + 0.5  # encoding rounds by half a unit at most
    if layer.per == 1:  # (C, O / groups, ...): each output sums over the inputs of its group
        grouped = sizes.reshape(layer.groups, weight.shape[0] // layer.groups, weight.shape[1], -1)
        sums = grouped.sum((1, 3)).reshape(-1)
    else:
        sums = sizes.reshape(len(sizes), -1).sum(1)
    shift = torch.zeros_like(sums) if bias is None else (bias.detach().double().abs() * 4.0**bits + 2.0**bits)
    room = (2.0**RESULT_BITS - shift) * (1 - 2.0**-10)
    half = torch.floor(room / (2 * sums)).min().item()
    return int(min(half, _MOST))
