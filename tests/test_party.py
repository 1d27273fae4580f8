"""The command of one party: mistakes are one line and an exit code, and nothing is started that cannot run."""

import json
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mpc_imaging import party
from mpc_imaging.compose import compose_settings
from mpc_imaging.errors import DataError, ModelError, PeerLostError
from mpc_imaging.settings import load, save
from mpc_imaging.tasks import run
from mpc_imaging.transport.certificates import make_local

ADDRESSES = tuple(
    f"topology.parties.{name}.address=127.0.0.1:{port}"
    for name, port in (("hospital_a", 7701), ("hospital_b", 7702), ("dealer", 7703))
)


@pytest.fixture(autouse=True)
def own_folder_and_umask(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def call(capsys):
    """Runs the command; (exit code, lines on stderr, stdout)."""

    def run_it(*arguments):
        try:
            code = party.main(list(arguments))
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, err.splitlines(), out

    return run_it


@pytest.fixture
def ready(tmp_path):
    """Arguments with which hospital_a can run."""
    make_local(tmp_path / "certificates", ["hospital_a"])
    return ("party=hospital_a", *ADDRESSES, f"transport.certificates={tmp_path / 'certificates' / 'hospital_a'}")


def _replace_run(monkeypatch, action):
    def run_party(*arguments):
        return action(*arguments)

    monkeypatch.setattr(run, "run_party", run_party)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "say which party this is: write party=NAME once"),
        (("party=hospital_a", "party=hospital_b"), "write party=NAME once"),
        (("party=hospital_x", *ADDRESSES), "'hospital_x' is not in the topology; did you mean hospital_"),
        (("party=hospital_a", "topology=two_hospital"), "no such topology; did you mean two_hospitals?"),
        (("party=hospital_a", *ADDRESSES, "task.batchsize=3"), "did you mean batch_size?"),
        (("party=hospital_a",), "port 0 is for runs on one machine; write the port"),
        (("party=hospital_a", *ADDRESSES), "hospital_a has no certificate; set transport.certificates to its folder"),
        (
            ("party=dealer", *ADDRESSES, "randomness=stored"),
            "party=dealer: no dealer takes part with randomness=stored; start only the others",
        ),
        (("party=hospital_a", *ADDRESSES, "randomness=stored"), "randomness.store: randomness=stored needs it"),
        (("party=hospital_a", "--config-file", "none.yaml"), "cannot read none.yaml: No such file or directory"),
        (("party=hospital_a", "--config-file", "none.yaml", "seed=3"), "fixes the configuration: leave out seed=3"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(call, tmp_path, arguments, text):
    code, lines, out = call(*arguments)
    assert code == 2 and out == ""
    assert len(lines) == 1 and text in lines[0]
    assert not list(tmp_path.iterdir())


def test_all_problems_are_listed_at_once(call):
    code, lines, _ = call("party=hospital_a", *ADDRESSES, "task.batch_size=0", "protocol.fraction_bits=99", "seed=a")
    assert code == 2 and len(lines) == 1
    assert all(key in lines[0] for key in ("task.batch_size", "protocol.fraction_bits", "seed"))


@pytest.mark.parametrize("arguments", [("--nonsense",), ("party=a", "--run-dir"), ("party=a", "--listen-fd", "x")])
def test_wrong_flags_are_one_line(call, arguments):
    code, lines, _ = call(*arguments)
    assert code == 2 and len(lines) == 1
    assert lines[0].endswith("; python -m mpc_imaging.party --help explains")


def test_a_config_file_that_is_no_yaml(call, tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [1")
    code, lines, _ = call("party=hospital_a", "--config-file", "broken.yaml")
    assert code == 2 and lines == [
        "1 configuration problem: --config-file: broken.yaml is not YAML; give the settings.yaml of a run"
    ]


def test_help_teaches(call):
    code, _, out = call("--help")
    assert code == 0
    for text in ("party=NAME", "party=dealer", "mpc_imaging.certs local", "--run-dir", "topology.parties.hospital_b"):
        assert text in out
    assert not {"--listen-fd", "--watch-stdin", "--one-machine"} & set(out.split()), "the launcher's own"


def test_the_example_of_help_is_what_runs(call):
    """Every key in it exists: the example is composed as an operator would type it."""
    text = party.EPILOG
    common = text[text.index('COMMON="') + 8 : text.index('"\n')].split()
    settings, name = party._settings(party._arguments(["party=hospital_b", *common]))
    assert name == "hospital_b" and settings.name == "phantoms_infer"
    assert len({entry.address for entry in settings.topology.parties.values()}) == 3


# Failures while running


def test_a_folder_without_certificates(call, ready, tmp_path):
    (tmp_path / "certificates" / "hospital_a" / "party.key").unlink()
    code, lines, _ = call(*ready, "--run-dir", "run")
    assert code == 1 and len(lines) == 1
    assert "no party.key; python -m mpc_imaging.certs --help says how to make them" in lines[0]
    assert "no party.key" in (tmp_path / "run" / "parties" / "hospital_a" / "log.txt").read_text()


def test_another_partys_certificate(call, ready):
    code, lines, _ = call("party=hospital_b", *ready[1:], "--run-dir", "run")
    assert code == 1 and len(lines) == 1
    assert "the certificate is for hospital_a, not hospital_b" in lines[0]


def test_peers_that_never_come(call, ready):
    code, lines, _ = call(*ready, "transport.connect_timeout_s=0.2", "--run-dir", "run")
    assert code == 3 and len(lines) == 1
    assert "hospital_a could not connect within 0.2 s; missing: hospital_b" in lines[0]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError(["row 2, DOE_JANE.dcm: no pixels", "row 3, x.dcm: no pixels"]), 1),
        (ModelError(["no layer"]), 1),
        (PeerLostError("b is gone"), 3),
    ],
)
def test_an_error_is_the_last_line_and_in_the_log(call, ready, monkeypatch, tmp_path, error, code):
    def fail(*_):
        raise error

    _replace_run(monkeypatch, fail)
    assert call(*ready, "--run-dir", "run") == (code, [str(error)], "")
    assert str(error) in (tmp_path / "run" / "parties" / "hospital_a" / "log.txt").read_text()


def test_a_message_cannot_draw_on_the_terminal(call, ready, monkeypatch):
    def fail(*_):
        raise DataError(["scan\n\x1b[2Jforged.dcm: no pixels"])

    _replace_run(monkeypatch, fail)
    code, lines, _ = call(*ready)
    assert code == 1 and lines == ["1 data problem: scan [2Jforged.dcm: no pixels"]


@pytest.mark.parametrize("debug", [False, True])
def test_an_unforeseen_error_says_where_but_quotes_nothing(call, ready, monkeypatch, tmp_path, debug):
    patient = "DOE^JANE"

    def fail(*_):
        int(patient)  # whose message quotes it

    _replace_run(monkeypatch, fail)
    code, lines, _ = call(*ready, "--run-dir", "run", *(["--debug"] if debug else []))
    assert code == 1
    assert lines[-1].startswith("unexpected ValueError at test_party.py:") and "log.txt" in lines[-1]
    assert any("DOE" in line for line in lines) == debug, "with --debug the operator sees it all"
    log = (tmp_path / "run" / "parties" / "hospital_a" / "log.txt").read_text()
    assert "ValueError" in log and "test_party.py" in log and "DOE" not in log


def test_an_operator_stops_it(call, ready, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    _replace_run(monkeypatch, fail)
    assert call(*ready) == (130, ["stopped by the operator"], "")


def test_a_run_folder_that_cannot_be_made(call, ready, tmp_path):
    (tmp_path / "file").write_text("")
    code, lines, _ = call(*ready, "--run-dir", "file")
    assert code == 2 and len(lines) == 1 and "--run-dir: cannot make the folder file/parties/hospital_a" in lines[0]


# What a run gets


def test_what_a_party_runs_with(call, ready, monkeypatch, tmp_path):
    """Its own folder under outputs/, closed to other users; the log handler goes when the run ends."""
    seen = []
    _replace_run(monkeypatch, lambda *arguments: seen.append(arguments))
    monkeypatch.setattr(party, "_report", lambda settings, folder: seen.append(folder))
    assert call(*ready, "seed=4", "name=mine") == (0, [], "")
    (settings, name, folder, certificates, listener, progress, one_machine), reported = seen
    assert (settings.seed, name, listener, progress) == (4, "hospital_a", None, True)
    assert certificates == tmp_path / "certificates" / "hospital_a"
    assert folder == reported and folder.match("outputs/*/*_mine_*/parties/hospital_a")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "log.txt").stat().st_mode) == 0o600
    assert not logging.getLogger("mpc_imaging").handlers


def test_a_dealer_reports_nothing(call, ready, monkeypatch):
    _replace_run(monkeypatch, lambda *arguments: None)
    monkeypatch.setattr(party, "_report", lambda *arguments: pytest.fail("a dealer has no results"))
    assert call("party=dealer", *ready[1:]) == (0, [], "")


def test_settings_of_a_run_can_be_given_as_a_file(call, monkeypatch, tmp_path):
    save(compose_settings(ADDRESSES, party="hospital_a"), tmp_path / "settings.yaml")
    seen = []
    _replace_run(monkeypatch, lambda *arguments: seen.append(arguments))
    monkeypatch.setattr(party, "_report", lambda *arguments: None)
    result = call("party=hospital_a", "--config-file", "settings.yaml", "--certificates", "c", "--run-dir", "r")
    assert result == (0, [], "")
    assert seen[0][0] == load(tmp_path / "settings.yaml")
    assert seen[0][2:4] == (Path("r/parties/hospital_a"), Path("c"))


def test_a_party_that_composes_nothing_imports_little():
    """The dealer starts in little more than the time of torch: no Hydra, scikit-learn, torchvision or CrypTen."""
    names = ("hydra", "sklearn", "torchvision", "crypten", "matplotlib", "mpc_imaging.data", "mpc_imaging.models")
    code = "import json, sys, mpc_imaging.party, mpc_imaging.tasks.run, mpc_imaging.randomness.dealer\n"
    code += f"print(json.dumps([name for name in {names!r} if name in sys.modules]))"
    root = Path(party.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert json.loads(result.stdout) == []


def test_no_party_started_by_hand_takes_part_in_a_simulation(call, ready):
    code, lines, _ = call(*ready, "protocol=insecure_simulation")
    assert code == 2 and "insecure_simulation hides nothing: only python -m mpc_imaging runs it" in lines[-1]


def test_what_the_launcher_alone_says(call, ready, monkeypatch, tmp_path):
    """That all parties are on this machine comes from its command line: not from addresses, nor a shared file."""
    told = []
    _replace_run(monkeypatch, lambda *arguments: told.append(arguments[-1]))
    monkeypatch.setattr(party, "_report", lambda *arguments: None)
    settings = compose_settings([*ADDRESSES])
    save(settings, tmp_path / "settings.yaml")
    assert call(*ready)[0] == 0
    file = ("party=hospital_a", "--config-file", "settings.yaml", "--certificates", "certificates/hospital_a")
    assert call(*file)[0] == 0 and call(*file, "--one-machine")[0] == 0
    assert told == [False, False, True]
    settings = compose_settings([*ADDRESSES, "protocol=insecure_simulation"])
    save(settings, tmp_path / "settings.yaml")
    assert call(*file)[0] == 2 and call(*file, "--one-machine")[0] == 0


@pytest.mark.parametrize("allowed", [["--allow-code", "my_package"], []])
def test_code_is_allowed_beside_a_file_not_in_it(call, monkeypatch, tmp_path, allowed):
    own = ["model._target_=my_package.Net", "model.allow_code=[my_package]"]
    settings = compose_settings([*ADDRESSES, *own], party="hospital_a")
    save(settings, tmp_path / "settings.yaml")
    seen = []
    _replace_run(monkeypatch, lambda *arguments: seen.append(arguments[0]))
    monkeypatch.setattr(party, "_report", lambda *arguments: None)
    code, error, _ = call("party=hospital_a", "--config-file", "settings.yaml", "--certificates", "c", *allowed)
    assert (code, seen) == ((0, [settings]) if allowed else (2, [])), error
    assert allowed or "model.allow_code=[my_package]" in str(error)


def test_the_dealer_needs_no_code(call, monkeypatch):
    _replace_run(monkeypatch, lambda *arguments: None)
    own = ["model._target_=my_package.Net", "--certificates", "c"]
    assert call("party=dealer", *ADDRESSES, *own)[0] == 0
    assert call("party=hospital_b", *ADDRESSES, *own)[0] == 2
