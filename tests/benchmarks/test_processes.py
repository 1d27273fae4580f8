"""Processes of a benchmark that fail, hang or lose their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import processes
from benchmarks.cases import CASES
from benchmarks.measure import measure
from benchmarks.processes import BenchmarkError

ROOT = Path(__file__).parents[2]
SMALL = CASES["W4_relu"].sized(None, 100)


def _workers(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_process_that_fails_is_named_with_its_last_line():
    before = _workers(os.getpid())  # other tests keep parties alive in this process
    with pytest.raises(BenchmarkError, match=r"^ours, (party0|party1|dealer): KeyError: 'nonsense'$") as caught:
        measure(SMALL, "nonsense", 1, 60)
    assert "Traceback" in caught.value.log
    assert set(_workers(os.getpid())) <= set(before)


def test_a_process_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr(processes, "START_S", 0.01)
    before = _workers(os.getpid())
    with pytest.raises(BenchmarkError, match=r"^ours: party0, party1, dealer gave no answer within 0.01 s$"):
        measure(SMALL, "beaver", 1, 60)
    assert set(_workers(os.getpid())) <= set(before)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_no_process_outlives_its_parent(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "W4_relu", "--elements", "100", "--repeats", "100000"]
    # Killed, it leaves its temporary folder behind.
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    parent = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env=environment)
    try:
        deadline = time.monotonic() + 60
        while len(workers := _workers(parent.pid)) < 5 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(workers) == 5
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 30
    while any(map(_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_alive, workers))
