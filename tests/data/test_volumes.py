"""Volumes of S slices: which slices, in which order and grey levels, and what becomes of files that cannot be used."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import dcmread
from pydicom.uid import EnhancedCTImageStorage, JPEG2000Lossless

from mpc_imaging.data import load_party, quality
from mpc_imaging.data.augment import augmented
from mpc_imaging.data.refusals import ImageError, Reason
from mpc_imaging.data.rows import Row
from mpc_imaging.data.volumes import Slices, nearest, read_slices
from mpc_imaging.data.windows import FIRST, Window
from mpc_imaging.errors import DataError
from mpc_imaging.settings import AugmentSettings, DataKind, DataSettings, Invalid, Quality, WindowSettings
from tests.data.builders import (
    PATIENT,
    dicom_settings,
    make_dicom,
    random_pixels,
    rows_of,
    settings_for,
    with_files,
    write_manifest,
)
from tests.data.test_series import make_slice

HEAD = Window(0, (40, 80))


def series(folder: Path, places: list[float], **elements: object) -> Path:
    """A CT series whose file names are in no order; the slice at z has the random pixels z."""
    folder.mkdir(parents=True, exist_ok=True)
    for z in places:
        make_slice(folder, f"{(z * 7) % 11}-{z}.dcm", z, **elements)
    return folder


def read(path: Path, count: int, window: Window = FIRST) -> tuple[Slices, list[tuple[str, str]]]:
    left_out: list[tuple[Path, str]] = []
    found = read_slices(path, count, 1, window, left_out)
    return found, [(path.name, reason) for path, reason in left_out]


def refusal(path: Path, count: int = 3) -> Reason:
    with pytest.raises(ImageError) as caught:
        read(path, count)
    return caught.value.reason


def places(volume: Slices) -> list[float]:
    return [float(path.stem.split("-")[1]) for path, _ in volume.sources]


@pytest.mark.parametrize(
    ("positions", "count", "expected"),
    [
        ([0, 1, 2, 3], 4, [0, 1, 2, 3]),
        (range(8), 4, [0, 2, 4, 6]),
        (range(9), 3, [1, 4, 7]),
        ([5, 8], 5, [0, 0, 0, 1, 1]),
        ([0, 1, 2, 3, 9], 5, [0, 2, 3, 4, 4]),  # the gap is filled by its neighbours
        ([7.0], 2, [0, 0]),
    ],
)
def test_evenly_spread_places_take_the_nearest_slices(positions, count: int, expected: list[int]) -> None:
    assert nearest(positions, count) == expected


def test_slices_are_ordered_by_position_and_shown_as_single_images(tmp_path: Path) -> None:
    volume, left_out = read(series(tmp_path / "a", list(range(0, 12, 2))), 3, Window(0, (1000, 2000)))
    assert places(volume) == [0, 4, 8] and volume.found == 6 and not left_out and not volume.flaws()
    assert volume.values.shape == (3, 1, 12, 10) and volume.values.dtype == np.float32
    hounsfield = random_pixels(4).astype(float) - 1024
    np.testing.assert_allclose(volume.values[1, 0], np.clip(hounsfield / 1999, 0, 1), atol=1e-3)


def test_too_few_slices_are_repeated_and_flaws_are_said(tmp_path: Path) -> None:
    folder = series(tmp_path / "a", [0, 2, 4, 10])
    make_slice(folder, "again.dcm", 2)
    volume, _ = read(folder, 6)
    assert places(volume) == [0, 2, 4, 4, 10, 10]
    np.testing.assert_array_equal(volume.values[4], volume.values[5])
    assert volume.flaws() == [
        "volumes with several slices at one place, of which the first was taken",
        "volumes with gaps between slices",
        "volumes with fewer slices than data.slices, of which some are repeated",
    ]


def test_what_cannot_be_used_costs_its_slices_only(tmp_path: Path) -> None:
    folder = series(tmp_path / "a", [0, 1, 2, 3, 4])
    (damaged,) = folder.glob("*-2.dcm")
    damaged.write_bytes(damaged.read_bytes()[:-40])
    (folder / "notes.txt").write_text(PATIENT)
    (folder / ".hidden").write_text("")
    (folder / "sub").mkdir()
    outside = make_slice(tmp_path, "outside.dcm", 5)
    (folder / "link.dcm").symlink_to(outside)
    volume, left_out = read(folder, 4)
    assert places(volume) == [0, 1, 3, 4]
    assert dict(left_out) == {
        "link.dcm": Reason.outside.value,
        "notes.txt": Reason.not_dicom.value,
        damaged.name: Reason.truncated.value,
    }


def test_folders_that_are_no_volume(tmp_path: Path) -> None:
    assert refusal(series(tmp_path / "one", [3])) is Reason.single
    assert refusal(series(tmp_path / "none", [])) is Reason.no_slices
    two = series(series(tmp_path / "two", [0, 1, 2]), [5, 6], SeriesInstanceUID="1.2.4")
    assert refusal(two) is Reason.several
    assert refusal(make_slice(tmp_path, "file.dcm", 0)) is Reason.single
    assert refusal(tmp_path / "nowhere") is Reason.missing


def test_a_multi_frame_file_without_positions_keeps_its_order(tmp_path: Path) -> None:
    pixels = random_pixels(1, (6, 12, 10))
    volume, _ = read(make_dicom(tmp_path / "cine.dcm", pixels, WindowCenter=2048, WindowWidth=4096), 3)
    assert [frame for _, frame in volume.sources] == [0, 2, 4] and not volume.problems
    np.testing.assert_allclose(volume.values[1, 0], pixels[2] / 4095, atol=1e-3)
    colour = make_dicom(tmp_path / "colour.dcm", np.zeros((12, 10, 3), dtype=np.uint8), bits=8)
    assert refusal(colour) is Reason.single


def test_an_enhanced_file_is_sorted_by_position(tmp_path: Path) -> None:
    from pydicom import Dataset

    def frame(z: float) -> Dataset:
        groups, plane = Dataset(), Dataset()
        plane.ImagePositionPatient = [0, 0, z]
        groups.PlanePositionSequence = [plane]
        return groups

    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient, measures.PixelSpacing = [1, 0, 0, 0, 1, 0], [1, 1]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    path = make_dicom(
        tmp_path / "a.dcm",
        random_pixels(3, (3, 12, 10)),
        SOPClassUID=EnhancedCTImageStorage,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[frame(5), frame(0), frame(2.5)],
    )
    assert [frame for _, frame in read(path, 3)[0].sources] == [1, 2, 0]
    path.write_bytes(path.read_bytes()[:-300])
    assert refusal(path) is Reason.truncated


def test_a_volume_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpc_imaging.data.volumes.MAX_RETURNED_SAMPLES", 3 * 120)
    folder = series(tmp_path / "a", [0, 1])
    assert read(folder, 3)[0].found == 2
    assert refusal(folder, 4) is Reason.too_large


# From a manifest


def manifest(folder: Path, files: list[str]) -> Path:
    rows = [
        {"file": file, "label": str(k % 2), "patient": f"p{k}", "split": "test", "site": ""}
        for k, file in enumerate(files)
    ]
    write_manifest(folder, rows)
    return folder


def load(folder: Path, slices: int | None = 4, record=None, **keys: object):
    settings = settings_for(dicom_settings(folder, slices=slices, **keys), owners=("a",))
    return load_party(settings, "a", folder / "run", ["test"], record)["test"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two series in folders, and a multi-frame file."""
    folder = tmp_path / "data"
    series(folder / "one", [0, 1, 2, 3, 4])
    series(folder / "two", [20, 22, 27])
    make_dicom(folder / "three.dcm", random_pixels(50, (6, 12, 10)))
    return manifest(folder, ["one", "two", "three.dcm"])


def test_rows_name_folders_and_files(data: Path) -> None:
    split = load(data)
    assert split.images.shape == (3, 4, 1, 8, 8)
    assert rows_of(data / "run", split.ids) == [2, 3, 4] and split.labels.tolist() == [0, 1, 0]
    assert [len(source) for source in split.sources] == [4, 4, 4]
    assert {path.parent.name for path, _ in split.sources[1]} == {"two"}
    assert [frame for _, frame in split.sources[2]] == [0, 2, 3, 5]


def test_folders_are_refused_where_images_are_read(data: Path) -> None:
    with pytest.raises(DataError, match=r"row 2 \(image \w+\): a folder, not a file: write data\.slices"):
        load(data, slices=None)


def test_every_unusable_file_has_its_reason(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    (data / "one" / "report.txt").write_text(PATIENT)
    shutil.copytree(data / "two", data / "copy")
    manifest(data, ["one", "two", "three.dcm", "copy", "four.dcm", "one/report.txt"])
    expected = [
        "row 7, one/report.txt: row 2 has files of it, or its folder",
        "row 2, one/report.txt: not a DICOM file",
        "row 5, copy: the same image as row 3",
        "row 6, four.dcm: there is no such file",
    ]
    with pytest.raises(DataError) as caught:
        load(data)
    problems = [with_files(data / "run", problem) for problem in caught.value.problems]
    assert [problem.split(" (correct")[0] for problem in problems] == expected
    with caplog.at_level(logging.INFO):
        assert len(load(data, invalid=Invalid.skip)) == 3
    said = [text.removeprefix("left out: ") for text in caplog.messages if "left out" in text]
    assert [with_files(data / "run", text) for text in said] == expected
    assert not any(name in caplog.text for name in ("report.txt", "copy", "four"))
    assert PATIENT not in caplog.text


def test_flaws_are_counted_and_named(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    noted = {}
    with caplog.at_level(logging.INFO):
        load(data, record=lambda event, **details: noted.update({event: details}))
    found = {entry["kind"]: entry["count"] for entry in noted["quality"]["findings"]}
    assert found == {
        "volumes of unevenly spaced slices": 1,
        "volumes with fewer slices than data.slices, of which some are repeated": 1,
    }
    assert "row 3, two: steps from 2.00 to 5.00 mm" in [with_files(data / "run", text) for text in caplog.messages]
    with pytest.raises(DataError, match="test: 1 volumes of unevenly"):
        load(data, quality=Quality.refuse)


def test_volumes_of_a_medmnist_file(tmp_path: Path) -> None:
    volumes = random_pixels(0, (4, 6, 12, 10)).astype(np.uint8)
    np.savez(tmp_path / "set.npz", test_images=volumes, test_labels=np.arange(4) % 2)
    data = DataSettings(kind=DataKind.medmnist, path=str(tmp_path / "set.npz"), image_size=12, slices=3)
    split = load_party(settings_for(data, owners=("a",)), "a", tmp_path / "run", ["test"])["test"]
    assert split.images.shape == (4, 3, 1, 12, 12)
    padded = (split.images[2, 1, 0] * 0.25 + 0.5)[:, 1:11]
    np.testing.assert_allclose(padded, volumes[2, 2] / 255, atol=1e-6)


def test_the_real_head_ct(medical_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(medical_data / "ct_head", folder / "head", ignore=shutil.ignore_patterns("LICENSE"))
    split = load(manifest(folder, ["head"]), slices=16, window=WindowSettings(centre=40, width=80))
    (sources,) = split.sources
    numbers = [int(path.stem) for path, _ in sources]  # the names happen to be in order
    assert numbers == sorted(set(numbers)) and len(numbers) == 16
    # 14 steps of 4 mm below, 13 of 7 mm above: evenly in space, so fewer of the lower ones.
    assert sum(number > 15 for number in numbers) == 10
    assert split.images.shape == (1, 16, 1, 8, 8) and split.images.std() > 0.5


# What is done with them


def test_all_slices_are_changed_alike() -> None:
    one = torch.rand(1, 1, 6, 6)
    volume = one.expand(3, 1, 6, 6)
    changes = AugmentSettings(copies=4, flip=True, shift=2, rotate=20, brightness=0.2)
    images, ids = augmented(volume[None], ["x"], [Row(2, "train", 0, "p")], changes, 3, "owner")
    assert images.shape == (4, 3, 1, 6, 6) and ids == ["x", "x-a1", "x-a2", "x-a3"]
    for changed in images:
        torch.testing.assert_close(changed, changed[:1].expand_as(changed))
    assert not torch.equal(images[1], images[0])
    alone, _ = augmented(one, ["x"], [Row(2, "train", 0, "p")], changes, 3, "owner")
    torch.testing.assert_close(images[:, 0], alone)


def test_quality_of_volumes() -> None:
    volumes = torch.rand(5, 4, 1, 20, 20)
    volumes[1] = volumes[0]
    volumes[2] = volumes[0] * 0.99 + 0.001
    volumes[3] = 0.5
    volumes[4, :, :, :14] = 1.0
    rows = [Row(k, "test", 0, f"p{k}") for k in range(5)]
    found = quality.findings({"test": quality.Pictures([volumes], rows)})
    assert {(one.kind, one.count) for one in found} == {
        (quality.REPEATED, 1), (quality.NEARLY, 1), (quality.BLANK, 1), (quality.SATURATED, 1),
    }  # fmt: skip
    order = volumes[:1, [3, 2, 1, 0]]  # another volume, with the same mean over its slices
    both = quality.Pictures([volumes[:1], order], rows[:2])
    assert quality.findings({"test": both}) == []


@pytest.mark.parametrize("compressed", [False, True])
def test_colour_slices_are_refused_as_such(tmp_path: Path, compressed: bool) -> None:
    """They were told to become RGB, which they are, or that no file in the folder has a position, which all have."""
    (tmp_path / "a").mkdir()
    for z in range(3):
        colours = np.random.default_rng(z).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        path = make_dicom(
            tmp_path / "a" / f"{z}.dcm", colours, 8, SeriesInstanceUID="1.2.3", ImagePositionPatient=[0, 0, z],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[1, 1],
        )  # fmt: skip
        if compressed:
            dataset = dcmread(path)
            dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
            dataset.save_as(path)
    (tmp_path / "a" / "notes.txt").write_text("")
    assert refusal(tmp_path / "a") is Reason.colours
