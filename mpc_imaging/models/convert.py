"""From a torch module to one that runs on shares: trace, rewrite, check.

prepared = prepare(module, training=False)        # plain torch; its state dict is what the model owner shares
secure = SecureModule(prepared, engine.layers)    # the same graph over shares
secure.load(shared_state)
logits = secure(shared_images)
"""

from __future__ import annotations

import copy
import operator
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError

from mpc_imaging.errors import ModelError
from mpc_imaging.models.calls import has_hooks, hooks_problem
from mpc_imaging.models.checks import find_problems
from mpc_imaging.models.passes import (
    fold_batch_norm,
    is_frozen_batch_norm,
    pool_before_activation,
    remove_dropout,
    remove_in_place,
)
from mpc_imaging.models.problems import CannotRunSecurely, LayerProblem, NotBuiltYet, first_line
from mpc_imaging.models.secure_module import SecureModule

__all__ = ["SecureModule", "output_shape", "prepare"]


def prepare(module: nn.Module, training: bool) -> fx.GraphModule:
    """The graph of a model that takes one batch of images (N, C, H, W), ready to be shared; ``module`` stays as it is.

    For inference (``training=False``) batch-norm is folded away. Names and shapes of the state dict depend on the
    architecture alone, never on the weights. Raises `ModelError` with a line for each layer that cannot run.
    """
    model = _trace(module, training)
    problems = remove_in_place(model)
    remove_dropout(model)
    fold_batch_norm(model, training)
    pool_before_activation(model)
    model.graph.eliminate_dead_code()
    problems += find_problems(model, training)
    if problems:
        raise ModelError(problems)
    model.delete_all_unused_submodules()
    model.recompile()
    return model


def output_shape(prepared: fx.GraphModule, input_shape: tuple[int, ...]) -> torch.Size:
    """Shape of the output for images of a shape (N, C, H, W). Raises `ModelError` if the model does not take them."""
    # On real zeros: torch's meta device computes nothing, but its first use imports 900 modules, 1.7 s of every start.
    try:
        with torch.no_grad():
            return prepared(torch.zeros(input_shape)).shape
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            [f"the model does not take images of shape {tuple(input_shape)}: {first_line(error)}"]
        ) from error


def _trace(module: nn.Module, training: bool) -> fx.GraphModule:
    try:
        if has_hooks(module):
            raise hooks_problem()
        with torch.enable_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            root = copy.deepcopy(module).train(training)
            before = torch.random.get_rng_state()
            model = fx.GraphModule(root, _Tracer().trace(root), type(module).__name__)
            if not torch.equal(torch.random.get_rng_state(), before):
                # Tracing has made a constant of it.
                raise NotBuiltYet("forward() draws random numbers", "leave the noise out")
        return model
    except LayerProblem as problem:
        raise ModelError([problem.line("model", type(module).__name__)]) from problem
    except Exception as error:  # forward() is the user's code: it may raise anything
        problem = (CannotRunSecurely if isinstance(error, TraceError) else NotBuiltYet)(
            f"at {_place(error)}: {first_line(error).split('. ')[0]}",
            "let forward() take one tensor, and branch or loop only on settings known in __init__",
        )
        raise ModelError([problem.line("model", type(module).__name__)]) from error


def _place(error: BaseException) -> str:
    """File and line of the deepest frame that is not torch's."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/torch/" not in frame.filename]
    return f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}"


class _Proxy(fx.Proxy):
    """A traced value for which ``x += y`` is recorded as overwriting, as torch does it, and not as ``x = x + y``."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    """Traces ``forward(images)``: its further arguments keep their defaults, so that branches on them are decided."""

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_frozen_batch_norm(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["no_grad"] = not torch.is_grad_enabled()
        return node
