"""Rehearsals: what is repeated is counted as if it was run, and the same for every party. (Real runs: tests/system.)"""

import contextlib

import pytest

from mpc_imaging.compose import compose_settings
from mpc_imaging.engine import gates, scores
from mpc_imaging.errors import ConfigError
from mpc_imaging.randomness.demands import Product
from mpc_imaging.randomness.plan import Plan
from mpc_imaging.tasks import rehearsal as module
from mpc_imaging.tasks.rehearsal import rehearse
from mpc_imaging.transport import tls
from tests.system.command import TINY


def _settings(*overrides):
    return compose_settings([*TINY, *overrides])


def _counts(settings, train=23, val=7, test=9):
    """Uneven, so that last batches are smaller; the last owner has the rest."""
    owners = settings.data_owners()
    counts = {owner: {"train": 1, "val": 1, "test": 1} for owner in owners}
    rest = len(owners) - 1
    counts[owners[-1]] = {"train": train - rest, "val": val - rest, "test": test - rest}
    return counts


TRAIN = ("task=train", "task.epochs=4", "task.batch_size=4", "task.eval_batch_size=2")
CASES = {
    "infer": ("task.batch_size=2", "task.auc_bins=4"),
    "infer public": (
        "task.batch_size=2", "model.weights.source=pretrain", "model.weights.secret=false",
        "policy.reveal={logits: [receiver], range_ok: [compute]}",
    ),
    "infer by keys": ("task.batch_size=2", "task.auc_bins=4", "protocol.name=fss"),
    "train": TRAIN,
    "train by keys": (*TRAIN, "protocol.name=fss", "protocol.comparison_bits=32"),
    "train three": (*TRAIN, "topology=three_hospitals", "policy=aggregate_only"),
}  # fmt: skip

CINE = ("task=stream", "data=dicom", "data.path=/", "data.frames=all", "data.image_size=12")
CASES |= {
    "stream": CINE,
    "stream several": (
        *CINE,
        "task.stream.frames_per_step=2",
        "policy.reveal={predictions: [receiver], range_ok: [compute]}",
    ),
    "stream by keys": (*CINE, "protocol.name=fss", "protocol.comparison_bits=32"),
    "stream three": (*CINE, "topology=three_hospitals"),
}


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES.keys())
def test_what_is_repeated_counts_as_if_it_was_run(overrides, monkeypatch):
    settings = _settings(*overrides)
    short = rehearse(settings, _counts(settings))
    monkeypatch.setattr(module._Repeats, "segment", lambda self, key, body, *args: body(*args))
    flat = rehearse(settings, _counts(settings))
    assert list(short.plan) == list(flat.plan)
    assert short.cost == flat.cost and short.layers == flat.layers
    (everything,) = flat.plan.segments
    assert sum(len(segment.items) for segment in short.plan.segments) < 0.8 * len(everything.items)


@pytest.mark.parametrize("overrides", [CASES["infer"], CASES["train three"]], ids=["two", "three"])
def test_the_plan_is_the_same_for_all_ranks_and_times(overrides):
    settings = _settings(*overrides)
    ranks = range(len(settings.compute_parties()))
    rehearsals = [rehearse(settings, _counts(settings), rank) for rank in (*ranks, 0)]
    assert len({r.plan.digest for r in rehearsals}) == 1
    assert rehearsals[0] == rehearsals[-1]
    assert rehearsals[0].plan.parties == len(ranks)
    for rank, r in zip(ranks, rehearsals, strict=False):
        assert r.cost["key_bytes"] == r.plan.octets(rank)
    assert Plan.from_json(rehearsals[0].plan.to_json()) == rehearsals[0].plan


def test_whose_frames_come_when_changes_no_demand():
    settings = _settings(*CINE, "task.stream.frames_per_step=3")
    one, other = ({"hospital_a": {"test": a}, "hospital_b": {"test": b}} for a, b in ((7, 3), (3, 9)))
    assert list(rehearse(settings, one).plan) == list(rehearse(settings, other).plan), "four steps each"


def test_other_images_make_another_plan():
    settings = _settings()
    plans = [rehearse(settings, _counts(settings, test=count)).plan for count in (9, 10)]
    assert plans[0].digest != plans[1].digest


def test_layers_add_up_and_name_their_work():
    settings = _settings(*CASES["train by keys"])
    r = rehearse(settings, _counts(settings))
    for name, total in r.cost.items():
        assert sum(layer[name] for layer in r.layers) == total
    by_name = {layer["name"]: layer for layer in r.layers}
    assert by_name["classifier.1"]["macs"] > 0 == by_name["classifier.1"]["comparisons"]
    assert by_name["classifier.2"]["comparisons"] > 0 == by_name["classifier.2"]["macs"]
    assert by_name["outputs"]["rounds"] > 0 and {"loss", "backward pass", "optimiser"} <= by_name.keys()


def test_products_refer_to_masks_that_are_there():
    settings = _settings(*CASES["train"])
    demands = dict(rehearse(settings, _counts(settings)).plan)
    products = [d for d in demands.values() if isinstance(d, Product)]
    assert products
    for product in products:
        for ref in (product.x, product.y):
            assert (demands[ref.index].name, demands[ref.index].count) == ("mask", ref.count)


def test_stored_randomness_costs_no_messages():
    settings = _settings()
    sent = rehearse(settings, _counts(settings))
    settings.randomness.mode = module.RandomnessMode.stored
    stored = rehearse(settings, _counts(settings))
    assert stored.cost["dealer_bytes"] == 0 < stored.cost["key_bytes"] == sent.cost["key_bytes"]
    assert sent.cost["dealer_bytes"] > sent.cost["key_bytes"] and stored.plan == sent.plan


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    settings = _settings("task=train", "task.epochs=1")
    rehearse(settings, _counts(settings))
    assert not list(tmp_path.iterdir())


def test_insecure_simulation_has_no_plan():
    settings = _settings("protocol=insecure_simulation")
    with pytest.raises(ConfigError, match="has no plan; choose another protocol"):
        rehearse(settings, _counts(settings))


NARROW = ("protocol.name=fss", "protocol.comparison_bits=32", "data.phantoms.test=24", "task.auc_bins=4")


@pytest.mark.parametrize(
    "overrides",
    [
        ("task.batch_size=12",),
        (*TRAIN, "task.early_stopping.metric=loss"),
        (*TRAIN, "task.early_stopping.metric=accuracy"),
        (*TRAIN, "task.early_stopping.metric=auc"),
    ],
)
def test_scores_in_chunks_are_checked_where_they_are_compared(overrides, monkeypatch):
    monkeypatch.setattr(scores, "CHUNK", 4)
    settings = _settings(*NARROW, *overrides)
    counts = _counts(settings, train=8, val=24, test=24)
    short = rehearse(settings, counts)
    monkeypatch.setattr(module._Repeats, "segment", lambda self, key, body, *args: body(*args))
    assert list(short.plan) == list(rehearse(settings, counts).plan)


def _new_phase(self, end):
    """A phase of which nothing is taken to be known."""
    self._close()
    gates.context().masks.forget()


def test_an_epoch_with_another_rate_has_a_plan_of_its_own(monkeypatch):
    settings = _settings(
        *TRAIN, "task.epochs=6", "task.momentum=0", "task.schedule.kind=step", "task.schedule.step_epochs=4",
        "task.early_stopping.metric=accuracy", "task.early_stopping.patience=5", "policy=aggregate_only",
        "+policy.reveal.epoch=[compute]", "task.auc_bins=4",
    )  # fmt: skip
    counts = _counts(settings, train=8, val=4, test=4)
    short = rehearse(settings, counts).plan.plans
    monkeypatch.setattr(module._Repeats, "segment", lambda self, key, body, *args: body(*args))
    monkeypatch.setattr(module._Repeats, "phase", _new_phase)
    flat = rehearse(settings, counts).plan.plans
    assert [list(plan) for plan in short] == [list(plan) for plan in flat]
    assert short[3].digest != short[4].digest


@pytest.mark.parametrize(
    "overrides", [(), ("task=train", "policy.reveal.weights=[model_owner]", "topology=two_hospitals")]
)
def test_a_rehearsal_leaves_nothing_and_says_nothing(monkeypatch, caplog, tmp_path, overrides):
    """What it would write are zeros: a log that speaks of them comes before the lines of the session."""
    monkeypatch.setattr(module.tempfile, "TemporaryDirectory", lambda: contextlib.nullcontext(str(tmp_path)))
    settings = _settings("data.dicom_results=true", *overrides)
    with caplog.at_level("INFO"):
        rehearse(settings, _counts(settings))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [record for record in caplog.records if "wrote" in record.getMessage()]


def test_what_each_link_carries_is_known_and_has_a_limit(monkeypatch):
    settings = _settings(*CASES["infer"])
    first, second = (rehearse(settings, _counts(settings), rank) for rank in (0, 1))
    assert set(first.links) == {"hospital_b", "dealer"} and set(second.links) == {"hospital_a", "dealer"}
    for rehearsed, peer in ((first, "hospital_b"), (second, "hospital_a")):
        assert rehearsed.links[peer] > rehearsed.cost["sent_bytes"]
        assert rehearsed.links["dealer"] >= rehearsed.cost["dealer_bytes"]
    monkeypatch.setattr(tls, "KEY_OCTETS", first.links["dealer"] // 4000)
    with pytest.raises(ConfigError, match="the link with dealer would carry .* TLS keys may protect") as caught:
        rehearse(settings, _counts(settings))
    assert "divide the task into several sessions" in caught.value.problems[0]
