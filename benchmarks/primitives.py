"""What the building blocks cost: comparison keys at the dealer and at a party, and the dealer's pool.

    python -m benchmarks.primitives [--elements 262144] [--json FILE]

Microseconds for each comparison and core, best of five; bytes that one party receives, averaged over both.
"""

from __future__ import annotations

import argparse
import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from mpc_imaging.protocols.fss import BLOCK
from mpc_imaging.randomness import dcf
from mpc_imaging.randomness.correlations import message_octets
from mpc_imaging.randomness.demands import Output, SignKeys
from mpc_imaging.randomness.pool import DealingPool, cores
from mpc_imaging.randomness.streams import fresh_key

REPEATS = 5
# Bits that a comparison function compares: of comparisons on 32 bits, after a shift by 16, and on all 64.
WIDTHS = (31, 47, 63)


def _best_us(function: Callable[[], Any], count: int) -> float:
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return min(seconds) / count * 1e6


def comparison_keys(count: int, bits: int) -> dict[str, float]:
    """Generation and evaluation of `count` keys, and bytes delivered to each party for one."""
    roots = np.frombuffer(secrets.token_bytes(32 * count), np.uint8).reshape(2, count, 16)
    alpha, x = (np.frombuffer(secrets.token_bytes(8 * count), np.uint64) >> np.uint64(64 - bits) for _ in range(2))
    key_id = secrets.token_bytes(16)
    corrections = dcf.generate(alpha, bits, roots, key_id)
    shares = [dcf.evaluate(party, roots[party], corrections, x, bits, key_id) for party in (0, 1)]
    if not np.array_equal(shares[0] ^ shares[1], (x < alpha).astype(np.uint8)):
        raise AssertionError("the shares do not add up to the comparison")
    return {
        "generate_us": _best_us(lambda: dcf.generate(alpha, bits, roots, key_id), count),
        "evaluate_us": _best_us(lambda: dcf.evaluate(0, roots[0], corrections, x, bits, key_id), count),
        "octets": dcf.correction_bytes(bits),
    }


def fused_relu(bits: int, shift: int) -> dict[str, float]:
    """Bytes of everything that a truncation fused with a ReLU takes from the dealer, averaged over both parties."""
    demand = SignKeys(BLOCK, bits, shift, int(Output.truncated if shift else Output.value))
    octets = sum(message_octets(demand, 0, rank, 2) for rank in (0, 1)) / 2 / BLOCK
    return {"gate_octets": octets}


def pool(count: int, bits: int, shift: int, workers: int) -> dict[str, float]:
    """The dealer's whole work for `count` ReLUs on so many workers."""
    demand = SignKeys(BLOCK, bits, shift, int(Output.truncated if shift else Output.value))
    demands = [(index, demand) for index in range(max(1, count // BLOCK))]
    keys = [fresh_key(), fresh_key()]

    def run() -> None:
        for _ in dealing.deal(demands, keys, bytes(16)):
            pass

    with DealingPool(workers) as dealing:
        run()  # starts the processes, and takes the memory
        return {"workers": workers, "deal_us": _best_us(run, BLOCK * len(demands))}


def main(argv: list[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.primitives", description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=1 << 18, metavar="N", help="comparisons at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    records = []
    for bits in WIDTHS:
        shift = 16 if bits < 63 else 0
        record = {"bits": bits} | comparison_keys(arguments.elements, bits) | fused_relu(bits + 1, shift)
        record["pool"] = [pool(arguments.elements, bits + 1, shift, n) for n in sorted({1, cores()})]
        records.append(record)
    Console().print(_table(records))
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=2) + "\n")


def _table(records: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    headings = ("bits", "generate", "evaluate", "key bytes", "ReLU bytes")
    pools = [f"dealer, {entry['workers']} worker(s)" for entry in records[0]["pool"]]
    for heading in (*headings, *pools):
        table.add_column(heading, justify="right")
    for record in records:
        table.add_row(
            str(record["bits"]),
            *(f"{record[name]:.2f} µs" for name in ("generate_us", "evaluate_us")),
            *(f"{record[name]:.0f}" for name in ("octets", "gate_octets")),
            *(f"{entry['deal_us']:.2f} µs" for entry in record["pool"]),
        )
    return table


if __name__ == "__main__":
    main()
