"""Compares an outcome with torch's."""

from __future__ import annotations

from typing import Any

import torch

from tests.engine.conformance.cases import Case
from tests.engine.conformance.everything import FUNCTIONS, WHOLES
from tests.engine.conformance.processes import weights_of


def expected(case: Case) -> dict[str, Any]:
    """The value, and the gradients of the inputs, as torch has them."""
    inputs = {name: value.clone() for name, value in case.inputs.items()}
    if not case.gradient:
        return {"value": case.plain(*inputs.values())}
    secret = {name: x.requires_grad_() for name, x in inputs.items() if name[:2] != "p_"}
    result = case.plain(*inputs.values())
    (result * weights_of(result)).sum().backward()
    return {"value": result.detach()} | {f"gradient of {name}": x.grad for name, x in secret.items()}


def refused(name: str) -> bool:
    """Whether torch raises, or its answer is not finite: of edges of domains, and of what the cases say is refused."""
    if not name.startswith(("edge", "refused")):
        return False
    try:
        return not _finite(expected(FUNCTIONS[name]))
    except (IndexError, RuntimeError, ValueError):
        return True


def _finite(value: Any) -> bool:
    if isinstance(value, (dict, list)):
        return all(_finite(entry) for entry in (value.values() if isinstance(value, dict) else value))
    return bool(torch.isfinite(value.double()).all())


def problems(name: str, outcome: dict[str, Any]) -> list[str]:
    """What differs from torch, in words; nothing, if all agrees."""
    entry = WHOLES.get(name) or FUNCTIONS[name]
    reference = entry.plain() if not isinstance(entry, Case) else expected(entry)
    if reference.keys() != outcome.keys():
        return [f"{name}: {sorted(outcome)} instead of {sorted(reference)}"]
    found = [text for key in reference for text in _differences(outcome[key], reference[key], entry.close)]
    return [f"{name}: {text}" for text in found]


def _differences(ours: Any, theirs: Any, close: tuple[float, float]) -> list[str]:
    if isinstance(theirs, list):
        return [text for pair in zip(ours, theirs, strict=True) for text in _differences(*pair, close)]
    if ours is None or ours.shape != theirs.shape:
        return [f"{'nothing' if ours is None else tuple(ours.shape)}, not a tensor of shape {tuple(theirs.shape)}"]
    ours, theirs = ours.double(), theirs.double()
    error, (relative, absolute) = (ours - theirs).abs(), close
    wrong = (error > relative * (ours.abs() + theirs.abs())) & (error > absolute)
    return [f"{int(wrong.sum())} of {wrong.numel()} values off by up to {error.max():.2g}"] if bool(wrong.any()) else []
