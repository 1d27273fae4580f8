"""A task in phases, rehearsed: each has a plan that stands alone, and of those that are alike only some are run."""

import pytest
import torch

from mpc_imaging.compose import compose_settings
from mpc_imaging.engine import gates
from mpc_imaging.engine.tensors import from_share
from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness.demands import Product
from mpc_imaging.randomness.phases import Phases
from mpc_imaging.tasks import compute, rehearsal as module, run
from mpc_imaging.tasks.rehearsal import rehearse
from tests.engine.alone import alone
from tests.system.command import TINY

EPOCHS = 6
STOPPING = (
    "task=train", f"task.epochs={EPOCHS}", "task.early_stopping.metric=accuracy", "task.early_stopping.patience=2",
    "+policy.reveal.epoch=[compute]",
)  # fmt: skip


@pytest.fixture
def settings():
    return compose_settings([*TINY, *STOPPING])


@pytest.fixture
def counts(settings):
    return {owner: {"train": 10, "val": 5, "test": 6} for owner in settings.data_owners()}


def _step(model, images):
    return model(from_share(images)).share


def _task(ran):
    """In the place of `run.perform`: epochs that demand the same but for the first, and an end."""

    def perform(job, prepared, model, data):
        images = data["train"][0]
        kept = torch.zeros(4, dtype=torch.int64)
        for epoch in range(EPOCHS):

            def body(first=epoch == 0, number=epoch):
                ran.append(number)
                for start in (0, 5, 10):
                    job.segment("step", _step, model, images[start : start + 5])
                return from_share(kept).relu().share if first else kept.clone()

            with model.observer("epoch", "all"):
                result = job.segment("epoch", body)
            # Outside of the segment: run in every phase, and with weights that were masked in another phase.
            (from_share(result) * from_share(kept)).share.sum()
            job.phase(epoch == EPOCHS - 1)
        model(from_share(images[:3]))

    return perform


@pytest.fixture
def rehearsed(settings, counts, monkeypatch):
    ran = []
    monkeypatch.setattr(run, "perform", _task(ran))
    return rehearse(settings, counts), ran


def test_a_plan_for_each_phase(rehearsed):
    found, ran = rehearsed
    plans = found.plan.plans
    assert isinstance(found.plan, Phases) and len(plans) == EPOCHS + 1
    assert ran == [0, 1, 2], "the second and the third are alike, and so are those that follow"
    assert plans[0] != plans[1] and len({plan.digest for plan in plans[1:-1]}) == 1 and plans[-1] != plans[-2]
    assert found.plan.count == sum(plan.count for plan in plans)


def test_no_plan_refers_to_a_mask_of_another(rehearsed):
    for plan in rehearsed[0].plan.plans:
        demands = dict(plan)
        products = [demand for demand in demands.values() if isinstance(demand, Product)]
        assert products, "weights and images of earlier phases are multiplied in each"
        for product in products:
            for ref in (product.x, product.y):
                assert (demands[ref.index].name, demands[ref.index].count) == ("mask", ref.count)


def test_without_forgetting_a_plan_would_not_stand_alone(settings, counts, monkeypatch):
    """And the dealer would refuse it."""
    monkeypatch.setattr("mpc_imaging.protocols.masked.Masks.forget", lambda self: None)
    monkeypatch.setattr(run, "perform", _task([]))
    second = rehearse(settings, counts).plan.plans[1]
    with pytest.raises(RandomnessError, match="refers to one that comes later"):
        list(second)


def test_phases_that_are_left_out_count_as_if_they_were_run(rehearsed, settings, counts, monkeypatch):
    short, _ = rehearsed
    monkeypatch.setattr(module._Repeats, "segment", lambda self, key, body, *args: body(*args))
    flat = rehearse(settings, counts)
    assert [list(plan) for plan in short.plan.plans] == [list(plan) for plan in flat.plan.plans]
    assert short.cost == flat.cost and short.layers == flat.layers
    assert short.cost["key_bytes"] == short.plan.octets(0) == sum(plan.octets(0) for plan in short.plan.plans)


class _Provider:
    def __init__(self):
        self.ends = []

    def next(self, end):
        self.ends.append(end)


def test_a_new_phase_masks_everything_anew():
    provider = _Provider()
    with alone() as demands:
        x = from_share(torch.arange(4))
        (x * x).share.sum()
        (x * x).share.sum()
        assert demands.count("mask") == 1 and len(gates.context().masks) == 1
        compute.begin_phase(provider, False)
        assert len(gates.context().masks) == 0 and provider.ends == [False]
        (x * x).share.sum()
        assert demands.count("mask") == 2
