"""A folder of DICOM files as rows of a manifest: which files are images, whose, and in which split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from pydicom.multival import MultiValue

from mpc_imaging.data.dicom import directory_files, open_picture
from mpc_imaging.data.manifest import NAME
from mpc_imaging.data.refusals import ImageError, Reason
from mpc_imaging.data.rows import shuffle_key
from mpc_imaging.settings import SPLITS

_IDENTITY = ("PatientID", "PatientName", "StudyInstanceUID", "SOPInstanceUID")  # the last is the image's own
# Why an image gets no row, besides the reasons of `ImageError`.
LOST = "listed in a DICOMDIR, but there is no such file"
LOST_DIRECTORY = "a DICOMDIR that is damaged; the files beside it were looked at"
REPEATED = "the same object as in another file"
NOBODYS = "an image without a patient: neither PatientID, nor PatientName, nor StudyInstanceUID"
LINKED_FOLDER = "a link to a folder, which is not followed: its files are listed only where the folder itself is"
OUTSIDE = "a link to a file outside of the folder"
SEVERAL_PATIENTS = "a folder with slices of several patients: give each series one of its own"
UNNAMEABLE = "a name that no table can hold (not UTF-8, line breaks, or spaces at an end): rename it"


@dataclass(frozen=True)
class Found:
    """One image object. ``file``: relative to the folder; ``patient``: who it is of, as the header has it."""

    file: str
    patient: str = field(repr=False)
    values: Mapping[str, str] = field(repr=False)


@dataclass
class Contents:
    """The images of a folder, by name of the file, and how many files of it are left out for which reason."""

    images: list[Found] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def candidates(folder: Path) -> list[Path]:
    """All files below ``folder`` but its manifest, in order; and links to folders, so that none is passed by unsaid."""
    return sorted(
        path for path in folder.rglob("*") if (path.is_file() and path != folder / NAME) or _is_linked_folder(path)
    )


def _is_linked_folder(path: Path) -> bool:
    return path.is_symlink() and path.is_dir()


def inspect(folder: Path, files: Iterable[Path], keywords: Sequence[str]) -> Contents:
    """Open the ``files`` of ``folder``; of the images, keep whose they are and the elements ``keywords``, as text.

    Pixels are not decoded. Values that have several parts are joined by semicolons; what a file lacks is empty. Of a
    DICOMDIR it is told how many files it lists that are not there.
    """
    contents, root = Contents(), folder.resolve()
    seen: set[object] = set()
    lost: set[Path] = set()
    for path in files:
        if _is_linked_folder(path):
            contents.left_out[LINKED_FOLDER] += 1
            continue
        try:
            image, instance = _image(folder, path, keywords)
        except ImageError as error:
            if error.reason is Reason.directory:
                lost |= _lost(path, contents)
            else:
                contents.left_out[str(error)] += 1
            continue
        target = path.resolve()
        if not target.is_relative_to(root):
            contents.left_out[OUTSIDE] += 1
        elif not _nameable(image.file):
            contents.left_out[UNNAMEABLE] += 1
        elif target in seen or instance in seen:
            contents.left_out[REPEATED] += 1
        elif not image.patient:
            contents.left_out[NOBODYS] += 1
        else:
            contents.images.append(image)
            seen |= {target, instance} if instance else {target}
    contents.left_out += Counter({LOST: len(lost)})
    return contents


def series_folders(contents: Contents) -> None:
    """In place of the images in one folder, one that stands for the folder: a volume. Single files stay as they are.

    A folder with images of several patients is left out.
    """
    groups: dict[str, list[Found]] = defaultdict(list)
    for image in contents.images:
        groups[PurePosixPath(image.file).parent.as_posix()].append(image)
    contents.images = []
    for folder, images in groups.items():
        if len(images) == 1:
            contents.images += images
        elif len({image.patient for image in images}) > 1:
            contents.left_out[SEVERAL_PATIENTS] += len(images)
        else:
            contents.images.append(replace(images[0], file=folder))


def _lost(path: Path, contents: Contents) -> set[Path]:
    """The files that a DICOMDIR lists and that are not beside it, in whatever case their names are."""
    try:
        listed = directory_files(path)
    except ImageError:
        contents.left_out[LOST_DIRECTORY] += 1
        return set()
    here = {file.relative_to(path.parent).as_posix().casefold() for file in path.parent.rglob("*")}
    return {path.parent / name for name in listed if name.as_posix().casefold() not in here}


def _image(folder: Path, path: Path, keywords: Sequence[str]) -> tuple[Found, str]:
    """The image in a file, its patient named as by `deidentify`, and its SOPInstanceUID. Raises `ImageError`."""
    with open_picture(path, [*_IDENTITY, *keywords]) as picture:
        try:
            identity = {keyword: str(picture.header.get(keyword) or "").strip() for keyword in _IDENTITY}
            values = {keyword: _text(picture.header.get(keyword)) for keyword in keywords}
        except Exception:  # pydicom converts a value when it is asked for, and raises whatever its bytes provoke
            raise ImageError(Reason.damaged) from None
    *names, instance = identity.values()
    return Found(path.relative_to(folder).as_posix(), next(filter(None, names), ""), values), instance


def _text(value: object) -> str:
    if value is None:
        return ""
    return ";".join(" ".join(str(part).split()) for part in (value if isinstance(value, MultiValue) else [value]))


def _nameable(name: str) -> bool:
    return name == name.strip() and name.isprintable()


def split_by_patient(images: Sequence[Found], labels: Sequence[str], percent: Sequence[int], seed: int) -> list[str]:
    """Return the split of each image: ``percent`` of them in train, val and test, no patient in two of them.

    Patients come in random order, by ``seed``, those of one label after another; each goes where most images are
    lacking, so that the shares hold for all images and, nearly, for each label.
    """
    of_patient: dict[str, list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        of_patient[image.patient].append(index)

    def place(patient: str) -> tuple[str, bytes]:
        return min(labels[index] for index in of_patient[patient]), shuffle_key(seed, "split", patient)

    filled, done = dict.fromkeys(SPLITS, 0), 0
    splits = [""] * len(images)
    shares = dict(zip(SPLITS, percent, strict=True))
    for patient in sorted(of_patient, key=place):
        mine = of_patient[patient]
        done += len(mine)
        chosen = max((s for s in SPLITS if shares[s]), key=lambda s: shares[s] * done - 100 * filled[s])
        filled[chosen] += len(mine)
        for index in mine:
            splits[index] = chosen
    return splits
