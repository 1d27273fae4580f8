"""Slices to volumes: order, spacing, and what is said of gaps, tilt and duplicates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage

from mpc_imaging.data.series import Flaw, Volume, read_volumes
from tests.data.builders import PATIENT, make_dicom, random_pixels

_AXIAL = [1, 0, 0, 0, 1, 0]


def make_slice(folder: Path, name: str, z: float, seed: int | None = None, **elements: object) -> Path:
    usual = {
        "SOPClassUID": CTImageStorage,
        "SeriesInstanceUID": "1.2.3",
        "ImagePositionPatient": [-10, -20, z],
        "ImageOrientationPatient": _AXIAL,
        "PixelSpacing": [0.5, 0.25],
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
    }
    pixels = random_pixels(int(z) if seed is None else seed)
    return make_dicom(folder / name, pixels, **usual | elements)


def one_volume(paths: list[Path]) -> Volume:
    found = read_volumes(paths)
    assert not found.left_out
    (volume,) = found.volumes
    return volume


def flaws(volume: Volume) -> dict[Flaw, str]:
    return {problem.flaw: problem.text for problem in volume.problems}


def test_slices_are_sorted_by_position_not_by_name(tmp_path: Path) -> None:
    paths = [make_slice(tmp_path, f"{k}.dcm", z) for k, z in enumerate([6, 0, 9, 3])]
    volume = one_volume(paths)
    assert [path.name for path, _ in volume.sources] == ["1.dcm", "3.dcm", "0.dcm", "2.dcm"]
    assert volume.spacing == (3, 0.5, 0.25) and volume.problems == []
    assert volume.values.shape == (4, 12, 10) and volume.values.dtype == np.float32
    np.testing.assert_array_equal(volume.values[2], random_pixels(6).astype(int) - 1024)


def test_gaps_and_duplicates_are_reported(tmp_path: Path) -> None:
    paths = [make_slice(tmp_path, f"{z}.dcm", z) for z in (0, 2, 4, 6, 10, 12)]
    paths.append(make_slice(tmp_path, "same.dcm", 4))
    paths.append(make_slice(tmp_path, "other.dcm", 6, seed=99))
    volume = one_volume(paths)
    assert len(volume.sources) == 6 and volume.spacing[0] == 2
    texts = [problem.text for problem in volume.problems]
    assert texts == [
        "a second slice at the place of slice 2, with the same pixels, is left out",
        "a second slice at the place of slice 3, with other pixels, is left out",
        "a step of 4.0 mm from slice 3 to 4, usually 2.0 mm",
    ]


def test_uneven_steps_and_single_slices(tmp_path: Path) -> None:
    uneven = [make_slice(tmp_path, f"{z}.dcm", z) for z in (0, 2, 4.4, 6)]
    assert flaws(one_volume(uneven))[Flaw.uneven] == "steps from 1.60 to 2.40 mm"
    single = one_volume(uneven[:1])
    assert single.spacing[0] == 0 and list(flaws(single)) == [Flaw.single]


def test_tilt(tmp_path: Path) -> None:
    angle = np.radians(20)
    tilted = [1, 0, 0, 0, round(np.cos(angle), 6), round(-np.sin(angle), 6)]
    paths = [make_slice(tmp_path, f"{z}.dcm", z, ImageOrientationPatient=tilted) for z in range(0, 12, 4)]
    volume = one_volume(paths)
    assert flaws(volume) == {Flaw.tilt: "slices are stacked 20.0 degrees off their normal: not a cuboid"}
    assert volume.spacing[0] == pytest.approx(4 * np.cos(angle), abs=1e-4)


def test_other_series_sizes_and_orientations_are_other_volumes(tmp_path: Path) -> None:
    paths = [make_slice(tmp_path, f"{z}.dcm", z) for z in (0, 1, 2)]
    paths += [make_slice(tmp_path, f"b{z}.dcm", z, SeriesInstanceUID="1.2.4") for z in (0, 1)]
    paths.append(make_slice(tmp_path, "c.dcm", 0, ImageOrientationPatient=[0, 1, 0, 0, 0, 1]))
    paths.append(make_slice(tmp_path, "l.dcm", 0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    paths.append(make_dicom(tmp_path / "x.dcm", random_pixels(1)))
    (tmp_path / "n.txt").write_text(PATIENT)
    found = read_volumes([*paths, tmp_path / "n.txt"])
    assert [len(volume.sources) for volume in found.volumes] == [3, 2, 1]
    assert [(path.name, reason) for path, reason in found.left_out] == [
        ("l.dcm", "no position in the patient, or a localizer"),
        ("x.dcm", "no position in the patient, or a localizer"),
        ("n.txt", "not a DICOM file"),
    ]
    assert "1.2.3" not in repr(found) and "Secretname" not in repr(found)


def test_frames_of_an_enhanced_object(tmp_path: Path) -> None:
    def frame(z: float, slope: float) -> Dataset:
        groups, plane, values = Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient = [0, 0, z]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slope, -1000, "HU"
        groups.PlanePositionSequence, groups.PixelValueTransformationSequence = [plane], [values]
        return groups

    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient, measures.PixelSpacing = _AXIAL, [1, 1]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    pixels = random_pixels(3, (3, 12, 10))
    path = make_dicom(
        tmp_path / "a.dcm",
        pixels,
        SOPClassUID=EnhancedCTImageStorage,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[frame(5, 1), frame(0, 2), frame(2.5, 0.5)],
    )
    volume = one_volume([path])
    assert [index for _, index in volume.sources] == [1, 2, 0] and volume.problems == []
    assert volume.spacing == (2.5, 1, 1)
    np.testing.assert_array_equal(volume.values[0], pixels[1] * 2.0 - 1000)
    np.testing.assert_array_equal(volume.values[2], pixels[0] - 1000.0)


def test_values_without_hounsfield_units_are_said_to_be_so(tmp_path: Path) -> None:
    path = make_slice(tmp_path, "a.dcm", 0, RescaleType="US")
    assert Flaw.unit in flaws(one_volume([path]))


def test_a_volume_beyond_the_limit_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpc_imaging.data.series.MAX_VOLUME_SAMPLES", 3 * 120)
    paths = [make_slice(tmp_path, f"{z}.dcm", z) for z in range(4)]
    found = read_volumes(paths)
    assert not found.volumes and [path for path, _ in found.left_out] == paths


def test_the_head_ct(medical_data: Path) -> None:
    """GE, gantry tilt 18.5 degrees in the header; 4 mm slices below, 7 mm above, where the protocol changes."""
    paths = sorted((medical_data / "ct_head").glob("*.dcm"))
    volume = one_volume(paths[::-1])
    assert [path for path, _ in volume.sources] == paths  # the names happen to be in order
    assert volume.values.shape == (28, 512, 512)
    assert flaws(volume) == {
        Flaw.gap: "13 steps of 7.0 mm from slice 14 to 27, usually 4.0 mm",
        Flaw.uneven: "steps from 1.08 to 4.00 mm",
        Flaw.tilt: "slices are stacked 18.5 degrees off their normal: not a cuboid",
    }
    raw = pydicom.dcmread(paths[13])
    np.testing.assert_array_equal(
        volume.values[13], raw.pixel_array * float(raw.RescaleSlope) + float(raw.RescaleIntercept)
    )
    assert -20 < np.median(volume.values[13, 240:280, 240:280]) < 80  # brain


def test_the_liver_ct(medical_data: Path) -> None:
    found = read_volumes(sorted((medical_data / "ct_liver").glob("*.dcm")))
    (volume,) = found.volumes
    assert volume.values.shape == (3, 512, 512) and volume.problems == []
    np.testing.assert_allclose(volume.spacing, (1, 0.810547, 0.810547))
    assert [path.name for path, _ in found.left_out] == ["liver.dcm"]
