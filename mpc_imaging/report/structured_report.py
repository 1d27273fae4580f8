"""A prediction as a DICOM structured report: Comprehensive SR with a measurement report (PS3.16 TID 1500).

One measurement group (TID 1501) holds the predicted class as a qualitative evaluation, the probability of each class as
a measurement without unit whose modifier "Finding" names the class, the algorithm (TID 4019), and the images that it
saw. The observer is a device, the model (TID 1004). Nobody has verified it: the report is preliminary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.sr.codedict import codes as standard
from pydicom.sr.coding import Code

from mpc_imaging.errors import DataError
from mpc_imaging.report.result_objects import (
    MANUFACTURER,
    ModelIdentity,
    Place,
    building,
    check_installed,
    class_code,
    common,
    private_code,
    refer,
    save,
    stand_ins,
)
from mpc_imaging.report.result_source import frame_number, read_sources

PREDICTED_CLASS = private_code("Predicted class")


def write_structured_report(
    source: Path | Sequence[Path],
    prediction: str,
    probabilities: Mapping[str, float] | None,
    model: ModelIdentity,
    folder: Path,
    name: str,
    *,
    frame: int | None = None,
    codes: Mapping[str, Code] | None = None,
    place: Place | None = None,
) -> Path:
    """Write ``<name>.dcm`` into the image owner's private ``folder``, and return its path.

    ``source``: the image, or the images of one series, that the prediction is about; ``frame``: of a multi-frame image,
    from 0, None for all. ``probabilities``: of each class by name, None where they were not revealed. ``codes``:
    standard codes of classes, such as those of SNOMED CT; the others get private ones. ``name``: a pseudonym.

    Raises:
        ImageError: a source file is missing, damaged or not DICOM.
        ResultError: the sources cannot be referred to.
        ConfigError: highdicom is not installed, or a class has a name that no DICOM code can mean.
        DataError: a probability that is none, or a ``name`` that is no file name.
    """
    report = structured_report(read_sources(source), prediction, probabilities, model, name, frame, codes, place)
    return save(report, folder, name)


def structured_report(
    sources: Sequence[Dataset],
    prediction: str,
    probabilities: Mapping[str, float] | None,
    model: ModelIdentity,
    name: str,
    frame: int | None = None,
    codes: Mapping[str, Code] | None = None,
    place: Place | None = None,
) -> Dataset:
    """Return the report on images that `read_sources` read, ready to save. Arguments and errors as above."""
    check_installed()
    from highdicom import sr

    predicted = class_code(prediction, codes)
    numbers = [(class_code(each, codes), _checked(value)) for each, value in (probabilities or {}).items()]
    frames = [frame_number(source, frame) for source in sources]
    with building():
        group = sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(uid=Place.new().series, identifier=name),
            # Without the family, a code: readers would take it for a second qualitative evaluation.
            algorithm_id=sr.AlgorithmIdentification(model.name, model.version, [f"sha256={model.digest}"]),
            measurements=[_probability(code, value) for code, value in numbers],
            qualitative_evaluations=[sr.QualitativeEvaluation(PREDICTED_CLASS, predicted)],
            source_images=[
                sr.SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID, numbers)
                for source, numbers in zip(sources, frames, strict=True)
            ],
        )
        content = sr.MeasurementReport(
            observation_context=_observer(model),
            procedure_reported=standard.SCT.ImagingProcedure,
            imaging_measurements=[group],
        )
        report = sr.ComprehensiveSR(
            evidence=stand_ins(sources),
            content=content,
            is_complete=True,
            **common(model, place or Place.new(), f"Predictions by {model.name}"),
        )
        refer(report, sources)
    return report


def _checked(probability: float) -> float:
    if not 0 <= probability <= 1:  # also where it is not a number
        raise DataError(["a probability for a structured report must lie in [0, 1]: leave out what is not finite"])
    return float(probability)


def _probability(code: Code, value: float) -> Any:
    """A measurement (TID 300): the probability of one class."""
    from highdicom import sr

    # Nine decimals: a DS has no room for more than 16 characters.
    measurement = sr.Measurement(standard.DCM.Probability, round(value, 9), standard.UCUM.NoUnits)
    modifier = sr.CodeContentItem(standard.DCM.Finding, code, sr.RelationshipTypeValues.HAS_CONCEPT_MOD)
    measurement[0].ContentSequence = sr.ContentSequence([modifier])
    return measurement


def _observer(model: ModelIdentity) -> Any:
    from highdicom import sr

    device = sr.DeviceObserverIdentifyingAttributes(
        uid=model.uid,
        name=model.name,
        manufacturer_name=MANUFACTURER,
        model_name=model.name,
        serial_number=model.digest,
    )
    return sr.ObservationContext(observer_device_context=sr.ObserverContext(standard.DCM.Device, device))
