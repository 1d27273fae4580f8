"""Which code a configuration may name as a model, and with which arguments: looked at as text, before any is imported.

A configuration is often written by somebody else. What it names is code of `PREFIXES`, or of a package that this
machine's operator allows by ``model.allow_code`` on their own command line; `models.targets` has the rest of the check,
for which the code must be there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mpc_imaging.reading import Problem
from mpc_imaging.settings import Role, Settings

# Only of what they define themselves, and only networks: see `models.targets.find`.
PREFIXES = ("mpc_imaging.models", "torchvision.models", "torch.nn")

# Arguments by which torchvision's functions fetch weights from the network.
DOWNLOADS = ("weights", "weights_backbone", "pretrained", "pretrained_backbone")

LOCAL_KEY = "model.allow_code"


def within(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a dotted name is one of ``prefixes`` or below one: a.b is below a, and ab is not."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def is_dotted(name: object) -> bool:
    """Whether this is a name such as package.module: of letters, digits and underscores, with single dots."""
    return isinstance(name, str) and name.isascii() and all(part.isidentifier() for part in name.split("."))


def target_problem(target: str, allow_code: Sequence[str]) -> str | None:
    """What is wrong with the dotted name of a model; None if it may be looked for."""
    if "." not in target or not is_dotted(target):
        return f"{target!r} is no dotted name; write package.module.Class"
    *_, last = PREFIXES
    if not within(target.rpartition(".")[0], [*PREFIXES, *allow_code]):
        listed = ", ".join(PREFIXES[:-1])
        what = f"{target} is not in {listed} or {last}, and no other code runs because a configuration names it"
        return f"{what}; if you trust it, add {LOCAL_KEY}=[{target.partition('.')[0]}] to your own command line"
    return None


def argument_problems(
    target: str, kwargs: Mapping[str, object], key: str = "model.kwargs", file: str = "model.weights.path"
) -> Iterator[Problem]:
    """What is wrong with the arguments of a model; ``file``: the key for a file of its weights."""
    yield from _plain_problems(kwargs, key)
    for name in DOWNLOADS if within(target, ["torchvision"]) else ():
        if kwargs.get(name):
            what = "a run fetches no weights from the network"
            yield Problem(f"{key}.{name}", f"{what}; leave it out, and write {file}=FILE with a file that you have")


def _plain_problems(value: object, key: str) -> Iterator[Problem]:
    if isinstance(value, Mapping):
        for name, entry in value.items():
            if not isinstance(name, str) or (name.startswith("_") and name.endswith("_")):
                what = "arguments are plain data, from which nothing is built or called"
                yield Problem(f"{key}.{name}", f"{what}; leave out {name!r}")
            else:
                yield from _plain_problems(entry, f"{key}.{name}")
    elif isinstance(value, (list, tuple)):
        for number, entry in enumerate(value):
            yield from _plain_problems(entry, f"{key}.{number}")
    elif value is not None and not isinstance(value, (bool, int, float, str)):
        yield Problem(key, f"{type(value).__name__} is no plain data; write numbers, text, true, false, null or lists")


def code(settings: Settings, party: str | None) -> Iterator[Problem]:
    """Of the code of the model and of its backbone; the dealer imports neither."""
    model, backbone = settings.model, settings.model.backbone
    if party is not None and party in settings.parties_with(Role.dealer):
        return
    for prefix in model.allow_code:
        if not is_dotted(prefix):
            yield Problem(LOCAL_KEY, f"{prefix!r} is no package or module; write names like my_package")
    named = [("model", model._target_, model.kwargs, "model.weights.path")]
    if backbone._target_ is not None:
        named.append(("model.backbone", backbone._target_, backbone.kwargs, "model.backbone.path"))
    for key, target, kwargs, file in named:
        if problem := target_problem(target, model.allow_code):
            yield Problem(f"{key}._target_", problem)
        yield from argument_problems(target, kwargs, f"{key}.kwargs", file)


CHECKS = (code,)
