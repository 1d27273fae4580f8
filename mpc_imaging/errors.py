"""Typed errors. Every message is one line that says what is wrong, where, and what to write instead.

Messages are shown to users and written to the party's own log; peers get those that name no file or path, and a neutral
cause for the others (`parties.session.public_cause`). None ever carries patient data or share contents.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path


def unforeseen(error: BaseException) -> str:
    """Where an error arose that nobody foresaw, but not its message, which may quote data."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {type(error).__name__} at {Path(place.filename).name}:{place.lineno}"


class MPCImagingError(Exception):
    """Base of everything that the package raises on purpose."""

    exit_code = 1


class ProblemsError(MPCImagingError):
    """Several problems found in one pass; ``problems`` holds one line for each."""

    what = "problems"

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        heading = f"{len(self.problems)} {self.what}" if len(self.problems) != 1 else f"1 {self.what.rstrip('s')}"
        super().__init__(f"{heading}: " + "; ".join(self.problems))


class ConfigError(ProblemsError):
    """The configuration cannot be run."""

    what = "configuration problems"


class DataError(ProblemsError):
    """Files or manifests that cannot be used; every file is named with its reason."""

    what = "data problems"


class DuplicateError(DataError):
    """Images that another owner has too, where ``data.quality`` refuses a run with such images."""

    what = "cross-owner duplicates"


class ModelError(ProblemsError):
    """Layers that cannot run on shares, each with the reason and a substitute."""

    what = "model problems"


class PolicyError(MPCImagingError):
    """A reveal that the policy does not allow."""


class SessionError(MPCImagingError):
    """Parties that do not agree on what to run."""


class RandomnessError(MPCImagingError):
    """Correlated randomness that is missing, mismatched or already used."""


class RangeError(MPCImagingError):
    """A value left the range of fixed point; nothing that depends on it was revealed.

    ``public``: the same without the layers, which only those learn to whom the policy opens ``range_layer``.
    """

    def __init__(self, message: str, public: str) -> None:
        super().__init__(message)
        self.public = public


class PrivacyError(MPCImagingError):
    """A privacy budget that is spent, or noise that cannot be drawn."""


class EncodingError(MPCImagingError):
    """A value that the fixed-point encoding cannot hold."""


class TransportError(MPCImagingError):
    """A connection or a frame that cannot be trusted; names both parties and the step."""


class PeerLostError(TransportError):
    """A peer vanished, was silent for too long, or ended the session. Rarely the cause: see that peer's own message."""

    exit_code = 3
