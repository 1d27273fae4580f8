"""Real and made DICOM files: what is decoded, how grey levels are shown, and why files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.pixels import get_decoder
from pydicom.uid import MPEG4HP41, UID, JPEGLSNearLossless

from mpc_imaging.data import ImageError, Reason, read_dicom
from mpc_imaging.data.dicom import Window, directory_files, open_picture
from mpc_imaging.settings import Frames
from tests.data.builders import PATIENT, make_dicom, make_encapsulated, random_pixels, shipped


def read_first(path: Path, channels: int = 1) -> np.ndarray:
    (image,) = read_dicom(path, Frames.first, channels)
    assert image.dtype == np.float32 and image.shape[0] == channels
    assert image.min() >= 0 and image.max() <= 1
    return image


def refusal(path: Path) -> Reason:
    with pytest.raises(ImageError) as caught:
        read_dicom(path, Frames.first, 1)
    assert PATIENT not in str(caught.value)
    return caught.value.reason


def test_ct_is_shown_through_its_own_window(medical_data: Path) -> None:
    path = medical_data / "ct_head" / "14.dcm"
    raw = pydicom.dcmread(path)
    hounsfield = raw.pixel_array * float(raw.RescaleSlope) + float(raw.RescaleIntercept)
    centre, width = float(raw.WindowCenter), float(raw.WindowWidth)
    expected = np.clip((hounsfield - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    np.testing.assert_allclose(read_first(path)[0], expected, atol=1e-5)


def test_every_real_ct_slice_is_decoded(medical_data: Path) -> None:
    paths = sorted((medical_data / "ct_head").glob("*.dcm")) + sorted((medical_data / "ct_liver").glob("0*.dcm"))
    assert len(paths) == 31
    for path in paths[::4]:
        assert read_first(path).std() > 0.05


def test_a_segmentation_is_no_picture(medical_data: Path) -> None:
    assert refusal(medical_data / "ct_liver" / "liver.dcm") is Reason.not_a_picture


def test_monochrome1_looks_like_monochrome2(tmp_path: Path) -> None:
    pixels = random_pixels(1)
    two = make_dicom(tmp_path / "2.dcm", pixels, WindowCenter=2000, WindowWidth=1500)
    one = make_dicom(
        tmp_path / "1.dcm",
        4095 - pixels,
        PhotometricInterpretation="MONOCHROME1",
        WindowCenter=4095 - 2000 + 1,  # a window of PS3.3 C.11.2.1.2 is centred half a step lower than it says
        WindowWidth=1500,
    )
    np.testing.assert_allclose(read_first(one), read_first(two), atol=1e-6)
    plain = make_dicom(tmp_path / "3.dcm", pixels)
    inverted = make_dicom(tmp_path / "4.dcm", 4095 - pixels, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(read_first(inverted), read_first(plain), atol=1e-6)


def test_without_a_window_deep_images_are_stretched_and_8_bits_are_not(tmp_path: Path) -> None:
    deep = np.array([[1000, 1500], [2000, 1000]], dtype=np.uint16)
    expected = [[0, 0.5], [1, 0]]
    np.testing.assert_allclose(read_first(make_dicom(tmp_path / "a.dcm", deep))[0], expected)
    without_width = make_dicom(tmp_path / "b.dcm", deep, WindowCenter=5, WindowWidth=0)
    np.testing.assert_allclose(read_first(without_width)[0], expected)
    eight = np.array([[0, 51], [102, 153]], dtype=np.uint8)
    np.testing.assert_allclose(read_first(make_dicom(tmp_path / "c.dcm", eight, bits=8))[0], eight / 255, atol=1e-7)
    flat = np.full((4, 4), 700, dtype=np.uint16)
    assert not read_first(make_dicom(tmp_path / "d.dcm", flat)).any()


def test_padding_is_black_and_does_not_stretch(tmp_path: Path) -> None:
    pixels = np.array([[-2000, 0], [50, 100]], dtype=np.int16)
    shown = read_first(make_dicom(tmp_path / "a.dcm", pixels, bits=16, PixelPaddingValue=-2000))
    np.testing.assert_allclose(shown[0], [[0, 0], [0.5, 1]])
    inverted = make_dicom(
        tmp_path / "b.dcm", pixels, bits=16, PixelPaddingValue=-2000, PhotometricInterpretation="MONOCHROME1"
    )
    np.testing.assert_allclose(read_first(inverted)[0], [[0, 1], [0.5, 0]])


def lut(entries: int, first: int, bits: int, data: np.ndarray) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [entries, first, bits])
    item.add_new("LUTData", "OW", data.tobytes())
    return item


def test_voi_lut_with_more_entries_than_its_output_can_count(tmp_path: Path) -> None:
    table = (np.arange(4096) // 16).astype("<u2")
    pixels = random_pixels(2)
    path = make_dicom(tmp_path / "a.dcm", pixels, VOILUTSequence=[lut(4096, 0, 8, table)])
    np.testing.assert_allclose(read_first(path)[0], (pixels // 16) / 255, atol=1e-6)


def test_modality_lut_comes_before_the_window(tmp_path: Path) -> None:
    table = (4095 - np.arange(4096)).astype("<u2")
    pixels = random_pixels(3)
    path = make_dicom(
        tmp_path / "a.dcm", pixels, ModalityLUTSequence=[lut(4096, 0, 16, table)], WindowCenter=2048, WindowWidth=4096
    )
    np.testing.assert_allclose(read_first(path)[0], (4095 - pixels) / 4095, atol=1e-5)


def test_functional_groups_of_a_frame_win_over_the_header(tmp_path: Path) -> None:
    def window(centre: int) -> Dataset:
        groups, voi = Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth, voi.VOILUTFunction = centre, 1000, "LINEAR_EXACT"
        groups.FrameVOILUTSequence = [voi]
        return groups

    frames = np.full((2, 4, 4), 1000, dtype=np.uint16)
    path = make_dicom(tmp_path / "a.dcm", frames, PerFrameFunctionalGroupsSequence=[window(1000), window(1250)])
    means = [image.mean() for image in read_dicom(path, Frames.all, 1)]
    np.testing.assert_allclose(means, [0.5, 0.25], atol=1e-4)


def test_frames_of_a_colour_cine() -> None:
    path = shipped("examples_ybr_color.dcm")
    every = read_dicom(path, Frames.all, 3)
    assert len(every) == 30 and every[0].shape == (3, 240, 320)
    (first,), (middle,) = (read_dicom(path, frames, 3) for frames in (Frames.first, Frames.middle))
    np.testing.assert_array_equal(first, every[0])
    np.testing.assert_array_equal(middle, every[15])
    assert np.abs(every[0] - every[15]).max() > 0.1


def test_colour_becomes_luma_and_grey_is_repeated(tmp_path: Path) -> None:
    colour = read_first(shipped("SC_rgb_rle.dcm"), channels=3)
    luma = read_first(shipped("SC_rgb_rle.dcm"), channels=1)
    np.testing.assert_allclose(luma[0], 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2], atol=1e-6)
    grey = make_dicom(tmp_path / "a.dcm", random_pixels(1))
    np.testing.assert_array_equal(read_first(grey, channels=3), np.repeat(read_first(grey), 3, axis=0))


def test_the_same_picture_in_other_encodings() -> None:
    rgb = read_first(shipped("SC_rgb_rle.dcm"), channels=3)
    for name in ("SC_rgb_rle_16bit.dcm", "SC_rgb_rle_32bit.dcm", "SC_rgb_jpeg_dcmtk.dcm"):
        assert np.abs(read_first(shipped(name), channels=3) - rgb).mean() < 0.02


def test_palette_colours() -> None:
    image = read_first(shipped("examples_palette.dcm"), channels=3)
    assert image.shape == (3, 350, 800)
    assert np.abs(image[0] - image[2]).max() > 0.5  # colours, not grey


@pytest.mark.parametrize("keep", [400, 3000, 0.5, 0.999])
def test_truncated_files(tmp_path: Path, medical_data: Path, keep: float) -> None:
    whole = (medical_data / "ct_head" / "01.dcm").read_bytes()
    path = tmp_path / "cut.dcm"
    path.write_bytes(whole[: keep if keep > 1 else int(keep * len(whole))])
    assert refusal(path) is Reason.truncated


def test_truncated_compressed_files(tmp_path: Path) -> None:
    assert refusal(shipped("MR_truncated.dcm")) is Reason.truncated
    whole = shipped("SC_rgb_jpeg_dcmtk.dcm").read_bytes()
    path = tmp_path / "cut.dcm"
    path.write_bytes(whole[: len(whole) * 9 // 10])
    assert refusal(path) is Reason.truncated


def test_files_that_hold_no_image(tmp_path: Path) -> None:
    for name in ("reportsi.dcm", "rtplan.dcm", "waveform_ecg.dcm"):
        assert refusal(shipped(name)) is Reason.no_image
    assert refusal(shipped("dicomdirtests/DICOMDIR")) is Reason.directory
    assert refusal(shipped("rtdose.dcm")) is Reason.not_a_picture
    text = tmp_path / "notes.txt"
    text.write_text("not an image")
    assert refusal(text) is Reason.not_dicom
    assert refusal(tmp_path / "none.dcm") is Reason.missing
    assert refusal(tmp_path) is Reason.unreadable


def test_what_cannot_be_shown(tmp_path: Path) -> None:
    wrong_size = make_dicom(tmp_path / "a.dcm", random_pixels(1), Rows=4000)
    assert refusal(wrong_size) is Reason.truncated
    odd_colours = make_dicom(tmp_path / "b.dcm", random_pixels(1), PhotometricInterpretation="HSV")
    assert refusal(odd_colours) is Reason.unsupported
    assert refusal(shipped("JPEG2000-embedded-sequence-delimiter.dcm")) is Reason.damaged
    nan = np.full((4, 4), np.nan, dtype=np.float32)
    path = make_dicom(tmp_path / "c.dcm", random_pixels(1, (4, 4)), bits=16)
    ds = pydicom.dcmread(path)
    del ds.PixelData
    ds.BitsAllocated, ds.FloatPixelData = 32, nan.tobytes()
    ds.save_as(path)
    assert refusal(path) is Reason.damaged


@pytest.mark.parametrize("syntax", [MPEG4HP41, "1.2.3.4"])
def test_a_compression_without_decoder_says_what_to_do(tmp_path: Path, syntax: str) -> None:
    path = make_encapsulated(tmp_path / "a.dcm", [bytes(8)], UID(syntax), (16, 16))
    assert refusal(path) is Reason.no_decoder
    assert "pip install" in Reason.no_decoder.value


def test_a_missing_plug_in_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(get_decoder(JPEGLSNearLossless)), "is_available", property(lambda decoder: False))
    assert refusal(shipped("JPEGLSNearLossless_08.dcm")) is Reason.no_decoder


def test_patient_fields_are_never_parsed(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "a.dcm", random_pixels(1))
    assert PATIENT in str(pydicom.dcmread(path))
    with open_picture(path) as picture:
        assert "Secretname" not in str(picture.header)


@pytest.mark.parametrize("name", ["WindowWidth", "RescaleSlope", "NumberOfFrames", "Rows"])
def test_what_pydicom_says_of_odd_values_reaches_no_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path = make_dicom(tmp_path / "a.dcm", random_pixels(1), WindowWidth=2000, RescaleSlope=1, NumberOfFrames=1)
    ds = pydicom.dcmread(path)
    ds[name] = pydicom.DataElement(ds[name].tag, "LO", PATIENT)
    ds.save_as(path)
    with pytest.raises(ImageError) as caught:
        read_dicom(path, Frames.first, 1)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    said = "".join(capfd.readouterr()) + caplog.text + str(caught.value)
    assert "Secretname" not in said and "pydicom" not in said


def test_stored_bits(tmp_path: Path) -> None:
    pixels = random_pixels(4)
    clean = read_first(make_dicom(tmp_path / "a.dcm", pixels, WindowCenter=2048, WindowWidth=4096))
    dirty = pixels | np.random.default_rng(1).integers(0, 16, pixels.shape, dtype=np.uint16) << 12
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    np.testing.assert_array_equal(read_first(make_dicom(tmp_path / "b.dcm", dirty, **window)), clean)
    shifted = pixels << 4 | 0x000B  # an overlay below the stored bits, as old scanners wrote it
    np.testing.assert_array_equal(read_first(make_dicom(tmp_path / "c.dcm", shifted, HighBit=15, **window)), clean)
    signed = pixels.astype(np.int16) - 2048
    folded = (signed & 0x0FFF).astype(np.int16) | 0x5000  # negative in 12 bits, with rubbish above
    for name, array in (("d.dcm", signed), ("e.dcm", folded)):
        path = make_dicom(tmp_path / name, array, WindowCenter=0, WindowWidth=4096)
        np.testing.assert_array_equal(read_first(path), clean)


def test_overlays_are_ignored(tmp_path: Path) -> None:
    pixels = random_pixels(5)
    plain = read_first(make_dicom(tmp_path / "a.dcm", pixels))
    path = make_dicom(tmp_path / "b.dcm", pixels)
    ds = pydicom.dcmread(path)
    ds.add_new(0x60000010, "US", pixels.shape[0])
    ds.add_new(0x60000011, "US", pixels.shape[1])
    ds.add_new(0x60003000, "OW", b"\xff" * (pixels.size // 8 + 1 + (pixels.size // 8 + 1) % 2))
    ds.save_as(path)
    np.testing.assert_array_equal(read_first(path), plain)


def test_files_without_preamble_or_meta_header(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "a.dcm", random_pixels(6))
    expected = read_first(path)
    whole = path.read_bytes()
    meta_end = 132 + 12 + int.from_bytes(whole[140:144], "little")
    for start in (132, meta_end):
        path.write_bytes(whole[start:])
        np.testing.assert_array_equal(read_first(path), expected)


def test_a_window_by_index_or_in_hounsfield_units(tmp_path: Path, medical_data: Path) -> None:
    pixels = random_pixels(7)
    path = make_dicom(tmp_path / "a.dcm", pixels, WindowCenter=[1000, 3000], WindowWidth=[800, 400])
    (second,) = read_dicom(path, Frames.first, 1, Window(index=1))
    np.testing.assert_allclose(second[0], np.clip((pixels - 2999.5) / 399 + 0.5, 0, 1), atol=1e-6)
    with pytest.raises(ImageError) as caught:
        read_dicom(path, Frames.first, 1, Window(index=2))
    assert caught.value.reason is Reason.no_window
    lung = Window(hounsfield=(-600, 1500))
    (own,) = read_dicom(path, Frames.first, 1, lung)  # no CT: its own window
    np.testing.assert_array_equal(own, read_first(path))

    ct = medical_data / "ct_head" / "14.dcm"
    raw = pydicom.dcmread(ct)
    hounsfield = raw.pixel_array * float(raw.RescaleSlope) + float(raw.RescaleIntercept)
    (image,) = read_dicom(ct, Frames.first, 1, lung)
    np.testing.assert_allclose(image[0], np.clip((hounsfield + 600.5) / 1499 + 0.5, 0, 1), atol=1e-5)
    del raw.RescaleSlope, raw.RescaleIntercept
    raw.save_as(tmp_path / "b.dcm")
    with pytest.raises(ImageError) as caught:
        read_dicom(tmp_path / "b.dcm", Frames.first, 1, lung)
    assert caught.value.reason is Reason.no_hounsfield


def test_a_dicomdir_names_its_files(tmp_path: Path) -> None:
    path = shipped("dicomdirtests/DICOMDIR")
    files = directory_files(path)
    assert len(files) == 31 and all((path.parent / file).is_file() for file in files)
    for refused, reason in ((shipped("CT_small.dcm"), Reason.not_dicom), (tmp_path / "none", Reason.missing)):
        with pytest.raises(ImageError) as caught:
            directory_files(refused)
        assert caught.value.reason is reason
    outside = path.read_bytes().replace(b"77654033\\CR1", b"..\\..\\..\\CR1")
    assert outside != path.read_bytes()
    (tmp_path / "DICOMDIR").write_bytes(outside)
    with pytest.raises(ImageError) as caught:
        directory_files(tmp_path / "DICOMDIR")
    assert caught.value.reason is Reason.damaged
