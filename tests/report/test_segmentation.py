from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.sr.coding import Code

from mpc_imaging.report.result_source import Refusal, ResultError
from mpc_imaging.report.segmentation import write_segmentation
from tests.report.dicom_checks import MODEL, PLANTED, ct_series, dump, make_source, require, standard_errors

highdicom = pytest.importorskip("highdicom", reason="an extra: pip install highdicom")
LIVER, ANATOMY = Code("10200004", "SCT", "Liver"), Code("123037004", "SCT", "Body structure")
CINE, ENHANCED = "OBXXXX1A_rle_2frame.dcm", "eCT_Supplemental.dcm"


def random_mask(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).random(shape) < 0.3


def sample(name: str) -> Path:
    return Path(pydicom.data.get_testdata_file(name))


def frames_of(name: str) -> tuple[int, int, int]:
    ds = pydicom.dcmread(sample(name), stop_before_pixels=True)
    return int(ds.NumberOfFrames), ds.Rows, ds.Columns


def test_mask_of_a_series_comes_back_slice_by_slice(tmp_path):
    sources = ct_series(tmp_path)
    mask = random_mask(3, 160, 160)
    path = write_segmentation(sources, mask, "liver", MODEL, tmp_path, "seg", code=LIVER, category=ANATOMY)
    seg = highdicom.seg.segread(path)
    uids = [pydicom.dcmread(source).SOPInstanceUID for source in sources]
    assert np.array_equal(seg.get_pixels_by_source_instance(uids)[..., 0] > 0, mask)
    (segment,) = seg.SegmentSequence
    assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("liver", "AUTOMATIC")
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == LIVER.value
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (MODEL.name, MODEL.version)
    assert seg.SegmentationType == "BINARY" and seg.FrameOfReferenceUID == "1.2.3.5"
    assert PLANTED not in str(seg) and path.stat().st_mode & 0o777 == 0o600


def test_image_without_position(tmp_path):
    source = make_source(tmp_path / "in.dcm")
    mask = random_mask(160, 160)
    seg = pydicom.dcmread(write_segmentation(source, mask, "opacity", MODEL, tmp_path, "seg"))
    assert np.array_equal(seg.pixel_array > 0, mask)
    (reference,) = seg.SourceImageSequence
    assert reference.ReferencedSOPInstanceUID == pydicom.dcmread(source).SOPInstanceUID
    assert reference.ReferencedSOPClassUID == pydicom.dcmread(source).SOPClassUID


def test_empty_mask_is_an_empty_plane(tmp_path):
    source = make_source(tmp_path / "in.dcm")
    seg = pydicom.dcmread(write_segmentation(source, np.zeros((160, 160), bool), "opacity", MODEL, tmp_path, "seg"))
    assert seg.NumberOfFrames == 1 and not seg.pixel_array.any()


def test_frame_of_a_cine(tmp_path):
    count, *size = frames_of(CINE)
    mask = random_mask(*size)
    seg = pydicom.dcmread(write_segmentation(sample(CINE), mask, "valve", MODEL, tmp_path, "seg", frame=1))
    assert np.array_equal(seg.pixel_array > 0, mask)
    (derivation,) = seg.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence
    assert seg.SourceImageSequence[0].ReferencedFrameNumber == 2
    assert derivation.SourceImageSequence[0].ReferencedFrameNumber == 2
    with pytest.raises(ResultError) as caught:
        write_segmentation(sample(CINE), random_mask(count, *size), "valve", MODEL, tmp_path, "seg")
    assert caught.value.reason is Refusal.positions


@pytest.mark.parametrize("marked", [True, False])
def test_frame_of_an_enhanced_image_keeps_its_number(tmp_path, marked):
    _, *size = frames_of(ENHANCED)
    mask = random_mask(*size) & marked
    seg = pydicom.dcmread(write_segmentation(sample(ENHANCED), mask, "tumour", MODEL, tmp_path, "seg", frame=1))
    assert seg.NumberOfFrames == 1 and np.array_equal(seg.pixel_array > 0, mask)
    (derivation,) = seg.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence
    assert derivation.SourceImageSequence[0].ReferencedFrameNumber == 2
    assert ("FrameOfReferenceUID" in seg) == marked


def test_all_frames_of_an_enhanced_image(tmp_path):
    mask = random_mask(*frames_of(ENHANCED))
    path = write_segmentation(sample(ENHANCED), mask, "tumour", MODEL, tmp_path, "seg")
    seg, source = highdicom.seg.segread(path), pydicom.dcmread(sample(ENHANCED))
    found = seg.get_pixels_by_source_frame(source.SOPInstanceUID, range(1, len(mask) + 1))
    assert np.array_equal(found[..., 0] > 0, mask)


def test_geometry_that_each_frame_repeats_is_found(tmp_path):
    source = pydicom.dcmread(sample(ENHANCED))
    shared = source.SharedFunctionalGroupsSequence[0]
    for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        for frame in source.PerFrameFunctionalGroupsSequence:
            frame[keyword] = shared[keyword]
        del shared[keyword]
    source.save_as(tmp_path / "in.dcm")
    mask = random_mask(*frames_of(ENHANCED))
    seg = pydicom.dcmread(write_segmentation(tmp_path / "in.dcm", mask, "tumour", MODEL, tmp_path, "seg"))
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID and np.array_equal(seg.pixel_array > 0, mask)


def test_mask_of_another_size_is_refused(tmp_path):
    source = make_source(tmp_path / "in.dcm")
    for shape in ((160, 159), (2, 160, 160), (160,)):
        with pytest.raises(ResultError) as caught:
            write_segmentation(source, random_mask(*shape), "opacity", MODEL, tmp_path, "seg")
        assert caught.value.reason is Refusal.shape


def check(tmp_path: Path, cases: list[tuple]) -> None:
    require("dciodvfy")
    require("dcmdump")
    for k, (source, mask, frame) in enumerate(cases):
        path = write_segmentation(source, mask, "something", MODEL, tmp_path, f"seg{k}", frame=frame)
        assert standard_errors(path) == []
        dump("dcmdump", path)


def test_checkers_find_no_error(tmp_path):
    check(
        tmp_path,
        [
            (make_source(tmp_path / "in.dcm"), random_mask(160, 160), None),
            (ct_series(tmp_path), random_mask(3, 160, 160), None),
            (sample(CINE), random_mask(*frames_of(CINE)[1:]), 0),
            (sample(ENHANCED), random_mask(*frames_of(ENHANCED)), None),
        ],
    )


def test_checkers_find_no_error_in_masks_of_real_scans(tmp_path, medical_data):
    head = sorted((medical_data / "ct_head").glob("*.dcm"))
    liver = [medical_data / "ct_liver" / f"0{k}.dcm" for k in (1, 2, 3)]
    check(tmp_path, [(head, random_mask(28, 512, 512), None), (liver, random_mask(3, 512, 512), None)])
