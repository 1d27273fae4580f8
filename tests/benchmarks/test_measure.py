"""Small cases from the command line to the numbers, and what the numbers are made of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure import ratios, summarise, total_s

ROOT = Path(__file__).parents[2]
SIDE_KEYS = {
    *("online_s", "offline_s", "setup_s", "triples_s", "rounds", "sent_bytes", "setup_bytes", "dealer_bytes"),
    *("peak_rss_bytes", "max_error"),
}


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def _check(record: dict) -> None:
    assert {"case", "batch", "protocol", "machine", "ours", "crypten", "ratio"} <= record.keys()
    assert {"cpus", "torch"} <= record["machine"].keys()
    ours, crypten = record["ours"], record["crypten"]
    for side in (ours, crypten):
        assert side.keys() == SIDE_KEYS
        assert all(side[name] > 0 for name in ("online_s", "setup_s", "rounds", "sent_bytes"))
        assert 50e6 < side["peak_rss_bytes"] < 4e9
        assert 0 < side["max_error"] < 2e-3
    assert ours["dealer_bytes"] > 0 and crypten["dealer_bytes"] == 0
    assert ours["offline_s"] > 0 == crypten["offline_s"]
    assert 0 == ours["triples_s"] < crypten["triples_s"] < crypten["online_s"]
    assert record["ratio"] == pytest.approx(
        {
            "online": crypten["online_s"] / ours["online_s"],
            "without_triples": (crypten["online_s"] - crypten["triples_s"]) / ours["online_s"],
            "total": total_s(crypten) / total_s(ours),
            "bytes": crypten["sent_bytes"] / ours["sent_bytes"],
            "rounds": crypten["rounds"] / ours["rounds"],
        }
    )


def test_a_small_relu_gives_every_number(tmp_path):
    path = tmp_path / "out.json"
    done = _run("W4_relu", "--elements", "1000", "--repeats", "2", "--json", str(path))
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text())
    _check(record)
    assert (record["case"], record["elements"], record["protocol"]) == ("W4_relu", 1000, "fss")
    # CrypTen's circuit: 9 rounds, 29 words for each value.
    assert (record["crypten"]["rounds"], record["crypten"]["sent_bytes"]) == (9, 29 * 8 * 1000)
    assert record["ours"]["sent_bytes"] < record["crypten"]["sent_bytes"] / 10
    assert all(word in done.stdout for word in ("W4_relu", "1,000", "ours", "CrypTen", "ratio"))


@pytest.mark.slow
def test_a_small_training_step_is_right_on_both_sides(tmp_path):
    path = tmp_path / "out.json"
    done = _run("W1_train", "--batch", "2", "--repeats", "1", "--json", str(path))
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text())
    _check(record)
    assert record["batch"] == 2


def test_medians_and_the_worst():
    def sample(value: int) -> dict:
        return dict.fromkeys(SIDE_KEYS, value)

    summary = summarise([sample(1), sample(9), sample(2), sample(4)])
    assert summary["online_s"] == 3
    assert summary["rounds"] == 4  # a number that was measured
    assert summary["max_error"] == summary["peak_rss_bytes"] == 9
    assert total_s(summary) == 9
    expected = {"online": 1, "without_triples": 0, "total": 2, "bytes": 1, "rounds": 1}
    assert ratios(summary, summary | {"offline_s": 12}) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("W1", "--elements", "5"), "W1 has no --elements"),
        (("W4_relu", "--batch", "5"), "W4_relu has no --batch"),
        (("all", "--batch", "5"), "all has no --batch"),
        (("W1", "--json", "/nowhere/out.json"), "there is no folder /nowhere"),
        (("W1", "--json", "/"), "is a folder"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
    from benchmarks.__main__ import main

    assert main(list(arguments)) == 1
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not said.out
