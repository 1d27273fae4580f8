"""Sealed share files: what comes back, what does not, and who may read them."""

import os
import re
import stat

import pytest
import torch

from mpc_imaging.errors import ConfigError, DataError
from mpc_imaging.parties import sealed
from mpc_imaging.settings import PartySettings, Role, Settings, TopologySettings

KEY = bytes(range(32))
HEADER = {"kind": "weights", "session": "ab" * 16, "party": "a", "step": 7, "privacy": {"epsilon": 1.5}}
SHARES = {
    "weight": torch.randint(-(2**63), 2**63 - 1, (3, 5), generator=torch.Generator().manual_seed(1)),
    "empty": torch.zeros(0, dtype=torch.int64),
    "scalar": torch.tensor(-(2**63)),
    "transposed": torch.arange(6).view(2, 3).t(),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "shares.sealed"
    sealed.seal(path, SHARES, HEADER, KEY, {"history": [0.5, None]})
    return path


def test_everything_comes_back(path):
    content = sealed.unseal(path, KEY)
    assert content.tensors.keys() == SHARES.keys()
    assert all(torch.equal(content.tensors[name], value) for name, value in SHARES.items())
    assert content.header == HEADER == sealed.read_header(path)
    assert content.notes == {"history": [0.5, None]}


def test_nothing_private_is_readable_or_shown(path):
    raw = path.read_bytes()
    for value in (b'weight"', b"history", SHARES["weight"].numpy().tobytes()[:8], KEY[:8]):
        assert value not in raw
    content = sealed.unseal(path, KEY)
    assert str(SHARES["weight"][0, 0].item()) not in repr(content) and "history" not in repr(content)


def test_the_file_is_private_and_whole(path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path], "nothing temporary is left"


def test_a_second_writing_replaces_the_first_and_shares_nothing_with_it(path):
    before = path.read_bytes()
    sealed.seal(path, SHARES, HEADER, KEY, {"history": [0.5, None]})
    after = path.read_bytes()
    assert len(before) == len(after)
    same = sum(x == y for x, y in zip(before[-200:], after[-200:], strict=True))
    assert same < 20, "another nonce and key: another keystream"


def test_the_key_of_a_file_is_its_own():
    nonce = bytes(12)
    keys = {sealed._file_key(KEY, nonce, HEADER | change) for change in ({}, {"step": 8}, {"party": "b"})}
    keys |= {sealed._file_key(KEY, nonce, HEADER | change) for change in ({"session": "cd"}, {"kind": "checkpoint"})}
    keys |= {sealed._file_key(KEY, bytes(11) + b"x", HEADER), KEY, sealed._key_check(KEY, nonce)}
    assert len(keys) == 8


def test_another_key(path):
    with pytest.raises(DataError, match="shares.sealed was sealed with another key"):
        sealed.unseal(path, bytes(32))


def test_every_byte_counts(path):
    """A changed bit anywhere is found; only in the first bytes does another message say what seems wrong."""
    raw = bytearray(path.read_bytes())
    damaged, other = "is damaged", "is no sealed share file|format version|sealed with another key|is damaged"
    for position in range(len(raw)):
        raw[position] ^= 4
        path.write_bytes(raw)
        with pytest.raises(DataError, match=damaged if position >= sealed._HEAD.size else other):
            sealed.unseal(path, KEY)
        raw[position] ^= 4


@pytest.mark.parametrize("change", [lambda raw: raw + b"\0", lambda raw: raw + raw, lambda raw: b"\0" + raw])
def test_nothing_may_be_added(path, change):
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match="is damaged|is no sealed share file"):
        sealed.unseal(path, KEY)


def test_every_truncation(path):
    raw = path.read_bytes()
    for size in range(len(raw)):
        path.write_bytes(raw[:size])
        with pytest.raises(DataError, match="is damaged" if size >= 8 else "is no sealed share file"):
            sealed.unseal(path, KEY)


def test_a_header_of_another_file_does_not_fit(path, tmp_path):
    other = tmp_path / "other.sealed"
    sealed.seal(other, SHARES, HEADER | {"step": 8}, KEY, {"history": [0.5, None]})
    size = sealed._HEAD.size
    one, two = path.read_bytes(), other.read_bytes()
    assert len(one) == len(two)
    start = one.index(b"}", one.index(b'"step"')) + 1
    path.write_bytes(one[:size] + two[size:start] + one[start:])
    assert sealed.read_header(path)["step"] == 8, "the header alone proves nothing"
    with pytest.raises(DataError, match="is damaged"):
        sealed.unseal(path, KEY)


def test_other_versions(path):
    raw = bytearray(path.read_bytes())
    raw[9] = 2
    path.write_bytes(raw)
    with pytest.raises(DataError, match="format version 2, and this package reads 1"):
        sealed.read_header(path)


def test_messages_have_the_name_that_was_given(path, tmp_path):
    path.write_bytes(b"")
    with pytest.raises(DataError, match="^1 data problem: the file of a is no sealed share file; give the run folder"):
        sealed.unseal(path, KEY, "the file of a")
    for reading in (sealed.read_header, lambda path: sealed.unseal(path, KEY)):
        with pytest.raises(DataError, match="^1 data problem: gone is missing"):
            reading(tmp_path / "gone")
        with pytest.raises(DataError, match="cannot be read: Is a directory"):
            reading(tmp_path)


def test_absurd_lengths_take_no_memory(path):
    raw = path.read_bytes()
    for length, octets in ((2**32 - 1, 0), (10, 2**63), (2**16 + 1, 2**36)):
        head = sealed._HEAD.pack(b"MPCSHARE", 1, length, octets, bytes(12), bytes(16))
        path.write_bytes(head + raw[len(head) :])
        with pytest.raises(DataError, match="is damaged"):
            sealed.unseal(path, KEY)


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"kind": "weights"}', b"[" * 5000, b'"\xff"'])
def test_headers_that_say_nothing(path, text):
    head = sealed._HEAD.pack(b"MPCSHARE", 1, len(text), 0, bytes(12), bytes(16))
    path.write_bytes(head + text + bytes(16))
    with pytest.raises(DataError, match="is damaged"):
        sealed.read_header(path)


def test_too_large(path, monkeypatch):
    with pytest.raises(DataError, match="too many for one sealed file"):
        sealed.seal(path, {}, HEADER | {"privacy": "x" * sealed.HEADER_LIMIT}, KEY)
    assert sealed.CONTENT_LIMIT == 2**36 - 32
    monkeypatch.setattr(sealed, "CONTENT_LIMIT", 100)
    with pytest.raises(DataError, match="too many for one sealed file"):
        sealed.seal(path, SHARES, HEADER, KEY)
    monkeypatch.undo()
    assert sealed.unseal(path, KEY).header == HEADER, "the old file is still there"


def test_only_integers_are_shares(path):
    sealed.seal(path, {"x": torch.zeros(2)}, HEADER, KEY)
    with pytest.raises(DataError, match="is damaged"):
        sealed.unseal(path, KEY)


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match="writing shares.sealed failed: No such file or directory; make room"):
        sealed.seal(tmp_path / "gone" / "shares.sealed", SHARES, HEADER, KEY)


# Keys


@pytest.fixture
def settings(monkeypatch):
    monkeypatch.delenv(sealed.KEY_VARIABLE, raising=False)
    return Settings(topology=TopologySettings(parties={"a": PartySettings([Role.compute], "10.0.0.1:7000")}))


def _key_file(path, content=KEY, mode=0o600):
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("one_machine", [True, False])
def test_a_key_file_comes_first_then_the_environment(settings, tmp_path, monkeypatch, one_machine):
    monkeypatch.setenv(sealed.KEY_VARIABLE, "0f" * 32)
    assert sealed.sealing_key(settings, tmp_path, one_machine) == b"\x0f" * 32 == sealed.share_key(settings, tmp_path)
    settings.checkpoint.key_file = str(_key_file(tmp_path / "mine"))
    assert sealed.sealing_key(settings, tmp_path, one_machine) == KEY == sealed.share_key(settings, tmp_path)
    assert not (tmp_path / sealed.KEY_FILE).exists()


NO_KEY = "checkpoint.key_file: shares are .* write .umask 077; openssl rand -out FILE 32"


@pytest.mark.parametrize("address", ["10.0.0.1:7000", "127.0.0.1:7000", "localhost:7000", "[::1]:7000"])
def test_no_key_on_a_real_machine_whatever_its_address(settings, tmp_path, address):
    """Tunnels have loopback addresses: only the launcher knows that all parties are here."""
    settings.topology.parties["a"].address = address
    with pytest.raises(ConfigError, match=NO_KEY):
        sealed.share_key(settings, tmp_path)
    with pytest.raises(ConfigError, match=NO_KEY):
        sealed.sealing_key(settings, tmp_path, one_machine=False)
    assert not list(tmp_path.iterdir())


def test_a_simulation_makes_its_own(settings, tmp_path):
    with pytest.raises(ConfigError, match="write .umask 077; openssl"):
        sealed.share_key(settings, tmp_path)
    key = sealed.sealing_key(settings, tmp_path, one_machine=True)
    path = tmp_path / sealed.KEY_FILE
    assert len(key) == 32 and path.read_bytes() == key and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sealed.sealing_key(settings, tmp_path, one_machine=True) == key == sealed.share_key(settings, tmp_path)
    (tmp_path / "b").mkdir()
    assert sealed.sealing_key(settings, tmp_path / "b", one_machine=True) != key
    with pytest.raises(ConfigError, match=NO_KEY):
        sealed.sealing_key(settings, tmp_path, one_machine=False)


@pytest.mark.parametrize("text", ["", "0f" * 31, "0f" * 33, "zz" * 32])
def test_an_environment_without_a_key(settings, tmp_path, monkeypatch, text):
    monkeypatch.setenv(sealed.KEY_VARIABLE, text)
    with pytest.raises(ConfigError) as caught:
        sealed.sealing_key(settings, tmp_path, one_machine=False)
    assert text[:20] not in str(caught.value) or not text


@pytest.mark.parametrize(
    ("content", "mode", "text"),
    [
        (KEY[:-1], 0o600, "does not hold 32 bytes"),
        (KEY + b"\n", 0o600, "does not hold 32 bytes"),
        (KEY, 0o640, "others than its owner may use this key; write chmod 600 FILE"),
        (KEY, 0o604, "others than its owner may use this key"),
    ],
)
def test_key_files_that_are_refused(settings, tmp_path, content, mode, text):
    settings.checkpoint.key_file = str(_key_file(tmp_path / "mine", content, mode))
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        sealed.sealing_key(settings, tmp_path, one_machine=False)
    assert "checkpoint.key_file" in str(caught.value) and KEY.hex() not in str(caught.value)


def test_a_key_file_that_is_missing(settings, tmp_path):
    settings.checkpoint.key_file = str(tmp_path / "gone")
    with pytest.raises(ConfigError, match="checkpoint.key_file: the key cannot be read: No such file"):
        sealed.sealing_key(settings, tmp_path, one_machine=False)
    assert os.listdir(tmp_path) == []
