"""The figures of a stream: counted once, timed where each owner measured."""

from __future__ import annotations

import pytest

from mpc_imaging.report.joint import joint_metrics, receiver_report, write_joint_report
from mpc_imaging.report.streaming import latencies, rows, sentence, stream_metrics
from mpc_imaging.report.tables import summary_table
from tests.report.test_html import Page
from tests.report.test_tables import shown

COUNTS = {"frames": {"hospital_a": 10, "hospital_b": 50}, "dropped": {"hospital_a": 2, "hospital_b": 0}}


def _part(seconds, latency_s):
    return {"seconds": seconds, **COUNTS, "latency_s": latency_s, "step_s": [value / 2 for value in latency_s]}


RESULTS = [
    {"party": "hospital_a", "stream": _part(4.0, [0.1] * 10)},
    {"party": "hospital_b", "stream": _part(5.0, [0.2] * 49 + [1.0])},
    {"party": "dealer", "stream": None},
]


def test_owners_together_and_each():
    stream = stream_metrics(RESULTS)
    assert (stream["frames"], stream["dropped"], stream["seconds"], stream["fps"]) == (60, 2, 5.0, 12.0)
    assert stream["latency_ms"] == pytest.approx({"p50": 200, "p95": 200, "p99": 528, "max": 1000})
    assert stream["step_ms"]["max"] == pytest.approx(500)
    a, b = stream["owners"]
    assert (a["owner"], a["frames"], a["dropped"]) == ("hospital_a", 10, 2)
    assert a["latency_ms"]["p99"] == pytest.approx(100) and b["latency_ms"]["max"] == pytest.approx(1000)
    assert {owner: len(values) for owner, values in latencies(RESULTS).items()} == {"hospital_a": 10, "hospital_b": 50}


def test_times_that_nobody_measured_here():
    stream = stream_metrics([{"party": "vendor", "stream": _part(5.0, [])}])
    assert stream["fps"] == 12 and stream["latency_ms"] is None and stream["owners"][1]["step_ms"] is None
    assert sentence(stream) == "Stream: 60 frames in 5 s, 12 a second, 2 dropped."
    assert rows(stream)[0] == ["hospital_a", "10", "2", "–", "–", "–", "–", "–"]


def test_other_tasks_have_no_stream():
    assert stream_metrics([{"party": "hospital_a"}, {"party": "hospital_b", "stream": None}]) is None


@pytest.fixture
def streamed(run):
    """The run of conftest as a stream that dropped two frames."""
    cost = {"online_s": 4.0, "offline_s": 1.0, "rounds": 18, "sent_bytes": 4000, "dealer_bytes": 70_000}
    for result in RESULTS[:2]:
        part = result["stream"] | {"frames": {"hospital_a": 12, "hospital_b": 48}}
        counts = {"hospital_a": {"test": 14}, "hospital_b": {"test": 48}}
        run.write_result(result["party"], cost=cost, stream=part, counts=counts)
    return run


def test_frames_that_were_dropped_are_no_missing_outputs(streamed):
    metrics = joint_metrics(streamed.folder, streamed.settings, streamed.plaintext)
    assert metrics["images"] == metrics["stream"]["frames"] == 60
    assert "labels" not in metrics["secure"]["reasons"]


def test_the_page_and_the_terminal_show_them(streamed):
    metrics = write_joint_report(streamed.folder, streamed.settings, streamed.plaintext)
    page = Page(streamed.folder / "report.html")
    assert "Frames a second 12 2 dropped" in page.text
    assert "How fast the frames came through" in page.text
    assert "together 60 2 200 ms 200 ms 528 ms 1 s 100 ms" in page.text
    assert "Latency of each frame" in page.pictures()
    text = " ".join(shown(summary_table(metrics)).split())
    assert "Stream: 60 frames in 5 s, 12 a second, 2 dropped; latency of a frame: median 200 ms, p95 200 ms" in text
    assert "60 frames" in text


def test_a_receiver_on_its_own_machine_sees_its_own_latencies(streamed):
    result = {**RESULTS[0], **{"counts": {}, "history": [], "metrics": None, "cost": None, "layers": []}}
    folder = streamed.party("hospital_a")
    metrics = receiver_report(folder, streamed.settings, result)
    assert metrics["stream"]["latency_ms"]["max"] == pytest.approx(100)
    assert metrics["stream"]["owners"][1]["latency_ms"] is None
    assert "Latency of each frame" in Page(folder / "report.html").pictures()
