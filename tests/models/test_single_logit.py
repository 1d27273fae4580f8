"""A model with one logit for two classes: the same weights and losses, with two."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from mpc_imaging.errors import ModelError
from mpc_imaging.models import set_weights
from mpc_imaging.models.convert import prepare
from mpc_imaging.models.single_logit import SingleLogit
from mpc_imaging.models.zoo import SmallCNN
from mpc_imaging.settings import ModelSettings, Settings, TaskKind
from mpc_imaging.tasks.weights import prepared_module


class Squeezing(nn.Module):
    """As many publish it: convolutions, batch-norm, a parameter and a buffer of its own, dropout, and (N,)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(4 * 13 * 13, 1)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("shift", torch.tensor([0.25]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(self.features(x).flatten(1), 0.5, self.training)
        return (self.head(x) * self.scale + self.shift).squeeze(1)


def images(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(2))


MODULES = [SmallCNN(num_classes=1), Squeezing(), fx.symbolic_trace(SmallCNN(num_classes=1))]


@pytest.mark.parametrize("module", MODULES, ids=["(N, 1)", "(N,)", "traced"])
def test_it_gives_zero_and_the_logit(module: nn.Module) -> None:
    module = copy.deepcopy(module).eval()
    two = SingleLogit(module)
    z = module(images()).flatten()
    assert torch.equal(two(images()), torch.stack([torch.zeros_like(z), z], 1))
    assert list(two.state_dict()) == list(module.state_dict())
    assert [name for name, _ in two.named_parameters()] == [name for name, _ in module.named_parameters()]
    again = copy.deepcopy(two)
    with torch.no_grad():
        next(again.parameters()).zero_()
    assert not torch.equal(again(images()), two(images())), "a copy runs on its own parameters"
    assert torch.equal(two(images())[:, 1], z)


def test_modes_reach_the_module() -> None:
    two = SingleLogit(Squeezing())
    for mode in (True, False):
        two.train(mode)
        assert two._module.training is two.features[1].training is two.training is mode
    two.eval()
    assert torch.equal(two(images()), two(images())), "no dropout"


def test_cross_entropy_is_binary_cross_entropy_of_the_logit() -> None:
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    one = SmallCNN(num_classes=1).double()
    two = SingleLogit(copy.deepcopy(one))
    x = images().double()
    losses = F.binary_cross_entropy_with_logits(one(x)[:, 0], labels.double()), F.cross_entropy(two(x), labels)
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


@pytest.mark.parametrize("training", [False, True])
def test_the_graph_has_the_names_of_the_module(training: bool) -> None:
    module = SmallCNN(num_classes=1).eval()
    prepared = prepare(SingleLogit(module), training)
    assert list(prepared.state_dict()) == list(module.state_dict())
    torch.testing.assert_close(prepared(images())[:, 1:], module(images()))


def test_weights_of_others_load_by_their_names() -> None:
    for published in (SmallCNN(num_classes=1), Squeezing()):
        built = SingleLogit(type(published)(**({"num_classes": 1} if isinstance(published, SmallCNN) else {}))).eval()
        set_weights(built, published.state_dict())
        torch.testing.assert_close(built(images())[:, 1], published.eval()(images()).flatten())


def _settings(single: bool, outputs: int = 1) -> Settings:
    settings = Settings()
    settings.task.kind = TaskKind.infer
    target = "mpc_imaging.models.zoo.SmallCNN"
    settings.model = ModelSettings(_target_=target, kwargs={"num_classes": outputs}, single_logit=single)
    return settings


def test_the_switch_is_asked_for_where_a_model_gives_one_output_for_two_classes() -> None:
    assert prepared_module(_settings(True))(images()).shape == (6, 2)
    for module, given in ((None, r"\(1,\)"), (Squeezing(), "one number")):
        wanted = f"the model gives {given} for an image, not .* write model.single_logit=true"
        with pytest.raises(ModelError, match=wanted):
            prepared_module(_settings(False), module)


def test_several_outputs_are_no_single_logit() -> None:
    with pytest.raises(ModelError, match="gives 3 values for an image, not one logit; write model.single_logit=false"):
        prepared_module(_settings(True, 3))


def test_hooks_are_refused_as_elsewhere() -> None:
    module = SmallCNN(num_classes=1)
    module.register_forward_hook(lambda *args: None)
    with pytest.raises(ModelError, match="hooks"):
        prepare(SingleLogit(module), False)
