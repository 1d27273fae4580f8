"""Prices, and the table that fits a terminal."""

import io

import pytest
from rich.console import Console

from mpc_imaging.report import prices

NOTHING = dict.fromkeys(
    ("rounds", "sent_bytes", "dealer_bytes", "key_bytes", "comparisons", "levels", "truncations", "macs"), 0
)
LAN, WAN = prices.NETWORKS[1:]


def _priced(**counts):
    return prices.priced({**NOTHING, **counts})


def test_latency_and_bandwidth():
    assert _priced()["online_s"] == {"loopback": 0, "LAN": 0, "WAN": 0}
    assert _priced(rounds=100)["online_s"]["WAN"] == pytest.approx(4, rel=0.01)
    assert _priced(sent_bytes=125_000_000)["online_s"]["LAN"] == pytest.approx(1)
    assert _priced(key_bytes=125_000_000)["dealer_s"] == pytest.approx({"loopback": 0.125, "LAN": 1, "WAN": 10})


def test_comparisons_at_a_full_and_a_narrow_width():
    """The measured time of a ReLU on keys: 0.53 µs at 64 bits, 0.3 µs at 32."""
    for bits, expected in ((64, 0.53e-6), (32, 0.3e-6)):
        cost = NOTHING | {"comparisons": 10**6, "levels": 10**6 * (bits - 8)}
        assert prices.online_s(cost, LAN) == pytest.approx(10**6 * expected, rel=0.2)


@pytest.mark.parametrize("big", [False, True])
def test_the_table_fits_80_columns(big):
    counts = dict.fromkeys(NOTHING, 10**9 if big else 7) | {"rounds": 99_999 if big else 3}
    layer = {"name": "layer3.0.downsample.0", "op": "conv2d", **prices.priced(counts)}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(prices.price_table("a title", [layer], prices.priced(counts)))
    text = console.export_text()
    assert all(len(line) <= 80 for line in text.splitlines()) and "layer3" in text and "…" not in text


def test_names_are_no_markup():
    layer = {"name": "[red]x[/red]", "op": "", **_priced()}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(prices.price_table("[b]t", [layer], _priced()))
    assert "[red]x[/red]" in (text := console.export_text()) and "[b]t" in text
