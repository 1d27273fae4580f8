"""A party's cine: frames counted from headers, and decoded one by one as a whole file would be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mpc_imaging.data import load_party, pixels
from mpc_imaging.data.cine import open_cine
from mpc_imaging.errors import DataError
from mpc_imaging.settings import Frames, Invalid, LimitSettings, PartitionKind, PartitionSettings, Settings, TaskKind
from tests.data.builders import (
    PATIENT,
    dicom_settings,
    make_cine,
    make_dicom,
    random_pixels,
    settings_for,
    some_rows,
    write_manifest,
)

COUNTS = (5, 1, 3)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Three files of colour, of 5, 1 and 3 frames, all of one owner."""
    folder = tmp_path / "data"
    (folder / "test").mkdir(parents=True)
    rows = some_rows(len(COUNTS))
    for row, count in zip(rows, COUNTS, strict=True):
        make_cine(folder / row["file"], count, seed=count)
    write_manifest(folder, rows)
    return settings_for(dicom_settings(folder, channels=3, frames=Frames.all), owners=("hospital_a",))


def test_frames_are_those_of_the_whole_files(settings: Settings, tmp_path: Path) -> None:
    cine = open_cine(settings, "hospital_a", tmp_path)
    whole = load_party(settings, "hospital_a", tmp_path, ["test"])["test"]
    split = cine.split()
    assert len(cine) == len(split) == sum(COUNTS)
    assert split.ids == whole.ids and split.sources == whole.sources
    assert torch.equal(split.labels, whole.labels) and split.images.shape == (0, 3, 8, 8)
    seen = [(number, load()) for number, load in cine.frames()]
    assert [number for number, _ in seen] == list(range(sum(COUNTS)))
    assert torch.equal(torch.stack([image for _, image in seen]), whole.images)


def test_a_frame_that_is_not_asked_for_is_not_decoded(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    decode = pixels.Pixels.decode
    monkeypatch.setattr(
        pixels.Pixels, "decode", lambda self, indices: decode(self, decoded.append(list(indices)) or decoded[-1])
    )
    cine = open_cine(settings, "hospital_a", tmp_path)
    assert not decoded
    loads = [load for number, load in cine.frames() if number == 3]
    assert not decoded and len(loads) == 1
    for number, load in cine.frames():
        if number == 2:
            load()
    assert decoded == [[2]]


def test_limits_and_partitions_count_files(settings: Settings, tmp_path: Path) -> None:
    settings.data.limit = LimitSettings(test=2)
    assert len(open_cine(settings, "hospital_a", tmp_path)) in (5 + 1, 5 + 3, 1 + 3)
    two = settings_for(settings.data)
    two.data.limit, two.data.partition = LimitSettings(), PartitionSettings(PartitionKind.even)
    assert sum(len(open_cine(two, owner, tmp_path)) for owner in ("hospital_a", "hospital_b")) == sum(COUNTS)


def test_files_that_cannot_be_used_are_all_named_before_anything_is_shared(settings: Settings, tmp_path: Path) -> None:
    folder = Path(settings.data.path)
    for name in ("0.dcm", "2.dcm"):
        path = folder / "test" / name
        path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError) as caught:
        open_cine(settings, "hospital_a", tmp_path)
    assert [line.split(" (")[0] for line in caught.value.problems] == ["row 2", "row 4"]
    settings.data.invalid = Invalid.skip
    assert len(open_cine(settings, "hospital_a", tmp_path)) == 1
    (folder / "test/1.dcm").unlink()
    with pytest.raises(DataError, match="holds no usable file of test"):
        open_cine(settings, "hospital_a", tmp_path)


@pytest.mark.parametrize("invalid", Invalid)
def test_a_file_that_is_damaged_meanwhile(settings: Settings, tmp_path: Path, invalid: Invalid) -> None:
    """Its header was read, but one of its frames cannot be."""
    settings.data.invalid = invalid
    path = make_cine(Path(settings.data.path, "test", "0.dcm"), 5, size=(90, 90))  # more than a file's buffer
    cine = open_cine(settings, "hospital_a", tmp_path)
    seen = []

    def read() -> None:
        for number, load in cine.frames():
            if number == 2:
                path.write_bytes(path.read_bytes()[:-3000])
            seen.append(load() is not None)

    if invalid is Invalid.refuse:
        with pytest.raises(DataError, match=r"row 2 \(image \w{20}\): frame 4: ") as caught:
            read()
        assert PATIENT not in str(caught.value)
    else:
        read()
        assert seen == [True] * 4 + [False] + [True] * 4


def test_a_file_that_changed_since_it_was_counted(settings: Settings, tmp_path: Path) -> None:
    cine = open_cine(settings, "hospital_a", tmp_path)
    make_dicom(Path(settings.data.path, "test", "2.dcm"), random_pixels(1))
    with pytest.raises(DataError, match=r"row 4 \(image \w{20}\): it has changed since its frames were counted"):
        list(cine.frames())


def test_colours_are_divided_by_their_range(tmp_path: Path) -> None:
    levels = np.arange(0, 256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    make_dicom(tmp_path / "a.dcm", levels, 8)
    write_manifest(tmp_path, [{"file": "a.dcm", "label": "0", "patient": "p", "split": "test"}])
    settings = settings_for(dicom_settings(tmp_path, channels=3, frames=Frames.all), owners=("hospital_a",))
    settings.data.image_size, settings.data.mean, settings.data.std = 16, [0.0], [1.0]
    (shown,) = [load() for _, load in open_cine(settings, "hospital_a", tmp_path).frames()]
    assert torch.equal(shown[0].flatten(), (torch.arange(256, dtype=torch.float64) / 255).float())


def test_frames_need_no_label(settings: Settings, tmp_path: Path) -> None:
    """A stream counts nothing, whatever the policy says of metrics."""
    settings.task.kind, settings.policy.reveal = TaskKind.stream, {"logits": ["image_owner"], "metrics": ["receiver"]}
    write_manifest(Path(settings.data.path), [row | {"label": ""} for row in some_rows(len(COUNTS))])
    assert open_cine(settings, "hospital_a", tmp_path).split().labels.tolist() == [-1] * sum(COUNTS)
