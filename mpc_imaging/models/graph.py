"""Nodes of a traced model: their names for people, and which of them are public (sizes and arithmetic on sizes)."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx, nn

_SIZE_METHODS = {"size", "dim", "ndimension", "numel", "nelement"}
_SIZE_ATTRIBUTES = {"shape", "ndim"}
_PLAIN_MODULES = {operator.add.__module__, math.__name__}


def public_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose values are public: sizes of tensors, and arithmetic and assertions on public values only."""
    public: set[fx.Node] = set()
    for node in graph.nodes:
        if _is_size(node) or (_is_plain(node) and node.all_input_nodes and public.issuperset(node.all_input_nodes)):
            public.add(node)
    return public


def _is_size(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SIZE_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in _SIZE_ATTRIBUTES


def _is_plain(node: fx.Node) -> bool:
    if node.op == "call_method":
        return True
    named = node.op == "call_function" and getattr(node.target, "__module__", "")
    return named in _PLAIN_MODULES or node.target is torch._assert


def evaluate_public(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The value of a public node. Sizes are read from ``shape``, which every kind of tensor has."""
    if not _is_size(node):
        return (
            getattr(args[0], str(node.target))(*args[1:]) if node.op == "call_method" else node.target(*args, **kwargs)
        )
    shape = torch.Size(args[0].shape)
    if node.target == "size":
        dims = (*args[1:], *kwargs.values())
        return shape[dims[0]] if dims else shape
    if node.target in ("numel", "nelement"):
        return shape.numel()
    return shape if node.target is getattr and args[1] == "shape" else len(shape)


def layer_name(node: fx.Node) -> str:
    """The layer's path in the model; for a function, the path of the module that calls it and the node's name."""
    if node.op in ("call_module", "get_attr"):
        return str(node.target)
    stack = node.meta.get("nn_module_stack")
    return f"{list(stack.values())[-1][0]}.{node.name}" if stack else node.name


def layer_kind(node: fx.Node, module: nn.Module | None) -> str:
    """The type of a layer as its user wrote it, such as ``GELU`` or ``F.gelu`` or ``Tensor.argmax``."""
    if module is not None:
        return type(module).__name__
    if node.op in ("get_attr", "output"):
        return {"get_attr": "buffer", "output": "return value"}[node.op]
    if node.op == "call_method":
        return f"Tensor.{node.target}"
    if node.target is getattr:
        return f"Tensor.{node.args[1]}"
    home = getattr(node.target, "__module__", None) or ""
    prefix = {"torch.nn.functional": "F", "torch._C._nn": "F", "_operator": "operator", "torch.functional": "torch"}
    return f"{prefix.get(home, home)}.{getattr(node.target, '__name__', node.target)}".lstrip(".")
