"""How fast a stream was: frames a second, frames dropped, and how long a frame waited for its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpc_imaging.report import wording

PERCENTILES = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
NAMES = {"p50": "median", "p95": "p95", "p99": "p99", "max": "longest"}


def stream_metrics(results: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The ``stream`` of metrics.json from the parties' result.json; None if nothing was streamed.

    Times are in ms, at the image owner: ``latency_ms`` from a frame's arrival in its queue (from a live source, from
    when it was due) to its result, ``step_ms`` from when it was taken out of the queue; None where no owner measured.
    ``fps`` counts the frames of all owners.
    """
    parts = {result["party"]: result["stream"] for result in results if result.get("stream")}
    if not parts:
        return None
    known = next(iter(parts.values()))  # counts are public, so any party's word will do
    owners = [
        {
            "owner": owner,
            "frames": count,
            "dropped": known["dropped"][owner],
            **_times([parts[owner]] if owner in parts else []),
        }
        for owner, count in known["frames"].items()
    ]
    frames, seconds = sum(known["frames"].values()), max(part["seconds"] for part in parts.values())
    return {
        "frames": frames,
        "dropped": sum(known["dropped"].values()),
        "seconds": seconds,
        "fps": frames / seconds if seconds > 0 else None,
        **_times(list(parts.values())),
        "owners": owners,
    }


def _times(parts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float] | None]:
    return {
        f"{name}_ms": _percentiles([1000 * value for part in parts for value in part[f"{name}_s"]])
        for name in ("latency", "step")
    }


def _percentiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    found = np.percentile(values, list(PERCENTILES.values()))
    return dict(zip(PERCENTILES, map(float, found), strict=True))


def latencies(results: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Milliseconds of each frame, in order, of the owners that measured them."""
    return {
        result["party"]: [1000 * value for value in result["stream"]["latency_s"]]
        for result in results
        if result.get("stream") and result["stream"]["latency_s"]
    }


def sentence(stream: Mapping[str, Any]) -> str:
    """The outcome in one line."""
    text = (
        f"Stream: {wording.count(stream['frames'])} frames in {wording.seconds(stream['seconds'])}, "
        f"{_rate(stream['fps'])} a second, {wording.count(stream['dropped'])} dropped"
    )
    times = stream["latency_ms"]
    if times is None:
        return f"{text}."
    return f"{text}; latency of a frame: {', '.join(f'{NAMES[key]} {_ms(times[key])}' for key in PERCENTILES)}."


def rows(stream: Mapping[str, Any]) -> list[list[str]]:
    """Cells of a table: owner, frames, dropped, then the latencies in the order of `PERCENTILES`, the median step."""
    total = {"owner": "together"} | stream
    listed = [*stream["owners"], total] if len(stream["owners"]) > 1 else stream["owners"]
    return [
        [
            entry["owner"],
            wording.count(entry["frames"]),
            wording.count(entry["dropped"]),
            *(_cell(entry["latency_ms"], key) for key in PERCENTILES),
            _cell(entry["step_ms"], "p50"),
        ]
        for entry in listed
    ]


def tile(stream: Mapping[str, Any]) -> tuple[str, str, str]:
    """Name, value, and what to hold it against."""
    return "Frames a second", _rate(stream["fps"]), f"{wording.count(stream['dropped'])} dropped"


def _cell(times: Mapping[str, float] | None, key: str) -> str:
    return wording.MISSING if times is None else _ms(times[key])


def _ms(value: float) -> str:
    return wording.seconds(value / 1000)


def _rate(value: float | None) -> str:
    return wording.MISSING if value is None else f"{value:.3g}"
