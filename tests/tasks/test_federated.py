"""Federated training, rehearsed at one party: its plan, what is shared, and training that diverges."""

import math

import pytest
import torch

from mpc_imaging.baselines.federated import LocalUpdate
from mpc_imaging.compose import compose_settings
from mpc_imaging.errors import EncodingError
from mpc_imaging.tasks import federated, rehearsal as module, run
from mpc_imaging.tasks.rehearsal import rehearse
from tests.system.command import TINY

FEDERATED = (
    *TINY, "task=train", "task.method=federated", "task.update_norm=1", "task.epochs=4", "task.eval_batch_size=4",
    "policy.reveal.update=[data_owner]",
)  # fmt: skip
PUBLIC = ("model.weights.source=pretrain", "model.weights.secret=false")
PRIVATE = ("privacy.name=dp", "privacy.outside=[loss,metrics,auc,range_ok]")
CASES = {
    "two": (),
    "three": ("topology=three_hospitals",),
    "outsourced": ("topology=outsourced",),
    "outsourced public": ("topology=outsourced", *PUBLIC),
    "private": PRIVATE,
    "narrow": ("protocol.comparison_bits=40",),
    "any length": ("task.update_norm=null",),
}


def _settings(*overrides):
    return compose_settings([*FEDERATED, *overrides])


def _counts(settings):
    return {owner: {"train": 5 + place, "val": 3, "test": 4} for place, owner in enumerate(settings.data_owners())}


@pytest.mark.parametrize("case", CASES)
def test_what_is_repeated_counts_as_if_it_was_run(case, monkeypatch):
    settings = _settings(*CASES[case])
    ranks = range(len(settings.compute_parties()))
    plans = {rehearse(settings, _counts(settings), rank).plan.digest for rank in ranks}
    assert len(plans) == 1, "the same for all compute parties"
    short = rehearse(settings, _counts(settings))
    monkeypatch.setattr(module._Repeats, "segment", lambda self, key, body, *args: body(*args))
    flat = rehearse(settings, _counts(settings))
    assert list(short.plan) == list(flat.plan) and short.cost == flat.cost and short.layers == flat.layers


def test_clipping_is_all_that_is_added_to_a_round():
    clipped, any_length = (rehearse(s, _counts(s)) for s in (_settings(), _settings("task.update_norm=null")))
    layers = [{layer["name"]: layer for layer in r.layers} for r in (clipped, any_length)]
    assert layers[0]["updates"]["rounds"] > 4 * 20 and layers[0]["updates"]["macs"] > 0
    assert layers[1]["updates"]["rounds"] == 0
    # All compute parties are owners, so that weights are public: linear layers cost nothing but their truncation.
    assert layers[0]["classifier.1"]["macs"] == 0


def test_the_owners_training_images_are_not_shared():
    settings = _settings()
    assert run.needed_splits(settings) == ["train", "val", "test"]
    assert run.shared_splits(settings) == ["val", "test"]
    assert run.shared_splits(_settings("task.split=train")) == ["train", "val"]
    joint = compose_settings([*TINY, "task=train"])
    assert run.shared_splits(joint) == run.needed_splits(joint) == ["train", "val", "test"]


@pytest.mark.parametrize("overrides", [(), ("task.update_norm=null",)])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_training_that_diverges_is_a_typed_error(monkeypatch, value, overrides):
    settings = _settings(*overrides)
    monkeypatch.setattr(module._Job, "local", lambda self, body, shape: body())
    monkeypatch.setattr(
        federated, "local_update", lambda s, m, weights, *rest: LocalUpdate(torch.full_like(weights, value), value)
    )
    with pytest.raises(EncodingError, match="hospital_a diverged in round 1: write a smaller task.lr"):
        rehearse(settings, _counts(settings))
