"""From settings to each party's tensors: own rows only, whole and once, and every unusable file named."""

from __future__ import annotations

import csv
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mpc_imaging.data import Split, load_party, load_whole_split, row_images
from mpc_imaging.errors import ConfigError, DataError
from mpc_imaging.settings import (
    DataKind,
    DataSettings,
    Frames,
    Invalid,
    LimitSettings,
    PartitionKind,
    PartitionSettings,
    PhantomSettings,
    WeightsSource,
)
from tests.data.builders import (
    PATIENT,
    dicom_settings,
    make_dicom,
    make_folder,
    random_pixels,
    rows_of,
    settings_for,
    shipped,
    some_rows,
    write_manifest,
)

BOTH = ("hospital_a", "hospital_b")


def load_both(data: DataSettings, folder: Path, splits: tuple[str, ...] = ("test",)) -> list[dict[str, Split]]:
    return [load_party(settings_for(data), name, folder / name, splits) for name in BOTH]


def test_owners_divide_a_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", some_rows(10) + some_rows(6, "train"))
    whole = load_whole_split(settings_for(dicom_settings(folder)), tmp_path / "vendor", "test", "vendor")
    a, b = load_both(dicom_settings(folder), tmp_path, ("train", "test"))
    assert len(a["test"]) == len(b["test"]) == 5 and len(a["train"]) == 3
    assert a["test"].images.shape == (5, 1, 8, 8) and a["test"].images.dtype == torch.float32
    assert a["test"].labels.dtype == torch.int64
    joint = {}
    for name, part in zip(BOTH, (a["test"], b["test"]), strict=True):
        joint |= dict(zip(rows_of(tmp_path / name, part.ids), part.images, strict=True))
    assert sorted(joint) == list(range(2, 12))
    for row, image in zip(rows_of(tmp_path / "vendor", whole.ids), whole.images, strict=True):
        torch.testing.assert_close(joint[row], image)


def test_a_party_decodes_its_own_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "data", some_rows(8))
    read: list[Path] = []
    original = row_images.read_dicom
    monkeypatch.setattr(row_images, "read_dicom", lambda path, *rest: read.append(path) or original(path, *rest))
    own = load_party(settings_for(dicom_settings(folder)), "hospital_b", tmp_path, ["test"])["test"]
    assert len(read) == len(own) == 4


def test_the_division_does_not_depend_on_the_splits_asked_for(tmp_path: Path) -> None:
    rows = some_rows(4, site="south") + some_rows(4, "train", site="north")
    rows[0]["site"] = "north"
    folder = make_folder(tmp_path / "data", rows)
    data = dicom_settings(folder, partition=PartitionSettings(kind=PartitionKind.site))
    for part in load_both(data, tmp_path, ("test",)):
        assert len(part["test"]) in (1, 3)
    together = load_party(settings_for(data), "hospital_b", tmp_path, ["train", "test"])
    assert (len(together["train"]), len(together["test"])) == (0, 3)
    assert together["train"].images.shape == (0, 1, 8, 8)
    with pytest.raises(DataError, match="hospital_b would own none of the 4 images of train"):
        load_party(settings_for(data), "hospital_b", tmp_path, ["train"])


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    """A folder with two good images and one of each kind of bad row."""
    rows = some_rows(9)
    rows[3]["label"] = ""
    rows[4]["file"] = "test/0.dcm"
    folder = make_folder(tmp_path / "data", rows[:3])
    images = folder / "test"
    make_dicom(images / "2.dcm", random_pixels(0))  # the pixels of 0.dcm under another name
    (images / "5.dcm").write_bytes((images / "1.dcm").read_bytes()[:-20])
    (images / "6.dcm").write_bytes(shipped("reportsi.dcm").read_bytes())
    (images / "7.dcm").write_text(PATIENT)
    make_folder(folder, [rows[3]])
    write_manifest(folder, rows)
    return folder


BAD_ROWS = {
    ("4", "test/2.dcm"): "the same image as row 2",
    ("5", "test/3.dcm"): "it has no label",
    ("6", "test/0.dcm"): "the same file is in row 2",
    ("7", "test/5.dcm"): "truncated",
    ("8", "test/6.dcm"): "a DICOM object without an image",
    ("9", "test/7.dcm"): "not a DICOM file",
    ("10", "test/8.dcm"): "there is no such file",
}


def refused(folder: Path) -> list[str]:
    """What logs say of the bad rows, by the owner's private table, which is looked at as well."""
    table = folder / "results" / "images.csv"
    assert table.stat().st_mode & 0o777 == 0o600 and table.parent.stat().st_mode & 0o777 == 0o700
    with table.open(newline="") as stream:
        lines = [line for line in csv.DictReader(stream) if line["refused"]]
    assert {(line["row"], line["file"]) for line in lines} == set(BAD_ROWS)
    assert all(line["refused"].startswith(BAD_ROWS[line["row"], line["file"]]) for line in lines)
    return [f"row {line['row']} (image {line['pseudonym']}): {line['refused']}" for line in lines]


def test_bad_files_are_all_refused_at_once(spoiled: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_for(dicom_settings(spoiled), ("hospital_a",))
    with pytest.raises(DataError) as caught:
        load_party(settings, "hospital_a", spoiled, ["test"])
    problems = caught.value.problems
    assert len(problems) == len(BAD_ROWS)
    for expected in refused(spoiled):
        assert any(problem.startswith(expected) for problem in problems), expected
        assert f"refused: {expected}" in caplog.text
    assert "data.invalid=skip" in problems[-1]
    assert not re.search(r"Secretname|\.dcm|test/", str(caught.value) + caplog.text)


def test_bad_files_are_left_out_and_named(spoiled: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_for(dicom_settings(spoiled, invalid=Invalid.skip), ("hospital_a",))
    own = load_party(settings, "hospital_a", spoiled, ["test"])["test"]
    assert rows_of(spoiled, own.ids) == [2, 3]
    assert all(re.fullmatch("hospital_a-test-[0-9a-f]{20}", name) for name in own.ids)
    for expected in refused(spoiled):
        assert f"left out: {expected}" in caplog.text
    assert not re.search(r"Secretname|\.dcm|test/", caplog.text)


def test_pseudonyms_are_keyed(tmp_path: Path) -> None:
    """Another run folder has another key; with a key of the owner's own they are the same everywhere."""
    folder = make_folder(tmp_path / "data", some_rows(3))
    (tmp_path / "key").write_bytes(bytes(range(32)))
    (tmp_path / "short").write_bytes(b"12345")

    def ids(where: str, **keys: object) -> list[str]:
        data = dicom_settings(folder, **keys)
        return load_party(settings_for(data, ("hospital_a",)), "hospital_a", tmp_path / where, ["test"])["test"].ids

    first = ids("first")
    assert first == ids("first") and not set(first) & set(ids("second"))
    assert (tmp_path / "first" / "results" / "pseudonyms.key").stat().st_mode & 0o777 == 0o600
    key = str(tmp_path / "key")
    kept = ids("third", pseudonym_key_file=key)
    assert kept == ids("fourth", pseudonym_key_file=key) and not set(kept) & set(first)
    assert not (tmp_path / "third" / "results" / "pseudonyms.key").exists()
    for wrong in ("nowhere", "short"):
        with pytest.raises(
            ConfigError, match="pseudonym_key_file: the (file does not hold 32 bytes|key cannot be read)"
        ):
            ids("fifth", pseudonym_key_file=str(tmp_path / wrong))


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", some_rows(2))
    for path in (folder / "test").iterdir():
        path.write_text("no image")
    settings = settings_for(dicom_settings(folder, invalid=Invalid.skip), ("hospital_a",))
    with pytest.raises(DataError, match="no usable image"):
        load_party(settings, "hospital_a", tmp_path, ["test"])
    with pytest.raises(DataError, match="no usable image"):
        load_whole_split(settings, tmp_path, "test", "hospital_a")


def test_private_paths_are_not_divided(tmp_path: Path) -> None:
    paths = {name: str(make_folder(tmp_path / name, some_rows(3 + i))) for i, name in enumerate(BOTH)}
    a, b = load_both(dicom_settings(None, paths=paths), tmp_path)
    assert (len(a["test"]), len(b["test"])) == (3, 4)
    assert not set(a["test"].ids) & set(b["test"].ids)
    private = dicom_settings(Path(paths["hospital_b"]), partition=PartitionSettings(kind=PartitionKind.private))
    own = load_party(settings_for(private), "hospital_b", tmp_path, ["test"])["test"]
    torch.testing.assert_close(own.images, b["test"].images)


def test_paths_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hospital_a has no data: set data.path"):
        load_party(settings_for(dicom_settings(None)), "hospital_a", tmp_path, ["test"])
    half = dicom_settings(tmp_path, paths={"hospital_b": str(tmp_path)})
    with pytest.raises(DataError, match=r"add data\.paths\.hospital_a, or write data.partition.kind=private"):
        load_party(settings_for(half), "hospital_a", tmp_path, ["test"])
    with pytest.raises(DataError, match="dealer owns no data"):
        load_party(settings_for(dicom_settings(tmp_path)), "dealer", tmp_path, ["test"])


def test_relative_paths_are_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "data", some_rows(2))
    monkeypatch.chdir(tmp_path)
    assert len(load_party(settings_for(dicom_settings(Path("data"))), "hospital_a", tmp_path, ["test"])["test"]) == 1


def test_limits_hold_over_all_owners(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", some_rows(12))
    data = dicom_settings(folder, limit=LimitSettings(test=5))
    a, b = load_both(data, tmp_path)
    assert len(a["test"]) + len(b["test"]) == 5
    assert int(a["test"].labels.sum() + b["test"].labels.sum()) in (2, 3)
    private = dicom_settings(None, paths=dict.fromkeys(BOTH, str(folder)), limit=LimitSettings(test=5))
    a, b = load_both(private, tmp_path)
    assert (len(a["test"]), len(b["test"])) == (3, 2)


def test_frames_of_one_file_are_images_of_one_patient(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", some_rows(2))
    make_dicom(folder / "test" / "0.dcm", random_pixels(5, (3, 6, 6)))
    data = dicom_settings(folder, frames=Frames.all)
    own = load_party(settings_for(data, ("hospital_a",)), "hospital_a", tmp_path, ["test"])["test"]
    first = own.ids[0].removesuffix("-000")
    assert own.ids[:3] == [f"{first}-00{k}" for k in range(3)] and len(own) == 4
    assert rows_of(tmp_path, own.ids) == [2, 2, 2, 3]
    assert own.labels.tolist() == [0, 0, 0, 1]


def test_splits_show_no_pixels() -> None:
    split = Split(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), ["a", "b"])
    assert repr(split) == "Split(images=(2, 1, 4, 4))"


def npz_settings(path: Path, **keys: object) -> DataSettings:
    return DataSettings(kind=DataKind.medmnist, path=str(path), mean=[0.0], std=[1.0], **keys)


def test_real_medmnist_is_divided_without_loss(medical_data: Path, tmp_path: Path) -> None:
    path = medical_data / "breastmnist.npz"
    a, b = load_both(npz_settings(path), tmp_path, ("val", "test"))
    assert [len(a["test"]), len(b["test"]), len(a["val"]) + len(b["val"])] == [78, 78, 78]
    with np.load(path) as archive:
        images, labels = archive["test_images"], archive["test_labels"].reshape(-1)
    seen = set()
    for part in (a["test"], b["test"]):
        for name, image, label in zip(part.ids, part.images, part.labels, strict=True):
            index = int(name.removeprefix("test-"))
            seen.add(index)
            assert label == labels[index]
            np.testing.assert_allclose(image[0].numpy(), images[index] / 255, atol=1e-6)
    assert seen == set(range(156))


def test_column_labels_and_a_model_owners_train_split(medical_data: Path, tmp_path: Path) -> None:
    data = npz_settings(medical_data / "pneumoniamnist.npz", class_names=["normal", "pneumonia"], image_size=14)
    whole = load_whole_split(settings_for(data), tmp_path, "train", "vendor")
    assert whole.images.shape == (4708, 1, 14, 14) and whole.labels.float().mean() == pytest.approx(0.742, abs=1e-3)


def test_equal_images_in_an_npz_file_are_counted_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.savez(
        tmp_path / "a.npz", test_images=np.zeros((4, 28, 28), np.uint8), test_labels=np.array([0, 1, 0, 1], np.uint8)
    )
    caplog.set_level(logging.INFO, "mpc_imaging.data")
    private = npz_settings(tmp_path / "a.npz", partition=PartitionSettings(kind=PartitionKind.private))
    own = load_party(settings_for(private), "hospital_a", tmp_path, ["test"])["test"]
    assert own.ids == [f"hospital_a-test-0000{i}" for i in range(4)]
    assert "3 of 4 test images repeat another one" in caplog.text


def test_phantoms_are_each_partys_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    data = DataSettings(
        phantoms=PhantomSettings(train=8, val=0, test=8), partition=PartitionSettings(kind=PartitionKind.site)
    )
    a, b = load_both(data, tmp_path, ("train", "test"))
    assert len(a["train"]) == len(b["train"]) == 4
    files = [{path.name for path in (tmp_path / name / "dicom").glob("*.dcm")} for name in BOTH]
    assert len(files[0]) == len(files[1]) == 8 and not files[0] & files[1]
    again = load_party(settings_for(data), "hospital_a", tmp_path / "hospital_a", ("train", "test"))
    assert torch.equal(again["test"].images, a["test"].images) and again["test"].ids == a["test"].ids
    whole = load_whole_split(settings_for(data), tmp_path / "hospital_a", "train", "hospital_a")
    assert len(whole) == 8
    assert "phantom-" not in caplog.text and "^" not in caplog.text


def test_phantoms_are_nobodys_private_data(tmp_path: Path) -> None:
    data = DataSettings(partition=PartitionSettings(kind=PartitionKind.private))
    with pytest.raises(ConfigError, match=r"kind=private is for data\.paths"):
        load_party(settings_for(data), "hospital_a", tmp_path, ["test"])


def test_images_without_consent_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mpc_imaging.data")
    rows = [
        row | {"consent": "no" if i in (1, 2, 5) else "yes", "purpose": "any"} for i, row in enumerate(some_rows(8))
    ]
    folder = make_folder(tmp_path / "data", rows)
    (folder / "test" / "1.dcm").write_text("without consent it is not even opened")
    data = dicom_settings(folder, require_consent=True, purpose="research")
    noted: list[dict[str, object]] = []
    settings = settings_for(data, ("hospital_a",))
    own = load_party(
        settings, "hospital_a", tmp_path, ["test"], lambda event, **kw: noted.append({"event": event, **kw})
    )
    assert rows_of(tmp_path, own["test"].ids) == [2, 5, 6, 8, 9]
    assert noted == [{"event": "consent", "purpose": "research", "left_out": 3}]
    assert "left out 3 images of the manifest, without consent for 'research'" in caplog.text
    assert "1.dcm" not in caplog.text
    assert len(load_whole_split(settings, tmp_path, "test", "hospital_a")) == 5


def test_nobody_consents(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", [row | {"consent": "no", "purpose": "any"} for row in some_rows(2)])
    data = dicom_settings(folder, require_consent=True, purpose="research")
    with pytest.raises(DataError, match="lists no image with consent for 'research': add a row for each"):
        load_party(settings_for(data, ("hospital_a",)), "hospital_a", tmp_path, ["test"])


def test_images_without_a_label_are_predicted_where_nobody_counts(spoiled: Path) -> None:
    settings = settings_for(dicom_settings(spoiled, invalid=Invalid.skip), ("hospital_a",))
    settings.policy.reveal = {"logits": ["image_owner"]}
    make_dicom(spoiled / "test" / "3.dcm", random_pixels(33))
    own = load_party(settings, "hospital_a", spoiled, ["test"])["test"]
    assert rows_of(spoiled, own.ids)[2] == 5 and own.labels.tolist() == [0, 1, -1]
    whole = load_whole_split(settings, spoiled, "test", "hospital_a")
    assert whole.labels.tolist() == [0, 1], "who trains needs labels all the same"
    settings.data.invalid = Invalid.refuse
    settings.policy.reveal = {"auc": ["hospital_a"]}
    with pytest.raises(DataError, match="it has no label.*policy=own_outputs"):
        load_party(settings, "hospital_a", spoiled, ["test"])


def test_a_class_without_an_image_is_not_trained_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder(tmp_path / "data", some_rows(6) + some_rows(6, "train"))
    settings = settings_for(dicom_settings(folder, class_names=["negative", "positive", "unsure"]))
    wanted = r"no image is labelled unsure: add some, or write data.class_names=\[negative,positive\]"
    for load in (
        lambda: load_party(settings, "hospital_a", tmp_path, ["train", "test"]),
        lambda: load_whole_split(settings, tmp_path, "train", "hospital_a"),
    ):
        with pytest.raises(DataError, match=wanted):
            load()
    # A model that is there already may know more classes than are here; and an owner of a part has not all of them.
    assert len(load_party(settings, "hospital_a", tmp_path, ["test"])["test"]) == 3
    assert "no image is labelled unsure" in caplog.text
    settings.model.weights.source = WeightsSource.file
    assert len(load_party(settings, "hospital_a", tmp_path, ["train"])["train"]) == 3
    settings.model.weights.source = WeightsSource.seed
    settings.data.paths = {"hospital_a": str(folder)}
    assert len(load_party(settings, "hospital_a", tmp_path, ["train"])["train"]) == 6


def test_a_manifest_without_an_image_to_use_says_so(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", some_rows(2, "train"))
    (folder / "manifest.csv").write_text("file,label,patient,split\n")
    settings = settings_for(dicom_settings(folder))
    where = f"manifest.csv in {folder}"

    def problem() -> str:
        with pytest.raises(DataError) as caught:
            load_party(settings, "hospital_a", tmp_path, ["test"])
        return caught.value.problems[0]

    assert problem() == f"{where} lists no image: add a row for each"
    write_manifest(folder, some_rows(2, "train"))
    counts = "2 of train, 0 of val, 0 of test"
    assert problem() == f"{where} lists no image of test ({counts}): add rows, or write another task.split"
    write_manifest(folder, [row | {"label": ""} for row in some_rows(2)])
    assert problem() == f"{where}: none of 2 rows can be used, as row 2: it has no label"
