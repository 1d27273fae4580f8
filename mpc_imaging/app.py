"""Run a configuration with all its parties on this machine, and report on it: ``python -m mpc_imaging``.

The command line is Hydra's (``key=value``, ``-m``, ``--cfg``, ``--config-dir`` ...), checked here before Hydra sees it,
so that mistakes are listed together, a line each. Exit codes: 0 all went well; 1 a run, or a point of a sweep, failed;
2 the configuration cannot be run; otherwise that of the process that failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from mpc_imaging import local_files
from mpc_imaging.commands import fall_silent
from mpc_imaging.compose import MAIN, compose, compose_settings, conf_dir, forced, local_overrides, points, register
from mpc_imaging.errors import ConfigError, MPCImagingError
from mpc_imaging.parties.launcher import LaunchError, allowing, last_line, launch
from mpc_imaging.parties.parts import trial_certificates
from mpc_imaging.reading import Problem, read
from mpc_imaging.settings import ProtocolName, Settings, from_mapping, save

if TYPE_CHECKING:
    from omegaconf import DictConfig

DEBUG = "MPC_IMAGING_DEBUG"

# Given to Hydra on every command line rather than in conf/main.yaml, since a run that is repeated from RUN/.hydra does
# not read that file. Time stamps alone collide when two runs start together.
_HYDRA = {
    "hydra.run.dir": "'outputs/${now:%Y-%m-%d}/${now:%H-%M-%S-%f}_${name}_${pid:}'",
    "hydra.sweep.dir": "'outputs/${now:%Y-%m-%d}/${now:%H-%M-%S-%f}_sweep_${pid:}'",
    "hydra/hydra_logging": "none",
    "hydra/job_logging": "none",
    "hydra.searchpath": "[]",  # a file that adds folders would have others composed than were checked
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what ``argv`` (by default the command line) asks for; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_intermixed_args(argv)
    if args.debug:
        os.environ[DEBUG] = "1"  # for the child processes too
    allow_code: list[str] = []
    if not (args.help or args.hydra_help or args.info or args.shell_completion):
        problems = _check(args)
        if problems:
            _complain(problems)
            return 2
        # Hydra does not see it, and keeps it in no file.
        kept, allow_code = local_overrides(args.overrides)
        argv = [text for text in argv if text in kept or text not in args.overrides]
        args.overrides = kept
    attempts: list[dict[str, Any]] = []
    sweep_dir: Path | None = None

    def job(config: DictConfig) -> None:
        nonlocal sweep_dir
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        overrides = [text.lstrip("+") for text in hydra.overrides.task]
        if args.multirun:
            print(f"Point {len(attempts)}: {' '.join(overrides)}", flush=True)
        run_dir = Path(hydra.runtime.output_dir)
        attempts.append({"overrides": overrides, "run_dir": str(run_dir), **attempt(config, run_dir, allow_code)})
        if args.multirun:
            sweep_dir = Path(hydra.sweep.dir)
            (sweep_dir / "points.json").write_text(json.dumps(attempts, indent=1, allow_nan=False))

    try:
        _hand_to_hydra(argv, args, job)
    except KeyboardInterrupt:
        print("interrupted; all parties have been ended", file=sys.stderr)
        return 130
    except BrokenPipeError:  # --help | head: nobody reads on, and the interpreter's last flush must not complain
        return fall_silent()
    return _conclude(attempts, sweep_dir)


def attempt(config: Mapping[str, Any], run_dir: Path, allow_code: Sequence[str] = ()) -> dict[str, Any]:
    """`run` without raising: a dict of status ("ok" or "failed"), error, exit_code and metrics.

    An error that nobody foresaw leaves its traceback in ``run_dir``/error.txt.
    """
    try:
        metrics = run(config, run_dir, allow_code)
        return {"status": "ok", "error": None, "exit_code": 0, "metrics": metrics}
    except Exception as error:
        message, code = str(error), 2 if isinstance(error, ConfigError) else getattr(error, "exit_code", 1)
        if not isinstance(error, MPCImagingError):
            (run_dir / "error.txt").write_text(traceback.format_exc())
            message = f"{type(error).__name__}: {error} (details in {run_dir / 'error.txt'})"
        if os.environ.get(DEBUG) == "1":
            traceback.print_exc()
        return {"status": "failed", "error": message, "exit_code": code, "metrics": None}


def run(config: Mapping[str, Any], run_dir: Path, allow_code: Sequence[str] = ()) -> dict[str, Any]:
    """Run one configuration in ``run_dir``: all parties, then the joint report; returns the content of metrics.json.

    Relative paths in ``config`` start at the current folder. ``allow_code``: see `from_mapping`.
    Raises ConfigError if it cannot be run here, LaunchError if a process fails.
    """
    mapping = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    settings = from_mapping(mapping, allow_code=allow_code)
    _make_absolute(settings)
    if problems := _local_problems(settings):
        raise ConfigError(problems)
    save(settings, run_dir / "settings.yaml")
    if settings.protocol.name is ProtocolName.insecure_simulation:
        print("warning: protocol=insecure_simulation protects nothing; use it for comparison only", file=sys.stderr)
    launch(run_dir, settings)
    _report_jointly(run_dir, settings.model.allow_code)
    return json.loads((run_dir / "metrics.json").read_text())


def _parser() -> argparse.ArgumentParser:
    """Hydra's own parser of the command line, and our flag."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.add_argument("--debug", action="store_true", help="Show tracebacks")
    return parser


def _check(args: argparse.Namespace) -> list[str]:
    """Everything wrong with the command line and the configuration that it chooses."""
    if args.config_path:
        return ["--config-path: the built-in configuration is always used; add yours with --config-dir"]
    if args.experimental_rerun:
        return ["--experimental-rerun: pickles are never read; write --config-dir RUN/.hydra --config-name config"]
    where = ([Path(args.config_dir)] if args.config_dir else [], args.config_name or MAIN)
    try:
        if args.cfg:  # to be looked at, so it may lack what only a run needs
            return list(map(str, read(compose(args.overrides, *where))[1]))
        if args.multirun:
            return _check_sweep(points(args.overrides), *where)
        settings = compose_settings(args.overrides, *where)
    except ConfigError as error:
        return error.problems
    return _local_problems(settings)


def _check_sweep(sweep: list[list[str]], config_dirs: list[Path], config_name: str) -> list[str]:
    """What stops a whole sweep: an override that no point can have, or problems in each and every point.

    A point that merely does not fit together is run, fails, and is recorded.
    """
    fatal: list[str] = []
    failing: list[list[str]] = []
    for point in sweep:
        try:
            mapping = compose(point, config_dirs, config_name)
            fatal += map(str, read(mapping)[1])
        except ConfigError as error:
            fatal += error.problems
            continue
        try:
            failing.append(_local_problems(from_mapping(mapping, allow_code=local_overrides(point)[1])))
        except ConfigError as error:
            failing.append(error.problems)
    everywhere = [problem for problems in failing for problem in problems] if all(failing) else []
    return list(dict.fromkeys(fatal or everywhere))


def _local_problems(settings: Settings) -> list[str]:
    """Why these settings cannot be run by one machine for all parties."""
    problems = []
    for name in settings.participants() if not settings.has_loopback_addresses() else ():
        address, command = settings.topology.parties[name].address, f"python -m mpc_imaging.party party={name}"
        what = f"{address}: not all parties are on this machine; start {name} on its own with {command}"
        problems.append(Problem(f"topology.parties.{name}.address", what))
    problems += local_files.find_problems(settings)
    store = settings.randomness.store
    if store and Path(store).expanduser().exists() and trial_certificates(settings) is None:
        what = (
            "the parts of this store cannot be opened here: version 0.1.0 wrote it and did not seal them, or they are "
            "sealed to parties on machines of their own; run python -m mpc_imaging.preprocess again, without "
            "transport.certificates, or start each party with python -m mpc_imaging.party"
        )
        problems.append(Problem("randomness.store", what))
    return list(map(str, problems))


def _make_absolute(settings: Settings) -> None:
    """Let relative paths mean the same in RUN/settings.yaml as on the command line."""

    def absolute(path: str | None) -> str | None:
        return str(Path(path).expanduser().absolute()) if path else path

    settings.data.path = absolute(settings.data.path)
    settings.data.paths = {name: absolute(path) for name, path in settings.data.paths.items()}
    settings.data.pseudonym_key_file = absolute(settings.data.pseudonym_key_file)
    settings.model.weights.path = absolute(settings.model.weights.path)
    settings.model.backbone.path = absolute(settings.model.backbone.path)
    settings.checkpoint.path = absolute(settings.checkpoint.path)
    settings.checkpoint.key_file = absolute(settings.checkpoint.key_file)
    settings.randomness.store = absolute(settings.randomness.store)
    settings.randomness.witness = absolute(settings.randomness.witness)


def _report_jointly(run_dir: Path, allow_code: Sequence[str] = ()) -> None:
    """Compare with plaintext in a process of its own, which may see what all parties saw: only a simulation may."""
    log = run_dir / "report_stderr.txt"
    with log.open("wb") as stderr:
        options = [str(run_dir), "--one-machine", *allowing(allow_code)]
        command = [sys.executable, "-m", "mpc_imaging.tasks.joint", *options]
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=stderr).returncode
    if code:
        raise LaunchError(f"report: {last_line(log) or f'ended with exit code {code}'}", code if code > 0 else 1)


def _hand_to_hydra(argv: list[str], args: argparse.Namespace, job: Callable[[DictConfig], None]) -> None:
    """Let Hydra do what the command line says, with ``job`` as the task function."""
    import hydra

    flags = [text for text in argv if text != "--debug"]
    for text in args.overrides:
        flags.remove(text)
    chosen = {text.lstrip("+").partition("=")[0] for text in args.overrides}
    ours = [f"{key}={value}" for key, value in _HYDRA.items() if key not in chosen]
    overrides = forced(args.overrides, [Path(args.config_dir)] if args.config_dir else [])
    register()
    before, sys.argv = sys.argv, [sys.argv[0], *flags, *overrides, *ours]
    try:
        hydra.main(config_path=str(conf_dir()), config_name=MAIN, version_base="1.3")(job)()
    finally:
        sys.argv = before


def _conclude(attempts: list[dict[str, Any]], sweep_dir: Path | None) -> int:
    """Print the outcome; a failure's cause comes last. Returns the exit code. ``sweep_dir``: None for a single run."""
    if not attempts:  # --cfg and the like
        return 0
    if sweep_dir is not None:
        return _conclude_sweep(attempts, sweep_dir)
    (only,) = attempts
    if only["status"] == "failed":
        print(f"The run failed; logs of the parties are in {only['run_dir']}/parties", file=sys.stderr)
        _complain([only["error"]])
        return only["exit_code"]
    from mpc_imaging.report import tables

    _print_tables(tables.outcome_tables(only["metrics"]))
    print(f"Report: {os.path.relpath(only['run_dir'])}/report.html")
    return 0


def _conclude_sweep(attempts: list[dict[str, Any]], sweep_dir: Path) -> int:
    """Print a row for each point, and what folds come to together, of which two files are kept."""
    from mpc_imaging.report import folds, tables

    common = set.intersection(*(set(point["overrides"]) for point in attempts)) if len(attempts) > 1 else set()
    _print_tables(
        [
            tables.sweep_table(
                [p | {"overrides": [text for text in p["overrides"] if text not in common]} for p in attempts]
            )
        ]
    )
    summary = folds.summarise(attempts)
    if summary is not None:
        folds.write_folds(sweep_dir, summary)
        _print_tables(map(folds.folds_table, summary["groups"]))
        print(f"Folds: {os.path.relpath(sweep_dir)}/folds.html")
    return int(any(point["status"] == "failed" for point in attempts))


def _print_tables(shown: Iterable[Any]) -> None:
    from rich.console import Console

    for table in shown:
        Console().print(table)


def _complain(problems: Sequence[str]) -> None:
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
