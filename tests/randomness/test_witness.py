import json
import multiprocessing

import pytest

from mpc_imaging.randomness import witness as module
from mpc_imaging.randomness.store_files import StoreError
from mpc_imaging.randomness.witness import Witness, agreed

ONE, TWO = "0a" * 16, "b1" * 16


def test_a_session_is_seen_once(tmp_path):
    Witness(tmp_path, "a").remember(ONE, 0)
    Witness(tmp_path, "a").remember(TWO, 5)
    Witness(tmp_path, "a").remember(ONE, 1)
    Witness(tmp_path, "b").remember(TWO, 0)  # another party's memory is another
    for store, index, known in ((ONE, 1, 2), (ONE, 0, 2), (TWO, 5, 6)):
        with pytest.raises(
            StoreError, match=f"stores were put back: they take session {index}, but a has seen it used"
        ):
            Witness(tmp_path, "a").remember(store, index)
        content = json.loads((tmp_path / "stores.a.json").read_text())["stores"]
        assert content[store] == known
    Witness(tmp_path, "a").remember(ONE, 7)


@pytest.mark.parametrize(
    "content",
    ["", "null", "{}", '{"version": 2, "stores": {}, "sha256": ""}', "[" * 10_000, "\udcff", '{"version": 1}'],
)
def test_a_damaged_memory_is_not_an_empty_one(tmp_path, content):
    (tmp_path / "stores.a.json").write_text(content, errors="surrogateescape")
    with pytest.raises(StoreError, match="what a remembers of stores is damaged, or cannot be read"):
        Witness(tmp_path, "a")


@pytest.mark.parametrize("stores", [None, [], {ONE: "1"}, {ONE: -1}, {ONE: True}, {ONE: 1.5}, {ONE: float("inf")}])
def test_nonsense_with_a_digest(tmp_path, stores):
    module.write_sealed(tmp_path / "stores.a.json", {"stores": stores})
    with pytest.raises(StoreError, match="what a remembers of stores is damaged, or cannot be read"):
        Witness(tmp_path, "a")


def test_memory_on_disk_before_it_returns_and_bounded(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(module.os, "fsync", lambda descriptor: synced.append(descriptor))
    Witness(tmp_path, "a").remember(ONE, 0)
    assert len(synced) == 2  # the file, and its folder
    monkeypatch.setattr(module, "LIMIT", 1)
    Witness(tmp_path, "a").remember(ONE, 1)
    with pytest.raises(StoreError, match="a remembers 1 stores, and no more"):
        Witness(tmp_path, "a").remember(TWO, 0)


def _remember(folder, number):
    Witness(folder, "a").remember(f"{number:032x}", 0)


def test_sessions_at_the_same_time_forget_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_remember, args=(tmp_path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert len(json.loads((tmp_path / "stores.a.json").read_text())["stores"]) == 3


def test_a_folder_that_is_not_there_names_the_key_and_no_path(tmp_path):
    with pytest.raises(
        StoreError, match="a cannot remember .*: No such file or directory; set randomness.witness"
    ) as error:
        Witness(tmp_path / "doe", "a")
    assert "doe" not in str(error.value)


def test_compute_parties_must_agree():
    said = {"store": ONE, "index": 3}
    assert agreed({"a": said, "b": dict(said)}) == (ONE, 3)
    with pytest.raises(StoreError, match="a and b use different stores"):
        agreed({"a": said, "b": {"store": TWO, "index": 3}})
    with pytest.raises(StoreError, match="b takes session 4 of its store, a session 3"):
        agreed({"a": said, "b": {"store": ONE, "index": 4}})


@pytest.mark.parametrize(
    "message",
    [None, 3, [], "x", {}, {"store": ONE}, {"store": ONE, "index": True}, {"store": ONE, "index": -1}]
    + [{"store": ONE, "index": 1e999}, {"store": ONE[:-1], "index": 0}, {"store": ONE.upper(), "index": 0}]
    + [{"store": 5, "index": 0}, {"store": ONE, "index": 1 << 60}, {"store": [ONE], "index": 0}],
)
def test_messages_that_say_nothing(message):
    with pytest.raises(StoreError, match="b did not say which stored session begins"):
        agreed({"a": {"store": ONE, "index": 0}, "b": message})
