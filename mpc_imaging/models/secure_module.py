"""A prepared model that runs over tensors of any kind, with operations supplied from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from mpc_imaging.errors import ModelError
from mpc_imaging.models.calls import Call, Weight, resolve
from mpc_imaging.models.graph import evaluate_public, layer_kind, layer_name, public_nodes
from mpc_imaging.models.problems import LayerProblem
from mpc_imaging.models.weights import state_problems

Observer = Callable[[str, str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class _Step:
    """One node: its operation (None for public arithmetic), and the values that nobody needs after it."""

    node: fx.Node
    call: Call | None
    name: str
    kind: str
    dead: tuple[fx.Node, ...]


class SecureModule:
    """Runs the graph of `prepare` with ``ops``, which supplies the operations on shares (see `operations.py`).

    ``observer``, if set, is called with each layer's name and operation and gives the context that it runs in.
    ``bounds``: what inputs may be at most, by the name of their node and their place or name among its arguments
    (`headroom`), if that is to be checked; ``ops.in_range`` does it.
    """

    def __init__(self, prepared: fx.GraphModule, ops: Any) -> None:
        self.ops = ops
        self.observer: Observer | None = None
        self.bounds: Mapping[str, Mapping[int | str, Any]] = {}
        self.parameters: dict[str, Any] = {}
        self._shapes = {name: x.shape for name, x in prepared.state_dict().items() if x.is_floating_point()}
        self._trainable = [name for name, x in prepared.named_parameters() if x.requires_grad]
        self._input = next(node for node in prepared.graph.nodes if node.op == "placeholder")
        self._output = next(node for node in prepared.graph.nodes if node.op == "output").args[0]
        self._steps = _steps(prepared)

    def parameter_shapes(self) -> dict[str, torch.Size]:
        """Shape of every tensor of the state, by name: parameters, and the fixed scales and constants."""
        return dict(self._shapes)

    def trainable(self) -> list[str]:
        """Names of the tensors that training changes."""
        return list(self._trainable)

    def load(self, state: Mapping[str, Any]) -> None:
        """Take the tensors to compute with. Raises `ModelError` for missing, unknown or misshapen ones."""
        problems = state_problems(self._shapes, state)
        if problems:
            raise ModelError(problems)
        self.parameters = {name: state[name] for name in self._shapes}

    def open_weights(self) -> None:
        """Mask and open, in one round, the weights of products, which then serve every batch: for inference."""
        self.ops.open_weights([w for w in self.parameters.values() if len(w.shape) > 1])

    def __call__(self, x: Any) -> Any:
        """The output for a batch of images (N, C, H, W). Raises `ModelError` if a layer cannot take its input."""
        if len(self.parameters) != len(self._shapes):
            raise ModelError(["the model has no weights yet: call load() first"])
        values: dict[fx.Node, Any] = {self._input: x}
        for step in self._steps:
            values[step.node] = self._run(step, values)
            for node in step.dead:
                del values[node]
        return values[self._output]

    def _run(self, step: _Step, values: dict[fx.Node, Any]) -> Any:
        def value(argument: Any) -> Any:
            if isinstance(argument, fx.Node):
                return values[argument]
            return self.parameters[argument.name] if isinstance(argument, Weight) else argument

        if step.node.op == "get_attr":
            return self.parameters[str(step.node.target)]
        source = step.call or step.node
        args, kwargs = map_aggregate(source.args, value), map_aggregate(dict(source.kwargs), value)
        if step.call is None:
            return _evaluate(step, args, kwargs)
        try:
            with self.observer(step.name, step.call.name) if self.observer else nullcontext():
                bounds = self.bounds.get(step.node.name)
                if not bounds:
                    return step.call.operation(self.ops, *args, **kwargs)
                args = [self.ops.in_range(x, bounds[i]) if i in bounds else x for i, x in enumerate(args)]
                kwargs = {key: self.ops.in_range(x, bounds[key]) if key in bounds else x for key, x in kwargs.items()}
                with self.ops.inputs_in_range():
                    return step.call.operation(self.ops, *args, **kwargs)
        except LayerProblem as problem:
            raise ModelError([problem.line(step.name, step.kind)]) from problem


def _evaluate(step: _Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return evaluate_public(step.node, args, kwargs)
    except AssertionError as error:  # the model's own, on the sizes of its input
        said = str(error) or "its input has another shape"
        raise ModelError([f"{step.name}: the model asserts that {said}"]) from error


def _steps(prepared: fx.GraphModule) -> list[_Step]:
    public = public_nodes(prepared.graph)
    nodes = [node for node in prepared.graph.nodes if node.op not in ("placeholder", "output")]
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        last.update(dict.fromkeys([node, *node.all_input_nodes], node))
    kept = prepared.graph.output_node().args[0]
    steps = []
    for node in nodes:
        dead = tuple(used for used in [node, *node.all_input_nodes] if last[used] is node and used is not kept)
        module = prepared.get_submodule(node.target) if node.op == "call_module" else None
        call = None if node.op == "get_attr" or node in public else resolve(node, prepared)
        steps.append(_Step(node, call, layer_name(node), layer_kind(node, module), dead))
    return steps
