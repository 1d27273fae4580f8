"""What goes wrong ends soon, on every party, with the cause as the last line, and leaves no process behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.system.command import TINY, environment, finish, mpc_imaging, start

NAMES = ("hospital_a", "hospital_b", "dealer")


def _processes(folder):
    """Party processes that run in ``folder``: (pid, command line)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_text().replace("\0", " ")
        except OSError:
            continue
        if str(folder) in command and "mpc_imaging.party" in command:
            found.append((int(path.parent.name), command))
    return found


def _wait_for(condition, timeout_s=60):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout_s} s")


def _training(folder):
    """A training run that takes minutes, when it has begun to train."""
    # With little taken ahead: parties notice that the dealer is gone when they need more of it, and until then go on.
    options = (*TINY, "task=train", "task.epochs=500", "randomness.buffer_mb=1")
    process = start("mpc_imaging", *options, cwd=folder)

    def ledgers():
        """Those with the loss of an epoch."""
        paths = folder.glob("outputs/*/*/parties/hospital_?/ledger.jsonl")
        return [path for path in paths if '"value": "loss"' in path.read_text()]

    try:
        _wait_for(lambda: len(ledgers()) == 2)
    except AssertionError:
        process.kill()
        raise
    return process


@pytest.mark.parametrize("victim", ["hospital_b", "dealer"])
def test_a_killed_party_ends_all(tmp_path, victim):
    process = _training(tmp_path)
    (pid,) = [pid for pid, command in _processes(tmp_path) if f"party={victim}" in command]
    os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    run = finish(process, tmp_path, 30)
    assert time.monotonic() - started < 15
    assert run.code not in (0, None)
    assert victim in run.output.splitlines()[-1]
    _wait_for(lambda: not _processes(tmp_path), 5)
    assert not (run.folder / "metrics.json").exists()
    assert not list(run.folder.glob("parties/*/result.json")), "what is not finished leaves no result"
    assert run.events("hospital_a")[-1] == ("abort", None)


def test_a_killed_launcher_leaves_no_orphans(tmp_path):
    process = _training(tmp_path)
    assert len(_processes(tmp_path)) == 3
    process.kill()
    process.communicate()
    _wait_for(lambda: not _processes(tmp_path), 10)


@pytest.fixture
def operators(tmp_path):
    """Starts one party for each operator, as in the three-terminal example of the README."""
    certificates = tmp_path / "certificates"
    command = [sys.executable, "-m", "mpc_imaging.certs", "local", str(certificates), *NAMES]
    subprocess.run(command, check=True, capture_output=True, env=environment())
    started = {}

    def begin(**extra):
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in NAMES]
        ports = [one.getsockname()[1] for one in sockets]
        for one in sockets:
            one.close()
        addresses = [
            f"topology.parties.{name}.address=127.0.0.1:{port}" for name, port in zip(NAMES, ports, strict=True)
        ]
        for name in NAMES:
            started[name] = start(
                "mpc_imaging.party", f"party={name}", *TINY, *addresses,
                f"transport.certificates={certificates / name}", *extra.get(name, []), cwd=tmp_path,
            )  # fmt: skip
        return {name: finish(process, tmp_path, 120) for name, process in started.items()}

    yield begin
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.slow  # tests/parties/test_session.py has the same handshake, with parties as threads
def test_parties_that_disagree_say_what_on(operators):
    """The handshake names the section, at one party or both, and every party ends."""
    runs = operators(hospital_b=["protocol.fraction_bits=18"])
    assert all(run.code for run in runs.values())
    assert any("different settings in: protocol" in run.output for run in runs.values())


def test_operators_start_one_party_each(operators, tmp_path):
    for name, run in operators().items():
        assert run.code == 0, run.output
        if name != "dealer":
            assert list(tmp_path.glob(f"outputs/*/*/parties/{name}/report.html"))
            assert f"parties/{name}/report.html" in run.output
    assert not list(tmp_path.glob("outputs/*/*/metrics.json")), "no joint report on real machines"


def test_peers_are_told_at_once_but_not_which_file(operators, tmp_path):
    """The text of a data error stays with the party whose file it names."""
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "manifest.csv").write_text("file,label,patient,split\nDOE_JANE.dcm,0,p1,test\n")
    private = [f"data.path={folder}", "data.kind=dicom", "data.partition.kind=private"]
    started = time.monotonic()
    runs = operators(**{name: private for name in NAMES[:2]}, dealer=["data.path=/", *private[1:]])
    assert time.monotonic() - started < 50, "nobody waits for a time-out"
    failed = [name for name, run in runs.items() if run.code == 1]
    assert failed and all(run.code for run in runs.values())
    for name in failed:
        last = runs[name].output.splitlines()[-1]
        assert "row 2 (image " in last and "there is no such file" in last and "DOE" not in runs[name].output
    assert runs["dealer"].code == 3
    assert runs["dealer"].output.splitlines()[-1].endswith("data problems; its own log says more")
    named = {path for path in tmp_path.rglob("outputs/**/*") if path.is_file() and b"DOE" in path.read_bytes()}
    assert {path.parts[-2:] for path in named} == {("results", "images.csv")}


def test_bad_input_is_one_line_each_and_no_traceback(tmp_path):
    rows = "".join(f"missing_{n}.dcm,{n % 2},p{n},test\n" for n in range(6))
    (tmp_path / "manifest.csv").write_text(f"file,label,patient,split\n{rows}")
    run = mpc_imaging("data=dicom", f"data.path={tmp_path}", "data.positive_class=1", cwd=tmp_path)
    assert run.code == 1 and "Traceback" not in run.output
    assert "there is no such file" in run.output.splitlines()[-1] and "missing_" not in run.output


def test_a_model_that_cannot_run_is_found_before_anything_is_shared(tmp_path):
    run = mpc_imaging(*TINY, "model._target_=torch.nn.GELU", "model.kwargs=null", cwd=tmp_path, timeout_s=120)
    assert run.code == 1 and "Traceback" not in run.output
    assert "model problem" in run.output.splitlines()[-1]
    assert {event for event, _ in run.events("hospital_a")} == {"session", "abort"}


@pytest.mark.slow
def test_a_model_of_ones_own_runs_where_its_operator_allows_it(tmp_path):
    own = ("from torch import nn\nclass Net(nn.Sequential):\n    def __init__(self, pixels, classes):\n"
           "        super().__init__(nn.Flatten(), nn.Linear(pixels, classes))\n")  # fmt: skip
    (tmp_path / "my_package.py").write_text(own)
    named = [*TINY, "model._target_=my_package.Net", "model.kwargs={pixels: 144, classes: 2}"]
    run = mpc_imaging(*named, cwd=tmp_path)
    assert run.code == 2 and run.folder is None
    assert "add model.allow_code=[my_package] to your own command line" in run.output
    run = mpc_imaging(*named, "model.allow_code=[my_package]", cwd=tmp_path)
    assert run.code == 0, run.output
    assert run.metrics["fidelity"]["label_agreement"] == 1.0
    again = mpc_imaging(
        "--config-dir", str(run.folder / ".hydra"), "--config-name", "config", "model.allow_code=[other]", cwd=tmp_path
    )
    assert again.code == 2 and "allow_code" in again.output
