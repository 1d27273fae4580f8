"""What version 0.1.0 wrote is still read, or refused with one sentence that says why and what to do."""

import json
import os
import shutil
from pathlib import Path

import pytest

from mpc_imaging import settings as config
from mpc_imaging.errors import MPCImagingError
from mpc_imaging.parties import ledger
from mpc_imaging.parties.parts import recipient
from mpc_imaging.preprocess import read_plan
from mpc_imaging.randomness.store import Store
from mpc_imaging.tasks.weights import read_share_file
from mpc_imaging.transport.certificates import Credentials, make_local
from tests.system.command import mpc_imaging

HOSPITALS = ("hospital_a", "hospital_b")
FILES = Path(__file__).resolve().parents[1] / "data_of_0_1_0"
# What the run was started with.
RUN = (
    "experiment=demo", "name=fixture", "model=logistic", "protocol=beaver", "data.phantoms.train=6",
    "data.phantoms.val=2", "data.phantoms.test=4", "task.epochs=2", "task.batch_size=6", "data.image_size=12",
    "checkpoint.every=1", "policy=aggregate_only",
)  # fmt: skip


@pytest.fixture
def files(tmp_path):
    """A copy; a checkout does not keep who may read a key."""
    folder = shutil.copytree(FILES, tmp_path / "old")
    for key in folder.rglob("share.key"):
        os.chmod(key, 0o600)
    return folder


def read_or_refused(read):
    """What `read` returns, or None if it refuses for a reason that a user can act on."""
    try:
        return read()
    except MPCImagingError as error:
        text = str(error)
        assert "version" in text and "; " in text and "\n" not in text, text
        return None


def ends_well_or_refuses(run):
    """Whether a command ended well; else its last line must say why not."""
    assert "Traceback" not in run.output and "unexpected" not in run.output, run.output
    if run.code:
        last = run.output.splitlines()[-1]
        assert run.code in (1, 2) and "version" in last and "; " in last, run.output
    return run.code == 0


@pytest.fixture
def settings(files):
    loaded = config.load(files / "settings.yaml")
    loaded.model.weights.path = str(files / "run")
    return loaded


def test_settings_still_mean_the_same(settings):
    assert settings.compute_parties() == list(HOSPITALS) and settings.dealer() == "dealer"
    assert (settings.protocol.fraction_bits, settings.task.epochs, settings.data.image_size) == (24, 2, 12)


@pytest.mark.parametrize("party", HOSPITALS)
def test_ledgers_are_read_and_continued(files, party):
    path = files / "run" / "parties" / party / "ledger.jsonl"
    entries = ledger.read(path)
    assert len(entries) == 25 and entries[0]["version"] == "0.1.0"
    ledger.Ledger(path).write("session", party=party)
    assert len(ledger.read(path)) == 26


def test_shares_of_weights_still_add_up(settings):
    """The weights of 144 pixels and 2 classes, after two steps from weights below 1/12."""
    shares = [read_or_refused(lambda name=name: read_share_file(settings, name)) for name in HOSPITALS]
    if None not in shares:
        (first, header), (second, _) = shares
        assert header["kind"] == "weights" and header["parties"] == list(HOSPITALS)
        sums = {name: (first[name] + second[name]).double() / 2**24 for name in first}
        assert {tuple(total.shape) for total in sums.values()} == {(2, 144), (2,)}
        assert all(0 < total.abs().max() < 0.2 for total in sums.values())


def test_plans_are_read(files, settings):
    plan = read_or_refused(lambda: read_plan(files / "plan.json", settings))
    assert plan is None or (plan.parties, plan.count) == (2, 363)


@pytest.mark.parametrize("party", HOSPITALS)
def test_no_session_of_a_store_is_lost(files, tmp_path, party):
    digest = json.loads((files / "store" / party / "store.json").read_text())["plan"]
    make_local(tmp_path / "certificates", HOSPITALS)
    mine = recipient(Credentials(tmp_path / "certificates" / party), party, "dealer")
    store = read_or_refused(lambda: Store.open(files / "store" / party, mine, HOSPITALS, digest))
    if store is not None:
        with store:
            assert (store.count, store.next_index) == (2, 1)
    assert [path.name for path in (files / "store" / party / "sessions").iterdir()] == ["000001.bin"]


@pytest.mark.slow
def test_training_goes_on_from_a_checkpoint(files, tmp_path):
    (files / "run" / "parties" / "hospital_b" / "checkpoints" / "step-00000002.sealed").unlink()
    run = mpc_imaging(*RUN, "resume=true", f"checkpoint.path={files / 'run'}", cwd=tmp_path)
    if ends_well_or_refuses(run):
        assert ("resumed", None) in run.events("hospital_a") and len(run.metrics["history"]["secure"]) == 2


@pytest.mark.slow
def test_a_model_is_used_from_its_shares(files, tmp_path):
    weights = ("task=infer", "model.weights.source=shares", f"model.weights.path={files / 'run'}")
    run = mpc_imaging(*RUN[:-2], "policy=aggregate_only", *weights, cwd=tmp_path)
    if ends_well_or_refuses(run):
        assert run.metrics["secure"]["accuracy"] == 0.5  # as the run said


@pytest.mark.slow
def test_a_run_from_the_store(files, tmp_path):
    run = mpc_imaging(*RUN, "randomness=stored", f"randomness.store={files / 'store'}", cwd=tmp_path)
    if ends_well_or_refuses(run):
        entries = ledger.read(run.folder / "parties" / "hospital_a" / "ledger.jsonl")
        assert [entry["index"] for entry in entries if entry["event"] == "stored"] == [1]
