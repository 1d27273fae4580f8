"""Nothing of a patient leaves the owner's folder: what is in headers and names of files is in no output of a run.

Real sessions with real processes on folders full of canaries; everything that they write, print, and send before TLS
encrypts it, is searched for them (`tests.security.searcher`). Two places may have some: the private folder ``results/``
of the images' owner, of its own images; and the configuration, which repeats the path that the operator typed.
"""

from __future__ import annotations

import csv
import random
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import dcmread

from mpc_imaging import deidentify, manifest
from mpc_imaging.data import load_party
from mpc_imaging.engine.encoding import encode
from mpc_imaging.settings import DataKind, DataSettings, PartitionKind, PartitionSettings
from mpc_imaging.tasks import joint
from tests.data.builders import settings_for
from tests.security.canaries import CLASSES, Aviary, export
from tests.security.searcher import Searcher, patterns
from tests.security.tapped import TAP
from tests.system.command import Run, environment

HOSPITALS = ("hospital_a", "hospital_b")
CONFIGURATION = ("settings.yaml", ".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml")
COMMON = (
    "data=dicom", "data.image_size=12", f"data.class_names=[{','.join(CLASSES)}]", "model=mlp",
    "model.pretrain.epochs=1", "task.epochs=1", "task.batch_size=4", "task.eval_batch_size=12",
)  # fmt: skip


@dataclass
class Consortium:
    """Hospitals with exports of their own, and a folder in which commands run."""

    folder: Path
    aviaries: dict[str, Aviary] = field(default_factory=dict)
    exports: dict[str, Path] = field(default_factory=dict)
    named: Aviary = field(default_factory=lambda: Aviary(random.Random(secrets.randbits(64)), "the operator"))

    def hospital(self, name: str, frames: int = 1, **splits: int) -> None:
        self.aviaries[name] = aviary = Aviary(random.Random(secrets.randbits(64)), name)
        where = self.folder / "exports" / self.named.words("path that the operator typed", 1) / name
        self.exports[name] = export(where, aviary, splits, len(self.exports), frames=frames)

    def run(self, *arguments: str, module: str = "mpc_imaging", timeout_s: float = 300) -> Run:
        """A command over these exports; its output is kept in a file, to be searched too."""
        for name in ("work", "tape", "tmp"):
            (self.folder / name).mkdir(exist_ok=True)
        paths = ", ".join(f"{name}: '{path}'" for name, path in self.exports.items())
        done = subprocess.run(
            [sys.executable, "-m", "tests.security.tapped", module, f"data.paths={{{paths}}}", *COMMON, *arguments],
            cwd=self.folder / "work", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=environment() | {TAP: str(self.folder / "tape"), "TMPDIR": str(self.folder / "tmp")}, timeout=timeout_s,
        )  # fmt: skip
        (self.folder / "work" / f"{secrets.token_hex(4)}.output").write_bytes(done.stdout)
        folders = sorted(self.folder.glob("work/outputs/*/*"), key=lambda path: path.stat().st_mtime)
        return Run(done.returncode, done.stdout.decode(), folders[-1] if folders else None)

    def outputs(self) -> Iterator[tuple[str, bytes]]:
        """Everything that was written, and what was sent and received: name and content, once each."""
        for root in ("work", "tmp", "tape"):
            for path in sorted((self.folder / root).rglob("*")):
                if path.is_file() and not (path.suffix == ".received" and self._was_sent(path.read_bytes())):
                    yield path.relative_to(self.folder).as_posix(), path.read_bytes()

    def leaks(self) -> list[str]:
        """What was found where it must not be: file, whose, where it was planted, and how it is encoded."""
        every = [canary for aviary in (*self.aviaries.values(), self.named) for canary in aviary.all]
        searcher = Searcher(patterns(every))
        return [
            f"{name}: {hit.canary.where} of {hit.canary.owner}, {hit.encoding}"
            for name, content in self.outputs()
            for hit in searcher.find(name.encode() + b"\0" + content)
            if not _may_hold(name, hit.canary.owner)
        ]

    def sent(self) -> list[bytes]:
        """What processes gave to TLS, a stream for each connection."""
        return [path.read_bytes() for path in self.folder.glob("tape/*.sent")]

    def _was_sent(self, received: bytes) -> bool:
        return any(stream.startswith(received) for stream in self.sent())


def _may_hold(name: str, owner: str) -> bool:
    return f"/parties/{owner}/results/" in name or (owner == "the operator" and name.endswith(CONFIGURATION))


@pytest.fixture
def consortium(tmp_path):
    return Consortium(tmp_path)


def images_of(folder: Path) -> list[dict[str, str]]:
    """The owner's private table of pseudonyms."""
    with (folder / "results" / "images.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def predicted(folder: Path) -> list[str]:
    """Ids of the images of which a party has predictions."""
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return [row["image_id"] for row in csv.DictReader(file)]


def test_inference_with_dicom_results_and_broken_files(consortium):
    for name in HOSPITALS:
        consortium.hospital(name, test=4)
    run = consortium.run("data.invalid=skip", "data.dicom_results=true", "policy.reveal.duplicates=[image_owner]")
    assert run.code == 0, run.output
    assert consortium.leaks() == []
    for name, export_folder in consortium.exports.items():
        folder = run.folder / "parties" / name
        ids, table = predicted(folder), images_of(folder)
        assert len(ids) == 6, "four images, the blank one, and the one whose header is against the standard"
        assert {path.stem for path in folder.glob("results/*.dcm")} == set(ids[:5])
        patients = {str(dcmread(path).PatientName) for path in folder.glob("results/*.dcm")}
        assert len(patients) == 5 and patients <= {canary.text for canary in consortium.aviaries[name].all}
        used = {line["pseudonym"] for line in table if not line["refused"]}
        assert used == {image_id.split("-")[2] for image_id in ids}
        assert all((export_folder / line["file"]).is_file() for line in table if not line["refused"])
        refused = [line for line in table if line["refused"]]
        log = (folder / "log.txt").read_text()
        assert len(refused) == 7
        for line in refused:
            assert f"left out: row {line['row']} (image {line['pseudonym']}): {line['refused']}" in log
        assert "blank: one grey level" in {finding["kind"] for finding in run.result(name)["quality"]}
    assert b'"settings":{' in b"".join(consortium.sent()), "the tape has what was sent before encryption"


@pytest.mark.slow
def test_a_run_that_fails(consortium):
    for name in HOSPITALS:
        consortium.hospital(name, test=2)
    run = consortium.run("data.invalid=refuse")
    assert run.code == 1 and "data problems: row " in run.output.splitlines()[-1], run.output
    assert consortium.leaks() == []
    assert b"data problems; its own log says more" in b"".join(consortium.sent()), "what peers are told is on the tape"
    for name in HOSPITALS:
        log = (run.folder / "parties" / name / "log.txt").read_text()
        assert "refused: row " in log and "Traceback" not in log


def test_manifests_that_cannot_be_meant(consortium):
    """Labels that no class has and patients in two splits are errors of another kind: no file is opened."""
    consortium.hospital("hospital_a", test=4)
    folder, aviary = consortium.exports["hospital_a"], consortium.aviaries["hospital_a"]
    path = folder / "manifest.csv"
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    rows[0]["label"], rows[1]["split"] = aviary.words("column label"), aviary.words("column split")
    rows[2] |= {"patient": rows[3]["patient"], "split": "train"}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    searcher = Searcher(patterns([*aviary.all, *consortium.named.all]))
    with pytest.raises(Exception, match="one patient in several splits") as caught:
        load_party(_settings(folder), "hospital_a", consortium.folder, ["test"])
    assert "row 2: label must be one of" in str(caught.value) and "row 3: split must be" in str(caught.value)
    assert searcher.find(str(caught.value).encode()) == []
    assert searcher.find(rows[0]["label"].encode()) != []


@pytest.mark.slow
def test_training_with_checkpoints_and_validation(consortium):
    for name in HOSPITALS:
        consortium.hospital(name, train=6, val=2, test=2)
    overrides = (
        "task=train", "task.epochs=2", "data.invalid=skip", "checkpoint.every=1", "data.augment.copies=2",
        "data.augment.shift=1",
        "task.early_stopping.metric=loss",
        "policy.reveal={logits: [image_owner], metrics: [receiver], loss: [compute], range_ok: [compute]}",
    )  # fmt: skip
    run = consortium.run(*overrides)
    assert run.code == 0, run.output
    assert list(run.folder.glob("parties/hospital_a/checkpoints/*"))
    resumed = consortium.run(*overrides, "resume=true", f"checkpoint.path={run.folder}")
    assert resumed.code == 0, resumed.output
    assert consortium.leaks() == []
    assert all(len(predicted(each.folder / "parties" / name)) == 4 for each in (run, resumed) for name in HOSPITALS)


@pytest.mark.slow
def test_a_receiver_that_owns_nothing(consortium):
    owners = [f"hospital_{letter}" for letter in "abcd"]
    for name in owners:
        consortium.hospital(name, test=2)
    run = consortium.run("topology=outsourced", "policy=one_receiver", "data.invalid=skip")
    assert run.code == 0, run.output
    assert consortium.leaks() == []
    ids = predicted(run.folder / "parties" / "vendor")
    used = {
        (name, line["pseudonym"])
        for name in owners
        for line in images_of(run.folder / "parties" / name)
        if not line["refused"]
    }
    assert {tuple(image_id.split("-")[::2]) for image_id in ids} == used
    assert len(ids) == len(used) >= 4 * 4
    assert not (run.folder / "parties" / "vendor" / "results").exists()


@pytest.mark.slow
def test_a_stream_of_cines(consortium):
    for name in HOSPITALS:
        consortium.hospital(name, frames=3, test=2)
    run = consortium.run("task=stream", "data.frames=all", "data.invalid=skip", "model=lenet")
    assert run.code == 0, run.output
    assert consortium.leaks() == []
    for name in HOSPITALS:
        folder = run.folder / "parties" / name
        used = {line["pseudonym"] for line in images_of(folder) if not line["refused"]}
        assert {image_id.split("-")[2] for image_id in predicted(folder)} == used and len(predicted(folder)) >= 6


@pytest.mark.slow
def test_plan_and_stored_randomness(consortium):
    for name in HOSPITALS:
        consortium.hospital(name, test=2)
    settings = ("data.invalid=skip", "model.weights.source=seed")
    for module, *more in (
        ("mpc_imaging.plan", "--write", "plan.json"),
        ("mpc_imaging.preprocess", "preprocess.store=store", "preprocess.count=1", "--plan", "plan.json"),
        ("mpc_imaging", "randomness=stored", "randomness.store=store"),
    ):
        run = consortium.run(*settings, *more, module=module)
        assert run.code == 0, run.output
    assert list((consortium.folder / "work" / "store").rglob("*.json"))
    assert consortium.leaks() == []


def test_commands_over_headers_name_nobody(consortium, capsys):
    """What they print may be copied into a ticket; the files that they write are the owner's, or de-identified."""
    consortium.hospital("hospital_a", test=4)
    folder, aviary = consortium.exports["hospital_a"], consortium.aviaries["hospital_a"]
    (consortium.folder / "key").write_bytes(secrets.token_bytes(32))
    key = ("--key-file", str(consortium.folder / "key"))
    out, draft = consortium.folder / "out", consortium.folder / "draft.csv"
    assert manifest.main([str(folder), "--out", str(draft), *key]) == 0
    assert deidentify.main([str(folder), str(out), "--mask", "0,0,8,8", *key]) == 1, "some files cannot be copied"
    printed = capsys.readouterr()
    searcher = Searcher(patterns(aviary.all))
    assert "copied" in printed.out and searcher.find((printed.out + printed.err).encode()) == []
    copies = [path for path in out.rglob("*.dcm")]
    assert len(copies) >= 5
    for path in copies:
        assert searcher.names(str(path.relative_to(out)).encode() + path.read_bytes()) == set()
    rows = list(csv.DictReader(draft.read_text(encoding="utf-8").splitlines()))
    assert len(rows) >= 5 and searcher.find(" ".join(row["patient"] for row in rows).encode()) == []


def test_a_fault_of_the_report_quotes_nothing(consortium, monkeypatch, capsys):
    """What nobody foresaw may quote anything, and the report's errors go into the run folder and to the terminal."""
    name = Aviary(random.Random(1)).words("a header")

    def fail(*_, **__):
        int(name)

    monkeypatch.setattr(joint.config, "load", fail)
    assert joint.main([str(consortium.folder), "--one-machine"]) == 1
    printed = capsys.readouterr().err
    assert name not in printed and printed.splitlines()[-1].startswith("unexpected ValueError at test_leaks.py:")


def _settings(folder: Path):
    data = DataSettings(
        kind=DataKind.dicom, path=str(folder), class_names=list(CLASSES), image_size=12,
        partition=PartitionSettings(kind=PartitionKind.private),
    )  # fmt: skip
    return settings_for(data, ("hospital_a",))


def test_no_header_enters_the_computation(tmp_path):
    """Equal pixels under wholly different headers, names and manifests are shared as equal bits."""
    shared = {}
    for seed in (1, 2):
        aviary = Aviary(random.Random(seed))
        folder = export(tmp_path / str(seed), aviary, {"train": 3, "test": 4}, 1, broken=False)
        loaded = load_party(_settings(folder), "hospital_a", tmp_path / f"run{seed}", ["train", "test"])
        shared[seed] = loaded
        header = dcmread(next(folder.rglob("*.dcm")))
        assert str(header.PatientName) in {canary.text for canary in aviary.all}
    for split in ("train", "test"):
        first, second = shared[1][split], shared[2][split]
        assert len(first) == len(second) > 0
        assert torch.equal(encode(first.images, 16), encode(second.images, 16))
        assert first.images.numpy().tobytes() == second.images.numpy().tobytes()
        assert torch.equal(first.labels, second.labels)
        assert not set(first.ids) & set(second.ids), "pseudonyms have a key"
        assert np.ptp(first.images.numpy()) > 0


def test_canaries_are_where_the_tests_say(tmp_path):
    """Planted headers hold every canary as pydicom writes it, and the search finds them in the files themselves."""
    aviary = Aviary(random.Random(3))
    folder = export(tmp_path / "a", aviary, {"test": 1}, 1, broken=False)
    fields = {canary.where for canary in aviary.all}
    assert len(fields) > 90 and {"PatientBirthDate", "InstitutionAddress", "OverlayLabel", "preamble"} < fields
    (path,) = folder.rglob("*.dcm")
    searcher = Searcher(patterns(aviary.all))
    files = (str(path).encode(), path.read_bytes(), (folder / "manifest.csv").read_bytes())
    found = set().union(*map(searcher.names, files))
    replaced = {"PatientName", "PatientID", "SOPInstanceUID"}  # by those of each image
    assert {canary.where for canary in aviary.all} - found == replaced
