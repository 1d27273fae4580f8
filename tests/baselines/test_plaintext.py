from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from mpc_imaging.baselines.optimisers import loss_function
from mpc_imaging.baselines.plaintext import run_plaintext, train_plaintext
from mpc_imaging.data.schedule import batch_schedule
from mpc_imaging.errors import DataError
from mpc_imaging.report.metrics import classification_metrics, log_softmax
from mpc_imaging.settings import Loss, Settings, TaskKind, TaskSettings


@dataclass
class Rows:
    """One owner's rows of a split, as `mpc_imaging.data` gives them."""

    images: torch.Tensor
    labels: torch.Tensor
    ids: list[str]


def owner(name: str, images: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (images,), generator=generator)
    pixels = torch.randn(images, 1, 4, 4, generator=generator) + labels.reshape(-1, 1, 1, 1)
    return Rows(pixels, labels, [f"{name}-{row}" for row in range(images)])


def module(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


@pytest.fixture
def settings() -> Settings:
    settings = Settings()
    settings.data.positive_class = 1
    settings.task.epochs, settings.task.batch_size = 3, 7
    return settings


@pytest.fixture
def data() -> dict[str, list[Rows]]:
    splits = {"train": 20, "val": 9, "test": 11}
    return {split: [owner(f"a-{split}", n, 1), owner(f"b-{split}", 0, 2), owner(f"c-{split}", n + 3, 3)]
            for split, n in splits.items()}  # fmt: skip


def test_inference_gives_the_modules_logits_in_joint_order(settings, data):
    model = module()
    result = run_plaintext(settings, model, data)
    first, _, last = data["test"]
    assert result.ids == first.ids + last.ids
    assert torch.equal(result.labels, torch.cat([first.labels, last.labels]))
    expected = model.eval()(torch.cat([first.images, last.images])).detach()
    assert torch.allclose(result.logits, expected, atol=1e-6)
    assert result.history == [] and result.logits.dtype == torch.float32


def test_training_leaves_the_given_module_and_torchs_generator_alone(settings, data):
    settings.task.kind = TaskKind.train
    model = module()
    before, generator = {k: v.clone() for k, v in model.state_dict().items()}, torch.random.get_rng_state()
    result = run_plaintext(settings, model, data)
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in result.state_dict.items())
    again = run_plaintext(settings, model, data)
    assert all(torch.equal(value, again.state_dict[name]) for name, value in result.state_dict.items())
    model.load_state_dict(result.state_dict)
    images = torch.cat([part.images for part in data["test"]])
    assert torch.allclose(result.logits, model.eval()(images).detach(), atol=1e-6)


def test_training_records_loss_and_validation_of_each_epoch(settings, data):
    settings.task.kind = TaskKind.train
    result = run_plaintext(settings, module(), data)
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3]
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    final = module()
    final.load_state_dict(result.state_dict)
    images, labels = (torch.cat([getattr(part, name) for part in data["val"]]) for name in ("images", "labels"))
    scores = log_softmax(final.eval()(images).detach().numpy())
    assert result.history[-1]["val"] == classification_metrics(scores, labels.numpy(), 1)
    settings.task.evaluate_each_epoch = False
    assert all(entry["val"] is None for entry in run_plaintext(settings, module(), data).history)
    settings.task.evaluate_each_epoch = True
    del data["val"]
    assert all(entry["val"] is None for entry in run_plaintext(settings, module(), data).history)


def test_updates_are_momentum_sgd_worked_by_hand():
    """v = momentum v + (gradient + decay w); w = w - lr v, over the public batches."""
    rows, seed, lr, momentum, decay = owner("a", 10, 4), 5, 0.1, 0.9, 0.01
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    weight = model[1].weight.detach().clone()
    task = TaskSettings(epochs=2, batch_size=4, lr=lr, momentum=momentum, weight_decay=decay, loss=Loss.mse)
    losses = train_plaintext(model, rows.images, rows.labels, task, seed)
    velocity = torch.zeros_like(weight)
    for epoch, batches in enumerate(batch_schedule(10, 4, 2, seed)):
        total = 0.0
        for batch in batches:
            x, target = rows.images[batch].flatten(1), torch.eye(2)[rows.labels[batch]]
            error = x @ weight.T - target
            total += float((error**2).mean()) * len(batch)
            velocity = momentum * velocity + 2 * error.T @ x / error.numel() + decay * weight
            weight = weight - lr * velocity
        assert losses[epoch] == pytest.approx(total / 10, rel=1e-5)
    assert torch.allclose(model[1].weight, weight, atol=1e-5)
    assert not model.training


def test_losses_and_their_gradients_are_their_documented_formulas():
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([2, 1])
    onehot = torch.eye(3, dtype=torch.float64)[labels]
    softmax, sigmoid = logits.softmax(1), logits.sigmoid()
    entropy = -(onehot * sigmoid.log() + (1 - onehot) * (1 - sigmoid).log())
    expected = {
        Loss.cross_entropy: (-(softmax.log() * onehot).sum() / 2, (softmax - onehot) / 2),
        Loss.binary_cross_entropy: (entropy.sum() / 6, (sigmoid - onehot) / 6),
        Loss.mse: (((logits - onehot) ** 2).sum() / 6, 2 * (logits - onehot) / 6),
    }
    for loss, (formula, its_gradient) in expected.items():
        value = loss_function(TaskSettings(loss=loss))(logits, labels)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.item() == pytest.approx(formula.item())
        assert torch.allclose(gradient, its_gradient)
    assert {*expected, Loss.dice_bce} == set(Loss)


def test_the_loss_of_masks_is_its_documented_formula():
    logits = torch.tensor([[[[0.0, 100.0], [-100.0, -100.0]]], [[[-100.0, -100.0], [-100.0, -100.0]]]])
    masks = torch.tensor([[[1, 1], [0, 0]], [[0, 0], [0, 0]]])
    value = loss_function(TaskSettings(loss=Loss.dice_bce))(logits, masks)
    dice = (2 * 1.5 / 4 + 0.01) / (1.5 / 4 + 2 / 4 + 0.01)
    assert value.item() == pytest.approx((math.log(2) / 4 + 1 - dice) / 2, rel=1e-5)


def test_epochs_are_reported_in_eval_mode_as_they_end():
    rows, model, seen = owner("a", 12, 6), module(), []
    task = TaskSettings(epochs=2, batch_size=5)
    told = lambda epoch, loss: seen.append((epoch, loss, model.training))  # noqa: E731
    losses = train_plaintext(model, rows.images, rows.labels, task, 0, told)
    assert seen == [(1, losses[0], False), (2, losses[1], False)]


def test_a_diverged_run_has_null_losses_and_metrics(settings, data):
    settings.task.kind, settings.task.lr = TaskKind.train, 1e30
    result = run_plaintext(settings, module(), data)
    last = result.history[-1]
    assert last["loss"] is None and last["val"]["auc"] is None
    assert not math.isfinite(float(result.logits.sum()))


def test_an_empty_split_is_a_typed_error(settings, data):
    settings.task.split = "val"
    with pytest.raises(DataError, match="val split has no images"):
        run_plaintext(settings, module(), {"val": [owner("a", 0, 1)]})
    settings.task.kind = TaskKind.train
    with pytest.raises(DataError, match="train split has no images"):
        run_plaintext(settings, module(), {"val": data["val"]})
