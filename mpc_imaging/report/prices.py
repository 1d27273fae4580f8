"""What a session will cost: seconds on several networks, from counts that are exact, and the table of both.

The seconds are estimates of the online phase, by prices of work that were measured once: one thread of a 2026 server
core, arrays in memory, the fastest of 15 repetitions. Another machine may be twice as fast or slow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpc_imaging.report import wording

if TYPE_CHECKING:
    from rich.table import Table

# ReLU over 200,000 values: tables 0.07 µs each; keys of 16, 32 and 64 bits 0.11, 0.3 and 0.53 µs, for trees of 8, 24
# and 56 levels.
COMPARISON_S = 0.06e-6
LEVEL_S = 0.01e-6
# Truncation of 200,000 values.
TRUNCATION_S = 5e-9
# Two products at each party: matrices of 512 and 1,024 rows 0.15 s for 10**9 multiply-accumulates, convolutions of
# 3 x 3 over 56 x 56 and of 5 x 5 over 12 x 12 0.3 to 0.4 s.
MAC_S = 0.3e-9
# What a round costs beside its latency, in Python: truncations and ReLUs of 10 values, 0.06 to 0.25 ms.
ROUND_S = 0.15e-3


@dataclass(frozen=True)
class Network:
    """A link between two parties: what it carries each way, and how long a message is on its way."""

    name: str
    bits_per_s: float
    latency_s: float


# Loopback: what TLS, and adding up what was opened, leave of it.
NETWORKS = (
    Network("loopback", 8e9, 0.05e-3),
    Network("LAN", 1e9, 0.5e-3),
    Network("WAN", 100e6, 40e-3),
)


def online_s(cost: Mapping[str, int], network: Network) -> float:
    """Estimated seconds of the online phase, or of a layer: rounds, then bytes sent, then work."""
    work = (
        cost["comparisons"] * COMPARISON_S
        + cost["levels"] * LEVEL_S
        + cost["truncations"] * TRUNCATION_S
        + cost["macs"] * MAC_S
    )
    return cost["rounds"] * (network.latency_s + ROUND_S) + 8 * cost["sent_bytes"] / network.bits_per_s + work


def dealer_s(cost: Mapping[str, int], network: Network) -> float:
    """Seconds that the dealer's messages take to reach the party: before a session, or beside the online phase."""
    return 8 * cost["key_bytes"] / network.bits_per_s


def priced(cost: Mapping[str, int]) -> dict[str, Any]:
    """The counts with seconds for each network: ``online_s`` and ``dealer_s``."""
    return {
        **cost,
        "online_s": {network.name: online_s(cost, network) for network in NETWORKS},
        "dealer_s": {network.name: dealer_s(cost, network) for network in NETWORKS},
    }


def price_table(title: str, layers: Sequence[Mapping[str, Any]], total: Mapping[str, Any]) -> Table:
    """A row for each layer, their total, and the time that the dealer's messages take; all as `priced` gives them."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("layer", overflow="fold")
    # Two lines leave names of layers room in a terminal of 80 columns.
    for heading in ("rounds", "sent", "from\ndealer", "GMAC", "com-\npares", *(n.name for n in NETWORKS)):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in layers:
        table.add_row(Text(layer["name"]), *_cells(layer))
    table.add_section()
    table.add_row("total", *_cells(total))
    delivery = [_seconds(total["dealer_s"][network.name]) for network in NETWORKS]
    table.add_row("from dealer", *[""] * 5, *delivery)
    return table


def _cells(cost: Mapping[str, Any]) -> list[str]:
    return [
        wording.count(cost["rounds"]),
        wording.size(cost["sent_bytes"]),
        wording.size(cost["key_bytes"]),
        _short(cost["macs"] / 1e9),
        _thousands(cost["comparisons"]),
        *(_seconds(cost["online_s"][network.name]) for network in NETWORKS),
    ]


# Narrower than `wording` has them: the table fits 80 columns.


def _short(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-3 or not value else "< .001"


def _thousands(value: int) -> str:
    for unit, size in (("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


def _seconds(value: float) -> str:
    if not value:
        return "0"
    return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{value:,.3g} s" if value < 1000 else f"{value:,.0f} s"
