"""What goes wrong ends soon, on every party, with the cause as the last line, and leaves no process behind."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.system.command import TINY, finish, mpc_imaging, start


def _processes(folder):
    """Command lines of processes that run in `folder`."""
    found = []
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            if str(folder) in command and "mpc_imaging.party" in command:
                found.append((int(pid), command))
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
    process = start("mpc_imaging", *TINY, "task=train", "task.epochs=500", cwd=folder)
    ledgers = lambda: [p for p in folder.glob("outputs/*/*/parties/hospital_?/ledger.jsonl") if "loss" in p.read_text()]  # noqa: E731
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


def test_a_killed_launcher_leaves_no_orphans(tmp_path):
    process = _training(tmp_path)
    assert len(_processes(tmp_path)) == 3
    process.kill()
    process.communicate()
    _wait_for(lambda: not _processes(tmp_path), 10)


def test_parties_that_disagree_say_what_on(tmp_path):
    """Operators with different settings: the handshake names the section, at both."""
    names = ["hospital_a", "hospital_b", "dealer"]
    certificates = tmp_path / "certificates"
    assert (
        subprocess.run([*_python(), "mpc_imaging.certs", "local", str(certificates), *names], check=False).returncode
        == 0
    )
    parties = _operators(tmp_path, certificates, names, {"hospital_b": ["protocol.fraction_bits=18"]})
    runs = {name: finish(process, tmp_path, 90) for name, process in parties.items()}
    assert all(run.code for run in runs.values())
    assert any("different settings in: protocol" in run.output for run in runs.values())


def test_operators_start_one_party_each(tmp_path):
    """The three-terminal example of the README."""
    names = ["hospital_a", "hospital_b", "dealer"]
    certificates = tmp_path / "certificates"
    subprocess.run(
        [*_python(), "mpc_imaging.certs", "local", str(certificates), *names], check=True, capture_output=True
    )
    parties = _operators(tmp_path, certificates, names, {})
    for name, process in parties.items():
        run = finish(process, tmp_path, 120)
        assert run.code == 0, run.output
        if name != "dealer":
            assert list(tmp_path.glob(f"outputs/*/*/parties/{name}/report.html"))
    assert not list(tmp_path.glob("outputs/*/*/metrics.json")), "no joint report on real machines"


def _python():
    import sys

    return [sys.executable, "-m"]


def _operators(folder, certificates, names, extra):
    import socket

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    addresses = [
        f"topology.parties.{n}.address=127.0.0.1:{s.getsockname()[1]}" for n, s in zip(names, sockets, strict=True)
    ]
    for s in sockets:
        s.close()
    return {
        name: start(
            "mpc_imaging.party", f"party={name}", *TINY, "model.weights.source=pretrain", *addresses,
            f"transport.certificates={certificates / name}", *extra.get(name, []), cwd=folder,
        )
        for name in names
    }  # fmt: skip


def test_bad_input_is_one_line_each_and_no_traceback(tmp_path):
    rows = "".join(f"missing_{i}.dcm,{i % 2},p{i},test\n" for i in range(8))
    (tmp_path / "manifest.csv").write_text(f"file,label,patient,split\n{rows}")
    run = mpc_imaging("data=dicom", f"data.path={tmp_path}", "data.positive_class=1", cwd=tmp_path)
    assert run.code == 1 and "Traceback" not in run.output
    assert "missing_" in run.output.splitlines()[-1]


def test_a_model_that_cannot_run_is_found_before_anything_is_shared(tmp_path):
    run = mpc_imaging(*TINY, "model._target_=torch.nn.GELU", "model.kwargs=null", cwd=tmp_path, timeout_s=120)
    assert run.code != 0 and "Traceback" not in run.output
