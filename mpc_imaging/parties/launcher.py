"""Start, watch and end one process per party on this machine: the command that an operator types on their own.

Each party gets an open listening socket (so a free port cannot be lost between choosing and using it), a certificate
that exists for this run only (with a store, for its runs only), and a pipe as standard input. The pipe closes when this
process dies, however it dies; a party that is told ``--watch-stdin`` ends then (`end_with_parent`). No pixels, weights
or shares pass through here.
"""

from __future__ import annotations

import codecs
import contextlib
import copy
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from mpc_imaging.errors import MPCImagingError, PeerLostError
from mpc_imaging.parties.parts import trial_certificates
from mpc_imaging.settings import Settings, save
from mpc_imaging.transport.certificates import make_local

GRACE_S = 5.0  # for the others to end on their own, after one has failed
TERM_S = 2.0  # between SIGTERM and SIGKILL
POLL_S = 0.02

# From a party's name and the options that the launcher adds to the command line of the process.
Command = Callable[[str, list[str]], list[str]]


class LaunchError(MPCImagingError):
    """A process failed. The message is its own last line, with the party's name; ``exit_code`` is the process's."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def party_command(party: str, options: list[str]) -> list[str]:
    """The command line of one party, or of the dealer."""
    return [sys.executable, "-m", "mpc_imaging.party", f"party={party}", *options]


def allowing(allow_code: Sequence[str]) -> list[str]:
    """The operator's own word on code, as options for a process that reads all else from a file."""
    return [option for prefix in allow_code for option in ("--allow-code", prefix)]


def launch(run_dir: Path, settings: Settings, progress: bool = True, command: Command = party_command) -> None:
    """Run all parties of ``settings`` in ``run_dir`` to their end, or to the first failure.

    Writes ``run_dir/settings.yaml`` with the addresses that were chosen. ``progress``: the first compute party shows
    its progress on standard error. No process is left when this returns or raises.
    Raises LaunchError with the cause if a party fails.
    """
    run_dir = run_dir.resolve()
    names = settings.participants()
    shown = settings.compute_parties()[0] if progress else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(_signals_as_exceptions())
        listeners = {name: stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64)) for name in names}
        config = run_dir / "settings.yaml"
        save(_with_addresses(settings, listeners), config)
        certificates = trial_certificates(settings)
        if certificates is None:
            certificates = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mpc_imaging_")))  # mode 0700
            make_local(certificates, names)
        children = stack.enter_context(_Children(run_dir, command))
        for name, listener in listeners.items():
            options = [
                *("--config-file", str(config), "--run-dir", str(run_dir)),
                *("--certificates", str(certificates / name)),
                *("--listen-fd", str(listener.fileno()), "--watch-stdin", "--one-machine"),
                *allowing(settings.model.allow_code),
            ]
            children.start(name, options, listener.fileno(), name == shown)
            listener.close()  # now the party's alone: if it dies, its peers are refused at once
        children.watch()


def end_with_parent() -> None:
    """End this process when the launcher is gone: its end of standard input closes, or the kernel tells us."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG: also ends a process that is deep in native code
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os._exit(PeerLostError.exit_code)

    threading.Thread(target=wait, name="watch-stdin", daemon=True).start()


def last_line(path: Path) -> str:
    """The last line of a log that says anything, without a terminal's control sequences."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", path.read_text(encoding="utf-8", errors="replace"))
    return next((line.strip() for line in reversed(re.split(r"[\r\n]", text)) if line.strip()), "")


@dataclass
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    stderr: Path
    echo: threading.Thread | None


class _Children:
    """The processes of one run; leaving the context ends those that still run."""

    def __init__(self, run_dir: Path, command: Command) -> None:
        self._run_dir = run_dir
        self._command = command
        self._children: list[_Child] = []

    def start(self, name: str, options: list[str], listen_fd: int, shown: bool) -> None:
        """Start one party; ``shown``: it shows its progress, and its standard error goes to ours as well."""
        folder = self._run_dir / "parties" / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One thread each: the parties share this machine, and sums in another order would not be repeatable.
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        path = folder / "stderr.txt"
        if shown:
            options = [*options, "--progress"]
            ours, theirs = _open_terminal_or_pipe()
        else:
            ours, theirs = None, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        process = subprocess.Popen(
            self._command(name, options),
            stdin=subprocess.PIPE,
            stderr=theirs,
            pass_fds=[listen_fd],
            env=environment,
            start_new_session=True,  # Ctrl-C reaches us alone, and we end the whole group of each party
        )
        os.close(theirs)
        echo = threading.Thread(target=_echo, args=(ours, path), daemon=True) if shown else None
        if echo:
            echo.start()
        self._children.append(_Child(name, process, path, echo))

    def watch(self) -> None:
        """Wait until all have ended well; LaunchError with the cause at most `GRACE_S` after a failure."""
        running, failed = list(self._children), []
        deadline = float("inf")
        while running and time.monotonic() < deadline:
            ended = [child for child in running if child.process.poll() is not None]
            running = [child for child in running if child not in ended]
            failed += [child for child in ended if child.process.returncode]
            if failed and deadline == float("inf"):
                deadline = time.monotonic() + GRACE_S
            time.sleep(POLL_S)
        if failed:
            raise _cause(failed)

    def __enter__(self) -> _Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + TERM_S
        while time.monotonic() < deadline and any(child.process.poll() is None for child in self._children):
            time.sleep(POLL_S)
        self._signal(signal.SIGKILL)
        for child in self._children:
            child.process.wait()
            if child.process.stdin:
                child.process.stdin.close()
            if child.echo:
                child.echo.join(timeout=1)

    def _signal(self, number: signal.Signals) -> None:
        for child in self._children:
            if child.process.poll() is None:
                os.killpg(child.process.pid, number)  # the group: a party may have started processes of its own


def _open_terminal_or_pipe() -> tuple[int, int]:
    """Reading and writing end of a pipe; of a terminal as wide as ours if we have one, so that bars are drawn."""
    if not sys.stderr.isatty():
        return os.pipe()
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, termios.tcgetwinsize(sys.stderr.fileno()))
    return ours, theirs


def _echo(fd: int, path: Path) -> None:
    """Copy what a process writes to its log and to our standard error, until it closes."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    closed = contextlib.suppress(OSError)  # how a terminal, unlike a pipe, says that its other end is closed
    with open(fd, "rb", buffering=0) as stream, path.open("wb", buffering=0) as log, closed:
        while chunk := stream.read(65536):
            log.write(chunk)
            with contextlib.suppress(OSError, ValueError):  # nobody reads ours any more: no reason to end the run
                sys.stderr.write(decoder.decode(chunk))
                sys.stderr.flush()


def _cause(failed: list[_Child]) -> LaunchError:
    """The first failure that is not about a lost peer: those are what a failure elsewhere looks like."""
    causes = [child for child in failed if child.process.returncode != PeerLostError.exit_code]
    child = (causes or failed)[0]
    if child.echo:
        child.echo.join(timeout=1)
    code = child.process.returncode
    if code < 0:
        hint = "; perhaps the machine ran out of memory" if -code == signal.SIGKILL else ""
        return LaunchError(f"{child.name}: ended by {signal.Signals(-code).name}{hint}", 128 - code)
    return LaunchError(f"{child.name}: {last_line(child.stderr) or f'ended with exit code {code}, no message'}", code)


def _with_addresses(settings: Settings, listeners: dict[str, socket.socket]) -> Settings:
    settings = copy.deepcopy(settings)
    for name, listener in listeners.items():
        host, port = listener.getsockname()
        settings.topology.parties[name].address = f"{host}:{port}"
    return settings


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Let SIGTERM and SIGHUP leave through the same clean-up as an error (only the main thread may handle signals)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, leave) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
