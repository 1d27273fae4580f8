"""Whose frames are computed next, on which all parties of a stream agree, and the shares of these frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from mpc_imaging import strict_json
from mpc_imaging.engine.encoding import encode
from mpc_imaging.errors import SessionError
from mpc_imaging.parties import sharing
from mpc_imaging.parties.session import PATIENT_S, Session
from mpc_imaging.settings import StreamSettings

if TYPE_CHECKING:
    from mpc_imaging.data.prefetch import Frame, Prefetcher
    from mpc_imaging.tasks.inputs import Catalogue

# How long a live owner that has no frame yet holds up the others.
TURN_S = 0.02


@dataclass(frozen=True)
class Step:
    """Frames that are computed together: numbers of one owner's frames, from 0, ascending."""

    owner: str
    frames: tuple[int, ...]


def planned_steps(counts: Mapping[str, int], frames_per_step: int) -> dict[str, int]:
    """Steps of each owner at most, if it drops no frame."""
    return {owner: -(-count // frames_per_step) for owner, count in counts.items()}


class Feed:
    """The steps of a stream, and the frames in them; a context, in which `next` and `share` may be called.

    A step has room for ``task.stream.frames_per_step`` frames, so that all steps take the same of the dealer: where an
    owner's last one has fewer, the rest is black, and its results are not opened.
    """

    def __init__(self, session: Session, catalogue: Catalogue) -> None:
        self.session, self.catalogue = session, catalogue
        self.split = session.settings.task.split
        self.counts = {owner: counts[self.split] for owner, counts in catalogue.counts.items()}

    @property
    def stream(self) -> StreamSettings:
        """The settings of the stream."""
        return self.session.settings.task.stream

    def next(self) -> Step | None:
        """The next step, the same at all parties; None at the end."""
        raise NotImplementedError

    def images(self) -> Sequence[torch.Tensor]:
        """The frames (C, H, W) of the step that `next` gave, at their owner."""
        raise NotImplementedError

    def arrivals(self) -> list[float]:
        """When they arrived (`time.monotonic`)."""
        return []

    def share(self, step: Step) -> torch.Tensor | None:
        """Share the step's frames; at a compute party its share: int64 (frames_per_step, C, H, W), else None.

        Raises `EncodingError` for pixels that fixed point cannot hold, `TransportError` if the session ends meanwhile.
        """
        shape = (self.stream.frames_per_step, *self.catalogue.image_shape)
        if step.owner == self.session.me:
            values = torch.zeros(shape)
            for row, image in enumerate(self.images()):
                values[row] = image
            return sharing.share(self.session, None, encode(values, self.session.settings.protocol.fraction_bits))
        if self.session.rank is None:
            return None
        return sharing.receive(self.session, step.owner, None, shape)

    def __enter__(self) -> Feed:
        # One entry for all of an owner's frames: each entry is a write that waits for the disk.
        for owner, count in self.counts.items():
            if count and (self.session.rank is not None or owner == self.session.me):
                sharing.noted(self.session, owner, f"images {self.split}", (count, *self.catalogue.image_shape))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        pass


class SessionFeed(Feed):
    """Owners take turns: each says which frames come, by way of the first compute party, which tells all who stay.

    prefetcher: reads this party's frames, if it owns any.
    """

    def __init__(self, session: Session, catalogue: Catalogue, prefetcher: Prefetcher | None) -> None:
        super().__init__(session, catalogue)
        self._prefetcher = prefetcher
        self._turns = deque(owner for owner, count in self.counts.items() if count)
        self._last = dict.fromkeys(self.counts, -1)
        self._taken: list[Frame] = []
        # A frame may come this late: what happens at most between two frames of a source that lives.
        pause_s = 0.0 if self.stream.fps is None else self.stream.frames_per_step / self.stream.fps
        self._limit_s = session.mesh.timeout_s + pause_s

    def next(self) -> Step | None:
        """See `Feed`.

        Raises `SessionError` for an owner that announces what it cannot have or reads nothing in time, `DataError` for
        this owner's frames that cannot be read, and `TransportError` if the session ends meanwhile.
        """
        self._taken = []
        while self._turns:
            owner = self._turns.popleft()
            numbers = self._announced(owner)
            if numbers is None:
                continue
            self._turns.append(owner)
            if numbers:
                self._last[owner] = numbers[-1]
                return Step(owner, tuple(numbers))
        return None

    def images(self) -> list[torch.Tensor]:
        """See `Feed`."""
        return [frame.image for frame in self._taken]

    def arrivals(self) -> list[float]:
        """See `Feed`."""
        return [frame.arrived for frame in self._taken]

    def _announced(self, owner: str) -> list[int] | None:
        """The owner's next frames, [] if there are none yet, None if there are no more; called with its turn taken."""
        me, leader, mesh = self.session.me, self.session.compute[0], self.session.mesh
        if me == owner:
            numbers = self._own()
            if me != leader:
                mesh.send_json(leader, numbers)
        else:
            # Twice as long as the owner waits for itself: it says best what is wrong. Others wait for the leader, which
            # may be computing, and tells them if it gives up.
            sender, wait_s = (owner, 2 * self._limit_s) if me == leader else (leader, PATIENT_S)
            numbers = self._checked(owner, mesh.receive_json(sender, wait_s=wait_s))
        if me == leader:
            for peer in self._listeners(owner):
                mesh.send_json(peer, numbers)
        return numbers

    def _listeners(self, owner: str) -> list[str]:
        settings = self.session.settings
        stay = {*settings.compute_parties(), *settings.data_owners(), *settings.receivers()}
        return [peer for peer in self.session.mesh.peers if peer in stay and peer != owner]

    def _own(self) -> list[int] | None:
        waits = self.stream.fps is None or not self._turns
        limit_s = self._limit_s if waits else TURN_S
        frames = self._prefetcher.queue.take(self.stream.frames_per_step, limit_s)
        if frames is None:
            return None
        if not frames and waits:
            me = self.session.me
            raise SessionError(f"{me} read no frame within {limit_s:g} s; is its disk slow? Raise transport.timeout_s")
        self._taken = frames
        return [frame.number for frame in frames]

    def _checked(self, owner: str, said: object) -> list[int] | None:
        if said is None:
            return None
        last, count = self._last[owner], self.counts[owner]
        try:
            for number in strict_json.listed(said, self.stream.frames_per_step):
                last = strict_json.whole(number, last + 1, count - 1)
        except strict_json.JsonError:
            what = f"{owner} announced frames that it cannot have; run all parties from the same version"
            raise SessionError(what) from None
        return said

    def __enter__(self) -> SessionFeed:
        super().__enter__()
        if self._prefetcher is not None:
            self._prefetcher.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._prefetcher is not None:
            self._prefetcher.__exit__(kind, error, trace)


class RehearsedFeed(Feed):
    """All frames of all owners, black, one owner after the other: what is demanded is the same in any order."""

    def __init__(self, session: Session, catalogue: Catalogue) -> None:
        super().__init__(session, catalogue)
        size = self.stream.frames_per_step
        self._steps = iter(
            [
                Step(owner, tuple(range(start, min(start + size, count))))
                for owner, count in self.counts.items()
                for start in range(0, count, size)
            ]
        )

    def next(self) -> Step | None:
        """See `Feed`."""
        return next(self._steps, None)

    def images(self) -> list[torch.Tensor]:
        """See `Feed`."""
        return []
