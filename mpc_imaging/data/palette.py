"""Palette colours (PS3.3 C.7.6.3.1.5, C.7.6.3.1.6 and C.7.9), in both byte orders.

pydicom's own apply_color_lut reads the tables of big-endian files in the wrong byte order, takes 8-bit colours that are
stored in 16 bits for black, and expands segmented tables without a limit.
"""

from __future__ import annotations

import numpy as np
from pydicom import Dataset

from mpc_imaging.data.limits import MAX_LUT_ENTRIES
from mpc_imaging.data.refusals import ImageError, Reason

KEYWORDS = """
RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor
RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
SegmentedBluePaletteColorLookupTableData
"""


def colours(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """Return the colours (3, H, W) in [0, 1] of stored indices (H, W).

    Raises:
        ImageError: a table is damaged, or expands to more entries than a table can have.
    """
    return np.stack([_colour(stored, header, name) for name in ("Red", "Green", "Blue")])


def _colour(stored: np.ndarray, header: Dataset, name: str) -> np.ndarray:
    entries, first, bits = header[f"{name}PaletteColorLookupTableDescriptor"].value
    entries = entries or MAX_LUT_ENTRIES
    if bits not in (8, 16):
        raise ImageError(Reason.damaged)
    if first >= 2**15 and first + entries > 2**16:
        first -= 2**16
    order = "<" if header.original_encoding[1] else ">"
    plain = header.get(f"{name}PaletteColorLookupTableData")
    if plain:
        packed = bits == 8 and len(plain) in (entries, entries + 1)
        table = np.frombuffer(plain, dtype="u1" if packed else f"{order}u2")
    else:
        data = header[f"Segmented{name}PaletteColorLookupTableData"].value
        width = bits // 8
        words = np.frombuffer(data[: len(data) // width * width], dtype=f"{order}u{width}").tolist()
        table = np.array(_expanded(words, bits, order), dtype=np.float64)
    table = table[:entries]
    index = np.clip(stored.astype(np.int64) - first, 0, len(table) - 1)
    return (table / (2.0**bits - 1))[index]


def _expanded(words: list[int], bits: int, order: str) -> list[int]:
    """Expand a segmented table (PS3.3 C.7.9.2): discrete, linear, and indirect segments, which repeat earlier ones."""
    table: list[int] = []
    position = 0
    while position + 1 < len(words):
        kind, length = words[position : position + 2]
        position += 2
        if kind == 2:
            offset, used = _offset(words, position, bits, order)
            position += used
            for _ in range(length):
                offset = _segment(words, offset, table)
        else:
            position = _segment(words, position - 2, table)
    return table


def _offset(words: list[int], position: int, bits: int, order: str) -> tuple[int, int]:
    """Read the offset of an indirect segment, counted in words of the table; return it and how many words it takes."""
    if bits == 16:
        low, high = words[position : position + 2]
        return high << 16 | low, 2
    raw = words[position : position + 4]
    low, high = (int.from_bytes(bytes(half), "little" if order == "<" else "big") for half in (raw[:2], raw[2:]))
    return high << 16 | low, 4


def _segment(words: list[int], position: int, table: list[int]) -> int:
    """Append one discrete or linear segment to ``table``; return where the next one starts."""
    kind, length = words[position : position + 2]
    if len(table) + length > MAX_LUT_ENTRIES:
        raise ImageError(Reason.too_large)
    if kind == 0:
        table += words[position + 2 : position + 2 + length]
        return position + 2 + length
    if kind != 1 or not table:
        raise ImageError(Reason.damaged)
    start, end = table[-1], words[position + 2]
    table += np.rint(np.linspace(start, end, length + 1)[1:]).astype(int).tolist()
    return position + 3
