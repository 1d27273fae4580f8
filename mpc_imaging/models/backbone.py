"""A public network whose features of an image go into the secret model: built, cut before its last linear layer, run.

It runs in plaintext at each owner, so it may be anything that torch can run. It must be the same at all owners, since
the secret model is trained on the features of all of them: they compare `digest`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence

import torch
from torch import nn

from mpc_imaging.errors import ConfigError, ModelError
from mpc_imaging.models.build import build
from mpc_imaging.models.problems import first_line
from mpc_imaging.models.weights import load_weights, nearest, set_weights
from mpc_imaging.settings import BackboneSettings, FeatureNorm, ModelSettings


def build_backbone(backbone: BackboneSettings, seed: int, allow_code: Sequence[str] = ()) -> nn.Module:
    """The network in eval mode, with the weights in ``backbone.path``, or those that the seed gives.

    allow_code: as in `ModelSettings`.
    Raises `ConfigError` for a target, arguments or a layer that do not exist, `ModelError` for weights that do not fit.
    """
    try:
        module = build(
            ModelSettings(_target_=backbone._target_, kwargs=backbone.kwargs, allow_code=list(allow_code)), seed
        )
        if backbone.path:
            set_weights(module, load_weights(backbone.path))
    except ConfigError as error:
        raise ConfigError(_renamed(error.problems)) from error
    except ModelError as error:
        raise ModelError([f"the backbone: {problem}" for problem in _renamed(error.problems)]) from error
    names = [name for name, _ in module.named_modules() if name]
    if backbone.layer is not None and backbone.layer not in names:
        raise ConfigError([f"model.backbone.layer: there is no {backbone.layer}{nearest(backbone.layer, names)}"])
    return module.requires_grad_(False)


def _renamed(problems: list[str]) -> list[str]:
    """What is wrong with any model, as it is called for this one."""
    return [re.sub(r"\bmodel\.(?:weights\.)?(?=_target_|kwargs|path)", "model.backbone.", text) for text in problems]


def digest(module: nn.Module) -> str:
    """SHA-256 (hex) of the names, types, shapes and values of all parameters and buffers."""
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        value = value.detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        found.update(value.flatten().view(torch.uint8).numpy())
    return found.hexdigest()


@torch.no_grad()
def extract(
    module: nn.Module, images: torch.Tensor, backbone: BackboneSettings, tick: Callable[[int], None] | None = None
) -> torch.Tensor:
    """Features float32 (N, backbone.features) of images (N, C, H, W), scaled as ``backbone.norm`` says.

    They are the input of ``backbone.layer``, or of the linear layer that runs last. Grey images are repeated for a
    network that takes colour. ``tick(n)`` is called after each batch of n images.
    Raises `ModelError` if the network does not take such images, or makes another number of features.
    """
    taken: list[torch.Tensor] = []
    watched = [
        part
        for name, part in module.named_modules()
        if (name == backbone.layer if backbone.layer is not None else isinstance(part, nn.Linear))
    ]
    # The last that comes by is the one: networks may register layers in another order than they run.
    hooks = [part.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0])) for part in watched]
    found = [torch.zeros(0, backbone.features)]
    try:
        for batch in images.split(backbone.batch_size) if len(images) else ():
            taken.clear()
            _run(module, batch)
            found.append(_checked(taken, len(batch), backbone))
            if tick is not None:
                tick(len(batch))
    finally:
        for hook in hooks:
            hook.remove()
    return _scaled(torch.cat(found), backbone)


def _run(module: nn.Module, images: torch.Tensor) -> None:
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    if first is not None and first.in_channels == 3 and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    try:
        module(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        shape = "x".join(map(str, images.shape[1:]))
        what = f"the backbone does not take images of {shape} ({first_line(error)})"
        raise ModelError([f"{what}: set data.image_size and data.channels to what it was made for"]) from error


def _checked(taken: list[torch.Tensor], count: int, backbone: BackboneSettings) -> torch.Tensor:
    """Features (count, backbone.features) of one batch."""
    if not taken:
        layer = "has no linear layer" if backbone.layer is None else f"does not use {backbone.layer}"
        raise ModelError([f"the backbone {layer}: write the module that gets the features in model.backbone.layer"])
    value = taken[-1]
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or len(value) != count:
        what = "the backbone's layer gets no row of numbers for each image"
        raise ModelError([f"{what}: write another in model.backbone.layer"])
    value = value.flatten(1).float()
    if value.shape[1] != backbone.features:
        raise ModelError(
            [
                f"the backbone makes {value.shape[1]} features of an image, not {backbone.features}: "
                f"write model.backbone.features={value.shape[1]}"
            ]
        )
    if not value.isfinite().all():
        raise ModelError(["the backbone makes features that are not finite: give other weights in model.backbone.path"])
    return value


def _scaled(features: torch.Tensor, backbone: BackboneSettings) -> torch.Tensor:
    if backbone.norm is FeatureNorm.none:
        return features
    return torch.nn.functional.normalize(features, dim=1) * backbone.scale
