"""Folds: every image is tested once, no patient is on two sides, classes keep their balance, alike on every machine."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings as hypothesis, strategies as st

from mpc_imaging.data import load_party, load_whole_split
from mpc_imaging.data.folds import assign, pooled
from mpc_imaging.data.rows import Row
from mpc_imaging.errors import DataError
from mpc_imaging.settings import DataKind, DataSettings, FoldSettings, LimitSettings, PartitionKind, PartitionSettings
from tests.data.builders import dicom_settings, make_folder, settings_for, some_rows

BOTH = ("hospital_a", "hospital_b")


def some(patients: list[tuple[int, int]]) -> list[Row]:
    """Rows of patients, each (images, label)."""
    rows = []
    for patient, (images, label) in enumerate(patients):
        rows += [Row(len(rows) + k, ("train", "val", "test")[patient % 3], label, f"p{patient}") for k in range(images)]
    return rows


def folded(rows: list[Row], count: int, index: int, with_val: bool = False) -> dict[str, list[Row]]:
    found = assign(pooled(rows), FoldSettings(count, index), 0, with_val, "a")
    assert [(row.number, row.origin) for row in found] == [(row.number, row.split) for row in rows]
    return {split: [row for row in found if row.split == split] for split in ("train", "val", "test")}


def numbers(rows: list[Row]) -> set[int]:
    return {row.number for row in rows}


@hypothesis(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2)), min_size=7, max_size=40),
    st.integers(2, 6), st.booleans(),
)  # fmt: skip
def test_each_row_is_tested_once_and_no_patient_is_divided(patients, count, with_val) -> None:
    rows = some(patients)
    tested = []
    for index in range(count):
        splits = folded(rows, count, index, with_val)
        tested += [row.number for row in splits["test"]]
        owners = [{row.patient for row in part} for part in splits.values()]
        assert sum(map(len, owners)) == len(set.union(*owners)) == len(patients)
        assert splits["train"] and splits["test"] and bool(splits["val"]) == with_val
    assert sorted(tested) == sorted(numbers(rows))


def test_classes_keep_their_balance() -> None:
    rows = some([(1, int(k % 10 == 0)) for k in range(200)])
    for index in range(5):
        splits = folded(rows, 5, index, with_val=True)
        assert collections.Counter(row.label for row in splits["test"]) == {0: 36, 1: 4}
        assert [len(splits[split]) for split in ("train", "val")] == [128, 32]
        assert sum(row.label for row in splits["val"]) in (3, 4)


def test_large_patients_are_spread() -> None:
    rows = some([(10, 0)] * 4 + [(1, 0)] * 40)
    assert [len(folded(rows, 4, index)["test"]) for index in range(4)] == [20] * 4


def test_the_folds_are_fixed() -> None:
    """They must not change between machines, nor between versions: a fold's number means the same images."""
    rows = some([(1, k % 2) for k in range(12)])
    assert [sorted(numbers(folded(rows, 3, index)["test"])) for index in range(3)] == FIXED


FIXED = [[1, 2, 5, 8], [4, 6, 9, 11], [0, 3, 7, 10]]


@pytest.mark.parametrize(
    ("patients", "count", "with_val", "expected"),
    [
        (3, 5, False, "a has 3 patients, too few for 5 folds: write data.folds.count=3, or give it more images"),
        (5, 5, True, "a has 5 patients, too few for 5 folds and a val split: write data.folds.count=4, or give"),
        (1, 2, False, "a has 1 patients, too few for 2 folds: give it more images"),
    ],
)
def test_too_few_patients(patients: int, count: int, with_val: bool, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        folded(some([(4, 0)] * patients), count, 0, with_val)


# Through the readers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data", some_rows(8) + some_rows(18, "train") + some_rows(4, "val"))


def loaded(data: DataSettings, folder: Path, splits: tuple[str, ...] = ("train", "test")) -> list[dict]:
    return [load_party(settings_for(data), name, folder, splits) for name in BOTH]


def test_folders_of_dicom_files(folder: Path, tmp_path: Path) -> None:
    tested: list[str] = []
    for index in range(3):
        data = dicom_settings(folder, folds=FoldSettings(3, index))
        for part in loaded(data, tmp_path):
            assert len(part["train"]) == 10 and len(part["test"]) == 5
            tested += part["test"].ids
        with_val = loaded(data, tmp_path, ("train", "val", "test"))
        assert all(len(part["val"]) in (3, 4) for part in with_val)
        assert {i for part in with_val for i in part["test"].ids} <= set(tested)
    assert len(set(tested)) == len(tested) == 30
    assert {name.split("-")[1] for name in tested} == {"train", "val", "test"}


def test_limits_apply_after_folds(folder: Path, tmp_path: Path) -> None:
    data = dicom_settings(folder, folds=FoldSettings(3, 0), limit=LimitSettings(train=5, test=4))
    a, b = loaded(data, tmp_path)
    assert (len(a["train"]), len(b["train"]), len(a["test"]), len(b["test"])) == (3, 2, 2, 2)


def test_npz_rows_are_read_from_the_split_they_are_in(tmp_path: Path) -> None:
    """Pixel values name the row: folds must not mix up row 3 of train with row 3 of test."""
    arrays, tone = {}, {}
    for start, (split, count) in zip((0, 100, 200), (("train", 30), ("val", 8), ("test", 12)), strict=True):
        values = np.arange(start, start + count, dtype=np.uint8)
        arrays[f"{split}_images"] = np.broadcast_to(values[:, None, None], (count, 28, 28))
        arrays[f"{split}_labels"] = values % 2
        tone |= {f"{split}-{row:05d}": int(value) for row, value in enumerate(values)}
    np.savez(tmp_path / "a.npz", **arrays)
    seen: list[str] = []
    for index in range(5):
        data = DataSettings(
            kind=DataKind.medmnist, path=str(tmp_path / "a.npz"), mean=[0.0], std=[1.0], folds=FoldSettings(5, index)
        )
        for part in loaded(data, tmp_path):
            for split in part.values():
                found = (split.images[:, 0, 0, 0] * 255).round().int().tolist()
                assert found == [tone[name] for name in split.ids]
                assert split.labels.tolist() == [value % 2 for value in found]
            seen += part["test"].ids
    assert sorted(seen) == sorted(tone)


def test_a_model_owner_never_trains_on_what_is_tested(folder: Path, tmp_path: Path) -> None:
    data = dicom_settings(folder, folds=FoldSettings(3, 1))
    own = loaded(data, tmp_path, ("train", "val", "test"))
    whole = load_whole_split(settings_for(data), tmp_path, "train", "hospital_a")

    def rows(ids: list[str]) -> set[str]:
        return {name.partition("-")[2] for name in ids}

    assert rows(whole.ids) == set.union(*(rows(part["train"].ids) for part in own))
    assert not rows(whole.ids) & set.union(*(rows(part[split].ids) for part in own for split in ("val", "test")))


def test_private_data_are_folded_by_their_owner(folder: Path, tmp_path: Path) -> None:
    partition = PartitionSettings(kind=PartitionKind.private)
    data = dicom_settings(None, paths=dict.fromkeys(BOTH, str(folder)), partition=partition, folds=FoldSettings(3, 0))
    a, b = loaded(data, tmp_path)
    assert len(a["test"]) == len(b["test"]) == 10 and torch.equal(a["test"].images, b["test"].images)
    whole = load_whole_split(settings_for(data), tmp_path, "train", "hospital_a")
    assert set(whole.ids) < set(a["train"].ids)


def test_an_owner_with_too_few_patients_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", some_rows(6))
    with pytest.raises(DataError, match="hospital_b has 3 patients, too few for 4 folds"):
        load_party(settings_for(dicom_settings(folder, folds=FoldSettings(4))), "hospital_b", tmp_path, ["test"])
