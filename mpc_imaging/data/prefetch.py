"""Frames read ahead: a thread decodes them into a queue of bounded size, from which they are taken for computing.

A source that can wait is held up while the queue is full. A live one cannot: then the oldest frame that waits is
dropped, so that results stay young, and counted.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

import torch

# How long the thread may take to notice that nobody wants more: one frame's decoding.
STOP_S = 10.0


class Source(Protocol):
    """Where frames come from; see `Cine`."""

    def frames(self) -> Iterator[tuple[int, Callable[[], torch.Tensor | None]]]:
        """Yield a number and what decodes it."""


@dataclass(frozen=True)
class Frame:
    """A frame with its number, and when it arrived (`time.monotonic`): in the queue, or when it was due."""

    number: int
    image: torch.Tensor = field(repr=False)
    arrived: float


class FrameQueue:
    """At most ``size`` frames, between one thread that puts and one that takes.

    ``live``: a full queue drops its oldest frame for a new one; else `put` waits. ``dropped`` counts.
    """

    def __init__(self, size: int, live: bool) -> None:
        self.dropped = 0
        self._size, self._live = size, live
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._error: BaseException | None = None

    def put(self, number: int, image: torch.Tensor, due: float | None = None) -> bool:
        """Add a frame, which arrives now, or did when it was ``due``; False if nobody wants more."""
        with self._changed:
            if self._live and len(self._frames) >= self._size:
                self._frames.popleft()
                self.dropped += 1
            self._changed.wait_for(lambda: self._closed or len(self._frames) < self._size)
            if not self._closed:
                self._frames.append(Frame(number, image, time.monotonic() if due is None else due))
                self._changed.notify_all()
            return not self._closed

    def drop(self) -> bool:
        """Count a frame that does not come; False if nobody wants more."""
        with self._changed:
            self.dropped += 1
            return not self._closed

    def sleep_until(self, due: float) -> bool:
        """Wait for a time of `time.monotonic`; False if nobody wants more."""
        with self._changed:
            return not self._changed.wait_for(lambda: self._closed, max(0.0, due - time.monotonic()))

    def end(self, error: BaseException | None = None) -> None:
        """No more frames come, because of ``error`` if there is one: whoever has taken all gets it."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody wants more: whoever waits to put goes on."""
        with self._changed:
            self._closed = True
            self._frames.clear()
            self._changed.notify_all()

    def take(self, count: int, wait_s: float) -> list[Frame] | None:
        """The next ``count`` frames, or the last ones; [] if they do not come within ``wait_s``; None after the end.

        Raises what `end` was given, once no frame is left.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended or len(self._frames) >= count, wait_s):
                return []
            taken = [self._frames.popleft() for _ in range(min(count, len(self._frames)))]
            self._changed.notify_all()
            if not taken and self._error is not None:
                raise self._error
            return taken or None


class Prefetcher:
    """Reads ahead from ``source`` into ``queue``, as long as the context lasts; see `StreamSettings` for numbers."""

    def __init__(self, source: Source, size: int, fps: float | None) -> None:
        self.queue = FrameQueue(size, live=fps is not None)
        self._source, self._fps = source, fps
        # Frames that are older than a full queue's would be dropped from it: no time is lost with their decoding.
        self._late_s = 0.0 if fps is None else size / fps
        self._thread = threading.Thread(target=self._run, name="read-frames", daemon=True)

    def __enter__(self) -> Prefetcher:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.queue.close()
        # After an error the peers are to be told at once, whatever the thread does.
        self._thread.join(STOP_S if error is None else 0)

    def _run(self) -> None:
        try:
            with contextlib.closing(self._source.frames()) as frames:
                self._read(frames)
            self.queue.end()
        except BaseException as error:  # the other thread raises it
            self.queue.end(error)

    def _read(self, frames: Iterator[tuple[int, Callable[[], torch.Tensor | None]]]) -> None:
        started = time.monotonic()
        for number, load in frames:
            due = None if self._fps is None else started + number / self._fps
            if due is not None and not self.queue.sleep_until(due):
                return
            late = due is not None and time.monotonic() - due > self._late_s
            image = None if late else load()
            if not (self.queue.drop() if image is None else self.queue.put(number, image, due)):
                return
