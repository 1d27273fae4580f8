"""Stores that are missing, damaged, mixed up or made by another version: always a `StoreError`, never a wrong byte."""

import contextlib
import json
import shutil

import pytest

from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness import store_files
from mpc_imaging.randomness.store import StoreError, StoreWriter
from mpc_imaging.randomness.store_files import BLOCK, read_sealed, write_sealed
from tests.randomness.stores import (
    OTHER_PLAN,
    PLAN,
    no_sync,  # noqa: F401
    open_store,
    part_sealers,
    recipient_of,
    take,
    write,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root / "a"), "no finished store for a: store.json is missing"),
        (lambda root: (root / "a" / "store.json").unlink(), "no finished store for a: store.json is missing"),
        (lambda root: (root / "a" / "used.json").unlink(), "a's store has lost its marks"),
        (lambda root: (root / "a" / "sessions" / "000001.bin").unlink(), "session 1 is missing in a's store"),
        (lambda root: shutil.rmtree(root / "a" / "sessions"), "reading sessions of a's store failed: No such file"),
        (lambda root: shutil.copytree(root / "b", root / "a", dirs_exist_ok=True), "this is not a's folder"),
        (lambda root: shutil.copy(root / "b" / "used.json", root / "a"), "used.json in a's store is damaged"),
        (lambda root: write(root / "x") and shutil.copy(root / "x/a/used.json", root / "a"), "belongs to another"),
    ],
)
def test_folders_that_are_not_the_store(tmp_path, change, message):
    write(tmp_path)
    change(tmp_path)
    with pytest.raises(StoreError, match=message) as caught:
        open_store(tmp_path)
    assert isinstance(caught.value, RandomnessError)
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_another_plan_or_other_parties(tmp_path):
    write(tmp_path)
    with pytest.raises(StoreError, match="a's store is for another plan"):
        open_store(tmp_path, plan=OTHER_PLAN)
    for parties in (("a", "b"), ("b", "a", "c")):
        with pytest.raises(StoreError, match="other compute parties"):
            open_store(tmp_path, parties=parties)


JUNK = [b"", b"\x00\xff", b"null", b"[]", b"7", b'"x"', b"{}", b"[" * 100_000, b'{"version": 2}', b"9" * 5000]
JUNK += [b'{"version": 2, "sha256": 3}', b'{"version": NaN, "sha256": ""}', b'{"version": 2, "sha256": "\\ud800"}']


@pytest.mark.parametrize("name", ["store.json", "used.json"])
def test_junk_instead_of_json(tmp_path, name):
    write(tmp_path)
    for junk in JUNK:
        (tmp_path / "a" / name).write_bytes(junk)
        with pytest.raises(StoreError, match=f"{name} in a's store is damaged"):
            open_store(tmp_path)


def replace(path, content):
    """A new file: overwriting one makes ext4 wait for the disk, a thousand times in these tests."""
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["store.json", "used.json"])
def test_every_byte_of_the_json_files_counts(tmp_path, name):
    write(tmp_path)
    path = tmp_path / "a" / name
    good = path.read_bytes()
    for position in range(len(good)):
        replace(path, good[:position] + bytes([good[position] ^ 2]) + good[position + 1 :])
        try:
            store = open_store(tmp_path)
        except StoreError:
            continue
        store.close()
        assert json.loads(path.read_bytes()) == json.loads(good)  # white space only
    for length in range(len(good) - 2):
        replace(path, good[:length])
        with pytest.raises(StoreError):
            open_store(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("store.json", {"count": 4}, "damaged, or not what dealer wrote"),
        ("store.json", {"signature": "00" * 64}, "damaged, or not what dealer wrote"),
        ("store.json", {"signature": "00"}, "damaged, or not what dealer wrote"),
        ("store.json", {"signature": None}, "damaged, or not what dealer wrote"),
        ("store.json", {"certificate": 3}, "damaged, or not what dealer wrote"),
        ("store.json", {"certificate": "\ud800"}, "is damaged"),
        ("store.json", {"certificate": ""}, "the dealer's certificate in a's store is not a party's certificate"),
        ("store.json", {"dealer": "other"}, "damaged, or not what dealer wrote"),
        ("store.json", {"parties": ["a"]}, "damaged, or not what dealer wrote"),
        ("store.json", {"sealed_to": "00" * 32}, "is sealed to another key than a's"),
        ("store.json", {"sealed_to": None}, "is sealed to another key than a's"),
        ("used.json", {"next": "1"}, "damaged"),
        ("used.json", {"next": 4}, "damaged"),
        ("used.json", {"witness": []}, "damaged"),
        ("used.json", {"witness": {"b": 0, "c": None}}, "damaged"),
        ("used.json", {"witness": {"b": 0, "c": 2}}, "put back: its peers have used sessions after 0"),
    ],
)
def test_sealed_nonsense(tmp_path, name, change, message):
    write(tmp_path)
    path = tmp_path / "a" / name
    content = read_sealed(path, "a", "absent")
    write_sealed(path, {**content, **change})
    with pytest.raises(StoreError, match=message):
        open_store(tmp_path)


@pytest.mark.parametrize("change", [{"count": -1}, {"count": True}, {"store": 5}, {"plan": None}, {"count": 1e999}])
def test_nonsense_that_the_dealer_signed(tmp_path, change):
    write(tmp_path)
    path = tmp_path / "a" / "store.json"
    facts = {**read_sealed(path, "a", "absent"), **change}
    del facts["signature"]
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
    write_sealed(path, {**facts, "signature": part_sealers()[0].sign("part of a store", canonical).hex()})
    with pytest.raises(StoreError, match="damaged"):
        open_store(tmp_path)


def test_another_format_version(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store_files, "VERSION", 3)
        write(tmp_path)
    with pytest.raises(StoreError, match="store.json in a's store has format version 3, this package reads 2"):
        open_store(tmp_path)
    write(tmp_path / "now")
    for name in ("store.json", "used.json"):
        path = tmp_path / "now" / "a" / name
        write_sealed(path, read_sealed(path, "a", "absent"))
    shutil.copy(tmp_path / "a/sessions/000000.bin", tmp_path / "now/a/sessions")
    with open_store(tmp_path / "now") as store, pytest.raises(StoreError, match="has format version 3"):
        take(store)


def read_messages(path, messages):
    """How many messages a session file hands out before it is refused; each must be what was written."""
    count = 0
    with path.open("rb") as file, contextlib.suppress(StoreError):
        opener = recipient_of("a").opener(part_sealers()[0].certificate.encode())
        reader = store_files.SessionReader(file, "the file", opener)
        for message in messages:
            assert reader.read(len(message)) == message
            count += 1
    return count


def test_no_byte_is_handed_out_from_a_session_file_that_was_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(store_files, "BLOCK", 64)
    messages = [bytes([k]) * (30 + k) for k in range(8)]  # five blocks
    with StoreWriter(tmp_path, part_sealers(["a"]), PLAN, 1) as writer:
        with writer.session(0) as session:
            for message in messages:
                session.write(0, [message])
        writer.finish()
    path = tmp_path / "a" / "sessions" / "000000.bin"
    good = path.read_bytes()
    assert read_messages(path, messages) == 8
    start = len(good) - sum(map(len, messages)) - 5 * 16
    blocks = [good[start + 80 * k : start + 80 * (k + 1)] for k in range(5)]
    spoiled = [good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :] for at in range(len(good))]
    spoiled += [good[:length] for length in range(len(good))] + [good + b"\0", good + good, bytes(len(good))]
    spoiled += [good[:start] + b"".join([blocks[1], blocks[0], *blocks[2:]])]
    for content in spoiled:
        replace(path, content)
        assert read_messages(path, messages) < 8


def test_after_damage_there_is_no_next_message(tmp_path):
    write(tmp_path, messages=[bytes(BLOCK), bytes(BLOCK)])
    path = tmp_path / "a" / "sessions" / "000000.bin"
    content = bytearray(path.read_bytes())
    content[BLOCK // 2] ^= 1
    path.write_bytes(content)
    with open_store(tmp_path) as store:
        session = take(store)
        for _ in range(2):
            with pytest.raises(StoreError):
                session.read(16)
        with take(store) as session:
            assert session.number == 1  # the store goes on behind it


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("b/sessions/000000.bin", "not what dealer wrote for this party"),
        ("a/sessions/000001.bin", "another store, party"),
    ]
    + [("x/a/sessions/000000.bin", "another store, party or session")],
)
def test_session_files_that_were_swapped(tmp_path, source, message):
    write(tmp_path)
    write(tmp_path / "x")
    shutil.copy(tmp_path / source, tmp_path / "a" / "sessions" / "000000.bin")
    with open_store(tmp_path) as store:
        with pytest.raises(StoreError, match=message):
            take(store)
        with take(store) as session:
            assert session.number == 1
