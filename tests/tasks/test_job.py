"""A party's part in a task: what it opens, and which rows its files hold."""

import csv
import json

import pytest
import torch

from mpc_imaging.data import Split
from mpc_imaging.engine.encoding import encode
from mpc_imaging.report.predictions import read_predictions
from mpc_imaging.tasks import job as job_module
from mpc_imaging.tasks.inputs import Catalogue
from mpc_imaging.tasks.job import Job
from mpc_imaging.tasks.progress import Progress

LOGITS = torch.tensor([[2.0, -1.0], [0.5, 1.0], [-1.0, 3.0]])
PREDICTED = LOGITS.argmax(1)
OWNED = {"h1": [0, 1], "h2": [2]}
CATALOGUE = Catalogue({owner: {"test": len(rows)} for owner, rows in OWNED.items()}, (1, 2, 2))
NAMES = {owner: [f"{owner}-test-{row:05d}" for row in range(len(rows))] for owner, rows in OWNED.items()}


@pytest.fixture
def opened(consortium, tmp_path, monkeypatch):
    """Lets the parties of the outsourced consortium open `LOGITS`, shared by two clouds; returns the consortium.

    The one-hots of the predictions, which the engine would compare on shares, are shares made here.
    """

    def make(**policy):
        parties = consortium("outside")
        parties.settings.policy.reveal = policy
        noise = torch.randint(-(2**60), 2**60, (3, 2), generator=torch.Generator().manual_seed(1))
        shares = {"a": encode(LOGITS, 16) - noise, "b": noise}
        onehot = torch.nn.functional.one_hot(PREDICTED, 2)
        predicted = {"a": onehot - noise, "b": noise}

        def predicted_classes(logits):
            return None if logits is None else next(predicted[name] for name in predicted if logits is shares[name])

        monkeypatch.setattr(job_module, "predicted_classes", predicted_classes)

        def part(session):
            if session.me == "dealer":
                return None
            mine = OWNED.get(session.me)
            own = mine and {"test": Split(torch.zeros(len(mine), 1, 2, 2), torch.tensor(mine) % 2, NAMES[session.me])}
            folder = parties.folder / session.me
            job = Job(session, folder, CATALOGUE, own, Progress(shown=False))
            job.exchange_ids()
            job.open_outputs("test", shares.get(session.me), None)
            job.finish(None, [])
            return job

        parties.all(part)
        return parties

    return make


def _file(parties, name):
    folder = parties.folder / name
    if not (folder / "predictions.csv").exists():
        return None
    with (folder / "predictions.csv").open() as file:
        return [(row["image_id"], row["label"], int(row["predicted"])) for row in csv.DictReader(file)]


def _rows(owners, labels_of=()):
    return [
        (name, str(row % 2) if owner in labels_of else "", int(PREDICTED[row]))
        for owner in owners
        for name, row in zip(NAMES[owner], OWNED[owner], strict=True)
    ]


def test_image_owners_get_their_rows_with_labels(opened):
    parties = opened(logits=["image_owner"])
    for owner, rows in OWNED.items():
        assert _file(parties, owner) == _rows([owner], [owner])
        assert torch.allclose(
            torch.from_numpy(read_predictions(parties.folder / owner).logits), LOGITS[rows], atol=1e-4
        )
    assert not any(_file(parties, name) for name in ("a", "b", "vendor"))


def test_a_receiver_gets_all_rows_and_knows_only_its_labels(opened):
    parties = opened(logits=["receiver"])
    assert _file(parties, "vendor") == _rows(OWNED)
    assert _file(parties, "h2") == _rows(OWNED, ["h2"]) and _file(parties, "h1") is None
    assert torch.allclose(torch.from_numpy(read_predictions(parties.folder / "vendor").logits), LOGITS, atol=1e-4)


def test_predictions_alone_have_no_scores(opened):
    parties = opened(predictions=["image_owner"])
    for owner in OWNED:
        assert _file(parties, owner) == _rows([owner], [owner])
        assert read_predictions(parties.folder / owner).logits is None


def test_predictions_are_not_opened_where_the_logits_tell_them(opened):
    parties = opened(logits=["image_owner"], predictions=["image_owner"])
    assert [entry["value"] for entry in parties.entries("a", "reveal")] == ["logits"]


def test_predictions_of_more_rows_than_logits_are_opened(opened):
    """h2 is image owner and receiver: logits of its own rows do not spare it the predictions of all."""
    parties = opened(logits=["image_owner"], predictions=["receiver"])
    assert [entry["value"] for entry in parties.entries("a", "reveal")] == ["logits", "predictions"]
    assert _file(parties, "h2") == _rows(OWNED, ["h2"])
    assert _file(parties, "vendor") == _rows(OWNED)
    assert _file(parties, "h1") == _rows(["h1"], ["h1"]) and read_predictions(parties.folder / "h1").logits is not None


def test_the_result_has_counts_and_roles(opened):
    parties = opened(logits=["image_owner"])
    result = json.loads((parties.folder / "h1" / "result.json").read_text())
    assert result["counts"] == {"h1": {"test": 2}, "h2": {"test": 1}}
    assert (result["party"], result["roles"]) == ("h1", ["data_owner"])
    assert result["metrics"] is None and result["cost"] is None and result["layers"] == result["history"] == []


@pytest.mark.parametrize("shape", [(2, 3), (4,)])
def test_weights_come_back_in_their_shapes(consortium, shape):
    from safetensors.torch import load_file

    parties = consortium("outside")
    parties.settings.policy.reveal = {"weights": ["model_owner"]}
    state = {"first": torch.arange(8.0).view(2, 4) / 4, "second": torch.ones(shape) * -0.5}
    noise = {name: torch.randint(-(2**60), 2**60, value.shape) for name, value in state.items()}
    shares = {"a": {name: encode(value, 16) - noise[name] for name, value in state.items()}, "b": noise}

    def part(session):
        if session.me != "dealer":
            job = Job(session, parties.folder / session.me, CATALOGUE, None, Progress(shown=False))
            job.open_weights({name: value.shape for name, value in state.items()}, shares.get(session.me))

    parties.all(part)
    opened = load_file(parties.folder / "vendor" / "weights.safetensors")
    assert all(torch.equal(opened[name], value) for name, value in state.items())
    assert [path.parent.name for path in parties.folder.glob("*/weights.safetensors")] == ["vendor"]


@pytest.mark.parametrize(
    ("share", "value", "reasons"),
    [(0.875, 0.875, {}), (1 + 2**-15, 1.0, {}), (-1.0, None, {"auc": job_module.NO_AUC})],
    ids=["defined", "rounded", "undefined"],
)
def test_the_auc_alone(consortium, monkeypatch, share, value, reasons):
    """Of shares, one number is opened, to those whom the policy names; the rest is said to be unknown."""
    parties = consortium("outside")
    parties.settings.policy.reveal = {"auc": ["vendor"]}
    shares = {"a": torch.tensor(-77), "b": encode(torch.tensor(share), 16) + 77}

    def part(session):
        if session.me == "dealer":
            return None
        monkeypatch.setattr(Job, "auc", lambda self, logits, labels: shares[self.session.me])
        job = Job(session, parties.folder / session.me, CATALOGUE, None, Progress(shown=False))
        mine = None if session.rank is None else torch.zeros(3, 2, dtype=torch.int64)
        job.open_outputs("test", mine, mine)
        return job.metrics

    metrics = parties.all(part)
    assert {name for name, found in metrics.items() if found} == {"vendor"}
    found = metrics["vendor"]
    assert found["auc"] == value and found["accuracy"] is None
    said = {name: reason for name, reason in found["reasons"].items() if name == "auc"}
    assert said == reasons and found["reasons"]["accuracy"] == job_module.ONLY_AUC
    assert [(entry["value"], entry["shape"]) for entry in parties.entries("a", "reveal")] == [("auc", [])]


def test_the_auc_beside_counts():
    counts = job_module.metrics_from_confusion([[1, 1], [0, 2]], 1)
    both = job_module.with_auc(counts, (0.75, ""))
    assert both["auc"] == 0.75 and "auc" not in both["reasons"] and both["accuracy"] == counts["accuracy"]
    assert job_module.with_auc(counts, None) is counts and job_module.with_auc(None, None) is None
