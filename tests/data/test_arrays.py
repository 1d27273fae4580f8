"""Anybody's .npz files: classes or masks, splits that are there or drawn, and claims that are refused before use."""

from __future__ import annotations

import zipfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from mpc_imaging.data import arrays, load_party, load_whole_split, npz
from mpc_imaging.data.images import resize_masks
from mpc_imaging.errors import DataError
from mpc_imaging.settings import ArraySettings, AugmentSettings, DataKind, DataSettings, FoldSettings, LimitSettings
from tests.data.builders import settings_for

SPLITS = ["train", "val", "test"]


def pictures(count: int = 12, shape: tuple[int, ...] = (16, 20), dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (count, *shape), dtype=dtype, endpoint=True)


def instances(count: int = 12, shape: tuple[int, ...] = (16, 20)) -> np.ndarray:
    """Maps of one square each, of another number and place."""
    found = np.zeros((count, *shape), dtype=np.uint16)
    for k in range(count):
        found[k, 2 + k % 3 : 9, 4 + k % 5 : 12] = k + 1
    return found


def save(path: Path, **content: np.ndarray) -> Path:
    np.savez_compressed(path, **content)
    return path


def settings(path: Path, **keys: object) -> DataSettings:
    return DataSettings(**({"kind": DataKind.arrays, "path": str(path), "image_size": 8, "masks": True} | keys))


def problem(path: Path, **keys: object) -> str:
    with pytest.raises(DataError) as caught:
        arrays.read_rows(path, settings(path, **keys))
    return str(caught.value)


def test_owners_divide_images_with_their_masks(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", images=pictures(), labels=instances(), notes=np.zeros(3))
    data = settings(path, arrays=ArraySettings(0.5, 0.25, 0.25))
    parts = [load_party(settings_for(data), name, tmp_path, SPLITS) for name in ("hospital_a", "hospital_b")]
    assert [len(parts[0][split]) + len(parts[1][split]) for split in SPLITS] == [6, 3, 3]
    whole = {name: label for part in parts for s in part.values() for name, label in zip(s.ids, s.labels, strict=True)}
    assert sorted(int(name.rsplit("-", 1)[1]) for name in whole) == list(range(12))
    expected = resize_masks(torch.from_numpy(instances() > 0), 8)
    for name, label in whole.items():
        assert label.dtype == torch.int64 and torch.equal(label, expected[int(name.rsplit("-", 1)[1])].long())
    joint = load_whole_split(settings_for(data), tmp_path, "train", "hospital_a")
    assert joint.images.shape == (6, 1, 8, 8) and joint.labels.shape == (6, 8, 8) and joint.sources == []


def test_an_owner_reads_its_own_images_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.npz", images=pictures(), labels=instances())
    seen: list[int] = []
    original = arrays.read_images
    monkeypatch.setattr(arrays, "read_images", lambda p, index, c: seen.extend(index) or original(p, index, c))
    part = load_party(settings_for(settings(path)), "hospital_b", tmp_path, ["train"])["train"]
    assert seen == [int(name.rsplit("-", 1)[1]) for name in part.ids] and 0 < len(seen) < 6


def test_masks_move_with_their_images(tmp_path: Path) -> None:
    """Where an image is bright its mask is 1: whatever is drawn, that stays so."""
    bright = (instances(12, (24, 24)) > 0).astype(np.uint8) * 255
    path = save(tmp_path / "a.npz", images=bright, labels=instances(12, (24, 24)))
    augment = AugmentSettings(copies=4, flip=True, shift=4, rotate=20.0, brightness=0.2)
    data = settings(path, image_size=24, augment=augment, mean=[0.0], std=[1.0], arrays=ArraySettings(1.0, 0.0, 0.0))
    part = load_party(settings_for(data), "hospital_a", tmp_path, ["train"])["train"]
    assert part.images.shape == (24, 1, 24, 24) and part.labels.shape == (24, 24, 24)
    assert set(part.labels.unique().tolist()) == {0, 1}
    moved = (part.labels[6:] != part.labels[:6].repeat(3, 1, 1)).any(dim=(1, 2))
    assert moved.float().mean() > 0.9
    for image, mask in zip(part.images[:, 0], part.labels, strict=True):
        level = (image.max() + image.min()) / 2
        assert ((image > level).long() != mask).sum() <= 6, "more than what two interpolations of an edge explain"


def test_folds_and_limits_do_not_ask_for_classes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", images=pictures(), labels=instances())
    data = settings(path, folds=FoldSettings(3, 1))
    parts = [load_party(settings_for(data), name, tmp_path, ["train", "test"]) for name in ("hospital_a", "hospital_b")]
    assert [(len(part["train"]), len(part["test"])) for part in parts] == [(4, 2), (4, 2)]
    limited = settings(path, limit=LimitSettings(train=2))
    assert len(load_party(settings_for(limited), "hospital_a", tmp_path, ["train"])["train"]) == 1


def test_classes(tmp_path: Path) -> None:
    labels = np.array([0, 1, 2] * 4)
    path = save(tmp_path / "a.npz", images=pictures(), labels=labels)
    keys = {"masks": False, "class_names": ["a", "b", "c"]}
    assert [row.label for row in arrays.read_rows(path, settings(path, **keys))] == labels.tolist()
    part = load_party(settings_for(settings(path, **keys)), "hospital_a", tmp_path, ["train"])["train"]
    assert part.labels.tolist() == [labels[int(name.rsplit("-", 1)[1])] for name in part.ids]
    several = save(tmp_path / "b.npz", images=pictures(2), labels=np.array([[0, 1], [1, 1]]))
    rows = arrays.read_rows(several, settings(several, masks=False, multi_label=True))
    assert [row.label for row in rows] == [(0, 1), (1, 1)]
    assert "labels run from 0 to 2 but data.class_names has 2 names" in problem(path, masks=False)


def test_splits_are_drawn_by_the_seed_and_keep_patients_together(tmp_path: Path) -> None:
    patients = np.array([f"p{k // 5}" for k in range(100)])
    path = save(tmp_path / "a.npz", images=pictures(100, (2, 2)), labels=instances(100, (2, 2)), patient=patients)
    rows = arrays.read_rows(path, settings(path))
    assert rows == arrays.read_rows(path, settings(path))
    assert Counter(row.split for row in rows) == {"train": 70, "val": 10, "test": 20}
    assert len({(row.patient, row.split) for row in rows}) == len({row.patient for row in rows}) == 20
    other = arrays.read_rows(path, settings(path, arrays=ArraySettings(seed=1)))
    assert [row.split for row in other] != [row.split for row in rows]


def test_splits_of_the_file_come_first(tmp_path: Path) -> None:
    split = np.array(["test", "train", "val", "train"])
    content = {"images": pictures(4), "labels": instances(4)}
    path = save(tmp_path / "a.npz", split=split, **content)
    assert [row.split for row in arrays.read_rows(path, settings(path))] == split.tolist()
    assert "one of train, val, test" in problem(save(tmp_path / "b.npz", split=np.array(["x"] * 4), **content))
    leak = save(tmp_path / "c.npz", split=split, patient=np.array([1, 2, 1, 3]), **content)
    assert "1 patients are in several splits" in problem(leak)
    short = save(tmp_path / "d.npz", split=split[:3], **content)
    assert "shape (3,) for 4 images" in problem(short)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_full_range_becomes_0_to_1(tmp_path: Path, dtype: type) -> None:
    images = pictures(5, (6, 6), dtype)
    path = save(tmp_path / "a.npz", images=images, labels=instances(5, (6, 6)))
    found = np.concatenate(list(arrays.read_images(path, [1, 4], 1)))
    np.testing.assert_allclose(found[:, 0], images[[1, 4]] / np.iinfo(dtype).max, atol=1e-6)
    colour = save(tmp_path / "b.npz", images=pictures(3, (6, 5, 3)), labels=instances(3, (6, 5)))
    assert next(iter(arrays.read_images(colour, [0, 2], 3))).shape == (2, 3, 6, 5)
    assert arrays.read_rows(colour, settings(colour))


def test_chunks_are_joined_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "_CHUNK_SAMPLES", 5 * 16 * 20)
    path = save(tmp_path / "a.npz", images=pictures(), labels=instances())
    parts = list(arrays.read_masks(path, [0, 3, 4, 8, 11]))
    assert [len(part) for part in parts] == [3, 1, 1]
    assert np.array_equal(np.concatenate(parts), instances()[[0, 3, 4, 8, 11]] > 0)


def test_arrays_that_are_refused(tmp_path: Path) -> None:
    good = {"images": pictures(4), "labels": instances(4)}

    def refused(**content: np.ndarray) -> str:
        return problem(save(tmp_path / "x.npz", **(good | content)))

    assert "float64 of shape (4, 16, 20) are no pictures" in refused(images=pictures(4) / 255)
    assert "are no pictures" in refused(images=pictures(4, (16, 20, 2)))
    assert "uint16 of shape (3, 16, 20) are no masks" in refused(labels=instances(3))
    assert "are no masks" in refused(labels=np.zeros((4, 16, 20)))
    assert "write data.masks=false for a class of each image" in refused(labels=np.zeros(4, dtype=int))
    masks = save(tmp_path / "z.npz", **good)
    assert "(4, 16, 20) is more than a few values for each image; if these are masks, write" in problem(
        masks, masks=False
    )
    assert "Python objects are not read" in refused(labels=np.array([{}] * 4, dtype=object))
    assert "Fortran order" in refused(images=np.asfortranarray(pictures(4)))
    assert "has nothing in it" in refused(images=pictures(0), labels=instances(0))
    assert "no array 'labels'" in problem(save(tmp_path / "y.npz", images=pictures()))
    assert "no such file" in problem(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    assert "no .npz file" in problem(tmp_path / "text.npz")


def claim(
    path: Path,
    shape: tuple[int, ...],
    content: bytes,
    version: tuple[int, int] = (1, 0),
    name: str = "images.npy",
    replaced: tuple[bytes, bytes] = (b"", b""),
) -> Path:
    """An archive whose images claim ``shape``, with anything behind it; ``replaced`` in the text of their header."""
    head = BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    head = head.getvalue().replace(*replaced, 1)
    labels = BytesIO()
    np.save(labels, instances(4))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, head[:6] + bytes(version) + head[8:] + content)
        archive.writestr("labels.npy", labels.getvalue())
    return path


def test_claims_are_compared_before_memory_is_taken(tmp_path: Path) -> None:
    assert "does not fit the bytes of the file" in problem(claim(tmp_path / "a.npz", (2**20, 2**13, 2**13), b"few"))
    assert "cannot be read (ValueError)" in problem(claim(tmp_path / "b.npz", (4, 16, 20), bytes(1280), (2, 0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npz, "MAX_SAMPLES", 100)
        assert "limits.py" in problem(claim(tmp_path / "c.npz", (4, 16, 20), bytes(1280)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npz, "MAX_COLUMN_BYTES", 100)
        assert "limits.py" in problem(column(tmp_path / "d.npz", np.zeros(4, "U30")))


def column(path: Path, patients: np.ndarray) -> Path:
    return save(path, images=pictures(4), labels=instances(4), patient=patients)


def test_a_checksum_counts_behind_the_last_image_that_is_asked_for(tmp_path: Path) -> None:
    broken = claim(tmp_path / "a.npz", (4, 16, 20), bytes(1280))
    broken.write_bytes(broken.read_bytes().replace(bytes(1280), bytes(1279) + b"\1", 1))
    with pytest.raises(DataError, match="BadZipFile"):
        list(arrays.read_images(broken, [0], 1))


def test_an_array_has_its_whole_name(tmp_path: Path) -> None:
    """Such a file ended in a KeyError."""
    path = claim(tmp_path / "a.npz", (4, 16, 20), bytes(1280), name="data/images.npy")
    assert "no array 'images'" in problem(path)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (b"'shape': (", b"'shape'( (", "TokenError"),
        (b"'|u1'", b"'|,1'", "SyntaxError"),
        (b" 'fortran_order'", b"b'fortran_order'", "TypeError"),
        (b"'descr': '|u1'", b"'descr': ()   ", "IndexError"),
    ],
)
def test_headers_that_are_damaged(tmp_path: Path, old: bytes, new: bytes, error: str) -> None:
    path = claim(tmp_path / "a.npz", (4, 16, 20), bytes(1280), replaced=(old, new))
    assert f"images: it cannot be read ({error}): save it again" in problem(path)


def test_no_memory_for_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> bytes:
        raise MemoryError

    path = save(tmp_path / "a.npz", images=pictures(4), labels=instances(4))
    monkeypatch.setattr(npz, "_exactly", exhausted)
    with pytest.raises(DataError, match=r"cannot be read \(MemoryError\)"):
        list(arrays.read_images(path, [0], 1))


@pytest.mark.parametrize(("offset", "value"), [(20, 2**32 - 2), (10, 12)], ids=["size", "bzip2"])
def test_the_directory_of_the_archive_is_compared_too(tmp_path: Path, offset: int, value: int) -> None:
    """zipfile takes memory for as many packed bytes as the directory claims."""
    path = claim(tmp_path / "a.npz", (4, 16, 20), bytes(1280))
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\1\2") + offset
    size = 4 if offset == 20 else 2
    content[at : at + size] = value.to_bytes(size, "little")
    path.write_bytes(content)
    assert "images: it cannot be read (BadZipFile)" in problem(path)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert "it is a folder: give the .npz file itself by data.path" in problem(tmp_path)


def test_nuclei(tmp_path: Path, medical_data: Path) -> None:
    data = settings(medical_data / "nuclei_256_gray.npz", image_size=128)
    parts = [load_party(settings_for(data), name, tmp_path, SPLITS) for name in ("hospital_a", "hospital_b")]
    counts = [sum(len(part[split]) for part in parts) for split in SPLITS]
    assert counts == [234, 33, 67]
    labels = torch.cat([part[split].labels for part in parts for split in SPLITS])
    assert labels.shape == (334, 128, 128) and labels.flatten(1).any(1).all()
    with np.load(medical_data / "nuclei_256_gray.npz", allow_pickle=False) as archive:
        marked = (archive["labels"] > 0).mean()
    assert abs(labels.float().mean() - marked) < 0.1 * marked
