"""One party of a session, or the dealer: what an operator starts on each institution's machine.

    python -m mpc_imaging.party party=hospital_a experiment=pneumonia_infer topology.parties.hospital_b.address=b.example:7700 …

All parties must be given the same configuration, except for paths, certificates and timeouts; the handshake says what differs.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import traceback
from datetime import datetime
from pathlib import Path

from mpc_imaging import settings as config
from mpc_imaging.errors import ConfigError, MPCImagingError
from mpc_imaging.settings import Settings

EPILOG = """\
example, three terminals (two hospitals and the dealer):
  python -m mpc_imaging.party party=hospital_a experiment=phantoms_infer transport.certificates=certificates/hospital_a \\
      topology.parties.hospital_a.address=127.0.0.1:7701 topology.parties.hospital_b.address=127.0.0.1:7702 \\
      topology.parties.dealer.address=127.0.0.1:7703
  … the same with party=hospital_b and its certificates, and with party=dealer and its certificates

certificates: python -m mpc_imaging.certs --help
configuration: python -m mpc_imaging --help
"""


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mpc_imaging.party",
        description="Run one party of a session, or the dealer (party=dealer), on this machine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="party=NAME, and the configuration as for python -m mpc_imaging",
    )
    parser.add_argument("--config-file", type=Path, help="a settings.yaml that a run wrote, instead of composing one")
    parser.add_argument(
        "--config-dir", action="append", default=[], help="folder with configuration groups of your own"
    )
    parser.add_argument(
        "--run-dir", type=Path, help="run folder; the party writes into parties/NAME of it (default: a new one)"
    )
    parser.add_argument(
        "--certificates", type=Path, help="folder with ca.crt, party.crt and party.key (or transport.certificates)"
    )
    parser.add_argument(
        "--progress", action="store_true", help="show progress (the default for a party started by hand)"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--listen-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--watch-stdin", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_intermixed_args(argv)


def _settings(arguments: argparse.Namespace) -> tuple[Settings, str]:
    named = [item.removeprefix("party=") for item in arguments.overrides if item.startswith("party=")]
    overrides = [item for item in arguments.overrides if not item.startswith("party=")]
    if len(named) != 1:
        raise ConfigError(["say which party this is: write party=NAME once"])
    if arguments.config_file is not None:
        if overrides:
            raise ConfigError([f"--config-file fixes the configuration: leave out {' '.join(overrides)}"])
        settings = config.load(arguments.config_file, named[0])
    else:
        from mpc_imaging.compose import compose_settings

        settings = compose_settings(overrides, arguments.config_dir, party=named[0])
    if named[0] not in settings.topology.parties:
        raise ConfigError(
            [f"party={named[0]}: topology {settings.topology.name} has {', '.join(settings.topology.parties)}"]
        )
    return settings, named[0]


def _certificates(arguments: argparse.Namespace, settings: Settings, party: str) -> Path:
    chosen = arguments.certificates or settings.transport.certificates
    if chosen is None:
        raise ConfigError(
            [
                f"{party} has no certificate: set transport.certificates to its folder; make one with python -m mpc_imaging.certs"
            ]
        )
    return Path(chosen).expanduser()


def _folder(arguments: argparse.Namespace, settings: Settings, party: str) -> Path:
    run = arguments.run_dir
    if run is None:
        now = datetime.now()
        run = Path("outputs") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S-%f}_{settings.name}_{os.getpid()}"
    folder = run / "parties" / party
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _log_to(path: Path) -> None:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("mpc_imaging")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _run(arguments: argparse.Namespace, settings: Settings, party: str, folder: Path) -> None:
    from mpc_imaging.settings import Role

    listener = None if arguments.listen_fd is None else socket.socket(fileno=arguments.listen_fd)
    certificates = _certificates(arguments, settings, party)
    # Three processes share two cores in a local run, and a hospital's machine does other work too.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    from mpc_imaging.tasks.run import run_party

    progress = arguments.progress or arguments.listen_fd is None
    run_party(settings, party, folder, certificates, listener, progress)
    if arguments.listen_fd is None and Role.dealer not in settings.topology.parties[party].roles:
        _report(settings, folder)


def _report(settings: Settings, folder: Path) -> None:
    """On a machine of its own a party reports what was revealed to it."""
    import json

    from rich.console import Console

    from mpc_imaging.report.joint import receiver_report
    from mpc_imaging.report.tables import summary_table

    metrics = receiver_report(folder, settings, json.loads((folder / "result.json").read_text()))
    Console().print(summary_table(metrics))
    print(f"report: {folder / 'report.html'}")


def main(argv: list[str] | None = None) -> int:
    """Run one party; returns the exit code. The last line on stderr is the cause of a failure."""
    os.umask(0o077)  # logs, predictions and shares are this party's alone
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    if arguments.watch_stdin:
        from mpc_imaging.parties.launcher import end_with_parent

        end_with_parent()
    folder = None
    try:
        settings, party = _settings(arguments)
        folder = _folder(arguments, settings, party)
        _log_to(folder / "log.txt")
        _run(arguments, settings, party, folder)
    except MPCImagingError as error:
        logging.getLogger("mpc_imaging.party").error("%s", error)
        if arguments.debug:
            traceback.print_exc()
        # One line: the launcher shows the last line of a party that failed.
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped by the operator", file=sys.stderr, flush=True)
        return 130
    except Exception as error:
        # An unexpected fault: where it happened, but not its message, which may quote data.
        place = traceback.extract_tb(error.__traceback__)[-1]
        logging.getLogger("mpc_imaging.party").error(
            "%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__))
        )
        if arguments.debug:
            traceback.print_exc()
        where = f"{Path(place.filename).name}:{place.lineno}"
        log = f"; see {folder / 'log.txt'}" if folder else ""
        print(
            f"unexpected {type(error).__name__} at {where}{log}, or run again with --debug", file=sys.stderr, flush=True
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
