"""What all result objects have in common: the model that they name, coded classes, their series, and private files.

highdicom is imported where an object is built: it is heavy, and most runs write none.
"""

from __future__ import annotations

import hashlib
import logging
import re
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

from mpc_imaging.errors import ConfigError, DataError, MPCImagingError
from mpc_imaging.report.predictions import write_atomically
from mpc_imaging.report.result_source import Refusal, ResultError

SCHEME = "99MPCIMAGING"  # private: what no standard code fits
MANUFACTURER = "mpc_imaging"
SERIES_NUMBER = 9000  # above those of scanners
_LONG_STRING = 64
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")

# highdicom's warnings quote names, and a log must not: neither the party's nor Python's last resort, stderr.
logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)
logging.getLogger("highdicom").propagate = False


@dataclass(frozen=True)
class ModelIdentity:
    """What a result says of the model: its name, its version, and a digest (SHA-256 in hex) that tells it from others.

    Raises:
        ConfigError: one of them is empty or no DICOM text (64 characters without a backslash).
    """

    name: str
    digest: str
    version: str

    def __post_init__(self) -> None:
        problems = [
            f"the model's {field} for results must be 1 to {_LONG_STRING} printable characters without a backslash"
            for field in ("name", "digest", "version")
            if not is_long_string(getattr(self, field))
        ]
        if problems:
            raise ConfigError(problems)

    @property
    def uid(self) -> str:
        """The same for every result of the same model."""
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, repr((self.name, self.digest, self.version))).int}"


@dataclass(frozen=True)
class Place:
    """Where a new object goes: its series and its number therein."""

    series: str
    number: int = 1

    @classmethod
    def new(cls) -> Place:
        """The first object of a series of its own."""
        return cls(generate_uid(prefix=None))


class Places:
    """A series of results for each study."""

    def __init__(self) -> None:
        self._last: dict[str, Place] = {}

    def next(self, source: Dataset) -> Place:
        """The place of the next result on the study of ``source``."""
        last = self._last.get(source.StudyInstanceUID)
        place = Place.new() if last is None else Place(last.series, last.number + 1)
        self._last[source.StudyInstanceUID] = place
        return place


def check_installed() -> None:
    """Refuse to begin what only highdicom can build. Raises `ConfigError`."""
    if find_spec("highdicom") is None:
        raise ConfigError(["DICOM results need highdicom: pip install 'mpc-imaging[dicom-results]'"])


def is_long_string(text: str) -> bool:
    """Whether ``text`` is a DICOM LO that is not empty (PS3.5 6.2)."""
    return 0 < len(text) <= _LONG_STRING and text.isprintable() and "\\" not in text and text.strip() == text


def class_code(name: str, codes: Mapping[str, Code] | None = None) -> Code:
    """The code of a class: the standard one that ``codes`` has for it, else a private one made of its name.

    Raises:
        ConfigError: a name that no code can mean.
    """
    if codes and name in codes:
        return codes[name]
    return private_code(name)


def private_code(meaning: str) -> Code:
    """A code of our own scheme; the same meaning has the same one everywhere.

    Raises:
        ConfigError: a meaning that is no DICOM text.
    """
    if not is_long_string(meaning):
        raise ConfigError(
            [
                f"a class is called {meaning[:80]!r}: a DICOM code needs 1 to {_LONG_STRING} printable characters "
                "without a backslash or spaces around them; rename it in data.class_names"
            ]
        )
    return Code(hashlib.sha256(meaning.encode()).hexdigest()[:12].upper(), SCHEME, meaning)


@contextmanager
def building() -> Iterator[None]:
    """Turn whatever highdicom and pydicom raise on a source that lacks something into a reason.

    Their errors and warnings may quote the header: both are dropped.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (MPCImagingError, OSError):
            raise
        except Exception:
            raise ResultError(Refusal.header) from None


def common(model: ModelIdentity, place: Place, description: str) -> dict[str, Any]:
    """Arguments that highdicom takes for every kind of object. ``description``: of the series, cut to its length."""
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    return {
        "series_instance_uid": place.series,
        "series_number": SERIES_NUMBER,
        "series_description": description[:_LONG_STRING].strip(),
        "sop_instance_uid": generate_uid(prefix=None),
        "instance_number": place.number,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": model.name,
        "software_versions": (f"mpc_imaging {_package_version()}", model.version),
        "device_serial_number": model.digest,
        "coding_schemes": [CodingSchemeIdentificationItem(SCHEME, name="mpc_imaging: classes and private concepts")],
    }


def stand_ins(sources: Sequence[Dataset]) -> list[Dataset]:
    """Copies that highdicom takes for plain images of one frame: it knows no retired kinds, and asks others for more.

    `refer` then writes the true kinds into what was built.
    """
    copies = []
    for source in sources:
        copy = Dataset()
        for element in source:
            if element.keyword not in ("SOPClassUID", "NumberOfFrames"):  # elements are shared: set anew, not changed
                copy.add(element)
        copy.SOPClassUID, copy.NumberOfFrames = SecondaryCaptureImageStorage, 1
        copies.append(copy)
    return copies


def refer(built: Dataset, sources: Sequence[Dataset]) -> None:
    """Let all references of ``built`` to ``sources`` name their true kinds."""
    kinds = {source.SOPInstanceUID: source.SOPClassUID for source in sources}

    def correct(item: Dataset, element: Any) -> None:
        if element.keyword == "ReferencedSOPInstanceUID" and element.value in kinds:
            item.ReferencedSOPClassUID = kinds[element.value]

    built.walk(correct)


def save(built: Dataset, folder: Path, name: str) -> Path:
    """Write an object as ``<name>.dcm``, whole or not at all, for this user's eyes alone.

    Raises:
        DataError: ``name`` is no plain file name.
    """
    check_name(name)
    with building():
        content = BytesIO()
        built.save_as(content, enforce_file_format=True)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{name}.dcm"
    write_atomically(path, content.getvalue(), mode=0o600)
    return path


def check_name(name: str) -> None:
    """Refuse a pseudonym that is no plain file name, as one with a path would be. Raises `DataError`."""
    if not _FILE_NAME.fullmatch(name):
        raise DataError(["a result's name must be a pseudonym: 1 to 100 of the letters A to Z, digits and . _ -"])


def _package_version() -> str:
    try:
        return version("mpc-imaging")
    except PackageNotFoundError:
        return "(not installed)"
