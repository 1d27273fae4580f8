"""What a header claims of its pixel data, checked against the limits before memory is taken for it."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom import Dataset

from mpc_imaging.data.limits import MAX_FRAMES, MAX_SAMPLES
from mpc_imaging.data.refusals import ImageError, Reason


@dataclass(frozen=True)
class Shape:
    """What the header says of one frame."""

    rows: int
    columns: int
    samples: int
    bits_allocated: int

    @property
    def bits(self) -> int:
        """Of a whole frame that is not compressed."""
        return self.rows * self.columns * self.samples * self.bits_allocated


def native_bytes(elements: Dataset, count: int, shape: Shape) -> int:
    """How many bytes ``count`` frames have that are not compressed, without what pads them."""
    samples = shape.rows * shape.columns * shape.samples * count
    if elements.PhotometricInterpretation == "YBR_FULL_422":  # two luma samples share their chroma
        samples = samples // 3 * 2
    return -(-samples * shape.bits_allocated // 8)


def claims(elements: Dataset) -> tuple[int, Shape]:
    """Return the number of frames and the shape of one. Raises ImageError for what is beyond the limits."""
    keywords = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
    shape = Shape(*(int(elements[keyword].value) for keyword in keywords))
    count = int(elements.get("NumberOfFrames") or 1)
    if min(shape.rows, shape.columns, shape.bits_allocated, count) < 1 or shape.bits_allocated > 64:
        raise ImageError(Reason.damaged)
    if shape.samples not in (1, 3):
        raise ImageError(Reason.unsupported)
    if shape.rows * shape.columns * shape.samples > MAX_SAMPLES or count > MAX_FRAMES:
        raise ImageError(Reason.too_large)
    return count, shape


def low_unused_bits(elements: Dataset) -> int:
    """Count the bits below the stored ones: none in today's standard, some in old files whose HighBit lies higher."""
    stored, allocated = elements.get("BitsStored"), elements.BitsAllocated
    high = elements.get("HighBit")
    if stored is None or high is None or not stored <= high < allocated:
        return 0
    return high + 1 - stored
