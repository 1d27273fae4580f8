"""Compares an outcome with torch's."""

from __future__ import annotations

from typing import Any

from tests.engine.conformance.cases import CASES, INPUTS, Case
from tests.engine.conformance.processes import weights_of
from tests.engine.conformance.training import TRAINING, Training


def expected(case: Case) -> dict[str, Any]:
    """The value, and the gradients of the inputs, as torch has them."""
    inputs = [INPUTS[name].clone() for name in case.inputs]
    if not case.gradient:
        return {"value": case.plain(*inputs)}
    secret = {name: x.requires_grad_() for name, x in zip(case.inputs, inputs, strict=True) if name[:2] != "p_"}
    result = case.plain(*inputs)
    (result * weights_of(result)).sum().backward()
    return {"value": result.detach()} | {f"gradient of {name}": x.grad for name, x in secret.items()}


def problems(name: str, outcome: dict[str, Any]) -> list[str]:
    """What differs from torch, in words; nothing, if all agrees."""
    entry = TRAINING.get(name) or CASES[name]
    reference = entry.plain() if isinstance(entry, Training) else expected(entry)
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
