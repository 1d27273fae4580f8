"""Progress for people: a bar on a terminal, a line now and then elsewhere, nothing where nobody asked.

It shows what all parties know anyway: steps, time, rounds and bytes. A value of the policy is shown only by `note`, to
the party that it was opened to.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpc_imaging.transport.traffic import Traffic

LINE_EVERY_S = 10.0


class Progress:
    """Counts steps of named stages. Shown by one party of a run, the first that computes.

    traffic: of this party, whose rounds and bytes since then are shown too.
    """

    def __init__(self, shown: bool, traffic: Traffic | None = None) -> None:
        self._shown, self._traffic = shown, traffic
        self._before = None if traffic is None else traffic.snapshot()
        self._last = time.monotonic()
        self._title = ""
        self._tell: Callable[[int], None] | None = None  # shows the steps done, while a stage lasts

    @contextlib.contextmanager
    def stage(self, title: str, total: int, unit: str = "", more: int = 0) -> Iterator[None]:
        """A stage of ``total`` steps; `advance` moves it.

        unit: what a step is called. more: steps of stages to come that are like this one, for the time left.
        """
        if not self._shown:
            yield
            return
        self._title, self._total, self._unit, self._more = title, total, f"{unit} " if unit else "", more
        self._begun, self._first, self._done = time.monotonic(), 0, 0
        with self._bar() if sys.stderr.isatty() else self._lines() as self._tell:
            yield
        self._tell = None

    def advance(self, steps: int = 1) -> None:
        """Steps done in the current stage."""
        if self._tell is not None:
            self._done += steps
            self._tell(steps)

    def skip(self, steps: int) -> None:
        """Steps of the current stage that were done before, in another run: they tell nothing of the time left."""
        if self._tell is not None:
            self._first += steps
            self.advance(steps)

    def note(self, **values: float | None) -> None:
        """Show values that were opened to this party, such as the loss of the stage that has just ended."""
        known = [f"{name} {value:.4g}" for name, value in values.items() if value is not None]
        if self._shown and known:
            print(f"{self._title}: {', '.join(known)}", file=sys.stderr, flush=True)

    def _state(self) -> str:
        """Time left, rounds and bytes."""
        parts = []
        if self._done > self._first:
            pace = (time.monotonic() - self._begun) / (self._done - self._first)
            parts.append(f"{_duration(pace * (self._total - self._done + self._more))} left")
        if self._traffic is not None:
            traffic = self._traffic.snapshot() - self._before
            parts.append(f"{traffic.rounds:,} rounds, {_size(traffic.sent_bytes)} sent")
        return ", ".join(parts)

    @contextlib.contextmanager
    def _lines(self) -> Iterator[Callable[[int], None]]:
        def tell(steps: int) -> None:
            if time.monotonic() - self._last > LINE_EVERY_S:
                self._last = time.monotonic()
                state = self._state()
                done = f"{self._title}: {self._unit}{self._done:,} of {self._total:,}"
                print(f"{done}, {state}" if state else done, file=sys.stderr, flush=True)

        print(f"{self._title} …", file=sys.stderr, flush=True)
        yield tell
        print(f"{self._title}: {time.monotonic() - self._begun:.1f} s", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def _bar(self) -> Iterator[Callable[[int], None]]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TextColumn, TimeElapsedColumn

        description, state = TextColumn("{task.description:<18}"), TextColumn("{task.fields[state]}")
        columns: tuple[Any, ...] = (description, BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), state)
        with Bar(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(self._title, total=self._total, state="")
            yield lambda steps: bar.update(task, advance=steps, state=self._state())


def _duration(seconds: float) -> str:
    """To two digits or so: 8 s, 4 min, 1 h 20 min."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _size(octets: int) -> str:
    return f"{octets / 1e9:.2f} GB" if octets >= 1e9 else f"{octets / 1e6:.1f} MB"
