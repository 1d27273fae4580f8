"""Runs the real commands in a folder of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpc_imaging.parties import ledger

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Run:
    """What a command left behind."""

    code: int
    output: str
    folder: Path | None

    @property
    def metrics(self) -> dict[str, Any]:
        """metrics.json."""
        return json.loads((self.folder / "metrics.json").read_text())

    def result(self, party: str) -> dict[str, Any]:
        """A party's result.json."""
        return json.loads((self.folder / "parties" / party / "result.json").read_text())

    def events(self, party: str) -> list[tuple[str, str | None]]:
        """(event, value) of a party's ledger, whose chain is checked."""
        entries = ledger.read(self.folder / "parties" / party / "ledger.jsonl")
        return [(entry["event"], entry.get("value")) for entry in entries]


def environment() -> dict[str, str]:
    """The checkout is importable from anywhere."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(module: str, *arguments: str, cwd: Path, stderr: int = subprocess.STDOUT) -> subprocess.Popen:
    """Start ``python -m module``; its output is one stream, unless errors are to have their own."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=stderr, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen, cwd: Path, timeout_s: float) -> Run:
    """Wait for the end and find the newest run folder."""
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"no end after {timeout_s} s:\n{output}") from None
    folders = sorted((cwd / "outputs").glob("*/*"), key=lambda path: path.stat().st_mtime)
    return Run(process.returncode, output, folders[-1] if folders else None)


def mpc_imaging(*arguments: str, cwd: Path, timeout_s: float = 300) -> Run:
    """``python -m mpc_imaging arguments`` to its end."""
    return finish(start("mpc_imaging", *arguments, cwd=cwd), cwd, timeout_s)


# A run that takes seconds: few small phantoms, the smallest network.
TINY = (
    "data=phantoms", "data.image_size=12", "data.phantoms.train=24", "data.phantoms.val=8", "data.phantoms.test=12",
    "model=mlp", "model.pretrain.epochs=1",
    "task.epochs=1", "task.batch_size=8", "task.eval_batch_size=12", "task.lr=0.02",
)  # fmt: skip
