"""Cine frame by frame, with real processes."""

import csv
import json
import zipfile
from pathlib import Path

import pytest

from mpc_imaging.parties import ledger
from tests.data.builders import PATIENT, make_cine, write_manifest
from tests.data.test_corpus import package
from tests.system.command import finish, mpc_imaging, start

COUNTS = {"hospital_a": 4, "hospital_b": 7}
SMALL = ("experiment=cine_stream", "model=lenet", "data.image_size=12")


def _folders(root, counts=COUNTS):
    """A folder with one cine for each owner; the argument that names them."""
    for seed, (owner, count) in enumerate(counts.items()):
        folder = root / owner
        folder.mkdir()
        make_cine(folder / "clip.dcm", count, seed, size=(90, 120))
        write_manifest(folder, [{"file": "clip.dcm", "label": "positive", "patient": "p", "split": "test"}])
    return f"data.paths={{{', '.join(f'{owner}: {root / owner}' for owner in counts)}}}"


def _rows(run, party):
    with (run.folder / "parties" / party / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def test_each_owner_gets_the_outputs_of_its_own_frames(tmp_path):
    run = mpc_imaging(*SMALL, _folders(tmp_path), "data.dicom_results=true", cwd=tmp_path)
    assert run.code == 0, run.output
    assert "Stream: 11 frames" in run.output
    metrics = run.metrics
    assert metrics["fidelity"]["agreeing"] == metrics["images"] == 11
    assert metrics["fidelity"]["max_logit_error"] < 0.001
    stream = metrics["stream"]
    assert (stream["frames"], stream["dropped"]) == (11, 0) and stream["fps"] > 0
    assert 0 < stream["step_ms"]["p50"] <= stream["latency_ms"]["p50"] <= stream["latency_ms"]["max"]
    for party, count in COUNTS.items():
        ids = [row["image_id"] for row in _rows(run, party)]
        first = ids[0].removesuffix("-000")
        assert first.startswith(f"{party}-test-") and ids == [f"{first}-{k:03d}" for k in range(count)]
        assert all(row["label"] == "1" and row["score_positive"] for row in _rows(run, party))
        events = run.events(party)
        assert events.count(("reveal", "logits")) == 11 and events.count(("input", "images test")) == 2
        assert len(run.result(party)["stream"]["latency_s"]) == count
        # These headers allow no report, which is said of each frame.
        assert len((run.folder / "parties" / party / "results" / "results.csv").read_text().splitlines()) == 1 + count
    (entry,) = [e for e in ledger.read(run.folder / "parties/hospital_a/ledger.jsonl") if e["event"] == "stream"]
    assert entry["frames"] == COUNTS and set(entry["dropped"].values()) == {0}
    for path in run.folder.rglob("*"):
        assert not path.is_file() or "results" in path.parts or PATIENT.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_a_policy_that_is_not_the_same_for_all_owners(tmp_path):
    """Of one's own frames hospital_a gets logits, hospital_b predictions alone: steps demand the same all the same."""
    policy = "policy.reveal={logits: [hospital_a], predictions: [image_owner], range_ok: [compute]}"
    run = mpc_imaging(*SMALL, _folders(tmp_path), policy, cwd=tmp_path)
    assert run.code == 0, run.output
    assert run.metrics["fidelity"]["agreeing"] == 11
    assert not any(row["score_positive"] for row in _rows(run, "hospital_b"))


LIVE = {"hospital_a": 40, "hospital_b": 40}


def _check_live(run):
    assert run.code == 0, run.output
    stream, fidelity = run.metrics["stream"], run.metrics["fidelity"]
    assert stream["dropped"] > 10 and stream["frames"] + stream["dropped"] == 80
    assert fidelity["agreeing"] == fidelity["images"] == run.metrics["images"] == stream["frames"]
    events = [event for event, _ in run.events("hospital_b")]
    assert events[-3:] == ["stream", "discarded", "end"]
    assert len(_rows(run, "hospital_a")) == stream["owners"][0]["frames"] < 40


def test_a_live_source_drops_frames_and_what_was_made_for_them(tmp_path):
    """At a pace that nothing keeps up with."""
    _check_live(mpc_imaging(*SMALL, _folders(tmp_path, LIVE), "task.stream.fps=400", cwd=tmp_path))


@pytest.mark.slow
def test_a_live_source_throws_the_rest_of_a_stored_session_away(tmp_path):
    settings = (*SMALL, _folders(tmp_path, LIVE), "task.stream.fps=400")
    stated = ("--images", "hospital_a=40,hospital_b=40", "preprocess.store=store", "preprocess.count=1")
    made = finish(start("mpc_imaging.preprocess", *settings, *stated, cwd=tmp_path), tmp_path, 200)
    assert made.code == 0, made.output
    _check_live(mpc_imaging(*settings, "randomness=stored", "randomness.store=store", cwd=tmp_path))
    assert not list((tmp_path / "store").glob("*/sessions/*"))


def test_a_reader_that_fails_in_the_middle_ends_all_parties(tmp_path):
    """The header is whole and claims frames that the fragments do not hold."""
    paths = _folders(tmp_path)
    _damage(tmp_path / "hospital_b" / "clip.dcm")
    run = mpc_imaging(*SMALL, paths, cwd=tmp_path)
    assert run.code == 1
    last = run.output.splitlines()[-1]
    assert "hospital_b" in last and "row 2 (image " in last and "): frame 3" in last and "clip" not in last
    log = (run.folder / "parties" / "hospital_a" / "log.txt").read_text()
    assert "hospital_b: data problems; its own log says more" in log and "clip.dcm" not in log
    assert not list(run.folder.glob("parties/*/result.json"))
    for party in (*COUNTS, "dealer"):
        assert run.events(party)[-1] == ("abort", None)


def _damage(path):
    """Make frame 3 of a cine, rewritten with RLE compression, impossible to decode."""
    from pydicom import dcmread
    from pydicom.encaps import encapsulate, generate_frames
    from pydicom.uid import RLELossless

    ds = dcmread(path)
    ds.compress(RLELossless, generate_instance_uid=False)
    frames = list(generate_frames(ds.PixelData, number_of_frames=int(ds.NumberOfFrames)))
    frames[3] = b"\xff" * len(frames[3])
    ds.PixelData = encapsulate(frames)
    ds.save_as(path)


@pytest.mark.slow
def test_frames_of_others_several_at_once_for_a_receiver(tmp_path):
    """Four hospitals stream to two clouds; the vendor sees all predictions, by pseudonyms."""
    counts = {f"hospital_{letter}": count for letter, count in zip("abcd", (3, 5, 1, 2), strict=True)}
    run = mpc_imaging(
        *SMALL, _folders(tmp_path, counts), "topology=outsourced", "task.stream.frames_per_step=2",
        "policy.reveal={logits: [image_owner], predictions: [vendor], range_ok: [compute]}",
        "protocol=fss", "protocol.comparison_bits=32", "randomness.buffer_mb=1", cwd=tmp_path,
    )  # fmt: skip
    assert run.code == 0, run.output
    assert run.metrics["fidelity"]["agreeing"] == 11
    seen = _rows(run, "vendor")
    assert len(seen) == 11 and not any(row["label"] or row["score_positive"] for row in seen)
    assert {row["image_id"].split("-")[0] for row in seen} == set(counts)
    own = {row["image_id"]: row["predicted"] for owner in counts for row in _rows(run, owner)}
    assert own == {row["image_id"]: row["predicted"] for row in seen}
    assert all(run.result(owner)["stream"]["latency_s"] for owner in counts)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["insecure_simulation", "auto"])
def test_without_a_plan(tmp_path, protocol):
    run = mpc_imaging(*SMALL, _folders(tmp_path), f"protocol={protocol}", "randomness=on_demand", cwd=tmp_path)
    assert run.code == 0, run.output
    assert run.metrics["fidelity"]["agreeing"] == 11


@pytest.mark.slow
def test_the_plan_of_a_folder_is_that_of_the_run(tmp_path):
    paths = _folders(tmp_path)
    planned = finish(start("mpc_imaging.plan", *SMALL, paths, "--json", "costs.json", cwd=tmp_path), tmp_path, 100)
    assert planned.code == 0, planned.output
    run = mpc_imaging(*SMALL, paths, cwd=tmp_path)
    assert run.code == 0, run.output
    total = json.loads((tmp_path / "costs.json").read_text())["total"]
    cost = run.result("hospital_a")["cost"]
    assert [cost[name] for name in ("rounds", "sent_bytes")] == [total[name] for name in ("rounds", "sent_bytes")]


@pytest.fixture
def ultrasound(tmp_path) -> str:
    """The colour cine of deid-data, 51 frames of 672 x 1016 pixels, at both hospitals."""
    archive = package("deid_data", "data/ultrasounds") / "RGB_CINE.zip"
    for owner in COUNTS:
        folder = tmp_path / owner
        with zipfile.ZipFile(archive) as packed:
            packed.extract("RGB_CINE.dcm", folder)
        row = {"file": "RGB_CINE.dcm", "label": "negative", "patient": "p", "split": "test"}
        write_manifest(Path(folder), [row])
    return f"data.paths={{{', '.join(f'{owner}: {tmp_path / owner}' for owner in COUNTS)}}}"


@pytest.mark.slow
def test_ultrasound_in_colour(tmp_path, ultrasound):
    """The issue asks for ten frames a second on two idle cores; other tests may run beside this one."""
    run = mpc_imaging("experiment=cine_stream", ultrasound, cwd=tmp_path)
    assert run.code == 0, run.output
    stream, fidelity = run.metrics["stream"], run.metrics["fidelity"]
    assert (stream["frames"], stream["dropped"]) == (102, 0)
    assert fidelity["agreeing"] == fidelity["images"] == 102
    assert stream["fps"] > 2
