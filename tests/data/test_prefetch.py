"""Frames read ahead: a source that can wait is held up, a live one drops its oldest; ends and errors come in order."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from mpc_imaging.data.prefetch import FrameQueue, Prefetcher
from mpc_imaging.errors import DataError

SOON_S, LONG_S = 0.05, 5.0


def image(number: int) -> torch.Tensor:
    return torch.full((1, 2, 2), float(number))


class Clip:
    """So many frames; ``fails``: the one that cannot be decoded; ``bad``: those that are left out."""

    def __init__(self, count: int, fails: int | None = None, bad: tuple[int, ...] = ()) -> None:
        self.count, self.fails, self.bad = count, fails, bad
        self.decoded: list[int] = []
        self.closed = False

    def frames(self):
        try:
            for number in range(self.count):
                yield number, lambda number=number: self._load(number)
        finally:
            self.closed = True

    def _load(self, number: int) -> torch.Tensor | None:
        if number == self.fails:
            raise DataError([f"frame {number} cannot be decoded"])
        self.decoded.append(number)
        return None if number in self.bad else image(number)


def numbers(frames) -> list[int]:
    for frame in frames:
        assert torch.equal(frame.image, image(frame.number))
    return [frame.number for frame in frames]


def wait_for(condition) -> None:
    end = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def settled(clip: Clip) -> int:
    """How many frames were decoded, once no more are."""
    before = -1
    while before != len(clip.decoded):
        before = len(clip.decoded)
        time.sleep(SOON_S)
    return before


def test_a_full_queue_holds_its_reader_up() -> None:
    clip = Clip(10)
    with Prefetcher(clip, 3, None) as reader:
        assert settled(clip) == 4, "three wait, and the fourth is held by the reader"
        assert numbers(reader.queue.take(1, LONG_S)) == [0]
        assert settled(clip) == 5
        rest = [numbers(reader.queue.take(1, LONG_S))[0] for _ in range(9)]
        assert rest == list(range(1, 10))
        assert reader.queue.take(1, LONG_S) is None and reader.queue.take(1, LONG_S) is None
    assert reader.queue.dropped == 0 and clip.closed


def test_frames_are_taken_several_at_a_time_and_the_rest_at_the_end() -> None:
    with Prefetcher(Clip(7), 3, None) as reader:
        taken = [reader.queue.take(3, LONG_S) for _ in range(4)]
    assert [frames and numbers(frames) for frames in taken] == [[0, 1, 2], [3, 4, 5], [6], None]


def test_a_live_queue_drops_its_oldest_frame() -> None:
    queue = FrameQueue(2, live=True)
    for number in range(5):
        assert queue.put(number, image(number), due=100.0 + number)
    queue.end()
    frames = queue.take(2, 0)
    assert numbers(frames) == [3, 4] and [frame.arrived for frame in frames] == [103.0, 104.0]
    assert queue.dropped == 3 and queue.take(1, 0) is None


def test_a_live_source_keeps_its_pace() -> None:
    clip = Clip(6)
    started = time.monotonic()
    with Prefetcher(clip, 6, 50.0) as reader:
        frames = [reader.queue.take(1, LONG_S)[0] for _ in range(6)]
    assert time.monotonic() - started >= 5 / 50
    due = [frame.arrived for frame in frames]
    assert all(b - a == pytest.approx(1 / 50) for a, b in zip(due, due[1:], strict=False)), "when due, not when decoded"


def test_a_reader_that_is_late_decodes_no_frame_that_would_be_dropped() -> None:
    clip = Clip(20)
    load = clip._load
    clip._load = lambda number: (time.sleep(0.05), load(number))[1]
    with Prefetcher(clip, 2, 1000.0) as reader:
        wait_for(lambda: clip.closed)
        taken = len(reader.queue.take(2, 0) or [])
    assert len(clip.decoded) < 5
    assert taken + reader.queue.dropped == 20


def test_nothing_comes_in_time() -> None:
    queue = FrameQueue(2, live=False)
    started = time.monotonic()
    assert queue.take(1, SOON_S) == []
    assert queue.put(0, image(0)) and queue.take(2, SOON_S) == [], "one of two"
    assert SOON_S <= time.monotonic() - started < LONG_S
    assert numbers(queue.take(1, SOON_S)) == [0]


def test_an_error_of_the_reader_comes_after_the_frames_before_it() -> None:
    with Prefetcher(Clip(5, fails=2), 4, None) as reader:
        assert numbers(reader.queue.take(2, LONG_S)) == [0, 1]
        with pytest.raises(DataError, match="frame 2 cannot be decoded"):
            reader.queue.take(1, LONG_S)


def test_frames_that_are_left_out_count_as_dropped() -> None:
    with Prefetcher(Clip(5, bad=(1, 4)), 4, None) as reader:
        assert [numbers(reader.queue.take(1, LONG_S)) for _ in range(3)] == [[0], [2], [3]]
        assert reader.queue.take(1, LONG_S) is None and reader.queue.dropped == 2


def test_whoever_leaves_early_ends_the_reader() -> None:
    for fps in (None, 0.01):  # which waits for room, or for the next frame to be due
        clip = Clip(1000)
        with Prefetcher(clip, 2, fps):
            wait_for(lambda clip=clip: clip.decoded)
        assert clip.closed and len(clip.decoded) < 5
        assert "read-frames" not in {thread.name for thread in threading.enumerate()}


def test_a_frame_shows_no_pixel() -> None:
    queue = FrameQueue(1, live=False)
    queue.put(0, image(7))
    assert "7" not in repr(queue.take(1, 0)).split("arrived")[0]
