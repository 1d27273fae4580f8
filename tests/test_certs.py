from __future__ import annotations

import pytest

from mpc_imaging.certs import main
from mpc_imaging.transport import Credentials


def test_every_step_of_the_help(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["ca", "authority"]) == 0
    assert main(["request", "certificates", "hospital_a"]) == 0
    asked = capsys.readouterr().out
    assert main(["sign", "authority", "hospital_a", "certificates/party.csr"]) == 0
    signed = capsys.readouterr().out
    fingerprint = next(line for line in asked.splitlines() if line.startswith("Fingerprint of hospital_a: "))
    assert fingerprint in signed
    for file in ("party.crt", "ca.crt"):
        (tmp_path / "authority/issued/hospital_a" / file).rename(tmp_path / "certificates" / file)
    assert Credentials(tmp_path / "certificates", "hospital_a").name == "hospital_a"


def test_local(tmp_path, capsys):
    assert main(["local", str(tmp_path), "hospital_a", "dealer", "--days", "3"]) == 0
    assert {Credentials(tmp_path / name).name for name in ("hospital_a", "dealer")} == {"hospital_a", "dealer"}
    assert "for trials only" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [["ca", "folder"], ["request", "folder", "hospital_a"], ["local", "folder", "hospital_a"]]
)
def test_no_key_is_overwritten_without_force(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 0
    keys = {path: path.read_bytes() for path in tmp_path.rglob("*.key")}
    assert main(command) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "--force" in captured.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.key")} == keys
    assert main([*command, "--force"]) == 0
    assert all(path.read_bytes() != content for path, content in keys.items())


def test_errors_are_one_line(tmp_path, capsys):
    assert main(["sign", str(tmp_path), "hospital_a", str(tmp_path / "party.csr")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("certs: ") and err.count("\n") == 1 and "no ca.crt" in err
    (tmp_path / "file").write_text("")
    assert main(["ca", str(tmp_path / "file" / "folder")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("command", [[], ["ca"], ["request"], ["sign"], ["local"]])
def test_help_teaches(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert (
        ("--force" in text) if command else ("never leaves" in text and "sign authority hospital_a party.csr" in text)
    )


def test_days_are_checked(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["ca", str(tmp_path), "--days", "0"])
    assert stopped.value.code == 2
    assert "from 1 to 3650" in capsys.readouterr().err


def test_a_name_that_is_given_twice(tmp_path, capsys):
    assert main(["local", str(tmp_path / "all"), "hospital_a", "hospital_a"]) == 1
    assert "a name is given twice; write each party's once" in capsys.readouterr().err
    assert not (tmp_path / "all").exists()
