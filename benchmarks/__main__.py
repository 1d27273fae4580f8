"""The command line: which cases to measure, and where the numbers go."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.cases import CASES, TABLE, Case, Job
from benchmarks.processes import BenchmarkError
from mpc_imaging.errors import ConfigError, MPCImagingError
from mpc_imaging.settings import ProtocolName

PROTOCOLS = [name.value for name in ProtocolName if name is not ProtocolName.insecure_simulation]
TIMEOUT_S = 600.0
COMPARISON_BITS = 32

EPILOG = f"""\
cases:
{chr(10).join(f"  {case.name:<10} {case.about}; {case.size}" for case in CASES.values())}
  all        {", ".join(case.title for case in TABLE)}

Two compute parties and a dealer of this package, over mutual TLS, and two processes of stock CrypTen 0.4.1, over gloo
with its trusted first party, run by turns on this machine, one thread each. The first turn of each warms up and is not
counted; of the others the table and the file give medians (of memory and error the largest).

  online    from shared inputs and weights to shared results, without offline
  offline   waiting for the dealer, and drawing shares of what it deals, before the online phase begins; nothing at
            CrypTen, which makes its triples online (triples_s in the file; ratio.without_triples leaves them out)
  set-up    sharing inputs and weights, and opening masked weights, once for each session
  total     all three together
  rounds    online
  sent      bytes that a compute party sends online (setup_bytes in the file: while setting up)
  dealer    bytes that the dealer sends to both compute parties together
  memory    of the largest process
  error     largest difference from plaintext in float64: of outputs, and in training of the weights after the step

Our comparisons are on 32 bits unless told otherwise: enough for these values, which are known in plaintext here, with 3
bits to spare (it is checked). A run on real data takes all bits, unless protocol.comparison_bits says less.

The numbers hold for an idle machine: machine.load in the file is the load average at the start.

examples:
  python -m benchmarks W1 --batch 32 --json w1.json
  python -m benchmarks W4_relu --elements 1000 --repeats 1
  python -m benchmarks all --json all.json                  a list of such records
"""


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    read.__name__ = "number" if kind is float else "whole number"  # argparse's message names it
    return read


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this package beside stock CrypTen.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("case", choices=[*CASES, "all"], metavar="CASE", help="one of the cases below, or all")
    parser.add_argument("--batch", type=_positive(int), metavar="N", help="images at once (W1, W1_train, W3, W5)")
    parser.add_argument("--elements", type=_positive(int), metavar="N", help="number of values (W4_relu)")
    parser.add_argument(
        "--repeats", type=_positive(int), default=5, metavar="N", help="default 5, the fewest to publish"
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, default="fss", help="ours (default: fss)")
    parser.add_argument(
        "--comparison-bits",
        type=_width,
        default=COMPARISON_BITS,
        metavar="N",
        help=f"width of our comparisons (fss; default: {COMPARISON_BITS}; 64: all bits)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    parser.add_argument(
        "--timeout",
        type=_positive(float),
        default=TIMEOUT_S,
        metavar="S",
        help=f"seconds that one repetition may take (default {TIMEOUT_S:g})",
    )
    parser.add_argument("--debug", action="store_true", help="show what a process that failed has written")
    return parser.parse_args(argv)


def _width(text: str) -> int:
    if not 16 <= (value := int(text)) <= 64:
        raise argparse.ArgumentTypeError(f"{text} is not from 16 to 64")
    return value


_width.__name__ = "whole number"


def _comparison_bits(arguments: argparse.Namespace) -> int | None:
    return (
        None
        if arguments.protocol != ProtocolName.fss.value or arguments.comparison_bits == 64
        else arguments.comparison_bits
    )


def _cases(arguments: argparse.Namespace) -> list[Case]:
    """The cases to measure. Raises `ConfigError` for a size that they do not have, and for a file without a folder."""
    chosen = list(TABLE) if arguments.case == "all" else [CASES[arguments.case]]
    problems = []
    if arguments.batch and (len(chosen) > 1 or chosen[0].job in (Job.relu, Job.matmul)):
        problems.append(f"{arguments.case} has no --batch; leave it out")
    if arguments.elements and (len(chosen) > 1 or chosen[0].job is not Job.relu):
        problems.append(f"{arguments.case} has no --elements; leave it out, or write W4_relu")
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        problems.append(
            f"--json {arguments.json}: there is no folder {arguments.json.absolute().parent}; make it first"
        )
    if arguments.json and arguments.json.is_dir():
        problems.append(f"--json {arguments.json} is a folder; name a file in it")
    if problems:
        raise ConfigError(problems)
    return [case.sized(arguments.batch, arguments.elements) for case in chosen]


def _measure(arguments: argparse.Namespace, cases: list[Case]) -> list[dict[str, Any]]:
    from benchmarks.measure import measure

    console = Console(stderr=True)
    records = []
    with console.status("") as status:
        for case in cases:

            def progress(number: int, case: Case = case) -> None:
                turn = f"{number} of {arguments.repeats}" if number else "warm-up"
                status.update(f"{case.title}: {turn}")

            status.update(f"{case.title}: starting")
            records.append(
                measure(
                    case,
                    arguments.protocol,
                    arguments.repeats,
                    arguments.timeout,
                    progress,
                    _comparison_bits(arguments),
                )
            )
    return records


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the file; returns the exit code."""
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    # As Ctrl-C, so that the processes are ended and their folder is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        records = _measure(arguments, _cases(arguments))
    except MPCImagingError as error:
        if arguments.debug and isinstance(error, BenchmarkError):
            print(error.log, file=sys.stderr)
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    from benchmarks.table import table

    console = Console()
    # Into a file, lines may be as long as they need to be.
    console.print(table(records), width=None if console.is_terminal else 100)
    if arguments.json:
        content = records if arguments.case == "all" else records[0]
        arguments.json.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
