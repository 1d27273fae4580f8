"""Rewrites of a traced model before sharing: overwriting made explicit, dropout removed, batch-norm folded away."""

from __future__ import annotations

import torch
from torch import fx, nn

from mpc_imaging.models import operations
from mpc_imaging.models.calls import Call, has_hooks, resolve
from mpc_imaging.models.graph import layer_kind, layer_name, public_nodes
from mpc_imaging.models.layers import FlatLinear, ScaleShift
from mpc_imaging.models.problems import CannotRunSecurely, LayerProblem

# Their results may share memory with their argument, so that overwriting one overwrites the other.
_VIEWS = {"identity", "dropout", "stochastic_depth", "detach", "flatten", "reshape", "unflatten", "unsqueeze",
          "squeeze", "transpose", "permute", "split", "chunk", "getitem"}  # fmt: skip

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def is_frozen_batch_norm(module: nn.Module) -> bool:
    """Whether it is torchvision's batch-norm with fixed statistics (recognised without importing torchvision)."""
    return type(module).__name__ == "FrozenBatchNorm2d" and type(module).__module__.startswith("torchvision.")


def is_batch_norm(module: nn.Module) -> bool:
    """Whether it is one of torch's batch-norm layers for signals or images."""
    return type(module) in _BATCH_NORMS


def _call(node: fx.Node, model: fx.GraphModule) -> Call | None:
    """The node's operation, or None where there is none: the checks report that."""
    if not node.op.startswith("call_"):
        return None
    try:
        return resolve(node, model)
    except LayerProblem:
        return None


def remove_in_place(model: fx.GraphModule) -> list[str]:
    """Give later users of an overwritten value the new one; returns a line for each overwriting that cannot be undone.

    The interpreter on shares never overwrites: ``relu_(x)`` makes a new value, which later users of ``x`` would miss.
    """
    problems = []
    public = public_nodes(model.graph)
    order = {node: place for place, node in enumerate(model.graph.nodes)}
    memory: dict[fx.Node, fx.Node] = {}
    for node in model.graph.nodes:
        call = None if node in public else _call(node, model)
        target = node.all_input_nodes[0] if call and node.all_input_nodes else None
        overwrites = target is not None and target not in public and call.in_place and not _drops_nothing(call)
        shares_memory = target is not None and call.name in _VIEWS and not overwrites
        memory[node] = memory[target] if shares_memory else node
        if not overwrites:
            continue
        try:
            _check_overwriting(target, node, memory, order)
        except LayerProblem as problem:
            module = model.get_submodule(node.target) if node.op == "call_module" else None
            problems.append(problem.line(layer_name(node), layer_kind(node, module)))
        target.replace_all_uses_with(node, delete_user_cb=lambda user, node=node: order[user] > order[node])
    return problems


def _check_overwriting(
    target: fx.Node, node: fx.Node, memory: dict[fx.Node, fx.Node], order: dict[fx.Node, int]
) -> None:
    source = memory[target]
    if source.op in ("placeholder", "get_attr"):
        raise CannotRunSecurely("it overwrites the model's input or a weight", "write it without inplace or +=")
    views = (view for view, owner in memory.items() if owner is source and view is not target)
    if any(order[user] > order[node] for view in views for user in view.users):
        raise CannotRunSecurely(
            "it overwrites a value that is used again through a view", "write it without inplace or +="
        )


def _drops_nothing(call: Call) -> bool:
    if call.operation not in (operations.dropout, operations.stochastic_depth):
        return False
    arguments = call.arguments()
    return not arguments["training"] or arguments["p"] == 0


def remove_dropout(model: fx.GraphModule) -> None:
    """Remove dropout and stochastic depth that drop nothing."""
    for node in model.graph.nodes:
        call = _call(node, model)
        if call and _drops_nothing(call):
            node.replace_all_uses_with(node.all_input_nodes[0])
            model.graph.erase_node(node)


# Monotone functions that are free to follow a maximum.
_MONOTONE = {"relu", "relu6", "hardtanh"}


def pool_before_activation(model: fx.GraphModule) -> None:
    """Let a max-pool come before the ReLU that it follows: the same values, and a 2x2 pool leaves a quarter of them.

    The gradients are the same too, but for windows whose largest value is exactly zero.
    """
    public = public_nodes(model.graph)
    for pool in list(model.graph.nodes):
        call = None if pool in public else _call(pool, model)
        if call is None or call.name not in ("max_pool1d", "max_pool2d") or not pool.all_input_nodes:
            continue
        activation = pool.all_input_nodes[0]
        first = None if activation in public else _call(activation, model)
        if first is None or first.name not in _MONOTONE or len(activation.users) > 1:
            continue
        source = activation.all_input_nodes[0]
        pool.replace_all_uses_with(activation)
        pool.replace_input_with(activation, source)
        activation.replace_input_with(source, pool)
        pool.append(activation)


def fold_batch_norm(model: fx.GraphModule, training: bool) -> None:
    """Fold fixed batch-norm into the layer before it, or make it a `ScaleShift`.

    In training only torchvision's frozen batch-norm is fixed, and is not folded: the layer before it trains.
    """
    for node in model.graph.nodes:
        norm = model.get_submodule(node.target) if node.op == "call_module" else None
        if (
            norm is None
            or has_hooks(norm)
            or not (is_frozen_batch_norm(norm) or (is_batch_norm(norm) and not training))
        ):
            continue
        if norm.running_mean is None:
            continue
        scale, shift = _scale_and_shift(norm)
        source = node.all_input_nodes[0]
        if not training and _can_absorb(source, model, scale.numel()):
            _absorb(model, str(source.target), scale, shift)
            node.replace_all_uses_with(source)
            model.graph.erase_node(node)
        else:
            dtype = norm.running_mean.dtype
            model.set_submodule(node.target, ScaleShift(scale.to(dtype), shift.to(dtype)))


def _scale_and_shift(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Per channel, in float64: weight / sqrt(variance + eps), and bias - mean * scale."""
    with torch.no_grad():
        scale = torch.rsqrt(norm.running_var.double() + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -norm.running_mean.double() * scale
        return scale, shift if norm.bias is None else shift + norm.bias.double()


def _can_absorb(source: fx.Node, model: fx.GraphModule, channels: int) -> bool:
    if source.op != "call_module" or len(source.users) > 1:
        return False
    layer = model.get_submodule(str(source.target))
    # A layer that is called twice is followed by this batch-norm only once.
    if has_hooks(layer) or sum(node.target == source.target for node in model.graph.nodes) > 1:
        return False
    if type(layer) in (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d):
        return layer.out_channels == channels
    return type(layer) in (nn.Linear, FlatLinear) and layer.out_features == channels


def _absorb(model: fx.GraphModule, name: str, scale: torch.Tensor, shift: torch.Tensor) -> None:
    layer = model.get_submodule(name)
    old = layer.weight
    with torch.no_grad():
        weight = _scale_outputs(layer, old.double(), scale)
        bias = shift if layer.bias is None else layer.bias.double() * scale + shift
    if isinstance(layer, nn.Linear):
        layer = nn.utils.skip_init(FlatLinear, layer.in_features, layer.out_features, device=old.device)
        model.set_submodule(name, layer)
    # New parameters: the old ones may be tied to another layer.
    layer.weight, layer.bias = nn.Parameter(weight.to(old.dtype)), nn.Parameter(bias.to(old.dtype))


def _scale_outputs(layer: nn.Module, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d):
        # Weight (C, K / groups, ...): output channels are numbered within the group of their input channels.
        grouped = weight.reshape(layer.groups, -1, weight.shape[1], weight[0, 0].numel())
        return (grouped * scale.reshape(layer.groups, 1, -1, 1)).reshape(weight.shape)
    return weight * scale.reshape(-1, *(1,) * (weight.dim() - 1))
