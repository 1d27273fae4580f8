"""What an owner shares of an image: its pixels, or the features that a public backbone makes of them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from mpc_imaging.data import Split
from mpc_imaging.data.clipping import clip_inputs
from mpc_imaging.settings import PrivacyName, Settings

if TYPE_CHECKING:
    from mpc_imaging.tasks.progress import Progress


def sample_shape(settings: Settings) -> tuple[int, ...]:
    """Shape of what is shared of one image: (C, H, W), of a volume (S, C, H, W), or (features,) with a backbone."""
    data, backbone = settings.data, settings.model.backbone
    if backbone._target_ is not None:
        return (backbone.features,)
    slices = () if data.slices is None else (data.slices,)
    return (*slices, data.channels, data.image_size, data.image_size)


def output_shape(settings: Settings) -> tuple[int, ...]:
    """Shape of what the model gives for an image: (K,), or (1, H, W) with masks, whose sides are those of the image."""
    data = settings.data
    return (1, data.image_size, data.image_size) if data.masks else (len(data.class_names),)


def label_shape(settings: Settings) -> tuple[int, ...]:
    """Shape of what is shared of an image's label: (K,) of 0 and 1, or a mask (H, W)."""
    return output_shape(settings)[-2:]


def features_of(settings: Settings, split: Split) -> Split:
    """The same rows with features in place of images, if there is a backbone. Errors: see `own_inputs`."""
    return own_inputs(settings, {"": split})[0][""]


def own_inputs(
    settings: Settings, splits: Mapping[str, Split], bar: Progress | None = None
) -> tuple[dict[str, Split], str | None]:
    """What an owner shares of its rows of each split, and the digest of its backbone: None if there is none.

    Raises `ConfigError` or `ModelError` for a backbone that cannot be built, or does not take the images.
    """
    backbone = settings.model.backbone
    if backbone._target_ is None:
        return _bounded(settings, splits), None
    # Imported here: many settings have no backbone.
    from mpc_imaging.models.backbone import build_backbone, digest, extract

    module = build_backbone(backbone, settings.seed, settings.model.allow_code)
    total = sum(map(len, splits.values()))
    tick = None if bar is None else bar.advance
    with contextlib.nullcontext() if bar is None else bar.stage("features of the backbone", total):
        features = {
            name: Split(extract(module, split.images, backbone, tick), split.labels, split.ids, split.sources)
            for name, split in splits.items()
        }
    return _bounded(settings, features), digest(module)


def _bounded(settings: Settings, splits: Mapping[str, Split]) -> dict[str, Split]:
    """The same, of no greater length than private training of a head relies on; rows of all splits alike."""
    norm = settings.privacy.input_norm
    if norm is None or settings.privacy.name is not PrivacyName.dp:
        return dict(splits)
    return {name: replace(split, images=clip_inputs(split.images, norm)) for name, split in splits.items()}
