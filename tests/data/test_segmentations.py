"""Masks from DICOM segmentations: which frame belongs to which image, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import dcmread
from pydicom.uid import RLELossless, generate_uid

from mpc_imaging.data import ImageError, Reason, load_party, load_whole_split, segmentations
from mpc_imaging.data.images import resize_masks
from mpc_imaging.data.segmentations import MaskReader
from mpc_imaging.errors import DataError
from mpc_imaging.settings import (
    DataKind,
    DataSettings,
    Frames,
    Invalid,
    PartitionKind,
    PartitionSettings,
    WindowSettings,
)
from tests.data.builders import PATIENT, make_dicom, settings_for, write_manifest
from tests.data.segs import SHAPE, derived, item, make_seg, make_slice, random_masks, slice_uid


def read(seg: Path, image: Path, frames: tuple[int, ...] = (0,), segment: int = 1) -> np.ndarray:
    reader = MaskReader(segment)
    try:
        return reader.read(seg, image, frames)
    finally:
        reader.close()


def refusal(seg: Path, image: Path, frames: tuple[int, ...] = (0,), segment: int = 1) -> Reason:
    with pytest.raises(ImageError) as caught:
        read(seg, image, frames, segment)
    assert PATIENT not in str(caught.value)
    return caught.value.reason


def test_frames_are_found_by_the_image_that_they_name(tmp_path: Path) -> None:
    masks = random_masks(3)
    slices = [make_slice(tmp_path, k) for k in range(4)]
    seg = make_seg(tmp_path / "seg.dcm", masks, [derived(slice_uid(k)) for k in (2, 0, 1)])
    reader = MaskReader(1)
    for k, expected in enumerate((masks[1], masks[2], masks[0], np.zeros(SHAPE, dtype=bool))):
        (found,) = reader.read(seg, slices[k], [0])
        assert found.dtype == bool and np.array_equal(found, expected)
    reader.close()


def test_the_last_segmentation_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segs = [make_seg(tmp_path / f"seg{k}.dcm", random_masks(1), [derived(slice_uid(0))]) for k in range(2)]
    image, opened = make_slice(tmp_path, 0), []
    original = segmentations.open_header
    monkeypatch.setattr(segmentations, "open_header", lambda path, keys: opened.append(path) or original(path, keys))
    reader = MaskReader(1)
    for seg in (segs[0], segs[0], segs[1], tmp_path / "none.dcm", segs[0]):
        try:
            reader.read(seg, image, [0])
        except ImageError as error:
            assert error.reason is Reason.missing
    reader.close()
    assert [path for path in opened if path != image] == [segs[0], segs[1], tmp_path / "none.dcm", segs[0]]


def test_segments_are_chosen_and_their_frames_joined(tmp_path: Path) -> None:
    masks, image = random_masks(3), make_slice(tmp_path, 0)
    source = derived(slice_uid(0))
    seg = make_seg(tmp_path / "seg.dcm", masks, [source] * 3, segments=[4, 2, 4])
    assert np.array_equal(read(seg, image, segment=2)[0], masks[1])
    assert np.array_equal(read(seg, image, segment=4)[0], masks[0] | masks[2])
    assert refusal(seg, image, segment=1) is Reason.no_segment


def test_half_of_a_fraction_is_marked(tmp_path: Path) -> None:
    values = np.arange(35, dtype=np.uint8).reshape(1, *SHAPE) + 83  # of 200
    seg = make_seg(tmp_path / "seg.dcm", values, [derived(slice_uid(0))], "FRACTIONAL")
    assert np.array_equal(read(seg, make_slice(tmp_path, 0))[0], values[0] >= 100)


def test_a_label_map_has_all_segments_in_each_frame(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 4, (2, *SHAPE), dtype=np.uint8)
    keys = {"SegmentSequence": [segment(1), segment(3)]}
    seg = make_seg(tmp_path / "seg.dcm", values, [derived(slice_uid(0)), derived(slice_uid(1))], "LABELMAP", **keys)
    assert np.array_equal(read(seg, make_slice(tmp_path, 1), segment=3)[0], values[1] == 3)
    assert refusal(seg, make_slice(tmp_path, 1), segment=2) is Reason.no_segment


def segment(number: int):
    return item(SegmentNumber=number, SegmentLabel="a")


def test_frames_without_a_source_are_found_by_their_place(tmp_path: Path) -> None:
    masks = random_masks(2)
    seg = make_seg(tmp_path / "seg.dcm", masks, [None, None], positions=[[3, 4, 2], [3, 4, 0.001]], series=None)
    assert np.array_equal(read(seg, make_slice(tmp_path, 0))[0], masks[1])
    assert np.array_equal(read(seg, make_slice(tmp_path, 1))[0], masks[0])
    assert refusal(seg, make_slice(tmp_path, 2)) is Reason.other_series, "nothing says that it was looked at"
    elsewhere = make_slice(tmp_path, 0, FrameOfReferenceUID="1.9")
    assert refusal(seg, elsewhere) is Reason.other_series


def test_a_named_source_goes_before_the_place(tmp_path: Path) -> None:
    """Two phases of one organ lie at one place; the mask is of the one that it names."""
    seg = make_seg(tmp_path / "seg.dcm", random_masks(1), [derived(slice_uid(0))], positions=[[3, 4, 0]])
    other = make_slice(tmp_path, 0, SOPInstanceUID="1.2.3.4.99")
    assert not read(seg, other).any()


def test_of_a_series_that_every_frame_names_the_place_decides(tmp_path: Path) -> None:
    masks = random_masks(2)
    whole = [each for k in range(3) for each in derived(slice_uid(k))]
    seg = make_seg(tmp_path / "seg.dcm", masks, [whole, whole], positions=[[3, 4, 2], [3, 4, 0]])
    assert np.array_equal(read(seg, make_slice(tmp_path, 0))[0], masks[1])
    assert np.array_equal(read(seg, make_slice(tmp_path, 1))[0], masks[0])
    assert not read(seg, make_slice(tmp_path, 2)).any()
    nowhere = make_seg(tmp_path / "nowhere.dcm", masks, [whole, derived(slice_uid(1))])
    assert np.array_equal(read(nowhere, make_slice(tmp_path, 1))[0], masks[0] | masks[1]), "as it says"


def test_frames_of_one_image(tmp_path: Path) -> None:
    cine = make_dicom(
        tmp_path / "cine.dcm",
        np.zeros((4, *SHAPE), dtype=np.uint16),
        SOPInstanceUID=slice_uid(0),
        SeriesInstanceUID="1.2.3.4",
    )
    masks = random_masks(2)
    seg = make_seg(tmp_path / "seg.dcm", masks, [derived(slice_uid(0), 2), derived(slice_uid(0), 4)])
    found = read(seg, cine, (0, 1, 2, 3))
    assert np.array_equal(found[[1, 3]], masks) and not found[[0, 2]].any()


@pytest.mark.parametrize(
    "changes",
    [
        {"ImageOrientationPatient": [-1, 0, 0, 0, 1, 0]},
        {"ImagePositionPatient": [3, 4.6, 0]},
        {"ImagePositionPatient": [3, 4, 0.3]},
        {"PixelSpacing": [1, 0.6]},
    ],
)
def test_pixels_that_do_not_lie_over_the_image(tmp_path: Path, changes: dict[str, list[float]]) -> None:
    seg = make_seg(tmp_path / "seg.dcm", random_masks(1), [derived(slice_uid(0))], positions=[[3, 4, 0]])
    assert read(seg, make_slice(tmp_path, 0, ImagePositionPatient=[3, 4.4, 0])).any()
    assert refusal(seg, make_slice(tmp_path, 0, **changes)) is Reason.other_grid


def test_what_is_no_mask_of_the_image(tmp_path: Path) -> None:
    image = make_slice(tmp_path, 0)
    good = make_seg(tmp_path / "seg.dcm", random_masks(1), [derived(slice_uid(0))])
    assert refusal(good, make_slice(tmp_path, 1, (6, 7))) is Reason.other_grid
    stranger = {"SeriesInstanceUID": "1.9", "SOPInstanceUID": "1.9.1"}
    assert refusal(good, make_slice(tmp_path, 2, **stranger)) is Reason.other_series
    assert refusal(good, make_slice(tmp_path, 2, (6, 7), **stranger)) is Reason.other_series
    assert refusal(image, image) is Reason.not_a_mask
    assert refusal(tmp_path / "none.dcm", image) is Reason.missing
    (tmp_path / "text.dcm").write_text("hello")
    assert refusal(tmp_path / "text.dcm", image) is Reason.not_dicom
    whole = good.read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[:-4])
    assert refusal(tmp_path / "cut.dcm", image) is Reason.truncated
    large = make_seg(tmp_path / "large.dcm", random_masks(1), [derived(slice_uid(0))], Rows=60000, Columns=60000)
    assert refusal(large, image) is Reason.too_large
    odd = make_seg(tmp_path / "odd.dcm", random_masks(1), [derived(slice_uid(0))], SegmentationType="")
    assert read(odd, image).any(), "one bit is one bit"
    lost = make_seg(tmp_path / "lost.dcm", random_masks(1), [None], PerFrameFunctionalGroupsSequence=[])
    assert refusal(lost, image) is Reason.damaged


def test_objects_of_highdicom(tmp_path: Path) -> None:
    """Every kind that it writes, compressed or not."""
    hd = pytest.importorskip("highdicom", reason="an extra: pip install highdicom")
    from pydicom.sr.codedict import codes

    paths = [make_slice(tmp_path, k, (16, 14), PatientBirthDate="", PatientSex="", StudyDate="") for k in range(3)]
    images = [dcmread(path) for path in paths]
    for each in images:
        each.StudyTime = each.AccessionNumber = each.StudyID = each.ReferringPhysicianName = ""
    masks = random_masks(3, (16, 14))
    tissue = codes.SCT.Tissue
    description = hd.seg.SegmentDescription(1, "a", tissue, tissue, hd.seg.SegmentAlgorithmTypeValues.MANUAL)
    for kind, syntax in (
        ("BINARY", None),
        ("FRACTIONAL", None),
        ("FRACTIONAL", RLELossless),
        ("LABELMAP", RLELossless),
    ):
        seg = hd.seg.Segmentation(
            images,
            masks.astype(np.float32 if kind == "FRACTIONAL" else np.uint8),
            kind,
            [description],
            generate_uid(),
            1,
            generate_uid(),
            1,
            "maker",
            "model",
            "1",
            "2",
            **({} if syntax is None else {"transfer_syntax_uid": syntax}),
        )
        seg.save_as(tmp_path / "seg.dcm")
        assert all(np.array_equal(read(tmp_path / "seg.dcm", path)[0], masks[k]) for k, path in enumerate(paths)), kind


def masked_rows(count: int, mask: str = "seg.dcm") -> list[dict[str, str]]:
    return [{"file": f"slice{k}.dcm", "mask": mask, "patient": f"p{k}", "split": "test"} for k in range(count)]


def masked(folder: Path, **keys: object) -> DataSettings:
    keys = {"image_size": 7, "masks": True, "partition": PartitionSettings(PartitionKind.even)} | keys
    return DataSettings(kind=DataKind.dicom, path=str(folder), **keys)


def test_a_folder_with_masks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    masks = random_masks(3)
    for k in range(4):
        make_slice(tmp_path, k)
    make_seg(tmp_path / "seg.dcm", masks, [derived(slice_uid(k)) for k in range(3)])
    write_manifest(tmp_path, masked_rows(4))
    parts = [
        load_party(settings_for(masked(tmp_path)), name, tmp_path, ["test"])["test"]
        for name in ("hospital_a", "hospital_b")
    ]
    assert [part.labels.shape for part in parts] == [(2, 7, 7)] * 2 and parts[0].labels.dtype == torch.int64
    expected = torch.cat([resize_masks(torch.from_numpy(masks), 7), torch.zeros(1, 7, 7, dtype=torch.uint8)]).long()
    for part in parts:
        for (path, _), label in zip(part.sources, part.labels, strict=True):
            assert torch.equal(label, expected[int(path.stem[-1])])
    assert PATIENT not in caplog.text and slice_uid(0) not in caplog.text


def test_rows_whose_mask_cannot_be_used(tmp_path: Path) -> None:
    for k in range(4):
        make_slice(tmp_path, k, **({"SeriesInstanceUID": "1.9"} if k == 3 else {}))
    make_seg(tmp_path / "seg.dcm", random_masks(2), [derived(slice_uid(k)) for k in range(2)])
    rows = masked_rows(4)
    rows[0]["mask"], rows[1]["mask"] = "none.dcm", ""
    write_manifest(tmp_path, rows)
    with pytest.raises(DataError) as caught:
        load_whole_split(settings_for(masked(tmp_path)), tmp_path, "test", "hospital_a")
    assert "): its mask: there is no such file" in str(caught.value)
    assert "): it has no mask" in str(caught.value)
    assert "): its mask: a segmentation that refers neither" in str(caught.value)
    skipping = settings_for(masked(tmp_path, invalid=Invalid.skip))
    assert len(load_whole_split(skipping, tmp_path, "test", "hospital_a")) == 1
    rows[0]["mask"] = "../seg.dcm"
    write_manifest(tmp_path, rows)
    with pytest.raises(DataError, match="row 2: mask is outside the folder of the manifest"):
        load_whole_split(skipping, tmp_path, "test", "hospital_a")
    write_manifest(tmp_path, [{key: value for key, value in row.items() if key != "mask"} for row in rows])
    with pytest.raises(DataError, match="there is no column 'mask'"):
        load_whole_split(skipping, tmp_path, "test", "hospital_a")


@pytest.mark.parametrize(("frames", "chosen"), [(Frames.first, [0]), (Frames.middle, [2]), (Frames.all, [0, 1, 2, 3])])
def test_masks_of_the_frames_that_are_used(tmp_path: Path, frames: Frames, chosen: list[int]) -> None:
    cine = np.random.default_rng(0).integers(0, 4096, (4, 7, 7), dtype=np.uint16)
    make_dicom(tmp_path / "slice0.dcm", cine, SOPInstanceUID=slice_uid(0), SeriesInstanceUID="1.2.3.4")
    masks = random_masks(4, (7, 7))
    make_seg(tmp_path / "seg.dcm", masks, [derived(slice_uid(0), k + 1) for k in range(4)])
    write_manifest(tmp_path, masked_rows(1))
    part = load_whole_split(settings_for(masked(tmp_path, frames=frames)), tmp_path, "test", "hospital_a")
    assert np.array_equal(part.labels.numpy() > 0, masks[chosen])
    assert [frame for _, frame in part.sources] == chosen


def test_a_liver_in_hounsfield_units(tmp_path: Path, medical_data: Path) -> None:
    rows = [{"file": f"0{k}.dcm", "mask": "liver.dcm", "patient": "one", "split": "test"} for k in (1, 2, 3)]
    for path in (medical_data / "ct_liver").glob("*.dcm"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_manifest(tmp_path, rows)
    window = WindowSettings(centre=60.0, width=400.0)
    data = masked(tmp_path, image_size=128, window=window, mean=[0.0], std=[1.0])
    part = load_whole_split(settings_for(data), tmp_path, "test", "hospital_a")
    assert part.labels.flatten(1).sum(1).tolist() == pytest.approx([35220 / 16, 35645 / 16, 36233 / 16], rel=0.01)
    inside = part.images[:, 0][part.labels > 0] * 400 + 60 - 200
    assert 40 < inside.median() < 160, "liver, with contrast or without"
