"""Public networks at the owners: which number is a feature, which weights they have, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from mpc_imaging.errors import ConfigError, ModelError
from mpc_imaging.models import save_weights
from mpc_imaging.models.backbone import build_backbone, digest, extract
from mpc_imaging.models.zoo import SmallCNN
from mpc_imaging.settings import BackboneSettings, FeatureNorm

IMAGES = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def small(features: int = 100, **keys: Any) -> BackboneSettings:
    return BackboneSettings(
        "mpc_imaging.models.zoo.SmallCNN", features=features, **({"norm": FeatureNorm.none, "batch_size": 2} | keys)
    )


class Backwards(nn.Module):
    """Registers its layers in another order than they run, and has a linear layer that never does."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(7, 2)
        self.first = nn.Linear(16, 7)
        self.unused = nn.Linear(3, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(self.first(images.flatten(1))))


class NoLinear(nn.Conv2d):
    pass


def mine(name: str, **keys: Any) -> BackboneSettings:
    return BackboneSettings(f"{__name__}.{name}", norm=FeatureNorm.none, **keys)


def test_features_are_the_input_of_the_last_linear_layer() -> None:
    backbone = small()
    module = build_backbone(backbone, 0)
    done: list[int] = []
    found = extract(module, IMAGES, backbone, done.append)
    expected = module.classifier[:3](module.features(IMAGES))
    torch.testing.assert_close(found, expected)
    assert found.shape == (5, 100) and not found.requires_grad and done == [2, 2, 1]
    assert not module.training and not any(p.requires_grad for p in module.parameters())
    assert not any(part._forward_pre_hooks for part in module.modules())
    assert extract(module, IMAGES[:0], backbone).shape == (0, 100)


def test_the_last_is_the_one_that_runs_last() -> None:
    backbone = mine("Backwards", features=7)
    module = build_backbone(backbone, 0, [__name__])
    images = IMAGES[:, :, :4, :4]
    torch.testing.assert_close(extract(module, images, backbone), module.first(images.flatten(1)))


def test_a_named_layer() -> None:
    backbone = small(16 * 4 * 4, layer="classifier.0")
    module = build_backbone(backbone, 0)
    torch.testing.assert_close(extract(module, IMAGES, backbone), module.features(IMAGES).flatten(1))


def test_unit_norm_and_scale() -> None:
    plain, unit = small(), small(norm=FeatureNorm.unit, scale=3.0)
    module = build_backbone(plain, 0)
    found, scaled = extract(module, IMAGES, plain), extract(module, IMAGES, unit)
    torch.testing.assert_close(scaled.norm(dim=1), torch.full((5,), 3.0))
    torch.testing.assert_close(nn.functional.cosine_similarity(found, scaled), torch.ones(5))
    for parameter in module.parameters():
        parameter.zero_()
    assert torch.equal(extract(module, IMAGES, unit), torch.zeros(5, 100)), "no direction, no NaN"


def test_a_colour_network_gets_grey_images_three_times() -> None:
    backbone = BackboneSettings("torchvision.models.resnet18", features=512, norm=FeatureNorm.none)
    module = build_backbone(backbone, 0)
    grey = IMAGES[:2]
    found = extract(module, grey, backbone)
    assert found.shape == (2, 512)
    torch.testing.assert_close(found, extract(module, grey.repeat(1, 3, 1, 1), backbone))


def test_weights_of_the_seed_or_of_a_file(tmp_path: Path) -> None:
    seeded = build_backbone(small(), 0)
    assert digest(seeded) == digest(build_backbone(small(), 0)) != digest(build_backbone(small(), 1))
    trained = SmallCNN()
    save_weights(trained.state_dict(), tmp_path / "b.safetensors")
    loaded = build_backbone(small(path=str(tmp_path / "b.safetensors")), 0)
    assert digest(loaded) == digest(trained) != digest(seeded)
    torch.testing.assert_close(loaded(IMAGES), trained(IMAGES))


def test_a_digest_sees_every_value_type_and_name() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    before = digest(module)
    module[1].num_batches_tracked += 1
    assert digest(module) != before, "buffers too"
    module[1].num_batches_tracked -= 1
    assert digest(module) == before != digest(module.double())
    assert digest(nn.Sequential(module.float())) != before


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        (BackboneSettings("torchvision.models.resnet19"), r"model\.backbone\._target_=torchvision\.models\.resnet19"),
        (small(kwargs={"classes": 2}), r"model\.backbone\.kwargs\.classes: .* did you mean num_classes"),
        (small(layer="clasifier.0"), r"model\.backbone\.layer: there is no clasifier\.0: did you mean classifier\.0"),
    ],
)
def test_what_cannot_be_built(backbone: BackboneSettings, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        build_backbone(backbone, 0)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    with pytest.raises(ModelError, match=r"the backbone: there is no weights file .* set model\.backbone\.path to"):
        build_backbone(small(path=str(path)), 0)
    save_weights(torchvision.models.resnet18().state_dict(), path)
    with pytest.raises(ModelError, match=r"the backbone: .*features\.0\.weight is missing"):
        build_backbone(small(path=str(path)), 0)


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        (small(512), r"makes 100 features of an image, not 512: write model\.backbone\.features=100"),
        (small(kwargs={"in_channels": 2}), r"does not take images of 1x28x28 .* data\.image_size and data\.channels"),
        (small(kwargs={"image_size": 32}), r"does not take images of 1x28x28"),
        (mine("NoLinear", features=1, kwargs={"in_channels": 1, "out_channels": 1, "kernel_size": 3}),
         r"has no linear layer: write the module that gets the features in model\.backbone\.layer"),
    ],
)  # fmt: skip
def test_what_cannot_be_run(backbone: BackboneSettings, expected: str) -> None:
    with pytest.raises(ModelError, match=expected):
        extract(build_backbone(backbone, 0, [__name__]), IMAGES, backbone)


def test_a_layer_that_is_not_used() -> None:
    backbone = mine("Backwards", features=7, layer="unused")
    with pytest.raises(ModelError, match="does not use unused"):
        extract(build_backbone(backbone, 0, [__name__]), IMAGES[..., :4, :4], backbone)


def test_features_that_are_not_finite() -> None:
    backbone = small()
    module = build_backbone(backbone, 0)
    module.classifier[1].bias[3] = float("inf")
    with pytest.raises(ModelError, match="not finite"):
        extract(module, IMAGES, backbone)
