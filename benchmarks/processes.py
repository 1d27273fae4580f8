"""The processes of one system under measurement: started together, asked for a repetition at a time, always ended."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mpc_imaging.errors import MPCImagingError, PeerLostError
from mpc_imaging.parties.launcher import last_line

# Names of processes: ours, and CrypTen's.
PARTIES = ("party0", "party1")
DEALER = "dealer"
RANKS = ("rank0", "rank1")

START_S = 120.0  # to import torch and meet, on a busy machine
GRACE_S = 3.0  # for the others to end on their own after one has failed, so that the cause is known
ROOT = Path(__file__).parent.parent


class BenchmarkError(MPCImagingError):
    """A process of a benchmark failed, or gave no answer in time. ``log`` is what the process wrote."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class Processes:
    """One process for each name. Leaving the context kills those that still run."""

    def __init__(self, side: str, folder: Path, spec: dict[str, Any], timeout_s: float) -> None:
        self._side, self._folder, self._timeout_s = side, folder, timeout_s
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "spec.json").write_text(json.dumps(spec))

    def start(self, names: Sequence[str], listeners: dict[str, socket.socket]) -> None:
        """Start a process for each name, which takes over its listener if it has one; returns when all are ready."""
        for name in names:
            listener = listeners.get(name)
            descriptors = [] if listener is None else [listener.fileno()]
            with (self._folder / f"{name}.log").open("wb") as log:
                self._children[name] = subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.worker", self._side, name, str(self._folder)]
                    + [str(descriptor) for descriptor in descriptors],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    pass_fds=descriptors,
                    cwd=ROOT,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                    start_new_session=True,  # Ctrl-C reaches us alone, and we end the whole group of each
                )
            if listener is not None:
                listener.close()
        self._answers(START_S)

    def repeat(self, number: int) -> dict[str, Any]:
        """Run repetition `number` in all processes; their answers by name."""
        for name, child in self._children.items():
            try:
                child.stdin.write(b"%d\n" % number)
                child.stdin.flush()
            except BrokenPipeError:
                raise self._failure([name]) from None
        return self._answers(self._timeout_s)

    def _answers(self, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        waiting = dict.fromkeys(self._children, b"")
        answers = {}
        with selectors.DefaultSelector() as selector:
            for name, child in self._children.items():
                selector.register(child.stdout, selectors.EVENT_READ, name)
            while waiting:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise BenchmarkError(f"{self._side}: {', '.join(waiting)} gave no answer within {timeout_s:g} s")
                for key, _ in ready:
                    chunk = os.read(key.fd, 65536)
                    if not chunk:
                        raise self._failure([key.data])
                    waiting[key.data] += chunk
                    if chunk.endswith(b"\n"):
                        answers[key.data] = json.loads(waiting.pop(key.data))
        return answers

    def _failure(self, ended: list[str]) -> BenchmarkError:
        """The first failure that is not about a lost peer: those are what a failure elsewhere looks like."""
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline and len(ended) < len(self._children):
            ended += [n for n, child in self._children.items() if n not in ended and child.poll() is not None]
            time.sleep(0.02)
        codes = {}
        for name in ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                codes[name] = self._children[name].wait(GRACE_S)
        name = next((name for name, code in codes.items() if code != PeerLostError.exit_code), ended[0])
        if codes.get(name, 0) < 0:
            said = f"ended by {signal.Signals(-codes[name]).name}; perhaps the machine ran out of memory"
        else:
            said = last_line(self._folder / f"{name}.log") or "ended without a message"
        return BenchmarkError(
            f"{self._side}, {name}: {said}", (self._folder / f"{name}.log").read_text(errors="replace")
        )

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        for child in self._children.values():
            child.wait()
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
