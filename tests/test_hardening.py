"""No core dumps, and no memory for other processes of the same user to read: in real parties, dealers and workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from mpc_imaging import hardening
from mpc_imaging.randomness.pool import DealingPool
from mpc_imaging.transport.certificates import make_local
from tests.system.command import ROOT, TINY, environment

HARDENED = {"core": 0, "dumpable": False if sys.platform == "linux" else None}

# Runs a module as `python -m` does, and says in the end what the system knows of this process.
RUN = """
import atexit, json, runpy, sys
def say():
    from mpc_imaging import hardening
    with open(sys.argv[-1], "w") as file: json.dump(hardening.state(), file)
path = sys.argv[-1]
sys.argv = sys.argv[1:-1]
atexit.register(lambda: (sys.argv.append(path), say()))
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def _start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, *arguments, str(folder / "state.json")]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=folder, env=environment(), text=True, **streams)


def _party(folder: Path, name: str) -> Sequence[str]:
    make_local(folder / "certificates", ["hospital_a", "hospital_b", "dealer"])
    addresses = [f"topology.parties.{n}.address=127.0.0.1:{port}" for n, port in _ports().items()]
    where = f"transport.certificates={folder / 'certificates' / name}"
    return ("mpc_imaging.party", f"party={name}", *TINY, where, "transport.connect_timeout_s=2", *addresses)


def _ports() -> dict[str, int]:
    import socket

    sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in ("hospital_a", "hospital_b", "dealer")}
    ports = {name: sock.getsockname()[1] for name, sock in sockets.items()}
    for sock in sockets.values():
        sock.close()
    return ports


def _core_limits(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line for line in lines if line.startswith("Max core file size")).split()[4:6]


@pytest.mark.parametrize("name", ["hospital_a", pytest.param("dealer", marks=pytest.mark.slow)])
def test_a_party_and_the_dealer(tmp_path: Path, name: str) -> None:
    """It waits in vain for its peers: long enough to be looked at."""
    process = _start(tmp_path, *_party(tmp_path, name))
    seen, deadline = [], time.monotonic() + 30
    while sys.platform == "linux" and seen != ["0", "0"] and time.monotonic() < deadline and process.poll() is None:
        seen = _core_limits(process.pid)
        time.sleep(0.02)
    output, _ = process.communicate(timeout=60)
    assert "could not connect" in output, output
    assert seen == ["0", "0"] or sys.platform != "linux", "while it ran"
    assert json.loads((tmp_path / "state.json").read_text()) == HARDENED


def test_preprocessing(tmp_path: Path) -> None:
    process = _start(tmp_path, "mpc_imaging.preprocess", "no_such_key=1")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert json.loads((tmp_path / "state.json").read_text()) == HARDENED


def test_workers_of_the_dealers_pool() -> None:
    with DealingPool(2) as pool:
        states = [pool._processes.submit(hardening.state).result(timeout=60) for _ in range(4)]
    assert states == [HARDENED] * 4


def test_the_report_of_a_local_run(tmp_path: Path) -> None:
    process = _start(tmp_path, "mpc_imaging.tasks.joint", str(tmp_path))
    process.communicate(timeout=60)
    assert json.loads((tmp_path / "state.json").read_text()) == HARDENED


def test_a_process_that_asks_for_nothing_is_not_hardened() -> None:
    """So the tests above can fail."""
    code = "import json; from mpc_imaging import hardening; print(json.dumps(hardening.state()))"
    output = subprocess.run(
        [sys.executable, "-c", code], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=60
    ).stdout
    assert json.loads(output)["dumpable"] is not False


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() == 0, reason="root may read everything")
def test_nobody_else_of_the_same_user_reads_its_memory() -> None:
    code = "from mpc_imaging import hardening; hardening.harden(); print(flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    with pytest.raises(PermissionError):
        Path(f"/proc/{process.pid}/maps").read_bytes()
    process.communicate(b"\n", timeout=30)
