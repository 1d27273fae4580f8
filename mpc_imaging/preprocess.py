"""Correlated randomness ahead of time, for runs without a dealer: ``python -m mpc_imaging.preprocess``.

The dealer's operator runs it. By a plan it writes a one-time store with a folder for each compute party. CrypTen is not
imported here: a plan that is not given as a file is made by a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpc_imaging import hardening, strict_json
from mpc_imaging.commands import Parser, complain, fall_silent
from mpc_imaging.errors import ConfigError, MPCImagingError, RandomnessError
from mpc_imaging.parties import parts
from mpc_imaging.plan import settings_of
from mpc_imaging.report import wording
from mpc_imaging.settings import ProtocolName, Settings

if TYPE_CHECKING:
    from mpc_imaging.randomness.plan import Plan
    from mpc_imaging.randomness.sealing import PartSealer

EPILOG = """\
A store holds sessions of one plan: each is good for one run of the task that was planned, once, ever. A run with other
settings or numbers of images has another plan, and is refused.

1. Plan. The plan is public, so any party can make it, where the model's code is; no image is needed, only how many:
     python -m mpc_imaging.plan experiment=pneumonia_infer --images hospital_a=312,hospital_b=312 --write plan.json
2. Preprocess, at the dealer, who needs neither data nor model. It says how much room it takes, before it begins:
     python -m mpc_imaging.preprocess experiment=pneumonia_infer --plan plan.json preprocess.count=100 \\
         preprocess.store=STORE
   Without --plan it makes the plan itself; then give it the --images of step 1, or the images.
   Each part is sealed to its party's certificate and signed with the dealer's. Give transport.certificates=FOLDER, the
   dealer's own folder of python -m mpc_imaging.certs, and put the party.crt of each compute party (no secret) there:
     FOLDER/peers/hospital_a.crt, FOLDER/peers/hospital_b.crt
   Without transport.certificates the store is for a trial on this machine: it holds keys for all parties itself.
3. Move STORE/hospital_a to hospital_a and STORE/hospital_b to hospital_b, and keep no copy. Nobody else can open a
   part; but whoever gets a copy, and later the party's key, can. A party that gets a new key needs a new store.
4. Run, at each party, with randomness.store= the folder where its part now is. The dealer is not started:
     python -m mpc_imaging.party party=hospital_a experiment=pneumonia_infer randomness=stored \\
         randomness.store=FOLDER …
   All parties on this machine: python -m mpc_imaging experiment=… randomness=stored randomness.store=STORE

Every run takes the next session and deletes it; one that fails or is killed has used its session up. Never take
snapshots or backups of a store: a session that comes back could be used twice, and would then hide nothing. Every party
remembers what it saw, beside its certificates or in randomness.witness=FOLDER: keep that from run to run.
"""


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m mpc_imaging.preprocess",
        description="Write correlated randomness for preprocess.count sessions into a new folder, preprocess.store.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for python -m mpc_imaging")
    parser.add_argument(
        "--config-dir", action="append", default=[], help="folder with configuration groups of your own"
    )
    parser.add_argument("--plan", type=Path, metavar="FILE", help="what python -m mpc_imaging.plan --write wrote")
    parser.add_argument(
        "--images", action="append", default=[], metavar="[SPLIT:]OWNER=N,…", help="as for python -m mpc_imaging.plan"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_intermixed_args(argv)


class _PlanError(MPCImagingError):
    """The process that makes the plan failed, and has said why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the store; returns the exit code: 2 for what cannot be begun, else 1 for what went wrong."""
    hardening.harden()
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    os.umask(0o077)  # a store is nobody's but its party's
    try:
        settings = settings_of(arguments.overrides, arguments.config_dir, stated=True)
        root = Path(settings.preprocess.store).expanduser()
        sealers = _check(arguments, settings, root)
        plan = _plan(arguments, settings)
        _check_room(settings, plan, root)
        started = time.monotonic()
        with parts.trial_sealers(root, settings) if sealers is None else contextlib.nullcontext(sealers) as sealers:
            write_store(root, sealers, plan, settings.preprocess.count)
        _show(settings, plan, root, time.monotonic() - started)
        sys.stdout.flush()
    except _PlanError as error:
        return error.exit_code
    except MPCImagingError as error:
        return complain(error, arguments.debug)
    except KeyboardInterrupt:
        print("stopped by the operator", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the store is there, but nobody reads what is said of it
        return fall_silent()
    return 0


def _check(arguments: argparse.Namespace, settings: Settings, root: Path) -> list[PartSealer] | None:
    """What seals each party's part; None for a trial. Raises `ConfigError` for what cannot be done."""
    problems, sealers, certificates = [], None, settings.transport.certificates
    if settings.protocol.name is ProtocolName.insecure_simulation:
        problems.append("protocol.name: insecure_simulation uses no correlated randomness; choose another protocol")
    if arguments.plan and arguments.images:
        problems.append("--images: a plan that is given has its numbers of images; leave out one of the two")
    try:
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            problems.append(f"preprocess.store: {root} exists and is not an empty folder; name another or remove it")
    except OSError as error:
        problems.append(f"preprocess.store: {root} cannot be read: {error.strerror}; name another folder")
    if certificates is not None:
        try:
            sealers = parts.sealers(Path(certificates).expanduser(), settings.dealer(), settings.compute_parties())
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return sealers


def _plan(arguments: argparse.Namespace, settings: Settings) -> Plan:
    """The plan that is given, or that a process of its own makes of the same overrides."""
    if arguments.plan:
        return read_plan(arguments.plan, settings)
    with tempfile.TemporaryDirectory(prefix="mpc_imaging_") as folder:
        file = Path(folder, "plan.json")
        command = [sys.executable, "-m", "mpc_imaging.plan", *arguments.overrides, "--write", str(file)]
        command += [text for path in arguments.config_dir for text in ("--config-dir", path)]
        command += [text for counts in arguments.images for text in ("--images", counts)]
        command += ["--debug"] if arguments.debug else []
        print("planning …", file=sys.stderr, flush=True)
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode
        if code:
            failed = _PlanError(f"the plan was not made: exit code {code}")
            failed.exit_code = code if code > 0 else 1
            raise failed
        return read_plan(file, settings)


def read_plan(path: Path, settings: Settings) -> Plan:
    """The plan in a file; raises `ConfigError` for anything else, and for a plan of other compute parties."""
    from mpc_imaging.randomness.dealer import PLAN_LIMIT
    from mpc_imaging.randomness.plan import Plan

    again = "write one with python -m mpc_imaging.plan … --write FILE"
    try:
        with path.open("rb") as file:
            raw = file.read(PLAN_LIMIT + 1)
        if len(raw) > PLAN_LIMIT:
            raise ConfigError([f"--plan: {path} is too large for a plan; {again}"])
        plan = Plan.from_json(strict_json.loads(raw))
    except OSError as error:
        raise ConfigError([f"--plan: cannot read {path}: {error.strerror}; {again}"]) from None
    except strict_json.JsonError:
        raise ConfigError([f"--plan: {path} is damaged or no plan; {again}"]) from None
    except RandomnessError as error:
        raise ConfigError([f"--plan: {path}: {error}"]) from None
    compute = settings.compute_parties()
    if plan.parties != len(compute):
        topology = f"topology {settings.topology.name} has {len(compute)} ({', '.join(compute)})"
        raise ConfigError([f"--plan: {path} is for {plan.parties} compute parties, but {topology}; {again}"])
    return plan


def sizes(settings: Settings, plan: Plan) -> dict[str, int]:
    """Bytes of each compute party's part of the store."""
    from mpc_imaging.randomness.store_files import file_octets

    return {
        name: settings.preprocess.count * file_octets(plan.octets(rank))
        for rank, name in enumerate(settings.compute_parties())
    }


def _check_room(settings: Settings, plan: Plan, root: Path) -> None:
    count, needed = settings.preprocess.count, sum(sizes(settings, plan).values())
    place = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    print(f"{_sessions(count)}: {wording.size(needed)}; {wording.size(free)} are free", file=sys.stderr, flush=True)
    if needed > free:
        fitting = free * count // needed
        instead = f"write preprocess.count={fitting} or less, or" if fitting else "write"
        raise ConfigError(
            [
                f"preprocess.store: {_sessions(count)} would take {wording.size(needed)}, but {wording.size(free)} are "
                f"free at {place}; {instead} a folder on another disk"
            ]
        )


def _sessions(count: int) -> str:
    return f"{count:,} session{'' if count == 1 else 's'}"


def write_store(root: Path, sealers: Sequence[PartSealer], plan: Plan, count: int) -> None:
    """Deal ``count`` sessions of the plan into ``root``, for compute parties by rank, on all cores that we may use.

    Shows a bar. Raises `StoreError`, and then leaves no part of the store.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers of the pool take the cores
    from mpc_imaging.randomness.pool import DealingPool
    from mpc_imaging.randomness.store import StoreWriter

    octets = count * sum(plan.octets(rank) for rank in range(len(sealers)))
    with (
        _bar(count, octets) as advance,
        DealingPool() as pool,
        StoreWriter(root, sealers, plan.digest, count) as writer,
    ):
        for number in range(count):
            with writer.session(number) as session:
                for messages in pool.deal(plan, session.keys, session.key_id):
                    for rank, message in enumerate(messages):
                        session.write(rank, message)
                    advance(number, sum(part.nbytes for message in messages for part in message))
        writer.finish()


@contextlib.contextmanager
def _bar(count: int, octets: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, its last line elsewhere; what it yields takes a session's number and the bytes written."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("session {task.fields[session]} of " + str(count)),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=octets, session=1)
        yield lambda number, written: bar.update(task, advance=written, session=number + 1)


def _show(settings: Settings, plan: Plan, root: Path, seconds: float) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    octets, count = sizes(settings, plan), settings.preprocess.count
    total = sum(octets.values())
    written = f"{wording.size(total)} in {wording.seconds(seconds)} ({wording.size(total / seconds)}/s)"
    print(f"{_sessions(count)} of plan {plan.digest[:16]}, {written}")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("move", overflow="fold")
    table.add_column("to", overflow="fold")
    for heading in ("sessions", "size", "each"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, size in octets.items():
        cells = (wording.count(count), wording.size(size), wording.size(size / count))
        table.add_row(Text(str(root / name)), name, *cells)
    Console().print(table)
    if settings.transport.certificates is None:
        print(
            f"For trials on this machine only: {root / parts.TRIAL} holds keys of all parties. (For parties on machines"
        )
        print("of their own give transport.certificates; see --help.) Run, without the dealer, with")
        print(f"randomness=stored randomness.store={root}")
        return
    print("Each part is sealed to its party's certificate. Move each folder, and keep no copy. Then run, without the")
    print("dealer, with randomness=stored randomness.store=FOLDER at each party.")


if __name__ == "__main__":
    sys.exit(main())
