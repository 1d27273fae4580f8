"""The class or function that a dotted name in the configuration leads to: only modules that it may name are imported.

A look at the name alone is not enough: modules hold what they import, so ``torch.nn.functional.torch.hub.os.system``
begins well. The name must be a module's, then one of that module's own classes or functions, and what it leads to must
be defined in a package that is allowed. Of the built-in packages that is a network: a class of them, or a function that
torchvision lists as one that makes models.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from torch import nn

from mpc_imaging.errors import ConfigError
from mpc_imaging.model_checks import LOCAL_KEY, PREFIXES, target_problem, within
from mpc_imaging.models.problems import first_line
from mpc_imaging.models.weights import nearest


def find(path: str, allow_code: Sequence[str] = ()) -> Callable[..., Any]:
    """The class or function with a dotted name. allow_code: packages or modules of the operator's own.

    Raises `ConfigError` for a name that does not exist, or that leads to anything else.
    """
    if problem := target_problem(path, allow_code):
        raise ConfigError([f"model._target_={path}: {problem}"])
    allowed = [*PREFIXES, *allow_code]
    home, _, last = path.rpartition(".")
    module = _module(home, path)
    if not within(module.__name__, allowed):
        raise ConfigError([f"model._target_={path}: {home} is in truth {module.__name__}; name that"])
    if not hasattr(module, last):
        raise ConfigError([f"model._target_={path}: {home} has no {last}{nearest(last, _names(module))}"])
    found = getattr(module, last)
    if isinstance(found, ModuleType) or not callable(found):
        raise ConfigError([f"model._target_={path} is a {type(found).__name__}: name a class or function"])
    origin = getattr(found, "__module__", None)
    if not isinstance(origin, str) or not within(origin, allowed):
        what = f"{last} is defined in {origin}, which is not allowed; name one of its own, or add that to {LOCAL_KEY}"
        raise ConfigError([f"model._target_={path}: {what}"])
    if not (within(origin, allow_code) or _is_network(found, origin)):
        what = f"{last} makes no model; name a torch.nn.Module, or a function in torchvision.models.list_models()"
        raise ConfigError([f"model._target_={path}: {what}"])
    return found


def is_torchvision(target: Callable[..., Any]) -> bool:
    """Whether torchvision defines it."""
    return within(getattr(target, "__module__", None) or "", ["torchvision"])


def _is_network(found: Callable[..., Any], origin: str) -> bool:
    if isinstance(found, type):
        return issubclass(found, nn.Module)
    if not within(origin, ["torchvision"]):
        return False
    from torchvision.models import get_model_builder, list_models  # takes a second, and few models need it

    return found in [get_model_builder(name) for name in list_models()]


def _module(name: str, path: str) -> ModuleType:
    """A module, imported after those that it is in; never one that merely is an attribute of another."""
    parts, found = name.split("."), None
    for depth in range(1, len(parts) + 1):
        found = _import(".".join(parts[:depth]), path, found)
    return found


def _import(name: str, path: str, parent: ModuleType | None) -> ModuleType:
    last = name.rpartition(".")[2]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name and not name.startswith(f"{error.name}."):
            raise ConfigError([f"model._target_={path}: importing {name} failed: {error}"]) from error
    except Exception as error:  # importing runs the user's code
        raise ConfigError([f"model._target_={path}: importing {name} failed: {first_line(error)}"]) from error
    if parent is None:
        known = [module.name for module in pkgutil.iter_modules()]
        raise ConfigError([f"model._target_={path}: there is no module {name}{nearest(last, known)}"])
    if hasattr(parent, last):
        raise ConfigError([f"model._target_={path}: {name} is no module; name a class or function of a module"])
    raise ConfigError([f"model._target_={path}: {parent.__name__} has no {last}{nearest(last, _names(parent))}"])


def _names(module: ModuleType) -> list[str]:
    """What one may have meant: modules in a package, and public classes and functions."""
    known = [found.name for found in pkgutil.iter_modules(getattr(module, "__path__", []))]
    return known + [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
