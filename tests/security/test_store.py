"""No stored session is used twice, whatever is killed and whenever.

Two real processes share a store and are killed at random points. What they sent is in a log that is only appended to.
The same is then asked of every order of writing, where a power cut undoes all that was not synced.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict

import pytest

from mpc_imaging.randomness import store_files
from mpc_imaging.randomness.store import Store, StoreError, StoreWriter
from tests.randomness.stores import certificates, part_sealers, recipient_of
from tests.security.store_party import PARTIES, PLAN


def make_store(root, count, monkeypatch):
    with monkeypatch.context() as patch, StoreWriter(root, part_sealers(PARTIES), PLAN, count) as writer:
        patch.setattr(os, "fsync", lambda descriptor: None)  # thousands of files: only the marks are on trial here
        for number in range(count):
            with writer.session(number) as session:
                for rank in range(len(PARTIES)):
                    session.write(rank, [b"message"])
        writer.finish()


def start_pair(root, log):
    links = socket.socketpair()
    pair = []
    for party, link in zip(PARTIES, links, strict=True):
        mine = certificates() / party
        command = [sys.executable, "-m", "tests.security.store_party", root / party, party, mine, link.fileno(), log]
        pair.append(subprocess.Popen([str(word) for word in command], pass_fds=(link.fileno(), log)))
        link.close()
    return pair


def kill_once(root, log, log_path, rng):
    """Kill one or both while they start, or within the time that a few sessions take."""
    before = log_path.stat().st_size
    pair = start_pair(root, log)
    try:
        deadline = time.monotonic() + 20
        while rng.random() < 0.995 and log_path.stat().st_size == before:
            assert time.monotonic() < deadline and all(process.poll() is None for process in pair), "no session began"
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))
        for process in rng.sample(pair, rng.choice((1, 2))):
            process.kill()
        codes = [process.wait(20) for process in pair]
    finally:
        for process in pair:
            process.kill()
            process.wait()
    assert set(codes) <= {0, -signal.SIGKILL}, codes


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_kill_at_random_points_and_no_session_is_used_twice(tmp_path, monkeypatch, kills):
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    root, log_path, rng = tmp_path / "STORE", tmp_path / "sent.log", random.Random(seed)
    make_store(root, 60 * kills, monkeypatch)
    log = os.open(log_path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    try:
        for _ in range(kills):
            kill_once(root, log, log_path, rng)
    finally:
        os.close(log)
    used, keys, key_ids = defaultdict(list), set(), defaultdict(set)
    lines = log_path.read_text().splitlines()
    for line in lines:
        party, index, key, key_id = line.split()
        used[party].append(int(index))
        keys.add(key)
        key_ids[int(index)].add(key_id)
    assert len(lines) > kills and len(keys) == len(lines)
    assert all(len(ids) == 1 for ids in key_ids.values()), "the parties took different sessions"
    for party, indices in used.items():
        assert indices == sorted(set(indices)), f"{party} went back"
        with Store.open(root / party, recipient_of(party), PARTIES, PLAN) as store:
            assert store.next_index > max(indices)
    assert len(set(used["a"]) & set(used["b"])) >= kills // 2  # or they never computed together, and nothing was shown


class PowerCut(BaseException):
    """Everything stops here."""


class Disk:
    """A folder on which only what was synced survives, and a power cut before step number `cut`.

    Content survives its file's sync, and names survive their folder's sync: the pessimistic reading of POSIX.
    """

    def __init__(self, folder, spare, cut, monkeypatch):
        self.folder, self.spare, self.cut, self.steps = folder, spare, cut, 0
        shutil.copytree(folder, spare)
        self.synced = {}
        for name in ("fsync", "replace", "unlink", "open"):
            self._wrap(name, getattr(os, name), monkeypatch)

    def _wrap(self, name, real, monkeypatch):
        def step(*args, **kwargs):
            if self.steps == self.cut:
                raise PowerCut
            self.steps += 1
            result = real(*args, **kwargs)
            if name == "fsync":
                self._keep(os.readlink(f"/proc/self/fd/{args[0]}"))
            return result

        monkeypatch.setattr(os, name, step)

    def _keep(self, path):
        if not os.path.isdir(path):
            status = os.stat(path)
            with open(path, "rb") as file:
                self.synced[status.st_ino] = file.read()
            return
        target = self.spare / os.path.relpath(path, self.folder)
        names = [entry for entry in os.scandir(path) if entry.is_file()]
        for old in target.iterdir():
            if old.is_file() and old.name not in {entry.name for entry in names}:
                old.unlink()
        for entry in names:
            content = self.synced.get(entry.stat().st_ino)
            if content is not None:  # never written since the beginning: it is there already
                (target / entry.name).write_bytes(content)


def hello_of(peer, mine, index):
    return {**mine, "party": peer, "next": index, "witness": {mine["party"]: 0}}


@pytest.mark.parametrize("survivor", ["all that was done", "only what was synced"])
def test_power_cut_at_every_step_never_gives_a_session_back(tmp_path, monkeypatch, survivor):
    make_store(tmp_path / "STORE", 4, monkeypatch)
    finished, cuts, nexts = False, 0, set()
    while not finished:
        folder, spare = tmp_path / f"live{cuts}", tmp_path / f"disk{cuts}"
        shutil.copytree(tmp_path / "STORE" / "a", folder)
        left = 0  # sessions whose mark or bytes others may have seen
        with monkeypatch.context() as patch:
            disk = Disk(folder, spare, cuts, patch)
            try:
                with Store.open(folder, recipient_of("a"), PARTIES, PLAN) as store:
                    for index in range(2):
                        assert store.claim({"b": hello_of("b", store.hello(), index)}) == index
                        left = index + 1
                        store.confirm({"b": hello_of("b", store.hello(), left)}).close()
                finished = True
            except PowerCut:
                pass
        after = spare if survivor == "only what was synced" else folder
        with Store.open(after, recipient_of("a"), PARTIES, PLAN) as store:
            assert left <= store.next_index <= left + 1
            nexts.add(store.next_index)
        cuts += 1
    assert cuts > 15 and nexts == {0, 1, 2}
    assert disk.steps == cuts - 1


def test_without_syncing_the_power_cut_test_would_fail(tmp_path, monkeypatch):
    """The check above sees what it should: with no sync of the folder, marks are lost."""
    make_store(tmp_path / "STORE", 2, monkeypatch)
    folder = tmp_path / "STORE" / "a"
    monkeypatch.setattr(store_files, "sync_folder", lambda folder: None)
    Disk(folder, tmp_path / "disk", None, monkeypatch)
    with Store.open(folder, recipient_of("a"), PARTIES, PLAN) as store:
        store.claim({"b": hello_of("b", store.hello(), 0)})
    with Store.open(tmp_path / "disk", recipient_of("a"), PARTIES, PLAN) as store:
        assert store.next_index == 0


def test_marks_put_back_alone_are_noticed_from_the_missing_session(tmp_path, monkeypatch):
    make_store(tmp_path / "STORE", 3, monkeypatch)
    folder = tmp_path / "STORE" / "a"
    marks = (folder / "used.json").read_bytes()
    with Store.open(folder, recipient_of("a"), PARTIES, PLAN) as store:
        store.claim({"b": hello_of("b", store.hello(), 0)})
        store.confirm({"b": hello_of("b", store.hello(), 1)}).close()
    (folder / "used.json").write_bytes(marks)
    with pytest.raises(StoreError, match="session 0 is missing in a's store"):
        Store.open(folder, recipient_of("a"), PARTIES, PLAN)


def test_a_used_session_leaves_no_key_in_the_folder(tmp_path, monkeypatch):
    make_store(tmp_path / "STORE", 3, monkeypatch)
    folder = tmp_path / "STORE" / "a"
    with Store.open(folder, recipient_of("a"), PARTIES, PLAN) as store:
        store.claim({"b": hello_of("b", store.hello(), 1)})
        with store.confirm({"b": hello_of("b", store.hello(), 2)}) as session:
            key = session.key
    Store.open(folder, recipient_of("a"), PARTIES, PLAN).close()
    assert [path.name for path in (folder / "sessions").iterdir()] == ["000002.bin"]
    assert all(key not in path.read_bytes() for path in folder.rglob("*") if path.is_file())
