"""From plain dicts to typed settings, with every unknown key and wrong type found on the way.

A `Problem` names the dotted key and says what to write instead; nothing is raised, so that all can be shown together.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mpc_imaging.settings import PartySettings, Settings


class Problem(NamedTuple):
    """One thing to correct: the dotted key, and what is wrong with what to write instead."""

    key: str
    what: str

    def __str__(self) -> str:
        return f"{self.key}: {self.what}"


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """``did you mean X? (choices: …)`` with the nearest of ``choices``, or the choices alone when none is near."""
    choices = list(choices)
    near = difflib.get_close_matches(word, choices, n=1)
    listed = f"choices: {', '.join(choices) or 'none'}"
    return f"did you mean {near[0]}? ({listed})" if near else listed


def unrelated(found: Iterable[Problem], to: Sequence[Problem]) -> list[Problem]:
    """Those of ``found`` that are not about a key in ``to``, nor below or above one: no mere consequences of it."""

    def related(a: str, b: str) -> bool:
        return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")

    return [problem for problem in found if not any(related(problem.key, other.key) for other in to)]


def read(mapping: Mapping[str, Any]) -> tuple[Settings, list[Problem]]:
    """The settings that plain dicts describe, and a problem for each unknown key or wrong type (default kept)."""
    problems: list[Problem] = []
    return _section(Settings, mapping, "", problems), problems


def _section(schema: type, value: Any, key: str, problems: list[Problem]) -> Any:
    """An instance of the dataclass ``schema``; ``key`` is where ``value`` stands in the configuration."""
    hints = typing.get_type_hints(schema)
    if not isinstance(value, Mapping):
        problems.append(Problem(key, f"{_shown(value)} is no group of keys; write some of {', '.join(hints)} below it"))
        return schema()
    values, leaves = {}, {}
    for name, entry in value.items():
        where = f"{key}.{name}" if key else str(name)
        if entry is None and typing.get_origin(hints.get(name)) is dict:
            entry = {}  # `kwargs:` with nothing below it, and model.kwargs=null, which drops what the group had
        if name not in hints:
            problems.append(Problem(where, f"unknown key; {did_you_mean(str(name), hints)}"))
        elif dataclasses.is_dataclass(hints[name]):
            values[name] = _section(hints[name], entry, where, problems)
        elif hints[name] == dict[str, PartySettings] and isinstance(entry, Mapping):
            values[name] = {str(k): _section(PartySettings, v, f"{where}.{k}", problems) for k, v in entry.items()}
        elif wrong := _wrong(hints[name], entry):
            problems.append(Problem(where, wrong))
        else:
            leaves[name] = entry
    try:
        values |= _converted(schema, leaves)
    except OmegaConfBaseException:  # one or more of them: find out which
        for name, entry in leaves.items():
            try:
                values |= _converted(schema, {name: entry})
            except OmegaConfBaseException:
                where = f"{key}.{name}" if key else str(name)
                problems.append(Problem(where, f"{_shown(entry)} is not valid; write {_described(hints[name])}"))
    return schema(**values)


def _converted(schema: type, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Values converted by OmegaConf to the types of their fields; it raises if one cannot be."""
    section = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), leaves))
    return {name: getattr(section, name) for name in leaves}


def _wrong(kind: Any, value: Any) -> str | None:
    """What OmegaConf would let pass or explain badly."""
    kinds, atoms = list(_atom_types(kind)), list(_atoms(value))
    if "???" in atoms:
        return f"must be given; write {_described(kind)}"
    if str in kinds and any(isinstance(atom, bool) for atom in atoms):
        return "YAML reads yes, no, on, off as true or false; put quotes around the text"
    for members in (list(k.__members__) for k in kinds if isinstance(k, type) and issubclass(k, Enum)):
        for atom in atoms:
            if isinstance(atom, str) and atom not in members:
                return f"{atom!r} is not valid; {did_you_mean(atom, members)}"
    return None


def _atom_types(kind: Any) -> Iterator[Any]:
    """The types at the leaves of a type hint; keys of dicts are left out."""
    args = typing.get_args(kind)
    if not args:
        yield kind
    for arg in args[1:] if typing.get_origin(kind) is dict else args:
        yield from _atom_types(arg)


def _atoms(value: Any) -> Iterator[Any]:
    """The values at the leaves of nested dicts and lists."""
    if isinstance(value, (Mapping, list)):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _atoms(entry)
    else:
        yield value


def _described(kind: Any) -> str:
    """A type hint in words."""
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    if kind in words:
        return words[kind]
    args = typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return f"a list of {_plural(args[0])}, like [{_example(args[0])}]"
    if typing.get_origin(kind) is dict:
        return "a group of names and values" if args[1] is Any else f"a group of names, each with {_described(args[1])}"
    if args:
        return " or ".join(_described(arg) for arg in args)
    return f"one of {', '.join(kind.__members__)}"


def _plural(kind: Any) -> str:
    return {str: "texts", float: "numbers"}.get(kind) or _described(kind).removeprefix("one of ")


def _example(kind: Any) -> str:
    return {str: "a, b", float: "0.5"}.get(kind) or next(iter(kind.__members__))


def _shown(value: Any) -> str:
    """A value as one short line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
