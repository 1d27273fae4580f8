"""Plain weights: safetensors state dicts, and whether a state dict fits a model. Nothing is ever unpickled."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mpc_imaging.errors import ModelError

_SAVE = 'write it with safetensors.torch.save_file(model.state_dict(), "FILE.safetensors")'


def load_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in a ``.safetensors`` file, or in a ``.pt`` or ``.pth`` file of tensors only.

    Raises `ModelError` if the file cannot be read without unpickling, or holds numbers that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError([f"there is no weights file {path}: set model.weights.path to a .safetensors file"])
    state = _read(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError([f"{path} holds no state dict of tensors: {_SAVE}"])
    infinite = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if infinite:
        raise ModelError([f"{path}: {name} has values that are not finite: train the model again" for name in infinite])
    return dict(state)


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in (".pt", ".pth"):
            state = torch.load(path, map_location="cpu", weights_only=True)
            return state.get("state_dict", state) if isinstance(state, Mapping) else state
    except Exception as error:  # what torch raises for a damaged file is anything
        raise ModelError([f"{path} cannot be read as weights ({type(error).__name__}): {_SAVE}"]) from error
    raise ModelError([f"{path}: files of weights end in .safetensors (or .pt, .pth): {_SAVE}"])


def save_weights(state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Write a state dict as safetensors."""
    # Each tensor on its own: safetensors refuses tensors that share memory, as tied weights and views do.
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, path)


def set_weights(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load a state dict into a module. Raises `ModelError` for missing, unknown or misshapen tensors, all at once."""
    problems = state_problems({name: value.shape for name, value in module.state_dict().items()}, state)
    if problems:
        raise ModelError(problems)
    module.load_state_dict(dict(state))


def state_problems(shapes: Mapping[str, torch.Size], state: Mapping[str, Any]) -> list[str]:
    """One line for each tensor that is missing, unknown or of another shape; the tensors may be of any kind."""
    problems = [
        f"{name} is missing: give a tensor of shape {tuple(shapes[name])}" for name in shapes if name not in state
    ]
    for name, value in state.items():
        if name not in shapes:
            problems.append(f"{name} is no tensor of this model{nearest(name, shapes)}")
        elif tuple(value.shape) != tuple(shapes[name]):
            problems.append(f"{name} has shape {tuple(value.shape)}, the model needs {tuple(shapes[name])}")
    return problems


def nearest(name: str, valid: Iterable[str]) -> str:
    """What to write instead of a wrong name, as the end of a message."""
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f": did you mean {close[0]}?"
    return f": write one of {', '.join(sorted(names)[:12])}" if names else ""
