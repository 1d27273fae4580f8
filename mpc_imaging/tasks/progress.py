"""Progress for people: a bar on a terminal, a line now and then elsewhere, nothing where nobody asked."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

LINE_EVERY_S = 10.0


class Progress:
    """Counts steps of named stages. Shown by one party of a run, the first that computes."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._bar = None
        self._last = time.monotonic()

    @contextlib.contextmanager
    def stage(self, title: str, total: int) -> Iterator[None]:
        """A stage of `total` steps; `advance` moves it."""
        if not self._shown:
            yield
            return
        if not sys.stderr.isatty():
            self._title, self._total, self._done = title, total, 0
            print(f"{title} …", file=sys.stderr, flush=True)
            started = time.monotonic()
            yield
            print(f"{title}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress as Bar,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=Console(stderr=True)) as self._bar:
            self._task = self._bar.add_task(title, total=total)
            yield
        self._bar = None

    def advance(self, steps: int = 1) -> None:
        """Steps done in the current stage."""
        if not self._shown:
            return
        if self._bar is not None:
            self._bar.advance(self._task, steps)
            return
        self._done += steps
        if time.monotonic() - self._last > LINE_EVERY_S:
            self._last = time.monotonic()
            print(f"{self._title}: {self._done} of {self._total}", file=sys.stderr, flush=True)
