"""The files that settings name: what is wrong with them is told before anything starts, by its key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpc_imaging import app, party
from mpc_imaging.compose import compose_settings
from mpc_imaging.local_files import find_problems

REAL = tuple(f"topology.parties.{name}.address=127.0.0.1:{port}"
             for port, name in enumerate(("hospital_a", "hospital_b", "dealer"), 7701))  # fmt: skip


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o022)
    yield
    os.umask(before)


def _key(path: Path, mode: int = 0o600, count: int = 32) -> Path:
    path.write_bytes(os.urandom(count))
    path.chmod(mode)
    return path


def _problems(*overrides: str, party: str | None = None) -> list[str]:
    return list(map(str, find_problems(compose_settings(list(overrides), party=party), party)))


def test_a_folder_without_a_manifest_is_named_with_the_command_that_drafts_one(tmp_path: Path) -> None:
    (folder := tmp_path / "an export").mkdir()
    wanted = f"there is no manifest.csv in {folder}; python -m mpc_imaging.manifest '{folder}' drafts one"
    assert _problems("data=dicom", f"data.path={folder}") == [f"data.path: {wanted}"]
    (folder / "manifest.csv").touch()
    assert not _problems("data=dicom", f"data.path={folder}")


def test_files_for_folders_and_folders_for_files(tmp_path: Path) -> None:
    (file := tmp_path / "set.npz").touch()
    assert "is a file; write the folder that manifest.csv lies in" in _problems("data=dicom", f"data.path={file}")[0]
    for kind in ("data=medmnist", "data=nuclei"):
        policy = ("model=unet_small", "policy=own_outputs") if kind == "data=nuclei" else ()
        assert "is a folder; write the .npz file in it" in _problems(kind, f"data.path={tmp_path}", *policy)[0]


@pytest.mark.parametrize(
    ("mode", "count", "expected"),
    [
        (0o644, 32, "others than its owner may use this key; write chmod 600 FILE"),
        (0o600, 31, "the file does not hold 32 bytes; write (umask 077; openssl rand -out FILE 32)"),
    ],
)
def test_a_key_that_will_be_refused(tmp_path: Path, mode: int, count: int, expected: str) -> None:
    key = _key(tmp_path / "key", mode, count)
    assert _problems("task=train", f"checkpoint.key_file={key}") == [f"checkpoint.key_file: {expected}"]


def test_pseudonyms_take_a_key_of_any_mode_but_of_32_bytes(tmp_path: Path) -> None:
    assert not _problems(f"data.pseudonym_key_file={_key(tmp_path / 'key', 0o644)}")
    expected = "data.pseudonym_key_file: the file does not hold 32 bytes; write (umask 077; openssl rand -out FILE 32)"
    assert _problems(f"data.pseudonym_key_file={_key(tmp_path / 'short', 0o600, 5)}") == [expected]


def test_each_party_looks_at_its_own(tmp_path: Path) -> None:
    missing = ("data=dicom", "data.paths={hospital_a: A, hospital_b: B}", "checkpoint.key_file=K", *REAL)
    for name, keys in {
        "hospital_a": ["checkpoint.key_file", "data.paths.hospital_a"],
        "hospital_b": ["checkpoint.key_file", "data.paths.hospital_b"],
        "dealer": [],
    }.items():
        assert [text.split(":")[0] for text in _problems(*missing, party=name)] == keys
    assert len(_problems(*missing)) == 3


def test_the_commands_end_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = _key(tmp_path / "key", 0o644)
    wanted = "checkpoint.key_file: others than its owner may use this key"
    assert app.main(["task=train", f"checkpoint.key_file={key}"]) == 2
    assert wanted in capsys.readouterr().err
    assert party.main(["party=hospital_a", "task=train", f"checkpoint.key_file={key}", *REAL]) == 2
    assert wanted in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()
