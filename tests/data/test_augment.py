"""Copies of train images: drawn alike on every machine, changed as far as asked for and no further."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpc_imaging.data import load_party, load_whole_split
from mpc_imaging.data.augment import augmented
from mpc_imaging.data.rows import Row
from mpc_imaging.settings import AugmentSettings
from tests.data.builders import dicom_settings, make_folder, settings_for, some_rows

IMAGES = torch.rand(6, 1, 9, 9, generator=torch.Generator().manual_seed(0))
IDS = [f"train-{row:05d}" for row in range(6)]
ROWS = [Row(number, "train", 0, "p") for number in range(6)]


def changed(augment: AugmentSettings, images: torch.Tensor = IMAGES) -> torch.Tensor:
    """All copies but the first: (copies - 1, N, C, H, W)."""
    found, ids = augmented(images, IDS[: len(images)], ROWS[: len(images)], augment, 0, "hospital_a")
    assert torch.equal(found[: len(images)], images) and len(found) == len(ids) == len(set(ids))
    assert ids[len(images)] == "train-00000-a1"
    return found[len(images) :].unflatten(0, (augment.copies - 1, len(images)))


def test_draws_are_the_same_each_time_and_differ_by_seed_owner_row_and_copy() -> None:
    augment = AugmentSettings(copies=3, brightness=0.5)
    flat = torch.full((6, 1, 2, 2), 0.5)
    first = changed(augment, flat)
    assert torch.equal(first, changed(augment, flat))
    assert len(first.mean((2, 3, 4)).unique()) == 12
    for seed, owner in ((1, "hospital_a"), (0, "hospital_b")):
        assert not torch.equal(augmented(flat, IDS, ROWS, augment, seed, owner)[0][6:], first.flatten(0, 1))
    # An image's draw does not depend on which others there are.
    assert torch.equal(augmented(flat[3:4], IDS[3:4], ROWS[3:4], augment, 0, "hospital_a")[0][1:], first[:, 3])


def test_a_flip_is_half_of_the_copies() -> None:
    copies = changed(AugmentSettings(copies=41, flip=True))
    flipped = (copies == IMAGES.flip(-1)).all(dim=(2, 3, 4))
    assert ((copies == IMAGES).all(dim=(2, 3, 4)) ^ flipped).all()
    assert 0.4 < flipped.float().mean() < 0.6


def test_shifts_are_whole_pixels_with_black_behind() -> None:
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 4] = 1
    found = changed(AugmentSettings(copies=200, shift=2), image).flatten(0, 2)
    assert (found.sum((1, 2)) == 1).all()
    places = {tuple(one.nonzero()[0].tolist()) for one in found}
    assert places == {(y, x) for y in range(2, 7) for x in range(2, 7)}
    assert (changed(AugmentSettings(copies=50, shift=1), image + 1)[..., 1:-1, 1:-1] >= 1).all()
    assert changed(AugmentSettings(copies=50, shift=100), image).shape[-2:] == (9, 9)


def test_rotations_stay_within_the_angle() -> None:
    bar = torch.zeros(1, 1, 41, 41)
    bar[..., 20, :] = 1
    found = changed(AugmentSettings(copies=40, rotate=10.0), bar).flatten(0, 2)
    rows = torch.arange(41.0)
    # Where the bar is, at its ends: 18 columns from the centre it is off by 18 tan(angle).
    height = (found[:, :, 2] * rows).sum(1) / found[:, :, 2].sum(1) - 20
    assert height.abs().max() < 18 * 0.1763 + 0.6 and height.max() > 1 and height.min() < -1
    assert (found[:, 20, 20] > 0.5).all()


def test_brightness_is_an_offset_within_the_range() -> None:
    offsets = (changed(AugmentSettings(copies=100, brightness=0.2), torch.full((1, 1, 2, 2), 0.5)) - 0.5).flatten(1)
    assert offsets.abs().max() <= 0.2 and offsets.min() < -0.15 and offsets.max() > 0.15
    assert torch.equal(offsets.amax(1), offsets.amin(1))
    assert changed(AugmentSettings(copies=30, brightness=1.0)).max() <= 1


@pytest.mark.parametrize("party", ["hospital_a", "hospital_b"])
def test_only_an_owners_train_split_grows(tmp_path: Path, party: str) -> None:
    folder = make_folder(tmp_path / "data", some_rows(4) + some_rows(6, "train"))
    plain = settings_for(dicom_settings(folder))
    more = settings_for(dicom_settings(folder, augment=AugmentSettings(copies=3, shift=2)))
    before, after = (load_party(s, party, tmp_path, ["train", "test"]) for s in (plain, more))
    assert torch.equal(before["test"].images, after["test"].images)
    assert len(before["train"]) == 3 and len(after["train"]) == 9
    assert torch.equal(after["train"].images[:3], before["train"].images)
    assert after["train"].labels.tolist() == before["train"].labels.tolist() * 3
    assert after["train"].ids[:3] == before["train"].ids and after["train"].ids[8] == f"{before['train'].ids[2]}-a2"
    black = (0 - 0.5) / 0.25  # normalised afterwards, so that what comes in is black
    assert (after["train"].images >= black).all() and (after["train"].images[3:] == black).any()
    again = load_party(more, party, tmp_path, ["train"])["train"]
    assert torch.equal(again.images, after["train"].images)
    assert len(load_whole_split(more, tmp_path, "train", party)) == 6, "plaintext training of a model owner is not"
