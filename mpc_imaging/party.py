"""One party of a session, or the dealer: what an operator starts on each institution's machine.

    python -m mpc_imaging.party party=hospital_a experiment=pneumonia_infer transport.certificates=certificates …

All parties must be given the same configuration, except for addresses, paths, certificates and timeouts; the handshake
says what differs. Exit codes: 0 all went well; 1 this party failed; 2 the command or the configuration cannot be run;
3 a peer was lost or ended the session, see that peer's own log; 130 stopped by the operator.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
import sys
import traceback
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import yaml

from mpc_imaging import hardening, local_files, settings as config
from mpc_imaging.commands import Parser
from mpc_imaging.errors import ConfigError, MPCImagingError, unforeseen
from mpc_imaging.model_checks import LOCAL_KEY
from mpc_imaging.settings import Role, Settings
from mpc_imaging.transport.frames import one_line

EPILOG = """\
example, two hospitals and the dealer, in three terminals:
  python -m mpc_imaging.certs local certificates hospital_a hospital_b dealer

  COMMON="experiment=phantoms_infer topology.parties.hospital_a.address=127.0.0.1:7701
      topology.parties.hospital_b.address=127.0.0.1:7702 topology.parties.dealer.address=127.0.0.1:7703"
  python -m mpc_imaging.party party=hospital_a transport.certificates=certificates/hospital_a $COMMON
  python -m mpc_imaging.party party=hospital_b transport.certificates=certificates/hospital_b $COMMON
  python -m mpc_imaging.party party=dealer     transport.certificates=certificates/dealer     $COMMON

with randomness=stored no dealer is started: python -m mpc_imaging.preprocess --help
certificates: python -m mpc_imaging.certs --help
configuration: python -m mpc_imaging --help
"""

MESSAGE_LIMIT = 1 << 16  # characters: room for every file of a large folder

log = logging.getLogger("mpc_imaging.party")


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
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
    parser.add_argument(
        "--allow-code",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="code of your own that the model may be (or model.allow_code=[PACKAGE,…])",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--listen-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--watch-stdin", action="store_true", help=argparse.SUPPRESS)
    # The launcher's word that it runs all parties here. Addresses cannot tell: those of tunnels look the same.
    parser.add_argument("--one-machine", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_intermixed_args(argv)


def _settings(arguments: argparse.Namespace) -> tuple[Settings, str]:
    named = [item.removeprefix("party=") for item in arguments.overrides if item.startswith("party=")]
    overrides = [item for item in arguments.overrides if not item.startswith("party=")]
    if len(named) != 1:
        raise ConfigError(["say which party this is: write party=NAME once"])
    if arguments.config_file is not None:
        if overrides:
            instead = "; write --allow-code PACKAGE" if any(LOCAL_KEY in text for text in overrides) else ""
            raise ConfigError([f"--config-file fixes the configuration: leave out {' '.join(overrides)}{instead}"])
        settings = _load(arguments.config_file, None if arguments.one_machine else named[0], arguments.allow_code)
    else:
        from mpc_imaging.compose import compose_settings

        if arguments.allow_code:
            overrides.append(f"{LOCAL_KEY}=[{','.join(arguments.allow_code)}]")
        settings = compose_settings(overrides, arguments.config_dir, party=named[0])
    if named[0] not in settings.topology.parties:
        raise ConfigError(
            [f"party={named[0]}: topology {settings.topology.name} has {', '.join(settings.topology.parties)}"]
        )
    if named[0] not in settings.participants():
        instead = "start only the others, or write randomness=stream"
        raise ConfigError([f"party={named[0]}: no dealer takes part with randomness=stored; {instead}"])
    return settings, named[0]


def _load(path: Path, party: str | None, allow_code: list[str]) -> Settings:
    try:
        return config.load(path, party, allow_code)
    except OSError as error:
        raise ConfigError(
            [f"--config-file: cannot read {path}: {error.strerror}; give a run's settings.yaml"]
        ) from None
    except yaml.YAMLError:
        raise ConfigError([f"--config-file: {path} is not YAML; give the settings.yaml of a run"]) from None


def _certificates(arguments: argparse.Namespace, settings: Settings, party: str) -> Path:
    chosen = arguments.certificates or settings.transport.certificates
    if chosen is None:
        what = "set transport.certificates to its folder; python -m mpc_imaging.certs --help says how to make one"
        raise ConfigError([f"{party} has no certificate; {what}"])
    return Path(chosen).expanduser()


def _folder(arguments: argparse.Namespace, settings: Settings, party: str) -> Path:
    run = arguments.run_dir
    if run is None:
        now = datetime.now()
        run = Path("outputs") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S-%f}_{settings.name}_{os.getpid()}"
    folder = run / "parties" / party
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError([f"--run-dir: cannot make the folder {folder}: {error.strerror}; choose another"]) from None
    return folder


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Everything that the package logs goes to ``path``; an error is logged there whole before it leaves."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    package = logging.getLogger("mpc_imaging")
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    except MPCImagingError as error:
        log.error("%s", error)
        raise
    except Exception as error:
        # Where it happened, but not its message, which may quote data.
        log.error("%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
        raise
    finally:
        package.removeHandler(handler)
        handler.close()


def _run(arguments: argparse.Namespace, settings: Settings, party: str, certificates: Path, folder: Path) -> None:
    listener = None if arguments.listen_fd is None else socket.socket(fileno=arguments.listen_fd)
    # Three processes share two cores in a local run, and a hospital's machine does other work too.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    from mpc_imaging.tasks.run import run_party

    progress = arguments.progress or arguments.listen_fd is None
    run_party(settings, party, folder, certificates, listener, progress, arguments.one_machine)
    if arguments.listen_fd is None and Role.dealer not in settings.topology.parties[party].roles:
        _report(settings, folder)


def _report(settings: Settings, folder: Path) -> None:
    """On a machine of its own a party reports what was revealed to it."""
    import json

    from rich.console import Console

    from mpc_imaging.report.joint import receiver_report
    from mpc_imaging.report.tables import outcome_tables

    metrics = receiver_report(folder, settings, json.loads((folder / "result.json").read_text()))
    for table in outcome_tables(metrics):
        Console().print(table)
    print(f"report: {folder / 'report.html'}")


def main(argv: list[str] | None = None) -> int:
    """Run one party; returns the exit code. The last line on stderr is the cause of a failure."""
    hardening.harden()
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    os.umask(0o077)  # logs, predictions and shares are this party's alone
    if arguments.watch_stdin:
        from mpc_imaging.parties.launcher import end_with_parent

        end_with_parent()
    folder = None
    try:
        settings, party = _settings(arguments)
        if problems := local_files.find_problems(settings, party):
            raise ConfigError(list(map(str, problems)))
        certificates = _certificates(arguments, settings, party)
        folder = _folder(arguments, settings, party)
        with _log_to(folder / "log.txt"):
            _run(arguments, settings, party, certificates, folder)
    except MPCImagingError as error:
        return _fail(arguments, str(error), 2 if isinstance(error, ConfigError) else error.exit_code)
    except KeyboardInterrupt:
        return _fail(arguments, "stopped by the operator", 130)
    except Exception as error:  # an unexpected fault: its message may quote data
        more = f"; see {folder / 'log.txt'}" if folder else ""
        return _fail(arguments, f"{unforeseen(error)}{more}, or run again with --debug", 1)
    return 0


def _fail(arguments: argparse.Namespace, message: str, code: int) -> int:
    """Print one line, since the launcher shows the last line of a party that failed; returns the exit code."""
    if arguments.debug:
        traceback.print_exc()
    print(one_line(message, MESSAGE_LIMIT), file=sys.stderr, flush=True)  # names of files may hold anything
    return code


if __name__ == "__main__":
    sys.exit(main())
