"""Tables and waveforms cut to what their own numbers say, so that nothing is written behind their last value."""

from __future__ import annotations

from struct import unpack_from

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

_COLOURS = ("Red", "Green", "Blue", "Alpha")
_TAGS = frozenset(
    int(tag)
    for keyword in ("LUTData", "WaveformData", *(f"{name}PaletteColorLookupTableData" for name in _COLOURS))
    for name in (keyword, f"Segmented{keyword}")
    if (tag := tag_for_keyword(name)) is not None
)
_DISCRETE, _LINEAR, _INDIRECT = 0, 1, 2  # segments of a table (PS3.3 C.7.9.2)


def cut(dataset: Dataset) -> None:
    """Cut the lookup tables and waveforms of a dataset, not of what is nested in it. One that says nothing goes."""
    if _TAGS.isdisjoint(dataset.keys()):
        return
    for colour in _COLOURS:
        name = f"{colour}PaletteColorLookupTable"
        _cut(dataset, f"{name}Data", _table(dataset, f"{name}Descriptor", f"{name}Data"))
        _cut(dataset, f"Segmented{name}Data", _segmented(dataset, f"Segmented{name}Data"))
    _cut(dataset, "LUTData", _table(dataset, "LUTDescriptor", "LUTData"))
    parts = ("NumberOfWaveformChannels", "NumberOfWaveformSamples", "WaveformBitsAllocated")
    channels, samples, bits = (_number(dataset, part) for part in parts)
    _cut(dataset, "WaveformData", channels * samples * bits // 8)


def _cut(dataset: Dataset, keyword: str, length: int) -> None:
    element = dataset.get(keyword) and dataset[keyword]
    if not element:
        return
    if length <= 0:
        del dataset[keyword]
    elif isinstance(element.value, bytes):
        element.value = element.value[:length] + b"\0" * (length % 2)
    else:  # numbers of 16 bits
        element.value = list(element.value)[: length // 2] if element.VM > 1 else element.value


def _number(dataset: Dataset, keyword: str) -> int:
    value = dataset.get(keyword)
    return int(value) if isinstance(value, int) else 0


def _table(dataset: Dataset, descriptor: str, data: str) -> int:
    """Bytes of a table; 0 entries are 65536. Entries of 8 bits may have two bytes each, then all of them."""
    try:
        entries, _, bits = (int(number) for number in dataset.get(descriptor) or (0, 0, 0))
    except (TypeError, ValueError):
        return 0
    if bits == 0:
        return 0
    entries = entries % 2**16 or 2**16
    value = dataset.get(data)
    wide = bits > 8 or not isinstance(value, bytes) or len(value) == 2 * entries
    return entries * (2 if wide else 1)


def _segmented(dataset: Dataset, keyword: str) -> int:
    """Bytes of the segments of a table, up to the first that is none or is cut off."""
    value = dataset.get(keyword)
    if not isinstance(value, bytes):
        return 0
    order = "<" if dataset.original_encoding[1] is not False else ">"
    position = 0
    while position + 4 <= len(value):
        kind, length = unpack_from(f"{order}2H", value, position)
        size = {_DISCRETE: 4 + 2 * length, _LINEAR: 6, _INDIRECT: 8}.get(kind)
        if size is None or position + size > len(value):
            break
        position += size
    return position
