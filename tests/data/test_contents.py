"""What owners compare their images by: the decoded pixels, whatever file they lie in and whatever is made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from mpc_imaging.data import Split, load_party
from mpc_imaging.settings import AugmentSettings, DataKind, DataSettings, Frames, PartitionKind, PartitionSettings
from tests.data.builders import dicom_settings, make_dicom, random_pixels, settings_for, write_manifest

PRIVATE = PartitionSettings(PartitionKind.private)
SYNTAXES = (RLELossless, JPEG2000Lossless, DeflatedExplicitVRLittleEndian)


def loaded(data: DataSettings, folder: Path, split: str = "test") -> Split:
    return load_party(settings_for(data, ("hospital_a",)), "hospital_a", folder, [split])[split]


def read(folder: Path, pixels: list[np.ndarray], syntax: UID | None = None, **keys: object) -> Split:
    """The images as an owner reads them from DICOM files in a folder of its own."""
    folder.mkdir()
    rows = []
    for number, image in enumerate(pixels):
        path = make_dicom(folder / f"{number}.dcm", image)
        if syntax is not None:
            ds = dcmread(path)
            if syntax is DeflatedExplicitVRLittleEndian:
                ds.file_meta.TransferSyntaxUID = syntax
            else:
                ds.compress(syntax)
            ds.save_as(path)
        split = "train" if "augment" in keys else "test"
        rows.append({"file": path.name, "label": str(number % 2), "patient": f"p{number}", "split": split})
    write_manifest(folder, rows)
    return loaded(dicom_settings(folder, partition=PRIVATE, **keys), folder, split)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.keyword)
def test_files_in_different_transfer_syntaxes_are_the_same_image(syntax: UID, tmp_path: Path) -> None:
    pixels = [random_pixels(1, (64, 48)), random_pixels(2, (64, 48))]
    plain, compressed = read(tmp_path / "a", pixels), read(tmp_path / "b", pixels, syntax)
    assert plain.contents == compressed.contents and len(set(plain.contents)) == 2


def test_images_that_differ_in_one_pixel_differ_even_if_resized(tmp_path: Path) -> None:
    image, other = random_pixels(1, (200, 200)), random_pixels(1, (200, 200))
    other[100, 100] ^= 1
    first, second = read(tmp_path / "a", [image, other]).contents
    assert first != second


def test_blank_images_are_like_nothing(tmp_path: Path) -> None:
    split = read(tmp_path / "a", [np.full((12, 10), 7, np.uint16), random_pixels(1)])
    assert split.contents[0] == b"" != split.contents[1]


def test_every_frame_is_an_image(tmp_path: Path) -> None:
    cine = random_pixels(1, (3, 12, 10))
    split = read(tmp_path / "a", [cine], frames=Frames.all)
    assert len(split) == len(set(split.contents)) == 3


def test_copies_made_by_the_owner_are_not_compared(tmp_path: Path) -> None:
    augment = AugmentSettings(copies=3, flip=True)
    split = read(tmp_path / "a", [random_pixels(1), random_pixels(2)], augment=augment)
    assert len(split) == 6 and len(split.contents) == 2
    assert split.contents == read(tmp_path / "b", [random_pixels(1), random_pixels(2)]).contents


def test_medmnist_in_the_order_of_its_pseudonyms(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
    images[4] = images[1]
    labels = np.arange(6) % 2
    np.savez(tmp_path / "m.npz", test_images=images, test_labels=labels)
    data = DataSettings(kind=DataKind.medmnist, path=str(tmp_path / "m.npz"), image_size=14, partition=PRIVATE)
    split = loaded(data, tmp_path)
    at = [split.ids.index(f"hospital_a-test-{row:05d}") for row in range(6)]
    contents = [split.contents[place] for place in at]
    assert contents[1] == contents[4] and len(set(contents)) == 5


def test_digests_are_not_shown(tmp_path: Path) -> None:
    split = read(tmp_path / "a", [random_pixels(1)])
    assert split.contents[0].hex() not in repr(split) and str(split.contents[0]) not in repr(split)
