"""The command line of `mpc_imaging.preprocess`, and what it writes. (Runs that use it: tests/system.)"""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from mpc_imaging import preprocess
from mpc_imaging.parties.parts import TRIAL, recipient
from mpc_imaging.randomness import correlations
from mpc_imaging.randomness.demands import Mask, SignKeys, TruncationPair
from mpc_imaging.randomness.plan import Call, Plan, Segment
from mpc_imaging.randomness.store import Store
from mpc_imaging.randomness.streams import NumberedStreams
from mpc_imaging.transport.certificates import Credentials, make_local

ROOT = Path(preprocess.__file__).parents[1]
BATCH = Segment(1, (TruncationPair(700, 16), SignKeys(9, 20, 0, 1)))
PLAN = Plan(2, (BATCH, Segment(0, (Mask(3), Call(0, 3)))))


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for processes of its own
    (tmp_path / "plan.json").write_text(json.dumps(PLAN.to_json()))
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def call(capsys):
    """Runs the command; (exit code, lines on stderr, stdout)."""

    def run_it(*arguments):
        code = preprocess.main(["--plan", "plan.json", "preprocess.count=3", *arguments])
        out, err = capsys.readouterr()
        return code, err.splitlines(), out

    return run_it


def test_each_session_holds_what_the_dealer_would_send(call, tmp_path):
    code, _, out = call()
    assert code == 0
    assert f"3 sessions of plan {PLAN.digest[:16]}" in out and "store/hospital_b" in out and "randomness=stored" in out
    keys = set()
    for number in range(3):
        sessions = [_session(tmp_path / "store", rank, number) for rank in range(2)]
        assert len({session.key_id for session in sessions}) == 1
        keys |= {session.key for session in sessions}
        streams = [NumberedStreams(session.key) for session in sessions]
        for index, demand in PLAN:
            messages = correlations.deal(demand, index, streams, sessions[0].key_id)
            for session, message in zip(sessions, messages, strict=True):
                expected = b"".join(message)
                assert session.read(len(expected)) == expected
        for session in sessions:
            session.finish()
    assert len(keys) == 6, "fresh keys for each party and session"


def _session(root, rank, number):
    """A session, as if the parties had used those before it."""
    names = ["hospital_a", "hospital_b"]
    me, peer = names[rank], names[1 - rank]
    mine = recipient(Credentials(root / TRIAL / me), me, "dealer")
    with Store.open(root / me, mine, names, PLAN.digest) as store:
        theirs = {**store.hello(), "party": peer, "next": number, "witness": {me: 0}}
        assert store.claim({peer: theirs}) == number
        return store.confirm({peer: {**theirs, "next": number + 1}})


def test_parts_are_sealed_to_the_parties_of_the_consortium(call, tmp_path):
    """On machines of their own: the dealer gives its certificates, and gets those of the parties."""
    names = ["hospital_a", "hospital_b"]
    make_local(tmp_path / "all", [*names, "dealer"])
    shutil.copytree(tmp_path / "all" / "dealer", tmp_path / "machine" / "certificates")
    code, lines, out = call("transport.certificates=machine/certificates", "preprocess.count=0")
    assert code == 2 and len(lines) == 1  # the settings come first
    code, lines, out = call("transport.certificates=machine/certificates")
    assert code == 2 and out == "" and not (tmp_path / "store").exists()
    assert lines == [
        f"error: transport.certificates: there is no certificate of {name}, to seal its part to; put its party.crt "
        f"(no secret; from {name}, or from the authority) at machine/certificates/peers/{name}.crt"
        for name in names
    ]
    (tmp_path / "machine" / "certificates" / "peers").mkdir()
    for name in names:
        shutil.copy(tmp_path / "all" / name / "party.crt", tmp_path / f"machine/certificates/peers/{name}.crt")
    code, lines, out = call("transport.certificates=machine/certificates")
    assert code == 0 and "Each part is sealed to its party's certificate" in out
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == names
    for name in names:
        mine = recipient(Credentials(tmp_path / "all" / name), name, "dealer")
        with Store.open(tmp_path / "store" / name, mine, names, PLAN.digest) as store:
            assert (store.count, store.next_index) == (3, 0)


def test_a_trial_says_that_it_is_one(call, tmp_path):
    code, _, out = call()
    assert code == 0 and "For trials on this machine only: store/certificates.trial holds keys of all parties" in out
    kept = sorted(str(path.relative_to(tmp_path / "store")) for path in (tmp_path / "store").rglob("party.key"))
    assert kept == [f"certificates.trial/{name}/party.key" for name in ("hospital_a", "hospital_b")], "not the dealer's"


def test_what_it_writes_is_as_large_as_it_says_and_private(call, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 7 * 10**5))
    code, lines, out = call()
    assert code == 0
    files = [path for path in (tmp_path / "store").rglob("*.bin")]
    written = sum(path.stat().st_size for path in files)
    assert len(files) == 6 and f"{written / 1000:.3g} kB" in out
    assert lines[0] == f"3 sessions: {written / 1000:.3g} kB; 700 kB are free"
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in (tmp_path / "store").rglob("*"))
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("free", "instead"),
    [
        (80_000, "; write preprocess.count=2 or less, or a folder on another disk"),
        (10, "; write a folder on another disk"),
    ],
)
def test_too_little_room_is_said_before_anything_is_written(call, tmp_path, monkeypatch, free, instead):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, free))
    code, lines, _ = call("preprocess.store=a/b/c")
    assert code == 2 and lines[-1].startswith("error: preprocess.store: 3 sessions would take") and instead in lines[-1]
    assert not (tmp_path / "a").exists()


def test_a_disk_that_fills_up_leaves_nothing(call, tmp_path, monkeypatch):
    from mpc_imaging.randomness import store_files

    def full(self, buffers):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_files.SessionFile, "write", full)
    code, lines, _ = call()
    assert code == 1 and lines[-1] == "error: writing the store failed: No space left on device"
    assert not list((tmp_path / "store").iterdir()), "so that it can be tried again where there is room"


def test_an_operator_stops_it(call, tmp_path, monkeypatch):
    monkeypatch.setattr(correlations, "deal", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    code, lines, _ = call()
    assert (code, lines[-1]) == (130, "stopped by the operator")
    assert not list((tmp_path / "store").iterdir())


# Mistakes


def _damaged(path):
    path.write_bytes(path.read_bytes()[:-9])


def _other_parties(path):
    path.write_text(json.dumps(Plan(3, (Segment(0, (TruncationPair(7, 16),)),)).to_json()))


def _impossible(path):
    path.write_text(json.dumps(PLAN.to_json() | {"parties": 0}))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_damaged, "--plan: plan.json is damaged or no plan; write one with python -m mpc_imaging.plan … --write FILE"),
        (lambda path: path.write_text("[3]"), "--plan: plan.json: not a plan; write one"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "--plan: plan.json is damaged or no plan"),
        (lambda path: path.write_text("[" * 100_000), "--plan: plan.json is damaged or no plan"),
        (lambda path: path.unlink(), "--plan: cannot read plan.json: No such file or directory; write one"),
        (_impossible, "--plan: plan.json: a plan is for 1 to 64 compute parties"),
        (
            _other_parties,
            "--plan: plan.json is for 3 compute parties, but topology two_hospitals has 2 (hospital_a, hospital_b)",
        ),
    ],
    ids=["damaged", "other", "binary", "deep", "absent", "impossible", "parties"],
)
def test_plans_that_cannot_be_used(call, tmp_path, change, text):
    change(tmp_path / "plan.json")
    code, lines, out = call()
    assert code == 2 and out == "" and len(lines) == 1
    assert lines[0].startswith(f"error: {text}")
    assert not (tmp_path / "store").exists()


def test_a_plan_with_nothing_to_deal(call, tmp_path):
    """Of public weights, say: a session is a key."""
    (tmp_path / "plan.json").write_text(json.dumps(Plan(2, (Segment(0, (Mask(3),)),)).to_json()))
    assert call()[0] == 0


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_there_is_not_touched(call, tmp_path, what):
    if what == "file":
        (tmp_path / "store").write_text("mine")
    else:
        (tmp_path / "store" / "mine").mkdir(parents=True)
    code, lines, _ = call()
    assert code == 2
    assert lines == [
        "error: preprocess.store: store exists and is not an empty folder; name another or remove it",
    ]
    (tmp_path / "empty").mkdir()
    assert call("preprocess.store=empty")[0] == 0


def test_mistakes_are_listed_together(call, tmp_path):
    (tmp_path / "store").write_text("mine")
    code, lines, _ = call("protocol=insecure_simulation", "--images", "hospital_a=1")
    assert code == 2 and [line.split(":")[1] for line in lines] == [" protocol.name", " --images", " preprocess.store"]
    code, lines, _ = call("preprocess.count=0", "preprocess.stor=x", "topology=two_hospital")
    assert code == 2 and len(lines) == 2 and "did you mean store?" in lines[1]
    assert call("preprocess.count=0")[1] == ["error: preprocess.count: 0 is out of range; write a whole number from 1"]


def test_settings_of_a_run_will_do(call):
    """Neither addresses, paths nor stores of the parties matter."""
    assert call("data=dicom", "randomness=stored", "topology.parties.hospital_a.address=a.example.org:9000")[0] == 0


def test_what_stops_the_planning_is_said_once(capfd, tmp_path):
    code = preprocess.main(["data=dicom", "model=mlp"])
    out, err = capfd.readouterr()
    assert code == 2 and out == ""
    first, *problems = err.splitlines()
    assert first == "planning …" and len(problems) == 1
    assert problems[0].startswith("error: data.path: no images") and problems[0].endswith("with --images")
    assert not (tmp_path / "store").exists()


def test_help_teaches_the_whole_way(capsys):
    with pytest.raises(SystemExit):
        preprocess.main(["--help"])
    shown = capsys.readouterr().out
    for text in ("mpc_imaging.plan", "--write plan.json", "preprocess.count=100", "STORE/hospital_b", "=stored"):
        assert text in shown
    assert all(len(line) <= 120 for line in preprocess.EPILOG.splitlines())


def test_crypten_is_not_imported_where_randomness_is_made(tmp_path):
    """Nor what data and models need: the dealer's operator has neither."""
    names = ("crypten", "sklearn", "torchvision", "matplotlib", "mpc_imaging.data", "mpc_imaging.models")
    code = "import sys\nfrom mpc_imaging import preprocess\n"
    code += "assert preprocess.main(['--plan', 'plan.json', 'preprocess.count=2']) == 0\n"
    code += f"print([name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]" and (tmp_path / "store" / "hospital_a" / "store.json").exists()
