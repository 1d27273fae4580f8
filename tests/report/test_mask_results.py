"""An owner's masks as DICOM segmentations: of which images together, as large as they, and valid."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
import torch

from mpc_imaging.data import Split
from mpc_imaging.data.images import resize_masks, restore_masks
from mpc_imaging.data.segmentations import MaskReader
from mpc_imaging.errors import ConfigError, DataError
from mpc_imaging.report.mask_results import MaskRow, write_masks
from mpc_imaging.settings import DataSettings, ModelSettings
from mpc_imaging.tasks.results import write_own_masks
from tests.report.dicom_checks import MODEL, PLANTED, ct_series, dump, make_source, require, standard_errors

pytest.importorskip("highdicom", reason="an extra: pip install highdicom")
SIZE = 64


def discs(count: int, size: int = SIZE) -> np.ndarray:
    """Discs of growing radius: uint8 (count, size, size); the first is empty."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.stack([(x**2 + y**2 < (8 * k) ** 2) for k in range(count)]).astype(np.uint8)


def rows_of(sources: list[Path | None], masks: np.ndarray, frames: list[int] | None = None) -> list[MaskRow]:
    frames = frames or [0] * len(sources)
    return [
        MaskRow(f"a-test-{k:05d}", source, frame, mask)
        for k, (source, frame, mask) in enumerate(zip(sources, frames, masks, strict=True))
    ]


def read_back(seg: Path, image: Path, frame: int = 0) -> np.ndarray:
    reader = MaskReader(1)
    (found,) = reader.read(seg, image, [frame])
    reader.close()
    return found


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results" / "masks.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_series_is_one_object_and_its_masks_come_back(tmp_path: Path) -> None:
    sources, masks, done = ct_series(tmp_path, 4), discs(4), []
    outcome = write_masks(tmp_path, rows_of(sources, masks), "liver", MODEL, advance=lambda: done.append(1))
    (path,) = set(outcome.written.values())
    assert path == tmp_path / "results" / "a-test-00000-mask.dcm" and len(done) == 4
    for k, source in enumerate(sources):
        found = read_back(path, source)
        assert found.shape == (160, 160)
        assert np.array_equal(resize_masks(torch.from_numpy(found[None]), SIZE)[0].numpy(), masks[k])
    seg = pydicom.dcmread(path)
    assert seg.NumberOfFrames == 3, "of the empty mask there is no frame"
    (segment,) = seg.SegmentSequence
    assert segment.SegmentLabel == "liver"
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmName == MODEL.name and MODEL.digest in algorithm.AlgorithmParameters
    assert PLANTED not in str(seg) and path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o77 == 0
    assert [row["segmentation"] for row in table(tmp_path)] == [path.name] * 4
    assert float(table(tmp_path)[3]["marked_percent"]) == pytest.approx(100 * masks[3].mean(), abs=1e-3)


def test_images_without_a_place_get_one_each(tmp_path: Path) -> None:
    study = {"StudyInstanceUID": "1.2.8", "SeriesInstanceUID": "1.2.8.1", "PatientID": "one"}
    sources = [make_source(tmp_path / f"{k}.dcm", k, SOPInstanceUID=f"1.2.8.1.{k + 1}", **study) for k in range(2)]
    outcome = write_masks(tmp_path, rows_of(sources, discs(3)[1:]), "opacity", MODEL)
    segs = [pydicom.dcmread(path) for path in outcome.written.values()]
    assert len({seg.SOPInstanceUID for seg in segs}) == 2 and len({seg.SeriesInstanceUID for seg in segs}) == 1
    assert [seg.InstanceNumber for seg in segs] == [1, 2]
    for seg, source in zip(segs, sources, strict=True):
        assert seg.SourceImageSequence[0].ReferencedSOPInstanceUID == pydicom.dcmread(source).SOPInstanceUID


@pytest.mark.parametrize(
    ("name", "frames", "files"),
    [("eCT_Supplemental.dcm", [0, 1], 1), ("eCT_Supplemental.dcm", [1], 1), ("OBXXXX1A_rle_2frame.dcm", [0, 1], 2)],
)
def test_frames(tmp_path: Path, name: str, frames: list[int], files: int) -> None:
    source = Path(pydicom.data.get_testdata_file(name))
    rows = rows_of([source] * len(frames), discs(3)[1 : 1 + len(frames)], frames)
    outcome = write_masks(tmp_path, rows, "tumour", MODEL)
    assert len(set(outcome.written.values())) == files and not outcome.refused
    image = pydicom.dcmread(source, stop_before_pixels=True)
    for row, frame in zip(rows, frames, strict=True):
        expected = restore_masks(torch.from_numpy(row.mask[None]), image.Rows, image.Columns)[0].numpy()
        assert expected.any() and np.array_equal(read_back(outcome.written[row.image_id], source, frame), expected)


def test_one_image_at_fault_does_not_spoil_the_others(tmp_path: Path) -> None:
    sources = ct_series(tmp_path, 3)
    repeat = pydicom.dcmread(sources[2])
    repeat.SOPInstanceUID = pydicom.dcmread(sources[1]).SOPInstanceUID
    repeat.ImagePositionPatient = [0, 0, 2]
    repeat.save_as(sources[2])
    unnamed = make_source(tmp_path / "unnamed.dcm", StudyInstanceUID=None)
    rows = rows_of([*sources, unnamed, tmp_path / "none.dcm", None], discs(6))
    outcome = write_masks(tmp_path, rows, "liver", MODEL)
    assert set(outcome.written) >= {"a-test-00000", "a-test-00001"}
    assert set(outcome.refused) >= {"a-test-00003", "a-test-00004"} and outcome.without_source == ["a-test-00005"]
    reasons = [row["reason"] for row in table(tmp_path)]
    assert "lacks a valid patient" in reasons[3] and reasons[4] == "there is no such file"
    assert "not from a DICOM file" in reasons[5]


def test_what_cannot_be_written_at_all(tmp_path: Path) -> None:
    source = make_source(tmp_path / "in.dcm")
    with pytest.raises(DataError, match="pseudonyms of masks repeat"):
        write_masks(tmp_path, rows_of([source], discs(1)) * 2, "liver", MODEL)
    with pytest.raises(ConfigError, match="a class is called"):
        write_masks(tmp_path, rows_of([source], discs(1)), "a\\b", MODEL)


@pytest.mark.parametrize(("rows", "columns"), [(160, 160), (64, 64), (128, 200), (201, 90), (32, 32), (30, 50)])
def test_restoring_undoes_resizing(rows: int, columns: int) -> None:
    y, x = np.mgrid[:rows, :columns]
    original = ((y - 0.4 * rows) ** 2 + (x - 0.6 * columns) ** 2 < (0.25 * min(rows, columns)) ** 2)[None]
    small = resize_masks(torch.from_numpy(original), SIZE)
    back = restore_masks(small, rows, columns).numpy()
    assert back.shape == original.shape
    dice = 2 * (back & original).sum() / (back.sum() + original.sum())
    assert dice > (0.999 if max(rows, columns) <= SIZE and rows == columns else 0.95)
    for axis in (1, 2):
        shift = np.nonzero(back)[axis].mean() - np.nonzero(original)[axis].mean()
        assert abs(shift) < 0.15 * max(1, max(rows, columns) / SIZE), "what was padded is cut off again"


def owner(folder: Path) -> SimpleNamespace:
    """A party, as far as results ask for it."""
    stage = SimpleNamespace(__enter__=None)

    class Stage:
        def __enter__(self):
            return stage

        def __exit__(self, *error):
            return None

    progress = SimpleNamespace(stage=lambda name, count: Stage(), advance=lambda: None)
    data = DataSettings(class_names=["background", "liver"], masks=True)
    session = SimpleNamespace(mesh=SimpleNamespace(session_id=b"0" * 16))
    settings = SimpleNamespace(data=data, model=ModelSettings(name="unet_small"))
    return SimpleNamespace(folder=folder, progress=progress, settings=settings, session=session)


def test_an_owner_writes_its_own_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    masks = discs(4)
    labels = torch.from_numpy(masks).long()
    ids = [f"a-test-{k:05d}" for k in range(4)]
    split = Split(torch.zeros(4, 1, SIZE, SIZE), labels, ids, [(path, 0) for path in ct_series(tmp_path, 4)])
    write_own_masks(owner(tmp_path), split, range(1, 4), masks[1:])
    assert [row["image_id"] for row in table(tmp_path)] == ids[1:]
    seg = pydicom.dcmread(tmp_path / "results" / "a-test-00001-mask.dcm")
    assert seg.NumberOfFrames == 3 and seg.SegmentSequence[0].SegmentLabel == "liver"
    assert "wrote 3 masks into 1 DICOM segmentations; 0 have none" in caplog.text
    write_own_masks(owner(tmp_path / "npz"), Split(split.images, labels, ids), range(4), masks)
    assert all(row["segmentation"] == "" for row in table(tmp_path / "npz"))


def check(paths: set[Path]) -> None:
    require("dciodvfy")
    require("dcmdump")
    assert paths
    for path in paths:
        assert standard_errors(path) == []
        dump("dcmdump", path)


def test_checkers_find_no_error(tmp_path: Path) -> None:
    frames = Path(pydicom.data.get_testdata_file("eCT_Supplemental.dcm"))
    cine = Path(pydicom.data.get_testdata_file("OBXXXX1A_rle_2frame.dcm"))
    sources = [*ct_series(tmp_path, 3), make_source(tmp_path / "in.dcm"), frames, frames, cine, cine]
    outcome = write_masks(tmp_path, rows_of(sources, discs(8)[::-1], [0, 0, 0, 0, 0, 1, 0, 1]), "tumour", MODEL)
    assert not outcome.refused
    check(set(outcome.written.values()))


def test_a_liver_there_and_back(tmp_path: Path, medical_data: Path) -> None:
    """The mask of a real SEG to 128 x 128 and back, as a perfect model would mark it."""
    folder = medical_data / "ct_liver"
    sources = [folder / f"0{k}.dcm" for k in (1, 2, 3)]
    originals = np.stack([read_back(folder / "liver.dcm", source) for source in sources])
    small = resize_masks(torch.from_numpy(originals), 128).numpy()
    outcome = write_masks(tmp_path, rows_of(sources, small), "liver", MODEL)
    (path,) = set(outcome.written.values())
    for source, original in zip(sources, originals, strict=True):
        found = read_back(path, source)
        assert 2 * (found & original).sum() / (found.sum() + original.sum()) > 0.985
    check({path})


def test_masks_of_a_real_head(tmp_path: Path, medical_data: Path) -> None:
    sources = sorted((medical_data / "ct_head").glob("*.dcm"))
    masks = np.tile(discs(4), (7, 1, 1))
    outcome = write_masks(tmp_path, rows_of(sources, masks), "bleed", MODEL)
    assert not outcome.refused
    check(set(outcome.written.values()))
    expected = restore_masks(torch.from_numpy(masks), 512, 512).numpy()
    for k, source in enumerate(sources):
        assert np.array_equal(read_back(outcome.written[f"a-test-{k:05d}"], source), expected[k])
