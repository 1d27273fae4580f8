"""Why a file gives no image: the reasons, and the error that carries one."""

from __future__ import annotations

from enum import Enum

from mpc_imaging.errors import MPCImagingError


class Reason(Enum):
    """Why a file gives no image."""

    missing = "there is no such file"
    unreadable = "the file cannot be opened: check its permissions"
    not_dicom = "not a DICOM file"
    directory = "a DICOMDIR: list the files that it refers to"
    no_instance = "no instance of a study: it has no SOP class, SOP instance or study UID"
    no_image = "a DICOM object without an image (report, plan, structure set or palette)"
    not_a_picture = "a mask or dose grid, not a picture of the patient: list the image it was made from"
    truncated = "truncated: the pixel data end early or are missing"
    cut = "truncated: the file ends within its header"
    no_decoder = "no decoder for its compression: pip install 'mpc-imaging[jpeg]', or decompress the file"
    unsupported = "a colour model that is not supported: convert it to RGB or MONOCHROME2"
    damaged = "damaged: its header or pixel data cannot be decoded"
    hidden = (
        "its compressed pixel data have parts in which text may hide, and which cannot be removed: decompress the file"
    )
    unknown_syntax = "its transfer syntax is not known: convert the file to Explicit VR Little Endian"
    too_large = "its header, frames or contents are larger than the limits in mpc_imaging/data/limits.py"
    not_a_mask = "not a DICOM segmentation (SEG): list one, or write data.masks=false"
    no_segment = "a segmentation without the segment that data.mask_segment asks for"
    other_series = "a segmentation that refers neither to the image nor to its series: list the one that was made of it"
    other_grid = "a segmentation whose pixels do not lie over those of the image: resample it to the image"
    no_window = "it has fewer windows than the index of the window asks for: use 0, the first"
    no_hounsfield = (
        "a CT that is not in Hounsfield units (no rescale, or to another unit): windows in them do not apply"
    )
    folder = "a folder, not a file: write data.slices to read the series in it as one volume"
    single = "one slice is no volume: name a folder with the slices of one series, or a multi-frame file"
    no_slices = "no file in this folder is a slice with a position in the patient"
    colours = "slices in colour: a volume is made of grey ones, so convert them to MONOCHROME2"
    several = "slices of several series, orientations or sizes: give each a folder and a row of its own"
    outside = "a link to outside of the manifest's folder: put the file there"


class ImageError(MPCImagingError):
    """A file that gives no image; ``reason`` says why. The message carries nothing from the file's header."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason
        super().__init__(reason.value)
