"""What the range check costs a run: the same run with and without it, in turns, all parties on this machine.

    python -m benchmarks.ranges experiment=pneumonia_infer data.path=FOLDER/pneumoniamnist.npz
    python -m benchmarks.ranges --pairs 7 experiment=phantoms_infer topology=three_hospitals

Ratios are of medians, with over without. Seconds are online (after inputs are shared, without waiting for the dealer).
Values that fit and are reported not to are false alarms: a run that ends so is counted, and has no cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from mpc_imaging.parties import ledger
from mpc_imaging.parties.policy import RANGE_OK

SHOWN = {"online_s": "seconds online", "rounds": "rounds", "sent_bytes": "bytes sent", "dealer_bytes": "dealer's bytes"}


FALSE_ALARM = "values left the range"


def run(overrides: list[str], checked: bool) -> tuple[dict[str, float] | None, int]:
    """Return what a run with these overrides cost, from its metrics.json, and how often its range bit was opened.

    The cost is None where the range check ended the run. Ends the benchmark if something else did.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = [*overrides, f"protocol.range_check={str(checked).lower()}", f"hydra.run.dir={folder}/run"]
        done = subprocess.run([sys.executable, "-m", "mpc_imaging", *options], capture_output=True, text=True)
        ledgers = [ledger.read(path) for path in Path(folder).glob("run/parties/*/ledger.jsonl")]
        opened = max((sum(entry.get("value") == RANGE_OK for entry in entries) for entries in ledgers), default=0)
        if done.returncode and FALSE_ALARM in done.stderr + done.stdout:
            return None, opened
        if done.returncode:
            sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
        return json.loads((Path(folder) / "run" / "metrics.json").read_text())["cost"], opened


def main() -> None:
    """Print a line for each cost, and one for false alarms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+", help="of the run, as for python -m mpc_imaging")
    parser.add_argument("--pairs", type=int, default=5, help="runs with the check, and as many without")
    arguments = parser.parse_args()
    costs: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    bits = alarms = 0
    for _ in range(arguments.pairs):
        for checked, known in costs.items():
            cost, opened = run(arguments.overrides, checked)
            bits, alarms = bits + opened, alarms + (cost is None)
            known += [] if cost is None else [cost]
    for key, name in SHOWN.items() if costs[True] else ():
        without, with_check = (statistics.median(each[key] for each in costs[checked]) for checked in (False, True))
        ratio = f"{with_check / without:.3f}" if without else "-"
        print(f"{name:15} {without:>15,.4g} without, {with_check:>15,.4g} with the check: {ratio}")
    print(f"{bits} range bits opened in {arguments.pairs} runs, {alarms} false alarms")


if __name__ == "__main__":
    main()
