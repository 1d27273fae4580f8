"""MedMNIST files: label shapes, colours, what is refused, and downloads (from a stand-in)."""

from __future__ import annotations

import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mpc_imaging.compose import compose_settings
from mpc_imaging.data import load_party, medmnist, npz
from mpc_imaging.errors import DataError

NAMES = ["malignant", "benign"]


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def images(count: int = 6, shape: tuple[int, ...] = (28, 28)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def test_flat_and_column_labels_are_the_same(tmp_path: Path) -> None:
    labels = np.array([0, 1, 1, 0, 1, 0], dtype=np.uint8)
    flat = save(tmp_path / "a.npz", test_images=images(), test_labels=labels)
    column = save(tmp_path / "b.npz", test_images=images(), test_labels=labels[:, None])
    rows = medmnist.read_rows(flat, ["train", "test"], NAMES)
    assert rows == medmnist.read_rows(column, ["train", "test"], NAMES)
    assert [row.label for row in rows] == labels.tolist()
    assert len({row.patient for row in rows}) == 6


def test_grey_and_colour_images(tmp_path: Path) -> None:
    grey, colour = images(), images(shape=(28, 28, 3))
    path = save(tmp_path / "a.npz", test_images=grey, train_images=colour)
    np.testing.assert_allclose(medmnist.read_images(path, "test", [4, 1], 1)[:, 0], grey[[4, 1]] / 255, atol=1e-7)
    assert medmnist.read_images(path, "test", [0], 3).shape == (1, 3, 28, 28)
    np.testing.assert_allclose(
        medmnist.read_images(path, "train", [2], 3)[0], np.moveaxis(colour[2], -1, 0) / 255, atol=1e-7
    )
    assert medmnist.read_images(path, "train", [2, 3], 1).shape == (2, 1, 28, 28)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.zeros((6, 14), dtype=np.uint8), "14 labels per image"),
        (np.array([0, 1, 2, 0, 1, 0]), "labels run from 0 to 2 but data.class_names has 2 names"),
        (np.array([0, 1, -1, 0, 1, 0]), "labels run from -1 to 1"),
        (np.zeros(6), "no class indices"),
    ],
)
def test_labels_that_are_refused(tmp_path: Path, labels: np.ndarray, expected: str) -> None:
    path = save(tmp_path / "a.npz", test_images=images(), test_labels=labels)
    with pytest.raises(DataError, match=expected):
        medmnist.read_rows(path, ["test"], NAMES)


def test_files_that_are_refused(tmp_path: Path) -> None:
    def problem(path: Path) -> str:
        with pytest.raises(DataError) as caught:
            medmnist.read_rows(path, ["test"], NAMES)
        return str(caught.value)

    assert "no such file" in problem(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    assert "no .npz file" in problem(tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", images())
    assert "no .npz file" in problem(tmp_path / "one.npy")
    assert "no test_labels" in problem(save(tmp_path / "other.npz", images=images()))
    pickled = save(tmp_path / "object.npz", test_labels=np.array([{}, {}], dtype=object))
    assert "Python objects are not read" in problem(pickled)
    whole = save(tmp_path / "whole.npz", test_images=images(200), test_labels=np.zeros(200, dtype=np.uint8))
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:5000])
    assert "no .npz file" in problem(tmp_path / "cut.npz")
    assert "it is a folder: give the .npz file itself by data.path" in problem(tmp_path)


def test_a_copy_that_is_damaged(tmp_path: Path, medical_data: Path) -> None:
    """Packed bytes that were overwritten ended in a zlib.error."""
    content = (medical_data / "breastmnist.npz").read_bytes()
    found = set()
    for at in range(60, len(content), len(content) // 40):
        path = tmp_path / "a.npz"
        path.write_bytes(content[:at] + b"\xff" * 40 + content[at + 40 :])
        try:
            for split in ("train", "val", "test"):
                medmnist.read_rows(path, [split], NAMES)
                medmnist.read_images(path, split, [0], 1)
        except DataError as error:
            found.add(str(error).split("(")[-1])
    assert "error): get the file again" in found and "BadZipFile): get the file again" in found


def claim(path: Path, name: str, header: bytes) -> Path:
    """An archive with an array that has this header, and 6 bytes."""
    start = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.npy", start + header + bytes(6))
    return path


def test_claims_are_compared_before_memory_is_taken(tmp_path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (35184372088832,), }"
    with pytest.raises(DataError, match="does not fit the bytes of the file: get the file again"):
        medmnist.read_rows(claim(tmp_path / "a.npz", "test_labels", header), ["test"], NAMES)
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (2097152, 4096, 4096), }"
    with pytest.raises(DataError, match="does not fit the bytes of the file: get the file again"):
        medmnist.read_images(claim(tmp_path / "b.npz", "test_images", header), "test", [0], 1)


@pytest.mark.parametrize(
    ("header", "error"),
    [
        (b"{'descr': '|u1', 'fortran_order': False, 'shape'( (6,), }", "TokenError"),
        (b"{'descr': '|,1', 'fortran_order': False, 'shape': (6,), }", "SyntaxError"),
    ],
)
def test_headers_that_are_damaged(tmp_path: Path, header: bytes, error: str) -> None:
    with pytest.raises(DataError, match=rf"it cannot be read \({error}\): get the file again"):
        medmnist.read_rows(claim(tmp_path / "a.npz", "test_labels", header), ["test"], NAMES)


def test_any_order_of_images_and_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "_CHUNK_SAMPLES", 2 * 28 * 28)
    own = images()
    path = save(tmp_path / "a.npz", train_images=own, test_images=np.asfortranarray(own))
    for split in ("train", "test"):
        found = medmnist.read_images(path, split, [5, 0, 3, 0], 1)
        np.testing.assert_allclose(found[:, 0], own[[5, 0, 3, 0]] / 255, atol=1e-7)
    assert medmnist.read_images(path, "train", [], 3).shape == (0, 3, 28, 28)
    labels = np.asfortranarray([[0, 1], [1, 1], [1, 0]])
    rows = medmnist.read_rows(save(tmp_path / "b.npz", test_labels=labels), ["test"], NAMES, multi_label=True)
    assert [row.label for row in rows] == [(0, 1), (1, 1), (1, 0)]


def test_a_split_without_images(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", test_labels=np.zeros(0, np.uint8), train_labels=np.zeros(2, np.uint8))
    assert [row.split for row in medmnist.read_rows(path, ["train", "test"], NAMES)] == ["train", "train"]


def test_volumes(tmp_path: Path) -> None:
    volumes = images(shape=(8, 12, 10))
    path = save(tmp_path / "a.npz", test_images=volumes)
    found = medmnist.read_images(path, "test", [4, 1], 3, slices=4)
    assert found.shape == (2, 4, 3, 12, 10) and found.dtype == np.float32
    np.testing.assert_allclose(found[:, :, 1], volumes[[4, 1], 0::2] / 255, atol=1e-7)


def test_images_that_are_refused(tmp_path: Path) -> None:
    volumes = save(tmp_path / "a.npz", test_images=images(shape=(28, 28, 28)))
    with pytest.raises(DataError, match="write data.slices=N for volumes"):
        medmnist.read_images(volumes, "test", [0], 1)
    with pytest.raises(DataError, match="give a 3-D MedMNIST set"):
        medmnist.read_images(save(tmp_path / "c.npz", test_images=images()), "test", [0], 1, slices=4)
    few = save(tmp_path / "b.npz", test_images=images(3))
    with pytest.raises(DataError, match="3 images, fewer than test_labels"):
        medmnist.read_images(few, "test", [5], 1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(medmnist, "_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def stand_in(broken: bool = False) -> types.ModuleType:
    """A module like medmnist, whose set writes an .npz file into ``root``."""

    def some_set(split: str, download: bool, root: str, size: int) -> None:
        if broken:
            raise RuntimeError("Automatic download failed!")
        assert download
        save(Path(root) / ("fake.npz" if size == 28 else f"fake_{size}.npz"), test_labels=np.zeros(2, dtype=np.uint8))

    module = types.ModuleType("medmnist")
    module.INFO, module.FakeMNIST = {"fake": {"python_class": "FakeMNIST"}}, some_set
    return module


def test_a_download_happens_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "medmnist", stand_in())
    assert medmnist.download("fake", 28) == cache / "fake.npz"
    assert medmnist.download("fake", 50) == cache / "fake_64.npz"
    assert medmnist.download("fake", 100, volumes=True) == cache / "fake_64.npz"
    assert sorted(path.name for path in cache.iterdir()) == ["fake.npz", "fake_64.npz"]
    monkeypatch.setitem(sys.modules, "medmnist", stand_in(broken=True))
    assert medmnist.download("fake", 28).is_file()


def test_downloads_that_fail(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(DataError, match="pip install medmnist, or give the file by data.path"):
        medmnist.download("fake", 28)
    monkeypatch.setitem(sys.modules, "medmnist", stand_in(broken=True))
    with pytest.raises(DataError, match="check the network"):
        medmnist.download("fake", 28)
    with pytest.raises(DataError, match="is no MedMNIST set: write one of fake"):
        medmnist.download("nothing", 28)
    assert not list(cache.iterdir())


def test_several_labels_for_each_image(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0]], dtype=np.uint8)
    path = save(tmp_path / "chest.npz", test_images=images(3), test_labels=labels)
    rows = medmnist.read_rows(path, ["test"], ["a", "b", "c"], multi_label=True)
    assert [row.label for row in rows] == [(0, 1, 1), (0, 0, 0), (1, 0, 0)]
    with pytest.raises(DataError, match="3 labels per image: write data.multi_label=true"):
        medmnist.read_rows(path, ["test"], ["a", "b", "c"])


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (np.zeros((3, 4), np.uint8), r"shape \(3, 4\) are no labels of shape \(N, 3\)"),
        (np.zeros(3, np.uint8), r"shape \(3,\) are no labels"),
        (np.zeros((3, 3)), "float64"),
        (np.full((3, 3), 2, np.uint8), "must be 0 or 1"),
    ],
)
def test_labels_that_are_no_rows_of_0_and_1(tmp_path: Path, labels: np.ndarray, problem: str) -> None:
    path = save(tmp_path / "chest.npz", test_images=images(3), test_labels=labels)
    with pytest.raises(DataError, match=problem):
        medmnist.read_rows(path, ["test"], ["a", "b", "c"], multi_label=True)


def chest(path: Path) -> Path:
    """A file laid out like ChestMNIST's: uint8 images (N, 28, 28) and labels (N, 14) of 0 and 1."""
    noise = np.random.default_rng(7)
    parts = {}
    for split, count in (("train", 12), ("val", 4), ("test", 8)):
        parts[f"{split}_images"] = noise.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        parts[f"{split}_labels"] = (noise.random((count, 14)) < 0.2).astype(np.uint8)
    np.savez_compressed(path, **parts)
    return path


def test_chestmnist_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = chest(tmp_path / "chestmnist.npz")
    monkeypatch.setattr(medmnist, "_CACHE", tmp_path)  # where a download would be, so that none begins
    for source in (f"data.path={path}", "data.dataset=chestmnist"):
        settings = compose_settings(["data=chestmnist", source, "task=train", "task.loss=binary_cross_entropy"])
        assert len(settings.data.class_names) == 14 and settings.model.kwargs["num_classes"] == 14
        parts = [load_party(settings, name, tmp_path, ["train", "test"]) for name in settings.data_owners()]
        assert sum(len(part["train"]) for part in parts) == 12
        with np.load(path) as archive:
            for part in parts:
                rows = [int(name.split("-")[-1]) for name in part["test"].ids]
                assert part["test"].labels.tolist() == archive["test_labels"][rows].tolist()
