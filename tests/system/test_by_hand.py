"""Parties that operators start, behind tunnels: their addresses are loopback ones, and their machines their own."""

import socket

import pytest

from mpc_imaging.transport.certificates import make_local
from tests.system.command import TINY, finish, start

PARTIES = ("hospital_a", "hospital_b", "dealer")


def _together(folder, *arguments):
    """All parties, each by its own command and in its own folder."""
    make_local(folder / "certificates", PARTIES)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in PARTIES]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    addresses = [f"topology.parties.{n}.address=127.0.0.1:{port}" for n, port in zip(PARTIES, ports, strict=True)]
    started = {}
    for name in PARTIES:
        (folder / name).mkdir()
        where = f"transport.certificates={folder / 'certificates' / name}"
        keys = [text.format(name=name) for text in arguments]
        started[name] = start("mpc_imaging.party", f"party={name}", *TINY, where, *addresses, *keys, cwd=folder / name)
    return {name: finish(process, folder / name, 200) for name, process in started.items()}


@pytest.mark.slow
def test_no_key_is_kept_beside_the_shares(tmp_path):
    """Training ends in shares: without a key of the operator there is none."""
    runs = _together(tmp_path, "task=train")
    assert {runs[name].code for name in PARTIES[:2]} <= {2, 3} and 2 in {runs[name].code for name in PARTIES[:2]}
    assert any("checkpoint.key_file: shares are kept encrypted" in run.output for run in runs.values())
    assert not list(tmp_path.rglob("share.key")) and not list(tmp_path.rglob("*.sealed"))


@pytest.mark.slow
def test_with_keys_of_their_operators(tmp_path):
    for number, name in enumerate(PARTIES):
        (tmp_path / f"{name}.key").write_bytes(bytes([number]) * 32)
        (tmp_path / f"{name}.key").chmod(0o600)
    runs = _together(tmp_path, "task=train", f"checkpoint.key_file={tmp_path}/{{name}}.key")
    assert [run.code for run in runs.values()] == [0, 0, 0], [run.output for run in runs.values()]
    assert len(list(tmp_path.rglob("shares.sealed"))) == 2 and not list(tmp_path.rglob("share.key"))
