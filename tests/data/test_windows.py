"""Windows and LUTs against pydicom's own chain, and where they begin and end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing

from mpc_imaging.data import read_dicom
from mpc_imaging.data.windows import through_window
from mpc_imaging.settings import Frames
from tests.data.builders import make_dicom, random_pixels, shipped


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (100, 50.5), (0, 2000), (3000, 1)])
def test_windows_agree_with_pydicom(function: str, centre: float, width: float) -> None:
    values = np.linspace(-1000, 5000, 997)
    ds = Dataset()
    ds.PhotometricInterpretation, ds.PixelRepresentation, ds.BitsStored = "MONOCHROME2", 0, 16
    ds.WindowCenter, ds.WindowWidth, ds.VOILUTFunction = centre, width, function
    with np.errstate(all="ignore"):
        expected = apply_windowing(values, ds) / (2**16 - 1)
    np.testing.assert_allclose(through_window(values, centre, width, function), expected, atol=1e-9)


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "examples_overlay.dcm", "mlut_18.dcm", "vlut_04.dcm"])
def test_real_files_agree_with_pydicom(name: str) -> None:
    """Where the window is linear: pydicom maps it to the range of its input, so both are compared by their ends."""
    try:
        path = shipped(name)
    except AssertionError:
        pytest.skip("pydicom-data is not installed")
    ds = pydicom.dcmread(path)
    shown = apply_voi_lut(apply_modality_lut(ds.pixel_array, ds), ds).astype(float)
    (image,) = read_dicom(path, Frames.first, 1)
    expected = (shown - shown.min()) / (shown.max() - shown.min())
    image = (image[0] - image.min()) / (image.max() - image.min())
    np.testing.assert_allclose(image, expected, atol=2e-3)


def test_a_lut_whose_first_value_is_negative_but_stored_unsigned(tmp_path: Path) -> None:
    pixels = random_pixels(1).astype(np.int16) - 2000
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 2**16 - 2000, 16])
    item.add_new("LUTData", "OW", (np.arange(4096) * 16).astype("<u2").tobytes())
    path = make_dicom(tmp_path / "a.dcm", pixels, bits=16, VOILUTSequence=[item])
    (image,) = read_dicom(path, Frames.first, 1)
    np.testing.assert_allclose(image[0], (pixels + 2000.0) * 16 / 65535, atol=1e-6)
