"""The ledger: chained, durable, and any change to it shows."""

import json

import pytest

from mpc_imaging.errors import SessionError
from mpc_imaging.parties.ledger import GENESIS, Ledger, read


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    for i in range(4):
        ledger.write("reveal", value="logits", shape=[i, 2])
    return path


def test_entries_are_chained(path):
    entries = read(path)
    assert [e["number"] for e in entries] == [0, 1, 2, 3]
    assert entries[0]["previous"] == GENESIS
    assert all(b["previous"] == a["hash"] for a, b in zip(entries, entries[1:], strict=False))


def test_a_second_run_goes_on(path):
    Ledger(path).write("end")
    assert [e["event"] for e in read(path)] == ["reveal"] * 4 + ["end"]


def _change(lines):
    entry = json.loads(lines[1])
    entry["shape"] = [99, 2]
    lines[1] = json.dumps(entry)


@pytest.mark.parametrize(
    "damage",
    [_change, lambda lines: lines.pop(1), lambda lines: lines.insert(1, lines[1]), lambda lines: lines.insert(0, "{}"),
     lambda lines: lines.reverse(), lambda lines: lines.append("[]")],
)  # fmt: skip
def test_damage_is_found(path, damage):
    lines = path.read_text().splitlines()
    damage(lines)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(SessionError, match="line"):
        read(path)
