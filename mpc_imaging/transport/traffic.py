"""Counters of what a party sends, receives and waits for, per peer and kind of frame."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from mpc_imaging.transport.frames import HEADER_SIZE, Kind


@dataclass(slots=True)
class Counters:
    """Payload bytes and frames both ways, rounds taken part in, and seconds spent waiting."""

    sent_bytes: int = 0
    received_bytes: int = 0
    sent_frames: int = 0
    received_frames: int = 0
    rounds: int = 0
    wait_s: float = 0.0

    @property
    def sent_wire_bytes(self) -> int:
        """Payloads and frame headers (without the 22 bytes that TLS adds to each record)."""
        return self.sent_bytes + HEADER_SIZE * self.sent_frames

    @property
    def received_wire_bytes(self) -> int:
        """Payloads and frame headers (without the 22 bytes that TLS adds to each record)."""
        return self.received_bytes + HEADER_SIZE * self.received_frames

    def copy(self) -> Counters:
        """An independent copy."""
        return Counters(*(getattr(self, name) for name in _FIELDS))

    def add(self, other: Counters, sign: int = 1) -> None:
        """Add ``other`` (or subtract it: ``sign=-1``) in place."""
        for name in _FIELDS:
            setattr(self, name, getattr(self, name) + sign * getattr(other, name))


_FIELDS = tuple(item.name for item in fields(Counters))


@dataclass
class TrafficSnapshot:
    """Counters at one moment, or between two of them (``later - earlier``).

    ``rounds`` counts each exchange once and ``wait_s`` each second once, however many peers took part. The counters of
    a peer or a kind count them for each peer that took part, so these do not add up to the totals.
    """

    cells: dict[tuple[str, Kind], Counters] = field(default_factory=dict)
    rounds_by_kind: dict[Kind, int] = field(default_factory=dict)
    wait_s: float = 0.0

    def __sub__(self, earlier: TrafficSnapshot) -> TrafficSnapshot:
        cells = {key: counters.copy() for key, counters in self.cells.items()}
        for key, counters in earlier.cells.items():
            cells.setdefault(key, Counters()).add(counters, -1)
        rounds = {kind: count - earlier.rounds_by_kind.get(kind, 0) for kind, count in self.rounds_by_kind.items()}
        return TrafficSnapshot(cells, rounds, self.wait_s - earlier.wait_s)

    @property
    def rounds(self) -> int:
        """Exchanges of every kind."""
        return sum(self.rounds_by_kind.values())

    @property
    def sent_bytes(self) -> int:
        """Payload bytes sent to all peers."""
        return sum(counters.sent_bytes for counters in self.cells.values())

    @property
    def received_bytes(self) -> int:
        """Payload bytes received from all peers."""
        return sum(counters.received_bytes for counters in self.cells.values())

    def peer(self, *names: str) -> Counters:
        """Counters of the peers together, over every kind of frame."""
        return _total(counters for (name, _), counters in self.cells.items() if name in names)

    def kind(self, *kinds: Kind) -> Counters:
        """Counters of the kinds together, over every peer."""
        return _total(counters for (_, kind), counters in self.cells.items() if kind in kinds)


class Traffic:
    """Running counters of one mesh. Frames that set up or end a session are not counted."""

    def __init__(self) -> None:
        self._now = TrafficSnapshot()

    def snapshot(self) -> TrafficSnapshot:
        """A copy that stays as it is; subtract an earlier one to get what happened between."""
        return self._now - TrafficSnapshot()

    def sent(self, peer: str, kind: Kind, size: int) -> None:
        """Count a sent frame."""
        cell = self._cell(peer, kind)
        cell.sent_bytes += size
        cell.sent_frames += 1

    def received(self, peer: str, kind: Kind, size: int) -> None:
        """Count a received frame."""
        cell = self._cell(peer, kind)
        cell.received_bytes += size
        cell.received_frames += 1

    def round(self, kind: Kind, peers: Iterable[str]) -> None:
        """Count one exchange with ``peers``."""
        self._now.rounds_by_kind[kind] = self._now.rounds_by_kind.get(kind, 0) + 1
        for peer in peers:
            self._cell(peer, kind).rounds += 1

    def waited(self, kind: Kind, peers: Iterable[str], seconds: float) -> None:
        """Count time in which nothing could be done but wait for ``peers``."""
        self._now.wait_s += seconds
        for peer in peers:
            self._cell(peer, kind).wait_s += seconds

    def _cell(self, peer: str, kind: Kind) -> Counters:
        cell = self._now.cells.get((peer, kind))
        if cell is None:
            cell = self._now.cells[peer, kind] = Counters()
        return cell


def _total(parts: Iterable[Counters]) -> Counters:
    total = Counters()
    for part in parts:
        total.add(part)
    return total
