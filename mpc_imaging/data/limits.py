"""Limits on what one image file may claim, and a stream that holds a parser to them.

A header can claim anything. Each claim is compared with these numbers before memory is taken for it. They are far above
what scanners write: the largest mammograms have 2**24 pixels, enhanced objects of 2,000 slices 4 MiB of header.
"""

from __future__ import annotations

from typing import BinaryIO

from mpc_imaging.data.refusals import ImageError, Reason

MAX_HEADER_BYTES = 16 * 2**20  # read of one header; elements that are skipped do not count
MAX_WHOLE_HEADER_BYTES = 2**28  # of a file that is copied: with what vendors put into private elements
MAX_HEADER_PARTS = 500_000  # elements and sequence items of one header: each costs up to 1 KB once parsed
MAX_SAMPLES = 2**26  # rows * columns * samples of one frame: 8192 x 8192 grey
MAX_FRAMES = 2**16  # of one file
MAX_FRAGMENTS = 2**18  # pieces of compressed pixel data in one file
MAX_ENCODED_BYTES = 2**29  # one compressed frame
MAX_RETURNED_SAMPLES = 2**28  # all frames of one file together, as float32: 1 GiB
MAX_WHOLE_PIXEL_BYTES = 2**31  # pixel data of a file that is copied, which is in memory whole
MAX_INFLATED_BYTES = 2**28  # a deflated file, whole
MAX_VOLUME_SAMPLES = 2**29  # one stack of slices: 2 GiB as float32
MAX_ARRAY_ROWS = 10_000_000  # images in an .npz file
MAX_COLUMN_BYTES = 2**30  # its labels, splits or patients, each whole
MAX_LUT_ENTRIES = 2**16  # a lookup table (PS3.3 C.11.1.1); its descriptor cannot say more

_ITEM = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # the item tag in both byte orders


class Bounded:
    """A binary stream whose reads end at the end of the file, whatever length they ask for.

    A plain file takes memory for the whole length first. While ``counting``, the bytes and parts of a header count, and
    a read beyond the limits raises ImageError and sets ``exceeded`` (pydicom replaces some exceptions by its own).
    ``cut``: a read has asked for more than there is, other than for the 8 bytes of a next element at the end.
    """

    def __init__(self, stream: BinaryIO, header_bytes: int = MAX_HEADER_BYTES) -> None:
        self._stream, self._header_bytes = stream, header_bytes
        self.size = stream.seek(0, 2)
        stream.seek(0)
        self.counting = True
        self.exceeded = self.cut = False
        self._bytes = self._parts = 0

    def read(self, count: int | None = -1) -> bytes:
        """Read at most ``count`` bytes; all that are left for None or a negative number."""
        left = max(0, self.size - self._stream.tell())
        asked = left if count is None or count < 0 else count
        self.cut |= asked > left and (left > 0 or asked != 8)
        count = min(asked, left)
        if not self.counting:
            return self._stream.read(count)
        self._bytes += count
        if self._bytes > self._header_bytes:
            self._refuse()
        data = self._stream.read(count)
        self._parts += 1 + (sum(map(data.count, _ITEM)) if count > 8 else 0)
        if self._parts > MAX_HEADER_PARTS:
            self._refuse()
        return data

    def _refuse(self) -> None:
        self.exceeded = True
        raise ImageError(Reason.too_large)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move as any file does."""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._stream.tell()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
