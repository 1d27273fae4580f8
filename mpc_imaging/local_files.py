"""The files and folders that settings name on this machine, looked at before a process starts or a peer is met."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from mpc_imaging.choices import DataKind, Role, WeightsSource
from mpc_imaging.errors import ConfigError
from mpc_imaging.reading import Problem
from mpc_imaging.settings import Settings

KEY_BYTES = 32
MAKE_KEY = f"write (umask 077; openssl rand -out FILE {KEY_BYTES})"
MANIFEST, DRAFT = "manifest.csv", "python -m mpc_imaging.manifest"


def find_problems(settings: Settings, party: str | None = None) -> list[Problem]:
    """What cannot be used of the files that ``party`` reads; None: one machine runs all parties.

    Whether a manifest or a file of weights can be read is not asked here, only whether it is there.
    """
    problems = []
    for key, path in _paths(settings, party):
        place = Path(path).expanduser()
        if not place.exists():
            what = f"there is no {path}; write a path that exists, from {Path.cwd()} or absolute"
            problems.append(Problem(key, what))
        elif key.startswith("data.path"):
            problems += _data_problems(settings, key, place)
        elif key.endswith("key_file"):
            try:
                read_key(place, key, private=key != "data.pseudonym_key_file")
            except ConfigError as error:
                problems += [Problem(key, text.removeprefix(f"{key}: ")) for text in error.problems]
    return problems


def read_key(path: Path, name: str, private: bool = True) -> bytes:
    """The 32 bytes of a key in a file, which ``name`` stands for in messages.

    Raises `ConfigError` if it cannot be read, holds something else, or is ``private``, but not for its owner alone.
    """
    try:
        with path.open("rb") as file:
            mode, key = os.fstat(file.fileno()).st_mode, file.read(KEY_BYTES + 1)
    except OSError as error:
        what = error.strerror or type(error).__name__
        raise ConfigError([f"{name}: the key cannot be read: {what}; {MAKE_KEY}"]) from None
    if private and stat.S_IMODE(mode) & 0o077:
        raise ConfigError([f"{name}: others than its owner may use this key; write chmod 600 FILE"])
    if len(key) != KEY_BYTES:
        raise ConfigError([f"{name}: the file does not hold {KEY_BYTES} bytes; {MAKE_KEY}"])
    return key


def _paths(settings: Settings, party: str | None) -> Iterator[tuple[str, str]]:
    """Keys and paths that ``party`` reads, as far as they are given."""
    data, weights = settings.data, settings.model.weights

    def is_one_of(names: list[str]) -> bool:
        return party is None or party in names

    owners, compute = settings.data_owners(), settings.compute_parties()
    vendors = settings.parties_with(Role.model_owner)
    readers = owners + (vendors if weights.source is WeightsSource.pretrain else [])
    paths = {
        "data.path": (data.path, is_one_of([name for name in readers if name not in data.paths])),
        "data.pseudonym_key_file": (data.pseudonym_key_file, is_one_of(readers)),
        "model.weights.path": (weights.path, is_one_of(compute if weights.source is WeightsSource.shares else vendors)),
        "model.backbone.path": (settings.model.backbone.path, is_one_of(readers)),
        "checkpoint.path": (settings.checkpoint.path, is_one_of(compute)),
        "checkpoint.key_file": (settings.checkpoint.key_file, is_one_of(compute)),
        "randomness.store": (settings.randomness.store, is_one_of(compute)),
        "randomness.witness": (settings.randomness.witness, True),
    }
    paths |= {f"data.paths.{name}": (path, party in (None, name)) for name, path in data.paths.items()}
    yield from ((key, path) for key, (path, wanted) in paths.items() if path and wanted)


def _data_problems(settings: Settings, key: str, place: Path) -> Iterator[Problem]:
    """Of a folder of DICOM files its manifest is to be there, or else an .npz file."""
    dicom = settings.data.kind is DataKind.dicom
    if not dicom and place.is_dir():
        yield Problem(key, f"{place} is a folder; write the .npz file in it, or data=dicom")
    elif dicom and not place.is_dir():
        yield Problem(key, f"{place} is a file; write the folder that {MANIFEST} lies in, or data=medmnist for .npz")
    elif dicom and not (place / MANIFEST).is_file():
        yield Problem(key, missing_manifest(place))


def missing_manifest(folder: Path) -> str:
    """What to say where a folder of DICOM files has no list of its images."""
    return f"there is no {MANIFEST} in {folder}; {DRAFT} {shlex.quote(str(folder))} drafts one"
