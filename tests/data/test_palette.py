"""Palette tables: plain and segmented, of 8 and 16 bits, in both byte orders."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import Dataset

from mpc_imaging.data import ImageError, Reason, palette

_NAMES = ("Red", "Green", "Blue")


def header(
    words: list[int], bits: int, entries: int, first: int = 0, segmented: bool = False, big: bool = False
) -> Dataset:
    ds = Dataset()
    ds.set_original_encoding(False, not big, "ascii")
    for name in _NAMES:
        ds.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [entries, first, bits])
        data = np.array(words, dtype=f"{'>' if big else '<'}u{bits // 8}").tobytes()
        ds.add_new(f"{'Segmented' * segmented}{name}PaletteColorLookupTableData", "OW", data)
    return ds


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_plain_tables(bits: int, big: bool) -> None:
    words = [0, 10, 200, 2**bits - 1]
    stored = np.array([[9, 10], [12, 255]], dtype=np.uint8)
    out = palette.colours(stored, header(words, bits, 4, first=9, big=big))
    assert out.shape == (3, 2, 2)
    np.testing.assert_allclose(out[0] * (2**bits - 1), [[0, 10], [2**bits - 1, 2**bits - 1]])


def test_eight_bit_colours_in_sixteen_bits() -> None:
    ds = header([0], 8, 2)
    for name in _NAMES:
        ds[f"{name}PaletteColorLookupTableData"].value = np.array([0, 255], dtype="<u2").tobytes()
    np.testing.assert_array_equal(palette.colours(np.array([[0, 1]], dtype=np.uint8), ds)[1], [[0, 1]])


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_segmented_tables(bits: int, big: bool) -> None:
    """PS3.3 C.7.9.2: a discrete segment, a linear one, and both again by an indirect one."""
    start = [0] * (4 if bits == 8 else 2)  # an offset of 32 bits
    words = [0, 2, 5, 10, 1, 4, 50, 2, 2, *start]
    expected = [5, 10, 20, 30, 40, 50, 5, 10, 20, 30, 40, 50]
    stored = np.arange(12, dtype=np.uint8)[None]
    out = palette.colours(stored, header(words, bits, 12, segmented=True, big=big))
    np.testing.assert_allclose(out[2, 0] * (2**bits - 1), expected)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([0, 1, 7, *[1, 65535, 9] * 50], Reason.too_large),
        ([0, 1, 7, 1, 8000, 9, *[2, 60000, 3, 0] * 50], Reason.too_large),
        ([1, 5, 9], Reason.damaged),
        ([7, 5, 9], Reason.damaged),
    ],
)
def test_segmented_tables_that_lie(words: list[int], reason: Reason) -> None:
    with pytest.raises(ImageError) as caught:
        palette.colours(np.zeros((2, 2), np.uint8), header(words, 16, 256, segmented=True))
    assert caught.value.reason is reason
