from __future__ import annotations

import io
import json
import os
import pty
import signal
import socket
import stat
import subprocess
import sys
import termios
import textwrap
import time
from pathlib import Path

import pytest

from mpc_imaging.parties import launcher
from mpc_imaging.parties.launcher import LaunchError, last_line, launch
from mpc_imaging.settings import (
    DataSettings,
    PartySettings,
    PolicySettings,
    RandomnessMode,
    Role,
    Settings,
    TopologySettings,
    load,
    save,
)

ROOT = Path(launcher.__file__).parents[2]

PARTIES = {
    "hospital_a": [Role.data_owner, Role.compute, Role.model_owner, Role.receiver],
    "hospital_b": [Role.data_owner, Role.compute, Role.receiver],
    "dealer": [Role.dealer],
}
# Every fake party notes its options and environment, then does what the test says.
FAKE = """
import argparse, json, os, pathlib, signal, socket, stat, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("party")
for option in ("--config-file", "--run-dir", "--certificates", "--listen-fd"):
    parser.add_argument(option, required=True)
for flag in ("--watch-stdin", "--one-machine", "--progress"):
    parser.add_argument(flag, action="store_true")
args = parser.parse_args()
folder = pathlib.Path(args.certificates)
listener = socket.socket(fileno=int(args.listen_fd))
host, port = listener.getsockname()
notes = vars(args) | {
    "pid": os.getpid(), "address": f"{host}:{port}", "threads": os.environ.get("OMP_NUM_THREADS"),
    "files": sorted(path.name for path in folder.iterdir()), "mode": stat.S_IMODE(folder.parent.stat().st_mode),
}
target = pathlib.Path(args.run_dir, f"{args.party}.json")
target.with_suffix(".part").write_text(json.dumps(notes))
target.with_suffix(".part").rename(target)
def note_of(name):
    while not pathlib.Path(args.run_dir, f"{name}.json").exists():
        time.sleep(0.01)
    return json.loads(pathlib.Path(args.run_dir, f"{name}.json").read_text())
"""


def settings() -> Settings:
    parties = {name: PartySettings(roles=list(roles)) for name, roles in PARTIES.items()}
    policy = PolicySettings(reveal={"logits": ["receiver"], "range_ok": ["compute"]})
    return Settings(topology=TopologySettings(parties=parties), policy=policy, data=DataSettings(positive_class=1))


def fake(folder: Path, **bodies: str) -> launcher.Command:
    """A command factory: each party runs its body, or ends well at once."""
    for name in PARTIES:
        (folder / f"{name}.py").write_text(FAKE + textwrap.dedent(bodies.get(name, "")))
    return lambda party, options: [sys.executable, "-S", "-B", str(folder / f"{party}.py"), party, *options]


def notes(folder: Path) -> dict[str, dict]:
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in PARTIES}


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie that nobody has waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_all_parties_get_what_they_need(tmp_path: Path) -> None:
    launch(tmp_path, settings(), progress=False, command=fake(tmp_path))
    seen = notes(tmp_path)
    written = load(tmp_path / "settings.yaml").topology.parties
    for name, note in seen.items():
        assert note["config_file"] == str(tmp_path / "settings.yaml")
        assert note["address"] == written[name].address != "127.0.0.1:0"
        assert (note["files"], note["mode"]) == (["ca.crt", "party.crt", "party.key"], 0o700)
        assert note["certificates"].endswith(f"/{name}") and not Path(note["certificates"]).exists()
        assert note["watch_stdin"] and not note["progress"] and note["threads"]
    assert len({note["address"] for note in seen.values()}) == 3


def test_peers_can_connect_before_a_party_accepts(tmp_path: Path) -> None:
    connect = """
        host, port = note_of("hospital_a")["address"].split(":")
        socket.create_connection((host, int(port)), timeout=5).sendall(b"x")
    """
    accept = "sys.exit(0 if {listener.accept()[0].recv(1) for _ in range(2)} == {b'x'} else 9)"
    launch(tmp_path, settings(), command=fake(tmp_path, hospital_a=accept, hospital_b=connect, dealer=connect))


def test_a_dead_partys_port_is_refused(tmp_path: Path) -> None:
    # Were a copy of the socket still open in the launcher, this connection would wait for an answer instead.
    connect = """
        note = note_of("hospital_a")
        while os.path.exists(f"/proc/{note['pid']}/fd/{note['listen_fd']}"):
            time.sleep(0.01)
        host, port = note["address"].split(":")
        try:
            socket.create_connection((host, int(port)), timeout=5)
        except ConnectionRefusedError:
            sys.exit(0)
        sys.exit("hospital_a still answers")
    """
    launch(tmp_path, settings(), command=fake(tmp_path, hospital_b=connect))


def test_the_cause_wins_over_lost_peers(tmp_path: Path) -> None:
    lost = "print('hospital_b is gone', file=sys.stderr); sys.exit(3)"
    cause = """
        note_of("hospital_a"); note_of("dealer"); time.sleep(0.3)
        print("loading", file=sys.stderr)
        print("1 data problem: scan-7: no pixels\\n", file=sys.stderr)
        sys.exit(7)
    """
    with pytest.raises(LaunchError) as error:
        launch(tmp_path, settings(), command=fake(tmp_path, hospital_a=lost, hospital_b=cause, dealer=lost))
    assert str(error.value) == "hospital_b: 1 data problem: scan-7: no pixels"
    assert error.value.exit_code == 7
    assert "loading" in (tmp_path / "parties" / "hospital_b" / "stderr.txt").read_text()


def test_only_lost_peers_name_the_first(tmp_path: Path) -> None:
    lost = "print('hospital_a: no word from dealer', file=sys.stderr); sys.exit(3)"
    with pytest.raises(LaunchError, match="^hospital_a: hospital_a: no word from dealer$") as error:
        launch(tmp_path, settings(), command=fake(tmp_path, hospital_a=lost))
    assert error.value.exit_code == 3


def test_hanging_parties_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "GRACE_S", 0.3)
    monkeypatch.setattr(launcher, "TERM_S", 0.3)
    hang = "signal.signal(signal.SIGTERM, signal.SIG_IGN); note_of('dealer'); time.sleep(60)"
    start = time.monotonic()
    with pytest.raises(LaunchError, match="ended by SIGKILL; perhaps the machine ran out of memory") as error:
        launch(
            tmp_path,
            settings(),
            command=fake(
                tmp_path,
                hospital_a=hang,
                hospital_b="note_of('dealer'); time.sleep(60)",
                dealer="note_of('hospital_a'); note_of('hospital_b'); os.kill(os.getpid(), signal.SIGKILL)",
            ),
        )
    assert time.monotonic() - start < 10
    assert error.value.exit_code == 137
    assert not any(alive(note["pid"]) for note in notes(tmp_path).values())


def test_a_party_that_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="^dealer: ended with exit code 5, no message$"):
        launch(tmp_path, settings(), command=fake(tmp_path, dealer="sys.exit(5)"))


def test_progress_of_the_first_compute_party_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bodies = {name: f"print('{name} here: 50 % \u2588', file=sys.stderr)" for name in PARTIES}
    launch(tmp_path, settings(), command=fake(tmp_path, **bodies))
    assert capfd.readouterr().err == "hospital_a here: 50 % \u2588\n"
    assert [note["progress"] for note in notes(tmp_path).values()] == [True, False, False]
    for name in PARTIES:
        assert f"{name} here" in (tmp_path / "parties" / name / "stderr.txt").read_text()


def test_a_run_goes_on_when_nobody_reads_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    body = "for _ in range(20_000): print('epoch', file=sys.stderr)"  # more than a pipe holds
    launch(tmp_path, settings(), command=fake(tmp_path, hospital_a=body))
    assert (tmp_path / "parties" / "hospital_a" / "stderr.txt").read_text() == "epoch\n" * 20_000


def test_a_partys_folder_is_closed_to_other_users(tmp_path: Path) -> None:
    launch(tmp_path, settings(), progress=False, command=fake(tmp_path))
    for name in PARTIES:
        assert stat.S_IMODE((tmp_path / "parties" / name).stat().st_mode) == 0o700


def test_on_a_terminal_the_first_compute_party_has_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 97))
    say = "print(sys.stderr.isatty(), os.get_terminal_size(2).columns, file=sys.stderr)"
    bodies = dict.fromkeys(PARTIES, "print(sys.stderr.isatty(), file=sys.stderr)")
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        launch(tmp_path, settings(), command=fake(tmp_path, **(bodies | {"hospital_a": say})))
        assert os.read(ours, 1000).split() == [b"True", b"97"]
    os.close(ours)
    assert [last_line(tmp_path / "parties" / name / "stderr.txt") for name in PARTIES] == ["True 97", "False", "False"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_orphans_when_the_launcher_ends(tmp_path: Path, number: signal.Signals) -> None:
    hang = f"""
        sys.path[:0] = {[str(ROOT), *(path for path in sys.path if path.endswith("packages"))]!r}
        from mpc_imaging.parties.launcher import end_with_parent
        end_with_parent()
        pathlib.Path(args.run_dir, args.party + ".ready").touch()
        time.sleep(60)
    """
    fake(tmp_path, **dict.fromkeys(PARTIES, hang))
    save(settings(), tmp_path / "input.yaml")
    script = """if True:
        import pathlib, signal, sys
        from mpc_imaging.parties.launcher import launch
        from mpc_imaging.settings import load
        # A shell that starts the tests in the background has them ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        folder = pathlib.Path(sys.argv[1])
        command = lambda party, options: [sys.executable, "-S", "-B", str(folder / f"{party}.py"), party, *options]
        launch(folder, load(folder / "input.yaml"), command=command)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while not all((tmp_path / f"{name}.ready").exists() for name in PARTIES) and time.monotonic() < deadline:
            time.sleep(0.02)
        children = [note["pid"] for note in notes(tmp_path).values()]
        assert all(map(alive, children))
        parent.send_signal(number)
        assert parent.wait(timeout=10) != 0
        deadline = time.monotonic() + 5
        while any(map(alive, children)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(map(alive, children))
        if number != signal.SIGKILL:
            assert not any(Path(note["certificates"]).parent.exists() for note in notes(tmp_path).values())
    finally:
        parent.kill()
        parent.wait()


def test_runs_side_by_side_use_other_ports(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        folders = [tmp_path / "one", tmp_path / "two"]
        for folder in folders:
            folder.mkdir()
            launch(folder, settings(), progress=False, command=fake(folder))
        addresses = [note["address"] for folder in folders for note in notes(folder).values()]
        assert f"127.0.0.1:{taken.getsockname()[1]}" not in addresses


def test_last_line_ignores_control_sequences(tmp_path: Path) -> None:
    log = tmp_path / "stderr.txt"
    log.write_bytes(b"\x1b[2K\rworking 10 %\rworking 20 %\x1b[0m\r\nno peer \xff answered\n\x1b[?25h \n")
    assert last_line(log) == "no peer \ufffd answered"
    log.write_bytes(b"")
    assert last_line(log) == ""


def test_no_dealer_is_started_where_randomness_is_stored(tmp_path: Path) -> None:
    stored = settings()
    stored.randomness.mode, stored.randomness.store = RandomnessMode.stored, "/store"
    launch(tmp_path, stored, command=fake(tmp_path))
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == ["hospital_a", "hospital_b"]
    assert load(tmp_path / "settings.yaml", "hospital_a").dealer() == "dealer", "its address is not needed"
