import json
import os
import stat
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from mpc_imaging.randomness.claims import MAX_JUMP
from mpc_imaging.randomness.store import StoreError, StoreWriter
from mpc_imaging.randomness.store_files import BLOCK
from tests.randomness.stores import (
    MESSAGES,
    PARTIES,
    PLAN,
    certificates,
    hellos,
    no_sync,  # noqa: F401
    open_store,
    part_sealers,
    take,
    write,
)


def read_all(session, rank, messages=MESSAGES):
    for message in messages:
        assert session.read(2 + len(message)) == bytes([rank, session.number]) + message
    session.finish()


def test_what_was_written_is_read_by_each_party(tmp_path):
    keys = write(tmp_path)
    for rank, party in enumerate(PARTIES):
        with open_store(tmp_path, party) as store:
            assert (store.count, store.next_index) == (3, 0)
            for number in range(3):
                with take(store) as session:
                    assert (session.number, store.next_index) == (number, number + 1)
                    assert (session.key, session.key_id) == keys[rank, number]
                    assert repr(session.key) not in repr(session)
                    read_all(session, rank)
    assert len({key for key, _ in keys.values()}) == 9 and len({key_id for _, key_id in keys.values()}) == 3


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_messages_of_any_size_cross_blocks(tmp_path, size):
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    parts = [data[: size // 3].reshape(1, -1), data[size // 3 :]]
    with StoreWriter(tmp_path, part_sealers(["a"]), PLAN, 1) as writer:
        with writer.session(0) as session:
            session.write(0, parts)
        writer.finish()
    with open_store(tmp_path, "a", ["a"]) as store, take(store) as session:
        assert session.read(size // 2) + session.read(size - size // 2) == data.tobytes()
        session.finish()


def test_files_are_private_whatever_the_umask(tmp_path):
    old = os.umask(0)
    try:
        write(tmp_path / "STORE")
        with open_store(tmp_path / "STORE") as store:
            take(store).close()
    finally:
        os.umask(old)
    paths = [tmp_path / "STORE", *(tmp_path / "STORE").rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()} == {0o600}


def test_mark_and_folder_are_synced_before_a_session_is_claimed(tmp_path, monkeypatch):
    write(tmp_path)
    steps = []

    def traced(name, real):
        def call(*args):
            target = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else str(args[-1])
            on_disk = (tmp_path / "a" / "used.json.part").exists() and (tmp_path / "a" / "used.json.part").read_text()
            steps.append((name, os.path.relpath(target, tmp_path), on_disk and json.loads(on_disk)["next"]))
            return real(*args)

        monkeypatch.setattr(os, name, call)

    with open_store(tmp_path) as store:
        traced("fsync", os.fsync)
        traced("replace", os.replace)
        index = store.claim(hellos(store, 1))
        mark = [("fsync", "a/used.json.part", 2), ("replace", "a/used.json", 2), ("fsync", "a", False)]
        assert (index, steps) == (1, mark)
        steps.clear()
        store.confirm(hellos(store, 2)).close()
        assert steps == mark  # the witness


def test_a_store_is_usable_only_once_all_of_it_is_synced(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    write(tmp_path, count=2, parties=["a"])
    assert [os.path.relpath(path, tmp_path) for path in synced] == [
        "a/sessions/000000.part", "a/sessions/000001.part", "a/sessions",
        "a/used.json.part", "a", "a/store.json.part", "a", ".",
    ]  # fmt: skip


def test_a_mark_that_cannot_be_written_is_no_claim(tmp_path, monkeypatch):
    write(tmp_path)
    with open_store(tmp_path) as store:
        before = store.hello()

        def full(descriptor):
            raise OSError(28, "No space left on device", "/secret/path")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="marking a session of a's store as used failed: No space left") as caught:
            store.claim(hellos(store, 0))
        assert "secret" not in str(caught.value) and store.hello() == before
        with pytest.raises(ValueError, match="claim a session first"):
            store.confirm(hellos(store, 1))


def test_no_session_before_all_peers_have_marked_it(tmp_path):
    write(tmp_path)
    with open_store(tmp_path) as store:
        store.claim(hellos(store, 0))
        late = hellos(store, 1)
        late["c"]["next"] = 0
        with pytest.raises(StoreError, match="c has marked other sessions used than a: its next one is 0, not 1"):
            store.confirm(late)
        with pytest.raises(ValueError):
            store.confirm(hellos(store, 1))
        with take(store) as session:
            assert session.number == 1


def test_jumps_go_forward_only(tmp_path):
    write(tmp_path, count=6)
    with open_store(tmp_path) as store:
        with take(store, 3) as session:
            assert session.number == 3
        assert store.claim(hellos(store, 4)) == 4
    with open_store(tmp_path) as store:
        assert store.next_index == 5
        assert {path.name for path in (tmp_path / "a" / "sessions").iterdir()} == {"000005.bin"}
        take(store).close()
        with pytest.raises(StoreError, match="all 6 sessions of the store are used; run python -m mpc_imaging.prep"):
            take(store)
    with open_store(tmp_path) as store, pytest.raises(StoreError, match="are used"):
        take(store)


def test_a_jump_that_is_too_far_marks_nothing(tmp_path):
    write(tmp_path, count=MAX_JUMP + 4, messages=[])
    marks = (tmp_path / "a" / "used.json").read_bytes()
    with open_store(tmp_path) as store:
        with pytest.raises(StoreError, match="a would lose 17 sessions, and has marked none"):
            store.claim(hellos(store, MAX_JUMP + 1))
        assert (tmp_path / "a" / "used.json").read_bytes() == marks and store.next_index == 0
    with open_store(tmp_path) as store:
        assert len(list((tmp_path / "a" / "sessions").iterdir())) == MAX_JUMP + 4
        assert store.claim(hellos(store, MAX_JUMP + 2), max_jump=MAX_JUMP + 2) == MAX_JUMP + 2


def test_a_closed_store_claims_nothing(tmp_path):
    write(tmp_path)
    with open_store(tmp_path) as store:
        theirs = hellos(store, 0)
    with pytest.raises(ValueError, match="closed"):
        store.claim(theirs)


def test_locked_by_another_process(tmp_path):
    write(tmp_path)
    with open_store(tmp_path):
        program = (
            "import sys; from pathlib import Path; from mpc_imaging.randomness.store import *\n"
            "from mpc_imaging.randomness.sealing import Recipient\n"
            f"try: Store.open(Path(sys.argv[1]), Recipient('a', None, 'dealer', None), {PARTIES!r}, {PLAN!r})\n"
            "except StoreError as error: print(error)\n"
            "print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", program, tmp_path / "a"], capture_output=True, text=True)
        assert done.stdout == "a's store is in use by another process; wait until that has ended\nFalse\n", done.stderr
        with pytest.raises(StoreError, match="in use"):
            open_store(tmp_path)
    open_store(tmp_path).close()


def test_marks_that_changed_under_an_open_store(tmp_path):
    write(tmp_path)
    with open_store(tmp_path) as store:
        marks = (tmp_path / "a" / "used.json").read_bytes()
        take(store).close()
        (tmp_path / "a" / "used.json").write_bytes(marks)
        with pytest.raises(StoreError, match="changed by another process"):
            take(store)


def test_a_plan_that_asks_for_more_or_less(tmp_path):
    write(tmp_path, messages=[b"0123456789"])
    with open_store(tmp_path) as store:
        session = take(store)
        session.read(11)
        with pytest.raises(StoreError, match="holds less than the plan asks for"):
            session.read(2)
        session = take(store)
        session.read(11)
        with pytest.raises(StoreError, match="1 bytes of stored session 1 are left over"):
            session.finish()


def test_unfinished_stores_are_not_usable(tmp_path):
    writer = StoreWriter(tmp_path, part_sealers(PARTIES), PLAN, 2)
    with writer.session(0) as session:
        session.write(0, [b"x"])
    with pytest.raises(StoreError, match="session 1 of a was not written"):
        writer.finish()
    with pytest.raises(StoreError, match="no finished store"):
        open_store(tmp_path)
    with pytest.raises(StoreError, match="already has a, b, c; name another or remove it"):
        StoreWriter(tmp_path, part_sealers(PARTIES), PLAN, 2)


def test_a_session_is_written_once_and_wholly(tmp_path):
    writer = StoreWriter(tmp_path, part_sealers(PARTIES), PLAN, 2)
    with pytest.raises(KeyError), writer.session(0) as session:
        session.write(0, [b"x"])
        raise KeyError
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with writer.session(0), pytest.raises(StoreError, match="writing session 0 of the store failed: File exists"):
        writer.session(0).__enter__()
    with pytest.raises(StoreError, match="session 0 was written before"):
        writer.session(0).__enter__()
    assert len(list(tmp_path.rglob("*.bin"))) == 3 and not list(tmp_path.rglob("*.part"))
    for number in (-1, 2, True):
        with pytest.raises(ValueError):
            writer.session(number).__enter__()


def test_a_failed_run_of_preprocess_leaves_nothing(tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(KeyError), StoreWriter(tmp_path, part_sealers(PARTIES), PLAN, 2) as writer:
        with writer.session(0):
            pass
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize(("parties", "plan", "count"), [([], PLAN, 1), (["a", "a"], PLAN, 1), (["a"], PLAN, 0)])
def test_stores_that_make_no_sense(tmp_path, parties, plan, count):
    with pytest.raises(ValueError):
        StoreWriter(tmp_path, part_sealers(parties), plan, count)


def test_memory_stays_bounded(tmp_path):
    message = bytes(BLOCK)
    tracemalloc.start()
    try:
        with StoreWriter(tmp_path, part_sealers(["a", "b"]), PLAN, 1) as writer:
            with writer.session(0) as session:
                for _ in range(40):
                    session.write(0, [message])
            writer.finish()
        with open_store(tmp_path, "a", ["a", "b"]) as store, take(store) as session:
            for _ in range(40):
                assert len(session.read(BLOCK)) == BLOCK
        assert tracemalloc.get_traced_memory()[1] < 6 * BLOCK
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_resident_memory_stays_bounded_for_200_megabytes(tmp_path):
    program = """
import resource, sys
from pathlib import Path
from mpc_imaging.parties.parts import recipient, sealers
from mpc_imaging.randomness.store import Store, StoreWriter
from mpc_imaging.transport.certificates import Credentials
root, keys, plan, message = Path(sys.argv[1]), Path(sys.argv[2]), "5e" * 32, bytes(1000000)
parts, me = sealers(keys / "dealer", "dealer", ["a"]), recipient(Credentials(keys / "a"), "a", "dealer")
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def cycle(folder, repeats):
    with StoreWriter(root / folder, parts, plan, 1) as writer:
        with writer.session(0) as session:
            for _ in range(repeats): session.write(0, [message])
        writer.finish()
    with Store.open(root / folder / "a", me, ["a"], plan) as store:
        store.claim({})
        with store.confirm({}) as session:
            for _ in range(repeats): assert len(session.read(len(message))) == len(message)
            session.finish()
cycle("small", 2)
before = peak()
cycle("large", 200)
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path, certificates()], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 4096  # KiB
