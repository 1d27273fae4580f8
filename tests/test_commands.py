"""Files of the command line that cannot be read: one line, the same in every command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpc_imaging import deidentify, manifest
from mpc_imaging.tasks import joint


@pytest.fixture(autouse=True)
def same_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_file_of_options_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        deidentify.main([str(tmp_path), str(tmp_path / "out"), f"@{tmp_path}/gone"])
    assert ended.value.code == 2
    expected = f"@{tmp_path}/gone cannot be read: No such file or directory; "
    assert capsys.readouterr().err == f"{expected}python -m mpc_imaging.deidentify --help explains\n"


def test_a_table_of_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "labels.csv"
    assert manifest.main([str(tmp_path), "--label-from", "csv", str(table), "diagnosis"]) == 2
    assert f"--label-from csv: {table} cannot be read (No such file or directory)" in capsys.readouterr().err
    table.write_bytes(b"\xff\xfe\x00")
    assert manifest.main([str(tmp_path), "--label-from", "csv", str(table), "diagnosis"]) == 2
    assert f"--label-from csv: {table} is no CSV in UTF-8 (UnicodeDecodeError)" in capsys.readouterr().err


def test_a_run_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert joint.main([str(tmp_path), "--one-machine"]) == 1
    wanted = f"{tmp_path}: no settings.yaml to read there (No such file or directory); give the folder of a run"
    assert capsys.readouterr().err.rstrip().endswith(wanted)
    (tmp_path / "settings.yaml").write_text("a: [")
    assert joint.main([str(tmp_path), "--one-machine"]) == 1
    assert "Traceback" not in (text := capsys.readouterr().err) and "no settings.yaml to read there" in text
