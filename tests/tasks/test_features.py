"""What owners share in place of images, where a backbone makes features of them."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch

from mpc_imaging.data import Split
from mpc_imaging.errors import ModelError, PeerLostError, SessionError
from mpc_imaging.models.build import build
from mpc_imaging.settings import BackboneSettings, ModelSettings, Settings, WeightsSource
from mpc_imaging.tasks import weights
from mpc_imaging.tasks.features import features_of, own_inputs, sample_shape
from mpc_imaging.tasks.inputs import announce
from mpc_imaging.tasks.rehearsal import rehearse

BACKBONE = BackboneSettings("mpc_imaging.models.zoo.MLP", {"image_size": 2}, features=128, scale=5.0, batch_size=3)
HEAD = ModelSettings("head", "mpc_imaging.models.zoo.Head", {"features": 128}, backbone=BACKBONE)


def _split(count: int, start: int = 0) -> Split:
    images = torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(start))
    return Split(images, torch.arange(count) % 2, [f"test-{row:05d}" for row in range(start, start + count)])


class _Bar:
    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.done = 0

    def stage(self, title: str, total: int):
        self.stages.append((title, total))
        return contextlib.nullcontext()

    def advance(self, steps: int = 1) -> None:
        self.done += steps


def test_without_a_backbone_images_are_shared() -> None:
    settings, own = Settings(), {"test": _split(2)}
    assert sample_shape(settings) == (1, 28, 28)
    assert own_inputs(settings, own) == (own, None)
    assert features_of(settings, own["test"]) is own["test"]


def test_with_one_its_features_are() -> None:
    settings, own, bar = Settings(model=HEAD), {"train": _split(7), "test": _split(4, 100)}, _Bar()
    assert sample_shape(settings) == (128,)
    features, digest = own_inputs(settings, own, bar)
    assert digest is not None and len(digest) == 64
    assert bar.stages == [("features of the backbone", 11)] and bar.done == 11
    for name, split in features.items():
        assert split.images.shape == (len(own[name]), 128) and split.ids == own[name].ids
        assert torch.equal(split.labels, own[name].labels)
        torch.testing.assert_close(split.images.norm(dim=1), torch.full((len(split),), 5.0))
        assert torch.equal(features_of(settings, own[name]).images, split.images)


def test_the_model_takes_what_is_shared() -> None:
    settings = Settings(model=copy.deepcopy(HEAD))
    prepared = weights.prepared_module(settings)
    assert prepared(torch.zeros(3, 128)).shape == (3, 2)
    settings.model.kwargs["features"] = 64
    with pytest.raises(ModelError, match="does not take images of shape"):
        weights.prepared_module(settings)


@pytest.mark.parametrize("hidden", [0, 8])
def test_a_rehearsal_knows_the_shape(consortium, hidden: int) -> None:
    settings = consortium("two").settings
    settings.model = copy.deepcopy(HEAD)
    settings.model.kwargs["hidden"] = hidden
    cost = rehearse(settings, {"a": {"test": 3}, "b": {"test": 2}}).cost
    assert cost["macs"] >= 5 * 128 * max(hidden, 2)


# Whether all owners have the same one


def _announcing(own, digests):
    def part(session):
        if session.me == session.settings.dealer():
            return None
        return announce(session, ["test"], own.get(session.me), digests.get(session.me))

    return part


def _features(parties):
    parties.settings.model = copy.deepcopy(HEAD)
    owners = parties.settings.data_owners()
    return {
        owner: {"test": Split(torch.zeros(2, 128), torch.zeros(2, dtype=torch.int64), ["x", "y"])} for owner in owners
    }


@pytest.mark.parametrize("topology", ["two", "outside"])
def test_owners_with_the_same_backbone_go_on(consortium, topology: str) -> None:
    parties = consortium(topology)
    own = _features(parties)
    results = parties.all(_announcing(own, dict.fromkeys(own, "ab" * 32)))
    assert results["a"].image_shape == (128,) and results["b"].total("test") == 4


@pytest.mark.parametrize("other", ["cd" * 32, None])
@pytest.mark.parametrize(("topology", "first", "second"), [("two", "a", "b"), ("outside", "h1", "h2")])
def test_another_backbone_ends_the_session(consortium, topology: str, first: str, second: str, other: object) -> None:
    parties = consortium(topology)
    own = _features(parties)
    results = parties.run(_announcing(own, {first: "ab" * 32, second: other}))
    assert isinstance(results["a"], SessionError)
    expected = f"the backbone of {second} has other weights than that of {first}; give all data owners the same file"
    assert expected in str(results["a"])
    assert isinstance(results["b"], PeerLostError) and expected in str(results["b"])


@pytest.mark.parametrize("other", [7, "cd", "CD" * 32, ["cd" * 32]])
def test_what_is_no_digest_of_a_backbone_ends_the_session(consortium, other: object) -> None:
    parties = consortium("two")
    own = _features(parties)
    results = parties.run(_announcing(own, {"a": "ab" * 32, "b": other}))
    assert isinstance(results["a"], SessionError) and str(results["a"]).startswith("b sent a no numbers of images")


def test_pre_training_sees_features_too(consortium, tmp_path, monkeypatch) -> None:
    settings = consortium("two").settings
    settings.model = copy.deepcopy(HEAD)
    settings.model.weights.source = WeightsSource.pretrain
    monkeypatch.setattr(weights, "load_whole_split", lambda *_: _split(8))
    trained = weights.owner_module(settings, tmp_path)
    start = build(settings.model, settings.seed)
    assert not torch.equal(trained.classifier[0].weight, start.classifier[0].weight)
