"""A thin wrapper around Hydra's composition: overrides in, plain dicts out, and every mistake as one line.

Hydra stops at the first mistake. Here each override is looked at by itself first: a choice that its group does not have
is reported with the nearest one. Overrides of single keys are then forced (``++``) upon Hydra, since `from_mapping`
checks keys and types of the result, all of them at once.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from mpc_imaging.errors import ConfigError
from mpc_imaging.model_checks import LOCAL_KEY
from mpc_imaging.reading import Problem, did_you_mean, read
from mpc_imaging.settings import Settings, from_mapping, to_mapping

if TYPE_CHECKING:  # Hydra takes a second to import: functions do it, so that nobody pays who only reads settings
    from hydra.core.override_parser.types import Override

MAIN = "main"

# What configuration files may say below `hydra`: where runs are kept, and help. All else decides what Hydra runs, and
# with which environment; callbacks and logging call what they name.
_HYDRA_OF_FILES = ("run", "sweep", "help", "hydra_help")
_HYDRA_OF_ITSELF = ("overrides", "runtime", "searchpath")  # which Hydra fills in, or `compose` sets
_JOB_OF_ITSELF = ("name", "config_name", "override_dirname", "id", "num")


def conf_dir() -> Path:
    """The folder of the built-in configuration: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def register() -> None:
    """Make known to Hydra what ``conf/`` relies on: the schema ``settings`` and the resolvers ``len`` and ``pid``."""
    from hydra.core.config_store import ConfigStore

    OmegaConf.register_new_resolver("len", len, replace=True)
    OmegaConf.register_new_resolver("pid", os.getpid, replace=True)
    ConfigStore.instance().store(name="settings", node=to_mapping(Settings()), provider="mpc_imaging")


def compose(
    overrides: Sequence[str] = (), config_dirs: Sequence[Path | str] = (), config_name: str = MAIN
) -> dict[str, Any]:
    """The configuration that ``overrides`` (as on the command line) choose, as plain dicts without interpolations.

    ``config_dirs``: folders of the user's own groups and configurations. Keys and types are left to `from_mapping`.
    `model.allow_code` is left out of the overrides (`local_overrides`): where the result has it, a file set it.
    Raises ConfigError with one problem for each override that cannot be composed, and for files that tell Hydra what to
    run.
    """
    config_dirs = [Path(folder) for folder in config_dirs]
    problems = [*_folder_problems(config_dirs, config_name), *_override_problems(overrides, config_dirs).values()]
    if problems:
        raise ConfigError([str(problem) for problem in problems])
    register()
    overrides = [text for text in overrides if not _is_local(text)]
    composed, told = _composed(overrides, config_dirs, config_name)
    if config_dirs:
        own = [text for text in overrides if _parsed(text).key_or_group.split(".")[0].split("/")[0] == "hydra"]
        expected = _composed(own, (), MAIN)[1]
        what = "a configuration file sets it; only your own command line may"
        if problems := [str(Problem(f"hydra.{key}", what)) for key in told if told[key] != expected.get(key)]:
            raise ConfigError(problems)
    return composed


def _composed(
    overrides: Sequence[str], config_dirs: Sequence[Path], config_name: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration, and what it tells Hydra beyond what files may say."""
    from hydra import compose as hydra_compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    folders = [conf_dir(), *(folder.resolve() for folder in config_dirs)]
    primary = next(folder for folder in folders if _file(folder, config_name).is_file())
    others = ",".join(_quoted(f"file://{folder}") for folder in folders if folder != primary)
    before = GlobalHydra.instance().hydra  # a caller's own Hydra session, such as a notebook's
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(primary), job_name="mpc_imaging", version_base="1.3"):
            overrides = [f"hydra.searchpath=[{others}]", *forced(overrides, config_dirs)]
            config = hydra_compose(config_name, overrides, return_hydra_config=True)
        told = OmegaConf.to_container(config.hydra, resolve=False)
        with open_dict(config):
            del config["hydra"]
        composed = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException, MarkedYAMLError) as error:
        raise ConfigError([_one_line(error)]) from error
    finally:
        GlobalHydra.instance().hydra = before
    told["job"] = {key: value for key, value in told["job"].items() if key not in _JOB_OF_ITSELF}
    return composed, {key: value for key, value in told.items() if key not in (*_HYDRA_OF_FILES, *_HYDRA_OF_ITSELF)}


def local_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """``overrides`` (which can be read) without `model.allow_code`, and the packages that it allows: `from_mapping`."""
    local = [text for text in overrides if _is_local(text)]
    return [text for text in overrides if text not in local], _parsed(local[-1]).value() if local else []


def _is_list_of_texts(override: Override) -> bool:
    value = None if override.is_delete() or override.is_sweep_override() else override.value()
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_local(text: str) -> bool:
    return _syntax_problem(text) is None and _parsed(text).key_or_group == LOCAL_KEY


def compose_settings(
    overrides: Sequence[str] = (),
    config_dirs: Sequence[Path | str] = (),
    config_name: str = MAIN,
    party: str | None = None,
) -> Settings:
    """`compose`, then `from_mapping` (see there for ``party``), with the problems of both in one ConfigError."""
    wrong = _override_problems(overrides, config_dirs)
    overrides, allow_code = local_overrides([text for text in overrides if text not in wrong])
    mapping = compose(overrides, config_dirs, config_name)
    if not wrong:
        return from_mapping(mapping, party, allow_code)
    # Whether the rest fits together cannot be said without the wrong choices; its keys and types can.
    raise ConfigError([str(problem) for problem in (*wrong.values(), *read(mapping)[1])])


def forced(overrides: Sequence[str], config_dirs: Sequence[Path | str] = ()) -> list[str]:
    """``overrides`` as Hydra should see them: ``++`` for single keys, which then need not exist; none for groups.

    A mapping given whole (``policy.reveal={...}``) replaces what stood there.
    """
    built_in, groups = _groups([]), _groups(config_dirs)
    result = []
    for override in map(_parsed, overrides):
        line = override.input_line
        if override.key_or_group in built_in:
            line = line.lstrip("+")
        elif not (override.is_hydra_override() or override.is_delete() or override.key_or_group in groups):
            line = "++" + line.lstrip("+")
            if (
                not override.is_sweep_override()
                and isinstance(override.value(), dict)
                and _is_mapping(override.key_or_group)
            ):
                # Hydra would add to what the group's file lists: policy.reveal={...} would open more than it says.
                result.append(f"~{override.key_or_group}")
        result.append(line)
    return result


def _is_mapping(key: str) -> bool:
    """Whether a dotted key of the schema holds a mapping."""
    node: Any = to_mapping(Settings())
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return isinstance(node, dict)


def points(overrides: Sequence[str]) -> list[list[str]]:
    """The runs that overrides with several values stand for (``a=1,2 b=3,4``: four), in Hydra's order.

    Raises ConfigError for an override that cannot be read, or that stands for endlessly many values.
    """
    problems = [problem for text in overrides if (problem := _syntax_problem(text))]
    parsed = [] if problems else [_parsed(text) for text in overrides]
    problems += [
        Problem(LOCAL_KEY, "the same for all runs; write it once, like [my_package]")
        for override in parsed
        if override.is_sweep_override() and override.key_or_group == LOCAL_KEY
    ]
    problems += [
        Problem(override.key_or_group, "no list of values; write them all, like 1,2,3 or range(1,4)")
        for override in parsed
        if override.is_sweep_override() and not override.is_discrete_sweep()
    ]
    if problems:
        raise ConfigError([str(problem) for problem in problems])
    choices = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [override.input_line]
        for override in parsed
    ]
    return [list(point) for point in itertools.product(*choices)]


def _override_problems(overrides: Sequence[str], config_dirs: Sequence[Path | str]) -> dict[str, Problem]:
    """What is wrong with each override that cannot be read, names no choice of its group, or has several values."""
    groups = _groups(config_dirs)
    problems = {}
    for text in overrides:
        if problem := _syntax_problem(text):
            problems[text] = problem
            continue
        override = _parsed(text)
        group = override.key_or_group
        if group == "hydra.searchpath":
            problems[text] = Problem(group, "write --config-dir FOLDER for a folder of your own")
        elif group == LOCAL_KEY and not _is_list_of_texts(override):
            problems[text] = Problem(group, "no list of packages; write [my_package], the same for all runs")
        elif override.is_sweep_override():
            problems[text] = Problem(
                group, "several values: add -m to sweep, or write [a,b] for a list, 'a,b' for text"
            )
        elif group in groups and not override.is_delete():
            value = override.value()
            for choice in value if isinstance(value, list) else [value]:
                if choice is None:
                    problems[text] = Problem(f"{group}=null", f"names no choice; write ~{group} to leave it out")
                elif str(choice) not in groups[group]:
                    what = f"no such {group}; {did_you_mean(str(choice), groups[group])}"
                    problems[text] = Problem(f"{group}={choice}", what)
    return problems


def _folder_problems(config_dirs: Sequence[Path], config_name: str) -> Iterator[Problem]:
    built_in = {path.relative_to(conf_dir()) for path in conf_dir().rglob("*.yaml")}
    for folder in config_dirs:
        if not folder.is_dir():
            yield Problem("--config-dir", f"there is no folder {folder}; write the one that holds your groups")
        for path in sorted(folder.rglob("*.yaml")):
            if path.relative_to(folder) in built_in:
                yield Problem("--config-dir", f"{path} has the name of a built-in file, which would win; rename it")
    folders = (conf_dir(), *config_dirs)
    if not any(_file(folder, config_name).is_file() for folder in folders):
        names = {path.stem for folder in folders for path in folder.glob("*.yaml")}
        yield Problem("--config-name", f"there is no {config_name}; {did_you_mean(config_name, sorted(names))}")


def _file(folder: Path, config_name: str) -> Path:
    return folder / f"{config_name.removesuffix('.yaml')}.yaml"


def _groups(config_dirs: Sequence[Path | str]) -> dict[str, list[str]]:
    """The choices of each group in the built-in and the user's folders."""
    groups: dict[str, list[str]] = {}
    for folder in (conf_dir(), *map(Path, config_dirs)):
        for path in sorted(folder.rglob("*.yaml")):
            group = path.parent.relative_to(folder).as_posix()
            if group != ".":
                groups.setdefault(group, []).append(path.stem)
    return groups


def _parsed(text: str) -> Override:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides([text])[0]


def _syntax_problem(text: str) -> Problem | None:
    from hydra.errors import HydraException

    try:
        _parsed(text)
    except HydraException:
        return Problem(
            repr(text), "cannot be read; write key=value, with quotes around values that hold , = { [ or spaces"
        )
    return None


def _quoted(text: str) -> str:
    """A string in the grammar of overrides."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _one_line(error: BaseException) -> str:
    """The message of an error from Hydra, OmegaConf or the YAML reader, without its further lines."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: {error.problem}"
    if not str(error).strip() and error.__cause__:
        return _one_line(error.__cause__)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {lines[0]}" if error.full_key else lines[0]
    return " ".join(lines[:2])
