"""The records of `measure` as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.cases import CASES
from benchmarks.measure import total_s
from mpc_imaging.report.wording import count, seconds, size

NUMBERS = ("online", "offline", "total", "rounds", "sent", "dealer", "memory", "error")


def table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Three lines for each case: ours, stock CrypTen's, and how many times as much CrypTen needs. 80 columns wide."""
    result = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in ("case", ""):
        result.add_column(heading, no_wrap=True)
    for heading in NUMBERS:
        result.add_column(heading, justify="right", no_wrap=True)
    for record in records:
        case = CASES[record["case"]].sized(record["batch"], record["elements"])
        ratio = {name: f"{value:.3g}×" for name, value in record["ratio"].items()}
        result.add_row(case.name, "ours", *_cells(record["ours"]))
        result.add_row(case.size, "CrypTen", *_cells(record["crypten"]))
        cells = [ratio["online"], "", ratio["total"], ratio["rounds"], ratio["bytes"], "", "", ""]
        result.add_row("", "ratio", *cells, style="bold", end_section=True)
    return result


def _cells(summary: Mapping[str, float]) -> list[str]:
    return [
        *(seconds(value) for value in (summary["online_s"], summary["offline_s"], total_s(summary))),
        count(summary["rounds"]),
        *(size(summary[name]) for name in ("sent_bytes", "dealer_bytes", "peak_rss_bytes")),
        f"{summary['max_error']:.0e}",
    ]
