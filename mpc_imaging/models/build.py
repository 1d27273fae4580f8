"""Build the model that the configuration names, of code that it may name (`targets`)."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mpc_imaging.errors import ConfigError
from mpc_imaging.model_checks import DOWNLOADS, argument_problems
from mpc_imaging.models.problems import first_line
from mpc_imaging.models.single_logit import SingleLogit
from mpc_imaging.models.targets import find, is_torchvision
from mpc_imaging.models.weights import load_weights, nearest, save_weights
from mpc_imaging.settings import ModelSettings

__all__ = ["build", "load_weights", "save_weights"]


# A torchvision constructor may load a cached file of weights by itself (weights=DEFAULT): never by unpickling code.
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


def build(model: ModelSettings, seed: int) -> nn.Module:
    """The model in eval mode, initialised from the public seed; torch's global generators stay as they are.

    With ``model.single_logit`` it gives a second one: see `SingleLogit`.
    Raises `ConfigError` for a target that does not exist or may not be called, and for arguments that it does not take,
    with the nearest names.
    """
    if problems := [str(problem) for problem in argument_problems(model._target_, model.kwargs)]:
        raise ConfigError(problems)
    target = find(model._target_, model.allow_code)
    kwargs = dict(model.kwargs)
    problems = _argument_problems(target, model._target_, kwargs)
    if problems:
        raise ConfigError(problems)
    if is_torchvision(target):  # some fetch weights unless told not to
        kwargs |= dict.fromkeys(inspect.signature(target).parameters.keys() & DOWNLOADS)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        try:
            module = target(**kwargs)
        except Exception as error:  # the target is the user's code: it may raise anything
            raise ConfigError([_construction_problem(target, model._target_, error)]) from error
    if not isinstance(module, nn.Module):
        raise ConfigError([f"model._target_={model._target_} returns {type(module).__name__}, not a torch.nn.Module"])
    return (SingleLogit(module) if model.single_logit else module).eval()


def _argument_problems(target: Callable[..., Any], path: str, kwargs: dict[str, Any]) -> list[str]:
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # a builtin without a signature; calling it tells
        return []
    named = {name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    problems = []
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        problems += [f"model.kwargs.{name}: {path} has no such argument{nearest(name, named)}"
                     for name in kwargs if name not in named]  # fmt: skip
    required = [name for name in parameters if name in named and parameters[name].default is inspect.Parameter.empty]
    problems += [f"model.kwargs.{name} is missing: {path} requires it" for name in required if name not in kwargs]
    return problems


def _construction_problem(target: Callable[..., Any], path: str, error: Exception) -> str:
    """One line for an error of the target itself. Functions such as resnet18 pass unknown arguments on to a class."""
    unknown = re.search(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if isinstance(error, TypeError) and unknown:
        owner = getattr(inspect.unwrap(target), "__globals__", {}).get(unknown[1])
        named = list(inspect.signature(owner).parameters) if callable(owner) else []
        return f"model.kwargs.{unknown[2]}: {path} has no such argument{nearest(unknown[2], named)}"
    return f"model.kwargs: {path} cannot be built with them: {first_line(error)}"
