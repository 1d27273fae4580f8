"""What is found in one owner's images, and that clean ones are left in peace."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mpc_imaging.data import load_party, medmnist, quality
from mpc_imaging.data.quality import Finding, Pictures, findings
from mpc_imaging.data.rows import Row
from mpc_imaging.errors import DataError
from mpc_imaging.settings import SPLITS, DataKind, DataSettings, PartitionKind, PartitionSettings, Quality
from tests.data.builders import dicom_settings, make_dicom, make_folder, settings_for, some_rows


def pictures(count: int, split: str = "train", seed: int = 0, size: int = 28) -> Pictures:
    """Smooth random images, grey levels 0.1 to 0.9, each of its own patient, in two classes at two sites."""
    coarse = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    images = 0.1 + 0.8 * F.interpolate(coarse, size=(size, size), mode="bilinear")
    rows = [Row(i, split, i % 2, f"{split}-{i}", f"site{i // 2 % 2}") for i in range(count)]
    return Pictures(list(images.split(1)), rows)


def changed(part: Pictures, index: int, image: torch.Tensor) -> Pictures:
    images = list(part.images)
    images[index] = image
    return Pictures(images, part.rows)


def found(**splits: Pictures) -> set[tuple[str, str, int]]:
    return {(finding.kind, finding.split, finding.count) for finding in findings(splits)}


def test_clean_images_are_left_in_peace() -> None:
    assert found(train=pictures(300), val=pictures(40, "val", 1), test=pictures(40, "test", 2)) == set()
    assert findings({"train": Pictures([], [])}) == []


def test_exact_repeats_within_and_across() -> None:
    train, test = pictures(20), pictures(20, "test", 1)
    train = changed(changed(train, 6, train.images[2]), 8, train.images[2])
    test = changed(changed(test, 1, train.images[1]), 3, train.images[8])
    assert found(test=test, train=train) == {
        (quality.REPEATED, "train", 2),
        (quality.REPEATED, "train/test", 2),
        (quality.OTHERWISE_LABELLED, "train/test", 1),
    }


@pytest.mark.parametrize("change", ["noise", "brighter", "gamma", "sharper"])
def test_near_repeats(change: str) -> None:
    train = pictures(20)
    original = train.images[3]
    noise = torch.randn(original.shape, generator=torch.Generator().manual_seed(5))
    again = {
        "noise": original + 0.01 * noise,
        "brighter": original * 1.1,
        "gamma": original**1.1,
        "sharper": original + 0.2 * (original - F.avg_pool2d(original, 3, 1, 1)),
    }[change]
    assert found(train=changed(train, 7, again.clamp(0, 1))) == {(quality.NEARLY, "train", 1)}
    assert found(train=changed(train, 8, again.clamp(0, 1))) == {
        (quality.NEARLY, "train", 1),
        (quality.OTHERWISE_LABELLED, "train", 1),
    }


def test_frames_of_one_file_are_no_repeats() -> None:
    train = pictures(4)
    cine = Pictures([*train.images, train.images[3]], [*train.rows, train.rows[3]])
    assert found(train=cine) == set()


def test_blank_and_clipped_images() -> None:
    test = pictures(8, "test")
    test = changed(test, 0, torch.full((1, 1, 28, 28), 0.5))
    test = changed(test, 1, torch.zeros(1, 1, 28, 28))
    saturated = test.images[2].clone()
    saturated[..., 8:, :] = 1
    assert found(test=changed(test, 2, saturated)) == {(quality.BLANK, "test", 2), (quality.SATURATED, "test", 1)}


def test_a_black_surrounding_is_not_clipped() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
    disc = (0.4 + 0.2 * x) * ((x**2 + y**2) < 0.3)
    assert (disc == 0).float().mean() > 0.7
    assert found(test=changed(pictures(4, "test"), 0, disc[None, None])) == set()
    hollow = disc.clone()
    hollow[(x**2 + y**2) < 0.2] = 0
    assert found(test=changed(pictures(4, "test"), 0, hollow[None, None])) == {(quality.SATURATED, "test", 1)}


def test_a_patient_in_two_splits() -> None:
    train, test = pictures(5), pictures(5, "test", 1)
    rows = [Row(i, "test", i % 2, f"train-{i}" if i < 2 else f"test-{i}") for i in range(5)]
    assert found(train=train, test=Pictures(test.images, rows)) == {(quality.PATIENTS, "train/test", 2)}


@pytest.mark.parametrize("several", [False, True])
def test_a_site_that_tells_the_label(several: bool) -> None:
    def rows(agreeing: int) -> list[Row]:
        label = [int((i % 2) == (i < agreeing)) for i in range(40)]
        return [Row(i, "train", (i // 2 % 2, n) if several else n, f"p{i}", "NS"[i % 2]) for i, n in enumerate(label)]

    images = pictures(40).images
    assert found(train=Pictures(images, rows(38))) == {(quality.SITE, "all", 40)}, "V is 0.9"
    assert found(train=Pictures(images, rows(34))) == set(), "V is 0.7"
    one_site = [Row(i, "train", i % 2, f"p{i}", "N") for i in range(40)]
    assert found(train=Pictures(images, one_site)) == set()
    assert found(train=Pictures(images[:8], rows(38)[:8])) == set(), "too few to tell"


def test_real_sets_in_good_time(medical_data: Path) -> None:
    """PneumoniaMNIST has 18 repeats in train; its chest X-rays look alike, and are not taken for one another."""
    path = medical_data / "pneumoniamnist.npz"
    rows = [row for row in medmnist.read_rows(path, SPLITS, ["normal", "pneumonia"]) if row.split == "train"]
    images = torch.from_numpy(medmnist.read_images(path, "train", [row.number for row in rows], 1))
    start = time.process_time()
    assert findings({"train": Pictures([images], rows)}) == [Finding(quality.REPEATED, "train", 18)]
    assert time.process_time() - start < 2


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    """A folder whose test split has a train image a little brighter, under another name and patient."""
    folder = make_folder(tmp_path / "data", some_rows(6, "train") + some_rows(4))
    smooth = (400 + 3000 * pictures(1, size=12).images[0][0, 0]).numpy().astype(np.uint16)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    make_dicom(folder / "train" / "0.dcm", smooth, **window)
    make_dicom(folder / "test" / "2.dcm", smooth + 40, **window)
    return folder


def test_an_owner_is_told_in_its_log(leaking: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mpc_imaging.data")
    noted = {}
    settings = settings_for(dicom_settings(leaking), ("hospital_a",))
    load_party(settings, "hospital_a", tmp_path, ["train", "test"], _into(noted))
    assert f"quality of train/test: 1 {quality.NEARLY}" in caplog.text
    assert noted == {"quality": {"findings": [{"kind": quality.NEARLY, "split": "train/test", "count": 1}]}}
    assert "Secretname" not in caplog.text


def test_or_the_run_is_refused_or_nothing_is_looked_at(leaking: Path, tmp_path: Path) -> None:
    noted = {}
    for mode in (Quality.refuse, Quality.off):
        settings = settings_for(dicom_settings(leaking, quality=mode), ("hospital_a",))
        if mode is Quality.refuse:
            with pytest.raises(DataError, match=r"hospital_a, quality of train/test: 1 nearly .* data.quality=report"):
                load_party(settings, "hospital_a", tmp_path, ["train", "test"])
        else:
            load_party(settings, "hospital_a", tmp_path, ["train", "test"], _into(noted))
    assert noted == {}


def test_phantoms_are_as_they_were_drawn(tmp_path: Path) -> None:
    data = DataSettings(kind=DataKind.phantoms, quality=Quality.refuse, partition=PartitionSettings(PartitionKind.site))
    data.phantoms.train, data.phantoms.val, data.phantoms.test = 24, 0, 0
    assert len(load_party(settings_for(data), "hospital_a", tmp_path, ["train"])["train"]) == 12


def _into(noted: dict):
    def record(event: str, **details: object) -> None:
        noted[event] = details

    return record
