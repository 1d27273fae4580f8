"""Federated averaging in plaintext: its definition, clipping, and what it is compared with."""

from __future__ import annotations

import copy

import pytest
import torch

from mpc_imaging.baselines.federated import (
    flat_weights,
    joint_reference,
    load_flat,
    local_update,
    run_federated,
    update_limit,
)
from mpc_imaging.baselines.plaintext import run_plaintext
from mpc_imaging.errors import DataError
from mpc_imaging.settings import Method, PartySettings, PrivacyName, Role, Settings, TaskKind

from .test_plaintext import module, owner


@pytest.fixture
def settings() -> Settings:
    settings = Settings()
    settings.data.positive_class = 1
    settings.topology.parties = {name: PartySettings([Role.data_owner, Role.compute]) for name in "abc"}
    task = settings.task
    task.kind, task.method = TaskKind.train, Method.federated
    task.epochs, task.local_epochs, task.batch_size, task.lr = 3, 2, 7, 0.1
    return settings


@pytest.fixture
def data():
    """Of three owners, the second has no images."""
    splits = {"train": 20, "val": 9, "test": 11}
    return {split: [owner(f"a-{split}", n, 1), owner(f"b-{split}", 0, 2), owner(f"c-{split}", n + 3, 3)]
            for split, n in splits.items()}  # fmt: skip


def _averaged(settings, data, limit=None):
    """The definition, round by round."""
    model = copy.deepcopy(module())
    weights = flat_weights(model)
    for number in range(settings.task.epochs):
        total = torch.zeros_like(weights)
        for place, split in ((0, data["train"][0]), (2, data["train"][2])):
            change = local_update(settings, model, weights, split, number, place).change
            scale = 1.0 if limit is None else min(1.0, limit / change.norm().item())
            total += scale * len(split.ids) * change
        weights = weights + total / 43
    return weights


def test_weights_are_the_average_of_local_training(settings, data):
    model = module()
    before = copy.deepcopy(model.state_dict())
    result = run_federated(settings, model, data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "stays as it is"
    load_flat(model, _averaged(settings, data))
    assert all(torch.allclose(result.state_dict[name], value, atol=1e-6) for name, value in model.state_dict().items())
    assert result.ids == data["test"][0].ids + data["test"][2].ids
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3]
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert all(entry["val"]["accuracy"] is not None for entry in result.history)


def test_updates_are_clipped(settings, data):
    settings.task.update_norm = 0.05
    model = module()
    start = flat_weights(model)
    result = run_federated(settings, model, data)
    model.load_state_dict(result.state_dict)
    moved = flat_weights(model) - start
    assert 0.01 < moved.norm() < 3 * 0.05 * 1.0001
    assert torch.allclose(flat_weights(model), _averaged(settings, data, 0.05), atol=1e-6)


def test_a_round_is_local_training_where_one_owner_has_all(settings, data):
    settings.task.epochs = 1
    alone = {split: [parts[0]] for split, parts in data.items()}
    model = module()
    update = local_update(settings, copy.deepcopy(model), flat_weights(model), data["train"][0], 0, 0)
    expected = flat_weights(model) + update.change
    model.load_state_dict(run_federated(settings, model, alone).state_dict)
    assert torch.allclose(flat_weights(model), expected, atol=1e-6)


def test_batches_differ_from_round_to_round_and_owner_to_owner(settings, data):
    weights = flat_weights(module())
    first, *others = [
        local_update(settings, module(), weights, data["train"][0], number, place).change
        for number, place in ((0, 0), (1, 0), (0, 1), (0, 0))
    ]
    assert [torch.equal(first, other) for other in others] == [False, False, True]


def test_the_reference_passes_over_all_images_as_often(settings, data):
    reference = joint_reference(settings, module(), data)
    assert len(reference.history) == 6
    settings.task.method, settings.task.epochs = Method.joint, 6
    assert torch.equal(reference.logits, run_plaintext(settings, module(), data).logits)


def test_noise_is_added_for_privacy(settings, data):
    settings.privacy.name, settings.privacy.clip, settings.privacy.noise_multiplier = PrivacyName.dp, 0.5, 1e-6
    assert update_limit(settings) == 0.5
    quiet = run_federated(settings, module(), data)
    settings.privacy.noise_multiplier = 1.0
    loud = run_federated(settings, module(), data)
    assert not torch.allclose(loud.logits, quiet.logits, atol=0.1)
    settings.privacy.name, settings.task.update_norm = PrivacyName.none, 0.5
    assert torch.allclose(run_federated(settings, module(), data).logits, quiet.logits, atol=1e-3)


def test_nothing_to_train_on_is_a_typed_error(settings, data):
    with pytest.raises(DataError, match="the train split has no images"):
        run_federated(settings, module(), data | {"train": [owner("a", 0, 1)]})
