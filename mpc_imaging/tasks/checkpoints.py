"""Checkpoints of training: each compute party's shares on disk, sealed, and all parties going on from them.

A checkpoint is bound to its session, party, plan, settings and step. Whoever resumes agrees with the others on the
latest step of one session that all hold, and splits its shares anew, so that no mask meets a value twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

import mpc_imaging
from mpc_imaging import strict_json
from mpc_imaging.errors import DataError, SessionError
from mpc_imaging.parties import sealed
from mpc_imaging.parties.session import PATIENT_S, Session
from mpc_imaging.settings import Settings, public_digests, to_mapping

log = logging.getLogger("mpc_imaging.party")

FOLDER = "checkpoints"
# Names of shares in a checkpoint, or how they begin.
WEIGHTS, OPTIMISER, BEST, LOSS = "weights.", "optimiser.", "best.", "loss"
MAX_LISTED = 1000
# What may be otherwise when training goes on: no share depends on it.
# Settings that may differ in a run that is resumed. Of privacy, the budget: going on after a crash takes more of it.
FREE = ("name", "checkpoint", "resume", "transport", "randomness", "preprocess", "privacy")
AGAIN = "give the run folder of the training run that was cut off, unchanged"


class Point(NamedTuple):
    """A place in training: the epoch and the batch of it that come next, from 0, and how many steps were taken."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Start:
    """Where a task begins, and what this party has of what was before.

    tensors: int64 shares by name, none at a party that does not compute. history: what this party saw of the epochs
    before. privacy: what the checkpoint says of the budget that is spent.
    """

    point: Point = Point()
    resumed: bool = False
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    history: Sequence[dict[str, Any]] = ()
    privacy: Any = None

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose names begin with ``prefix``, without it."""
        return {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}

    def blank(self) -> Start:
        """The same with zeros for shares: for a rehearsal."""
        return Start(self.point, self.resumed, {name: torch.zeros_like(x) for name, x in self.tensors.items()})


class Checkpoints:
    """One compute party's checkpoints of one session.

    ``counts``: images of each split that each owner announced; set before `save` and `resume`. ``plan``: the digest of
    the session's plan, if it has one; set before the first `save`.
    """

    counts: Mapping[str, Mapping[str, int]] | None = None
    plan: str | None = None

    def __init__(self, session: Session, folder: Path) -> None:
        """folder: the party's run folder. Raises `ConfigError` if there is no key."""
        self._session, self._folder = session, folder / FOLDER
        self._key = sealed.sealing_key(session.settings, folder, session.one_machine)
        self._written: list[Path] = []

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written when so many steps are done."""
        every = self._session.settings.checkpoint.every
        return every is not None and step % every == 0

    def save(
        self, point: Point, tensors: Mapping[str, torch.Tensor], history: Sequence[Any] = (), privacy: Any = None
    ) -> Path:
        """Write shares (int64, by name), durably, and remove old files of this session; the path of the new one.

        history: JSON of what this party saw, encrypted with them. privacy: JSON, public.
        Raises `DataError` for what cannot be written.
        """
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            problem = error.strerror or type(error).__name__
            raise DataError([f"no folder for checkpoints can be made in the run folder: {problem}"]) from None
        path = self._folder / f"step-{point.step:08d}.sealed"
        header = {"kind": "checkpoint", **self._header(), **point._asdict(), "plan": self.plan, "privacy": privacy}
        sealed.seal(path, tensors, header, self._key, list(history))
        self._written.append(path)
        # When this file is written, a peer may not have its own yet, but all have those before: none takes a step
        # without the others. So there are always two.
        keep = max(2, self._session.settings.checkpoint.keep)
        while len(self._written) > keep:
            with contextlib.suppress(OSError):  # an old file too many does no harm
                self._written.pop(0).unlink(missing_ok=True)
        return path

    def _header(self) -> dict[str, Any]:
        settings = self._session.settings
        digests = {name: text for name, text in public_digests(settings).items() if name not in FREE}
        private = to_mapping(settings.privacy) | {"epsilon": None}
        return {
            "session": self._session.mesh.session_id.hex(),
            "party": self._session.me,
            "parties": self._session.compute,
            "version": mpc_imaging.__version__,
            "settings": digests | {"privacy": _digest(private), "number of images": _digest(self.counts)},
            "fraction_bits": settings.protocol.fraction_bits,
        }

    def resume(self) -> Start | None:
        """The latest state that all compute parties hold, newly shared; None unless the settings say to resume.

        Raises `DataError` for files that are missing, damaged, not this party's or of other settings, `ConfigError`
        without their key, and `SessionError` if the compute parties hold nothing of the same run and step.
        """
        session = self._session
        if not session.settings.resume:
            return None
        folder = checkpoint_folder(session.settings, session.me)
        mine = self._usable(folder)
        path = mine[_latest(session, mine)]
        content = sealed.unseal(path, sealed.share_key(session.settings, folder.parent))
        self._check(path, content.header)
        point = _point(content.header, session.me)
        layout = {name: list(x.shape) for name, x in sorted(content.tensors.items())}
        same = {"point": list(point), "layout": _digest(layout), "privacy": _digest(content.header["privacy"])}
        for name, theirs in session.swap(same).items():
            if not strict_json.same(theirs, same):
                raise SessionError(f"the checkpoints of {name} and {session.me} do not belong together; {AGAIN}")
        tensors = {name: x + session.zero_share(x.shape) for name, x in sorted(content.tensors.items())}
        origin = hashlib.sha256(content.header["session"].encode()).hexdigest()
        session.ledger.write("resumed", session=session.mesh.session_id.hex(), origin=origin, step=point.step)
        log.info("goes on after step %d", point.step)
        return Start(point, True, tensors, content.notes, content.header["privacy"])

    def _usable(self, folder: Path) -> dict[tuple[str, int], Path]:
        """This party's checkpoints of the present settings, by (digest of session and plan, step)."""
        usable, problems = {}, []
        for path in sorted(folder.glob("step-*.sealed")):
            try:
                header = sealed.read_header(path)
                self._check(path, header)
            except DataError as error:
                problems += error.problems
            else:
                usable[_digest([header["session"], header.get("plan")]), header["step"]] = path
        if not usable:
            raise DataError(problems or [f"checkpoint.path: it has no checkpoint of {self._session.me}; {AGAIN}"])
        for problem in problems:
            log.warning("not used: %s", problem)
        return usable

    def _check(self, path: Path, header: Mapping[str, Any]) -> None:
        """Raise `DataError` if a file is not a checkpoint that this party can go on from."""
        mine, problems = self._header(), []
        if header["kind"] != "checkpoint" or path.name != f"step-{header['step']:08d}.sealed":
            raise DataError([f"{path.name} is not the checkpoint that its name says; {AGAIN}"])
        if header["party"] != mine["party"]:
            problems.append(f"{path.name} is a checkpoint of another party, not of {mine['party']}; each takes its own")
        if header.get("parties") != mine["parties"]:
            problems.append(f"{path.name} was made by other compute parties; resume with the same topology")
        if header.get("version") != mine["version"]:
            problems.append(f"{path.name} was made by another version; resume with that version of mpc_imaging")
        theirs = header.get("settings")
        if theirs != mine["settings"]:
            theirs = theirs if isinstance(theirs, dict) else {}
            different = [name for name, text in mine["settings"].items() if theirs.get(name) != text]
            what = f"{path.name} was made with other settings in: {', '.join(different) or 'sections of its own'}"
            problems.append(f"{what}; resume with the same")
        if problems:
            raise DataError(problems)


def starting_point(session: Session, checkpoints: Checkpoints | None, counts: Mapping[str, Mapping[str, int]]) -> Start:
    """Where the task begins; every party but the dealer calls this.

    checkpoints: None where nothing is computed. counts: images of each split that each owner announced. Parties that do
    not compute learn the point from the first compute party: they follow the same reveals.
    Raises as `Checkpoints.resume`.
    """
    if checkpoints is not None:
        checkpoints.counts = counts
    if not session.settings.resume:
        return Start()
    if checkpoints is None:
        leader = session.compute[0]
        return Start(_received(session.mesh.receive_json(leader, wait_s=PATIENT_S), leader, session.me), True)
    start = checkpoints.resume()
    if session.first:
        for name in session.mesh.peers:
            if name not in (*session.compute, session.settings.dealer()):
                session.mesh.send_json(name, list(start.point))
    return start


def checkpoint_folder(settings: Settings, party: str) -> Path:
    """Where a party's checkpoints lie: ``checkpoint.path`` is a run folder, parties in it, or a party's own there."""
    root = Path(settings.checkpoint.path).expanduser()
    places = (root / "parties" / party / FOLDER, root / party / FOLDER, root / FOLDER)
    return next((place for place in places if place.is_dir()), root)


def _latest(session: Session, mine: Mapping[tuple[str, int], Path]) -> tuple[str, int]:
    """The latest (origin, step) that all compute parties have."""
    listed = sorted(mine, key=lambda one: one[1])[-MAX_LISTED:]
    common = set(listed)
    for name, theirs in session.swap([list(one) for one in listed]).items():
        have = _entries(theirs, name, session.me)
        if not common & have:
            run = "steps" if {origin for origin, _ in common} & {origin for origin, _ in have} else "training runs"
            raise SessionError(f"{name} and {session.me} hold checkpoints of different {run}; give both the same run's")
        common &= have
    return max(common, key=lambda one: one[1])


def _entries(message: object, name: str, me: str) -> set[tuple[str, int]]:
    try:
        pairs = [strict_json.listed(pair, 2) for pair in strict_json.listed(message, MAX_LISTED)]
        return {(strict_json.digest(origin), strict_json.whole(step, 0, sealed.MAX_STEP)) for origin, step in pairs}
    except ValueError:
        raise SessionError(f"{name} sent {me} no list of checkpoints; update it or {me}") from None


def _point(header: Mapping[str, Any], me: str) -> Point:
    return _received([header.get(name) for name in Point._fields], me, me)


def _received(message: object, sender: str, me: str) -> Point:
    try:
        epoch, batch, step = (strict_json.whole(x, 0, sealed.MAX_STEP) for x in strict_json.listed(message, 3))
    except ValueError:
        raise SessionError(f"{sender} told {me} no place in training to go on from; update it or {me}") from None
    return Point(epoch, batch, step)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
