from __future__ import annotations

import pytest

from mpc_imaging.transport import Kind, Traffic
from mpc_imaging.transport.frames import HEADER_SIZE


def some_traffic() -> Traffic:
    traffic = Traffic()
    traffic.sent("b", Kind.OPENING, 100)
    traffic.sent("c", Kind.OPENING, 100)
    traffic.received("b", Kind.OPENING, 80)
    traffic.round(Kind.OPENING, ["b", "c"])
    traffic.waited(Kind.OPENING, ["b", "c"], 0.5)
    traffic.sent("dealer", Kind.REQUEST, 10)
    traffic.received("dealer", Kind.CORRECTION, 1000)
    traffic.waited(Kind.CORRECTION, ["dealer"], 0.25)
    return traffic


def test_totals_and_parts():
    now = some_traffic().snapshot()
    assert (now.sent_bytes, now.received_bytes, now.rounds, now.wait_s) == (210, 1080, 1, 0.75)
    assert now.peer("b").sent_bytes == 100 and now.peer("b").received_bytes == 80
    assert now.peer("b", "c").sent_bytes == 200
    assert now.peer("dealer").wait_s == 0.25
    assert now.kind(Kind.OPENING).sent_frames == 2
    assert now.kind(Kind.CORRECTION, Kind.REQUEST).received_bytes == 1000
    assert now.rounds_by_kind == {Kind.OPENING: 1}
    assert now.peer("nobody").sent_bytes == 0


def test_headers_are_counted_apart():
    now = some_traffic().snapshot()
    assert now.peer("b").sent_wire_bytes == 100 + HEADER_SIZE
    assert now.peer("dealer").received_wire_bytes == 1000 + HEADER_SIZE


def test_a_snapshot_stays_and_differences_count_only_what_came_between():
    traffic = some_traffic()
    before = traffic.snapshot()
    traffic.sent("b", Kind.OPENING, 7)
    traffic.sent("d", Kind.REVEAL, 5)
    traffic.round(Kind.REVEAL, ["d"])
    traffic.waited(Kind.REVEAL, ["d"], 1.0)
    assert before.sent_bytes == 210
    between = traffic.snapshot() - before
    assert between.sent_bytes == 12 and between.received_bytes == 0
    assert between.peer("b").sent_frames == 1 and between.peer("c").sent_frames == 0
    assert between.rounds == 1 and between.rounds_by_kind[Kind.REVEAL] == 1
    assert between.wait_s == pytest.approx(1.0)
