"""Stored pixel values of single frames, of any transfer syntax that pydicom and its plug-ins decode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import RLELossless

from mpc_imaging.data import deflated, encapsulated
from mpc_imaging.data.claims import claims, low_unused_bits, native_bytes
from mpc_imaging.data.header import Header, PixelElement
from mpc_imaging.data.refusals import ImageError, Reason

KEYWORDS = """
SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns BitsAllocated BitsStored
HighBit PixelRepresentation ExtendedOffsetTable ExtendedOffsetTableLengths
"""


class Pixels:
    """The frames of one open file. ``count`` frames of ``shape``; each is decoded when it is asked for.

    Raises:
        ImageError: the header claims more than the limits or than the file holds, or no decoder is installed.
    """

    def __init__(self, header: Header) -> None:
        if header.syntax == deflated.SYNTAX:
            header = deflated.native(header)
        self._header = header
        self._element = _pixel_element(header)
        self.count, self.shape = claims(header.elements)
        try:
            self._decoder = get_decoder(header.syntax)
        except NotImplementedError:
            raise ImageError(Reason.no_decoder) from None
        if not self._decoder.is_available:
            raise ImageError(Reason.no_decoder)
        self._options = as_pixel_options(header.elements, number_of_frames=self.count)
        # pylibjpeg-rle stops at the end of the frame; pydicom's own decoder expands whatever comes.
        bounded = header.syntax == RLELossless and "pylibjpeg" in self._decoder.available_plugins
        self._plugin = "pylibjpeg" if bounded else ""
        extended = self._options.pop("extended_offsets", None)
        self._options |= {
            "transfer_syntax_uid": header.syntax,
            "pixel_keyword": self._element.keyword,
            "pixel_vr": self._element.vr,
        }
        self._native = not header.syntax.is_encapsulated
        if self._native:
            self._check_length()
        else:
            self._frames = encapsulated.frames(header.stream, self._element, self.count, extended)

    def decode(self, indices: Iterable[int]) -> Iterator[tuple[np.ndarray, str]]:
        """Yield frames (H, W) or (H, W, 3) as they are stored, unused bits cleared, with their colour model.

        YBR comes as RGB. Values of ``BitsStored`` bits, signed where the header says so.
        """
        for index in indices:
            array, found = (self._native_frame if self._native else self._encoded_frame)(index)
            expected = (self.shape.rows, self.shape.columns, 3)[: array.ndim]
            if array.shape != expected:
                raise ImageError(Reason.damaged)
            yield array, found["photometric_interpretation"]

    def check(self) -> None:
        """Compare every frame with the header, without decoding any. Raises `ImageError`."""
        if not self._native:
            for pieces in self._frames:
                frame = encapsulated.read_frame(self._header.stream, pieces)
                encapsulated.check_codestream(frame, self._header.syntax, self.shape)

    def _native_frame(self, index: int) -> tuple[np.ndarray, dict]:
        if self.shape.bits_allocated == 1 and self._header.syntax.is_little_endian:
            return self._packed_frame(index), {
                "photometric_interpretation": self._options["photometric_interpretation"]
            }
        self._header.stream.seek(self._element.offset)
        shift = low_unused_bits(self._header.elements)
        options = self._options | {"correct_unused_bits": not shift}
        array, found = self._decoder.as_array(self._header.stream, index=index, **options)
        if shift:
            above = found["bits_allocated"] - shift - found["bits_stored"]
            array = (array << above) >> (above + shift)
        return array, found

    def _packed_frame(self, index: int) -> np.ndarray:
        """A frame of single bits, the first pixel lowest (PS3.5 8.1.1); it may begin and end within a byte.

        pydicom 3.0 reads a byte too few of a frame that begins so late in one that it touches another.
        """
        pixels = self.shape.rows * self.shape.columns * self.shape.samples
        first, offset = divmod(index * pixels, 8)
        self._header.stream.seek(self._element.offset + first)
        content = np.frombuffer(self._header.stream.read(-(-(offset + pixels) // 8)), dtype=np.uint8)
        bits = np.unpackbits(content, bitorder="little")[offset : offset + pixels]
        return bits.reshape(self.shape.rows, self.shape.columns)

    def _encoded_frame(self, index: int) -> tuple[np.ndarray, dict]:
        frame = encapsulated.read_frame(self._header.stream, self._frames[index])
        encapsulated.check_codestream(frame, self._header.syntax, self.shape)
        options = self._options | {"number_of_frames": 1}
        return self._decoder.as_array(encapsulate([frame]), index=0, decoding_plugin=self._plugin, **options)

    def _check_length(self) -> None:
        length = self._element.length
        if length is None:
            raise ImageError(Reason.damaged)
        there = min(length, self._header.stream.size - self._element.offset)
        if there < native_bytes(self._header.elements, self.count, self.shape):
            raise ImageError(Reason.truncated)


def _pixel_element(header: Header) -> PixelElement:
    if header.pixels is None:
        raise ImageError(Reason.truncated)
    return header.pixels
