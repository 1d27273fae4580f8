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
     lambda lines: lines.reverse(), lambda lines: lines.append("[]"), lambda lines: lines.insert(2, "\x1c")],
)  # fmt: skip
def test_damage_is_found(path, damage):
    lines = path.read_text().splitlines()
    damage(lines)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(SessionError, match="line"):
        read(path)


@pytest.mark.parametrize("end", [b'{"number": 4', b"{}", b"\xff\xfe\n", b"\n"])
def test_what_a_crash_leaves_is_found(path, end):
    path.write_bytes(path.read_bytes() + end)
    with pytest.raises(SessionError, match="line 5"):
        Ledger(path)


def test_every_entry_is_on_disk_before_it_counts(tmp_path, monkeypatch):
    """A disk that refuses an entry ends the session before anything is opened."""

    def full(descriptor):
        raise OSError(28, "No space left on device")

    ledger = Ledger(tmp_path / "ledger.jsonl")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        ledger.write("reveal", value="logits")
