"""Bytes flipped and files cut at random: an image, or an ImageError, never anything else."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from mpc_imaging.data import ImageError, read_dicom
from mpc_imaging.data.dicom import directory_files
from mpc_imaging.data.series import read_volumes
from mpc_imaging.settings import Frames
from tests.data.builders import shipped

_SECONDS = 1.5  # for each file; more for a longer search


def damaged(whole: bytes, seed: int) -> bytes:
    """Change 1 to 16 bytes, half of them where the header is; sometimes cut the end off."""
    draw = random.Random(seed)
    out = bytearray(whole)
    for _ in range(draw.choice([1, 1, 2, 4, 16])):
        where = draw.randrange(132, len(out) if draw.random() < 0.5 else min(len(out), 4000))
        out[where] = draw.choice([0, 255, draw.randrange(256)])
    return bytes(out[: draw.randrange(len(out))] if draw.random() < 0.15 else out)


@pytest.mark.parametrize(
    "name",
    [
        "MR_small.dcm",
        "MR_small_bigendian.dcm",
        "image_dfl.dcm",
        "SC_rgb_rle.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "MR_small_jp2klossless.dcm",
        "JPEGLSNearLossless_08.dcm",
        "dicomdirtests/DICOMDIR",
    ],
)
def test_damaged_files(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    whole = shipped(name).read_bytes()
    path = tmp_path / "a.dcm"
    end = time.monotonic() + _SECONDS
    seed = refused = 0
    while time.monotonic() < end or seed < 20:
        path.write_bytes(damaged(whole, seed))
        seed += 1
        for read in (lambda: read_dicom(path, Frames.all, 1), lambda: directory_files(path)):
            try:
                read()
            except ImageError as error:
                assert "\n" not in str(error)
                refused += 1
        read_volumes([path])
    assert refused > 0
    capfd.readouterr()  # pylibjpeg-rle prints where it panics
