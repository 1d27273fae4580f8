"""What a run will cost, without running it: ``python -m mpc_imaging.plan``.

One compute party's part is rehearsed with nobody, on zeros. The plan that comes of it can be written to a file, from
which the dealer makes a store ahead of time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpc_imaging.commands import Parser, complain, fall_silent
from mpc_imaging.compose import compose, compose_settings, local_overrides
from mpc_imaging.errors import ConfigError, DataError, MPCImagingError
from mpc_imaging.reading import did_you_mean, read
from mpc_imaging.settings import (
    SPLITS,
    ProtocolName,
    RandomnessMode,
    Role,
    Settings,
    TaskKind,
    from_mapping,
    to_mapping,
)

if TYPE_CHECKING:
    from mpc_imaging.tasks.rehearsal import Rehearsal

EPILOG = """\
Rounds and bytes are exact: a run counts the same. Seconds are estimates of the online phase, from prices of work that
were measured on one core (mpc_imaging/report/prices.py), for loopback, a LAN (1 Gbit/s, 0.5 ms) and a WAN (100 Mbit/s,
40 ms). The dealer's messages come beside it, or before, as randomness.mode says; their row is the time that they take.

Images are counted by reading them, as a run does. Where they are not on this machine, say how many there are:
--images hospital_a=100,hospital_b=80 for every split that the task needs, or --images train:hospital_a=100,… once for
each split.

examples:
  python -m mpc_imaging.plan experiment=demo
  python -m mpc_imaging.plan experiment=demo topology=three_hospitals --rank 2 --json costs.json
  python -m mpc_imaging.plan experiment=pneumonia_infer --images hospital_a=312,hospital_b=312 --write plan.json
"""

_IMAGES = re.compile(r"(?:(?P<split>[a-z]+):)?(?P<counts>[^:]+)")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m mpc_imaging.plan",
        description="Say what a run will cost, without running it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for python -m mpc_imaging")
    parser.add_argument(
        "--config-dir", action="append", default=[], help="folder with configuration groups of your own"
    )
    parser.add_argument(
        "--images", action="append", default=[], metavar="[SPLIT:]OWNER=N,…", help="how many images each data owner has"
    )
    parser.add_argument("--rank", type=int, default=0, metavar="N", help="the compute party, from 0 (default 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the plan itself there, for preprocessing")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the costs; returns the exit code: 2 for a configuration that cannot be run, else 1 for what went wrong."""
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    try:
        settings = settings_of(arguments.overrides, arguments.config_dir, bool(arguments.images))
        _check(arguments, settings)
        rehearsal = _rehearse(arguments, settings)
        record = _record(arguments, settings, rehearsal)
        if arguments.write:
            _write(arguments.write, rehearsal.plan.to_json(), None)
        if arguments.json:
            _write(arguments.json, record, 2)
        _show(record)
        sys.stdout.flush()
    except MPCImagingError as error:
        return complain(error, arguments.debug)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # … | head: nobody reads on
        return fall_silent()
    return 0


def settings_of(overrides: Sequence[str], config_dirs: Sequence[str], stated: bool) -> Settings:
    """The settings to plan for. ``stated``: no images are read here, so that no party's paths are needed.

    Raises `ConfigError` with all problems.
    """
    try:
        settings, problems = read(compose(overrides, config_dirs))
    except ConfigError:
        return compose_settings(overrides, config_dirs)  # which raises, with all other problems
    dealers = settings.parties_with(Role.dealer)
    if problems or not dealers:
        return compose_settings(overrides, config_dirs)  # the same
    # Nobody is met and no store is opened: what a run would need for that need not be given.
    for port, party in enumerate(settings.topology.parties.values(), 1):
        party.address = f"127.0.0.1:{port}"
    if settings.randomness.mode is RandomnessMode.stored:
        settings.randomness.store = "."
    # Nor is anything simulated: what needs a plan says itself that a simulation has none.
    protocol = settings.protocol.name
    if protocol is ProtocolName.insecure_simulation:
        settings.protocol.name = ProtocolName.auto
    _, allow_code = local_overrides(overrides)
    try:
        planned = from_mapping(to_mapping(settings), dealers[0] if stated else None, allow_code)
        if protocol is ProtocolName.insecure_simulation:
            planned.protocol.name = protocol
        return planned
    except ConfigError as error:
        hint = "; or say how many images there are, with --images"
        raise ConfigError([p + hint if p.startswith("data.path") else p for p in error.problems]) from None


def _check(arguments: argparse.Namespace, settings: Settings) -> None:
    compute = settings.compute_parties()
    problems = [
        f"--{name} {path}: there is no folder {path.absolute().parent}; make it first"
        for name, path in (("json", arguments.json), ("write", arguments.write))
        if path and not path.absolute().parent.is_dir()
    ]
    if not 0 <= arguments.rank < len(compute):
        ranks = ", ".join(f"{rank} ({name})" for rank, name in enumerate(compute))
        problems.append(f"--rank {arguments.rank}: no such compute party; write one of {ranks}")
    if arguments.write and settings.stops_early():
        what = "training may stop early, and a store holds sessions of full length; "
        problems.append(f"--write: {what}write task.early_stopping.patience=null")
    if problems:
        raise ConfigError(problems)


def _rehearse(arguments: argparse.Namespace, settings: Settings) -> Rehearsal:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from mpc_imaging.tasks.rehearsal import rehearse
    from mpc_imaging.tasks.run import needed_splits

    splits = needed_splits(settings)
    if arguments.images:
        counts = stated_counts(arguments.images, settings.data_owners(), splits)
    else:
        counts = read_counts(settings, splits)
    return rehearse(settings, counts, arguments.rank)


def stated_counts(texts: Sequence[str], owners: Sequence[str], splits: Sequence[str]) -> dict[str, dict[str, int]]:
    """Images of each owner in each split, from ``[split:]owner=count,…``; the last word counts.

    Raises `ConfigError` with all that is wrong.
    """
    counts: dict[str, dict[str, int]] = {owner: {} for owner in owners}
    problems = []
    for text in texts:
        match = _IMAGES.fullmatch(text)
        split = match["split"] if match else None
        if not match or (split and split not in SPLITS):
            problems.append(f"--images {text}: write owner=count,… or one of {', '.join(SPLITS)} and a colon before")
            continue
        for entry in match["counts"].split(","):
            owner, _, count = entry.partition("=")
            if owner not in counts:
                problems.append(f"--images {entry}: {owner!r} is no data owner; {did_you_mean(owner, owners)}")
            elif not (count.isascii() and count.isdigit() and len(count) < 10):
                problems.append(f"--images {entry}: write a whole number of images, like {owner}=100")
            else:
                counts[owner].update(dict.fromkeys([split] if split else splits, int(count)))
    if not problems:
        lacking = [f"{split}:{owner}" for split in splits for owner in owners if split not in counts[owner]]
        problems += [f"--images: say how many images there are of {', '.join(lacking)}"] if lacking else []
        empty = [s for s in splits if not lacking and not sum(counts[owner][s] for owner in owners)]
        problems += [f"--images: the task needs images of {', '.join(empty)}; write at least one"] if empty else []
    if problems:
        raise ConfigError(problems)
    return {owner: {split: mine[split] for split in splits} for owner, mine in counts.items()}


def read_counts(settings: Settings, splits: Sequence[str]) -> dict[str, dict[str, int]]:
    """Images of each owner in each split, as they are read here. Raises `DataError` where they cannot be."""
    counts = {}
    with tempfile.TemporaryDirectory() as folder:
        for owner in settings.data_owners():
            path = Path(folder, owner)
            path.mkdir()
            try:
                counts[owner] = _counted(settings, owner, path, splits)
            except DataError as error:
                hint = "if these images are not here, say how many there are, with --images"
                raise DataError([*error.problems, hint]) from None
    return counts


def _counted(settings: Settings, owner: str, folder: Path, splits: Sequence[str]) -> dict[str, int]:
    if settings.task.kind is TaskKind.stream:
        from mpc_imaging.data.cine import open_cine

        return {split: len(open_cine(settings, owner, folder)) for split in splits}
    from mpc_imaging.data import load_party

    return {split: len(images) for split, images in load_party(settings, owner, folder, splits).items()}


def _record(arguments: argparse.Namespace, settings: Settings, rehearsal: Rehearsal) -> dict[str, Any]:
    """All numbers, as --json writes them."""
    from mpc_imaging.report.prices import priced

    return {
        "name": settings.name,
        "task": settings.task.kind.value,
        "topology": settings.topology.name,
        "party": settings.compute_parties()[arguments.rank],
        "digest": rehearsal.plan.digest,
        "demands": rehearsal.plan.count,
        "stops_early": settings.stops_early(),
        "total": priced(rehearsal.cost),
        "layers": [priced(layer) for layer in rehearsal.layers],
    }


def _write(path: Path, content: Any, indent: int | None) -> None:
    from mpc_imaging.report.predictions import write_atomically

    try:
        write_atomically(path, json.dumps(content, indent=indent, allow_nan=False).encode())
    except OSError as error:
        raise ConfigError([f"{path} cannot be written: {error.strerror}; choose another file"]) from None


def _show(record: dict[str, Any]) -> None:
    from rich.console import Console

    from mpc_imaging.report.prices import price_table

    title = f"{record['name']}: {record['task']} over {record['topology']}, at {record['party']}"
    Console().print(price_table(title, record["layers"], record["total"]))
    counts = "Counts are those of all epochs; training may stop early" if record["stops_early"] else "Counts are exact"
    print(f"Plan {record['digest'][:16]}, {record['demands']:,} demands. {counts}; seconds are estimates.")


if __name__ == "__main__":
    sys.exit(main())
