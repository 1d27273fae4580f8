from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from mpc_imaging.errors import ConfigError, DataError
from mpc_imaging.report.capture import write_capture
from tests.report.dicom_checks import MODEL, PLANTED, dump, make_source, require, standard_errors

pytest.importorskip("highdicom", reason="an extra: pip install highdicom")
PICTURE = np.random.default_rng(2).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def test_picture_comes_back_with_its_title_and_source(tmp_path):
    source = make_source(tmp_path / "in.dcm")
    path = write_capture(source, PICTURE, "Saliency", MODEL, tmp_path, "capture")
    ds, original = pydicom.dcmread(path), pydicom.dcmread(source)
    assert np.array_equal(ds.pixel_array, PICTURE) and ds.PhotometricInterpretation == "RGB"
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7" and ds.ImageType[0] == "DERIVED"
    assert (ds.SeriesDescription, ds.PatientID) == ("Saliency", original.PatientID)
    assert (ds.PatientOrientation, ds.BurnedInAnnotation) == (original.PatientOrientation, "NO")
    (reference,) = ds.SourceImageSequence
    assert reference.ReferencedSOPInstanceUID == original.SOPInstanceUID
    assert reference.ReferencedSOPClassUID == original.SOPClassUID
    assert PLANTED not in str(ds) and path.stat().st_mode & 0o777 == 0o600


def test_source_whose_pixels_may_show_text_is_not_called_clean(tmp_path):
    source = make_source(tmp_path / "in.dcm", BurnedInAnnotation=None)
    assert pydicom.dcmread(write_capture(source, PICTURE, "t", MODEL, tmp_path, "c")).BurnedInAnnotation == "YES"


def test_frame_is_named(tmp_path):
    source = Path(pydicom.data.get_testdata_file("OBXXXX1A_rle_2frame.dcm"))
    ds = pydicom.dcmread(write_capture(source, PICTURE, "Saliency", MODEL, tmp_path, "capture", frame=1))
    assert ds.SourceImageSequence[0].ReferencedFrameNumber == 2


@pytest.mark.parametrize("picture", [PICTURE.astype(np.float32), PICTURE[..., 0], PICTURE[:0], PICTURE[..., :2]])
def test_other_pictures_are_refused(tmp_path, picture):
    with pytest.raises(DataError, match="uint8"):
        write_capture(make_source(tmp_path / "in.dcm"), picture, "Saliency", MODEL, tmp_path, "capture")


def test_title_must_be_dicom_text(tmp_path):
    with pytest.raises(ConfigError, match="title"):
        write_capture(make_source(tmp_path / "in.dcm"), PICTURE, "x" * 65, MODEL, tmp_path, "capture")


def test_checkers_find_no_error(tmp_path):
    require("dciodvfy")
    require("dcmdump")
    sources = [make_source(tmp_path / "in.dcm"), Path(pydicom.data.get_testdata_file("OBXXXX1A_rle_2frame.dcm"))]
    for k, source in enumerate(sources):
        path = write_capture(source, PICTURE, "Saliency", MODEL, tmp_path, f"capture{k}", frame=0)
        assert standard_errors(path) == []
        dump("dcmdump", path)
