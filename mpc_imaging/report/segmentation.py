"""A mask as a DICOM segmentation (SEG): binary, one segment, on the planes of the images that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.sr.codedict import codes as standard
from pydicom.sr.coding import Code

from mpc_imaging.report.result_objects import (
    MANUFACTURER,
    ModelIdentity,
    Place,
    building,
    check_installed,
    common,
    private_code,
    refer,
    save,
    stand_ins,
)
from mpc_imaging.report.result_source import Refusal, ResultError, frame_number, orientation, read_sources

# How the pixels lie in space: what a segmentation takes over from each image.
SPACE = """
FrameOfReferenceUID PositionReferenceIndicator ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness
SpacingBetweenSlices SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
"""
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def write_segmentation(
    source: Path | Sequence[Path],
    mask: npt.NDArray[np.bool_],
    label: str,
    model: ModelIdentity,
    folder: Path,
    name: str,
    *,
    frame: int | None = None,
    code: Code | None = None,
    category: Code = standard.SCT.SpatialAndRelationalConcept,
    place: Place | None = None,
) -> Path:
    """Write ``<name>.dcm`` into the image owner's private ``folder``, and return its path.

    ``source``: the image, or the images of one series in the order of the mask's planes. ``mask``: (H, W) for one image
    or, with ``frame`` (from 0), one frame; (D, H, W) for D images or for all frames of one. ``label``: what it marks;
    ``code`` and ``category`` say it in standard codes (PS3.16 CID 7151 and CID 7150). ``name``: a pseudonym.

    Raises:
        ImageError: a source file is missing, damaged or not DICOM.
        ResultError: the sources cannot be referred to, their frames have no positions, or the mask does not fit.
        ConfigError: highdicom is not installed, or the ``label`` is no DICOM text.
        DataError: a ``name`` that is no file name.
    """
    sources = read_sources(source, [*SPACE.split(), *_LOSSY, "PatientOrientation"])
    built = _build(sources, mask, label, model, frame, code or private_code(label), category, place or Place.new())
    return save(built, folder, name)


def _build(
    sources: Sequence[Dataset],
    mask: npt.NDArray[np.bool_],
    label: str,
    model: ModelIdentity,
    frame: int | None,
    code: Code,
    category: Code,
    place: Place,
) -> Dataset:
    check_installed()
    from highdicom import AlgorithmIdentificationSequence, seg

    numbers = frame_number(sources[0], frame)
    planes = _planes(sources, mask, frame)
    with building():
        # Of a frame without any marked pixel nothing would be left in space: its empty plane stands alone.
        positioned = all(map(has_position, sources)) and (numbers is None or bool(planes.any()))
        images = [_with_shared_groups(_with_unit_vectors(each)) for each in sources]
        if not positioned:
            if len(planes) > 1 and not numbers:
                raise ResultError(Refusal.positions)
            planes = planes if not numbers else planes[numbers[0] - 1][np.newaxis]
            images = [_flat(each) for each in stand_ins(sources)]
        segment = seg.SegmentDescription(
            segment_number=1,
            segment_label=label,
            segmented_property_category=category,
            segmented_property_type=code,
            algorithm_type=seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=AlgorithmIdentificationSequence(
                name=model.name,
                family=standard.cid7162.ArtificialIntelligence,
                version=model.version,
                source=MANUFACTURER,
                parameters={"sha256": model.digest},
            ),
        )
        built = seg.Segmentation(
            source_images=images,
            pixel_array=planes.astype(np.uint8),
            segmentation_type=seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[segment],
            content_label="SEGMENTATION",
            omit_empty_frames=bool(planes.any()),  # one without any frame is not allowed
            **common(model, place, f"Segmentation by {model.name}"),
        )
        if not positioned:
            built.PatientOrientation = orientation(sources[0])
        refer(built, sources)
        if numbers:
            _refer_to_frame(built, numbers[0], within=not positioned)
    return built


def _planes(sources: Sequence[Dataset], mask: npt.NDArray[np.bool_], frame: int | None) -> npt.NDArray[np.bool_]:
    """The mask (D, H, W) with a plane for each image, or for each frame of the only image."""
    count = len(sources) if len(sources) > 1 else int(sources[0].NumberOfFrames)
    planes = np.asarray(mask, dtype=bool)
    if planes.ndim == 2:
        planes = planes[np.newaxis]
    if frame is not None and len(planes) == 1 < count:
        whole = np.zeros((count, *planes.shape[1:]), dtype=bool)
        whole[frame] = planes[0]
        planes = whole
    if any(planes.shape != (count, source.Rows, source.Columns) for source in sources):
        raise ResultError(Refusal.shape)
    if len(sources) > 1 and any(source.NumberOfFrames > 1 for source in sources):
        raise ResultError(Refusal.several)
    return planes


def has_position(source: Dataset) -> bool:
    """Whether a plane of the image has its place in space, and a thickness (PS3.3 C.7.6.16.2.1 asks for both)."""
    from highdicom.spatial import get_image_coordinate_system

    in_groups = "SharedFunctionalGroupsSequence" in source
    return get_image_coordinate_system(source) is not None and bool(in_groups or source.get("SliceThickness"))


def _with_unit_vectors(image: Dataset) -> Dataset:
    """Directions that were rounded or sheared a little are given their length of 1, which checkers insist on."""
    directions = image.get("ImageOrientationPatient")
    if directions and len(directions) == 6:
        vectors = np.array(directions, dtype=np.float64).reshape(2, 3)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if 1e-5 < np.abs(lengths - 1).max() < 1e-2:
            image.ImageOrientationPatient = [f"{value:.10f}" for value in (vectors / lengths).ravel()]
    return image


def _with_shared_groups(image: Dataset) -> Dataset:
    """What all frames of an enhanced image repeat of their geometry is moved to where highdicom looks for it."""
    shared, frames = (image.get(f"{which}FunctionalGroupsSequence") for which in ("Shared", "PerFrame"))
    for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence") if shared and frames else ():
        stated = [frame.get(keyword) for frame in frames]
        if keyword not in shared[0] and stated[0] and all(each == stated[0] for each in stated):
            setattr(shared[0], keyword, stated[0])
    return image


def _flat(image: Dataset) -> Dataset:
    """An image that has no position in space says nothing of a frame of reference or spacing either.

    Nothing is lost: the mask has the rows and columns of the image that it refers to.
    """
    for keyword in SPACE.split():
        if keyword in image:
            del image[keyword]
    return image


def _refer_to_frame(built: Dataset, number: int, within: bool) -> None:
    """Name the frame where a reference would else mean all of them; ``within``: also in the functional groups."""
    items = list(built.SourceImageSequence)
    for groups in built.PerFrameFunctionalGroupsSequence if within else ():
        for derivation in groups.get("DerivationImageSequence", []):
            items += derivation.SourceImageSequence
    for item in items:
        item.ReferencedFrameNumber = number
