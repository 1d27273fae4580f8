"""Every file of four PyPI packages and of the shared CT series: decoded, or refused with a reason that is right.

The counts are asserted: a decoder that is lost, or a check that refuses too much, shows here. The comments say what
each refused file is.
"""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from pydicom.pixels import get_decoder
from pydicom.uid import JPEG2000, JPEGLSLossless

from mpc_imaging.data import ImageError, Reason, read_dicom
from mpc_imaging.settings import Frames

_NO_DATA = (".py", ".pyc", ".zip", ".md", ".txt")

# pydicom ships many headers without pixel data on purpose, to test its own parser.
_PYDICOM_REFUSED = {
    Reason.truncated: 59,  # image objects without pixel data: 50 in TINY_ALPHA, 5 in charset_files; MR_truncated
    Reason.no_image: 18,  # palettes (8), structured reports (3), plans and structure sets, ECG, no SOP class at all
    Reason.not_dicom: 10,  # JSON, text, a colour profile, gzip; no_meta.dcm starts with a stray byte
    Reason.not_a_picture: 9,  # RT dose (7) and segmentations (2)
    Reason.directory: 8,
    Reason.damaged: 4,  # see test_why_files_of_pydicom_are_damaged
}

needs_decoders = pytest.mark.skipif(
    not (get_decoder(JPEG2000).is_available and get_decoder(JPEGLSLossless).is_available),
    reason="the plug-ins pylibjpeg-libjpeg and pylibjpeg-openjpeg are not installed",
)


def package(name: str, folder: str = "") -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package that holds {name} is not installed")
    return Path(spec.submodule_search_locations[0]) / folder


def outcome(path: Path, frames: Frames = Frames.first) -> Reason | None:
    """None for a file that is decoded to something; anything but an ImageError fails the test."""
    try:
        images = read_dicom(path, frames, 1)
    except ImageError as error:
        return error.reason
    for image in images:
        assert image.dtype == np.float32 and image.ndim == 3 and image.shape[0] == 1
        assert 0 <= image.min() <= image.max() <= 1
    return None


def outcomes(folder: Path) -> tuple[int, dict[Reason, int]]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in _NO_DATA]
    counts = Counter(outcome(path) for path in paths)
    return counts.pop(None, 0), dict(counts)


@needs_decoders
def test_pydicom() -> None:
    assert outcomes(package("pydicom", "data")) == (93, _PYDICOM_REFUSED)


@needs_decoders
def test_pydicom_data() -> None:
    assert outcomes(package("data_store", "data")) == (66, {Reason.not_a_picture: 2})  # liver segmentations


def test_deid_data() -> None:
    assert outcomes(package("deid_data")) == (13, {})


def test_mammograms() -> None:
    assert outcomes(package("mammograms")) == (8, {})


def test_shared_ct(medical_data: Path) -> None:
    assert outcomes(medical_data / "ct_head") == (28, {Reason.not_dicom: 1})  # the licence
    assert outcomes(medical_data / "ct_liver") == (3, {Reason.not_a_picture: 1})  # the segmentation


@needs_decoders
@pytest.mark.parametrize(
    "name",
    [
        "JPEG-lossy.dcm",  # its scan header is one of a progressive scan, in a sequential image
        "JPEG2000-embedded-sequence-delimiter.dcm",  # made by hand: a size of 3.7 billion columns in the codestream
        "meta_missing_tsyntax.dcm",  # two bytes of pixel data, no rows, columns or bits
        "nested_priv_SQ.dcm",  # the same
    ],
)
def test_why_files_of_pydicom_are_damaged(name: str) -> None:
    assert outcome(package("pydicom", "data") / "test_files" / name) is Reason.damaged


@pytest.mark.slow
@needs_decoders
def test_every_frame_of_the_multi_frame_files() -> None:
    for folder in (package("pydicom", "data"), package("data_store", "data"), package("deid_data")):
        for path in folder.rglob("*.dcm"):
            if path.stat().st_size < 4 * 2**20 and outcome(path) is None:
                assert outcome(path, Frames.all) is None, path.name


def pair(first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    folder = package("data_store", "data")
    return tuple(read_dicom(folder / name, Frames.first, 3)[0] for name in (first, second))


@needs_decoders
@pytest.mark.parametrize(
    ("plain", "packed"),
    [
        ("693_UNCR.dcm", "693_J2KR.dcm"),  # signed CT, implicit and JPEG 2000
        ("MR2_UNCR.dcm", "MR2_J2KR.dcm"),
        ("RG3_UNCR.dcm", "RG3_J2KR.dcm"),
        ("US1_UNCR.dcm", "US1_J2KR.dcm"),  # colour, reversible transform
        ("OBXXXX1A.dcm", "OBXXXX1A_rle.dcm"),
        ("OBXXXX1A.dcm", "OBXXXX1A_expb.dcm"),  # big endian
        ("emri_small.dcm", "emri_small_jpeg_ls_lossless.dcm"),
        ("emri_small.dcm", "emri_small_RLE.dcm"),
        ("emri_small.dcm", "emri_small_jpeg_2k_lossless_too_short.dcm"),  # only its end marker is missing
        ("SC_rgb.dcm", "SC_rgb_16bit.dcm"),
        ("color-pl.dcm", "color-px.dcm"),  # planes and pixels
    ],
)
def test_lossless_encodings_of_one_picture_agree(plain: str, packed: str) -> None:
    np.testing.assert_allclose(*pair(plain, packed), atol=1e-6)


@needs_decoders
@pytest.mark.parametrize("name", ["RG3", "US1", "MR2"])
def test_lossy_encodings_are_close(name: str) -> None:
    plain, lossy = pair(f"{name}_UNCI.dcm", f"{name}_J2KI.dcm")
    assert np.abs(plain - lossy).mean() < 0.02
