"""Exact duplicates across owners, by private set intersection: before anything is shared, where the policy opens it.

Each two owners compare digests of their decoded pixels, at the size and with the window that they were read with; the
other parties take no part. An owner learns which of its images the other has too, and in which of its splits: an image
that one trains on and the other tests on is a leak that neither can see alone.

All have announced their numbers of images before. An owner compares as many, and shares as many later: what it puts
into its set to find out whether the other has it, it must have announced as its own.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mpc_imaging import strict_json
from mpc_imaging.data.quality import ELSEWHERE, ELSEWHERE_LEAKS, Finding
from mpc_imaging.errors import DataError, DuplicateError, SessionError
from mpc_imaging.parties import policy
from mpc_imaging.parties.session import PATIENT_S, Session
from mpc_imaging.protocols.intersection import Pair, intersect
from mpc_imaging.settings import Quality
from mpc_imaging.tasks.inputs import MAX_IMAGES
from mpc_imaging.transport.frames import Kind

if TYPE_CHECKING:
    from mpc_imaging.data import Split

VALUE = "duplicates"

log = logging.getLogger("mpc_imaging.party")


def check(
    session: Session, own: Mapping[str, Split], announced: Mapping[str, Mapping[str, int]]
) -> list[dict[str, Any]]:
    """Called by every data owner, with its images: what it shares with each other owner, as findings of `data.quality`.

    announced: how many images each owner has of each split, copies among them, as `inputs.announce` returned them.
    Does nothing unless the policy lists ``duplicates``. With data.quality=off the owner takes part for the sake of the
    others, and looks at nothing. Pairs follow each other in the order of the topology, so that nobody waits in a ring.
    Raises `DuplicateError` if there are any and data.quality=refuse, at once after all pairs: no party has shared
    anything then, as all wait for all owners first (`inputs.confirm`). `IntersectionError`, `SessionError` for a peer
    that does not follow the protocol, or would compare more or fewer images than it announced.
    """
    settings, me = session.settings, session.me
    if not settings.finds_duplicates():
        return []
    for split, images in own.items():
        if bool(len(images)) != bool(images.contents):
            what = "cannot be compared with others'; take duplicates out of policy.reveal"
            raise DataError([f"images of {split} {what}"])
    found: list[Finding] = []
    for peer in settings.data_owners():
        if peer != me:
            found += _compare(session, peer, own, announced)
    leaks = [finding for finding in found if finding.count]
    if leaks and settings.data.quality is Quality.refuse:
        lines = [f"{me}, {finding.split}: {finding.count} {finding.kind}" for finding in leaks]
        lines[-1] += " (look at these images, named in the log, or write data.quality=report)"
        raise DuplicateError(lines)
    return [dataclasses.asdict(finding) for finding in found]


def _compare(
    session: Session, peer: str, own: Mapping[str, Split], announced: Mapping[str, Mapping[str, int]]
) -> list[Finding]:
    """What this owner and ``peer`` have in common; logged by pseudonyms, and counted in the ledger."""
    mine = {split: len(images.contents) for split, images in own.items()}
    session.mesh.send_json(peer, mine)
    theirs = _sizes(peer, session.me, list(own), session.mesh.receive_json(peer, wait_s=PATIENT_S))
    _as_announced(session, peer, theirs, announced[peer])
    total, others = sum(mine.values()), sum(theirs.values())
    # Rows of a value that this owner and the peer each get their own part of.
    rows = {session.me: slice(0, total), peer: slice(total, total + others)}
    policy.require(session.settings, VALUE, rows, rows, total + others)
    to = {party: [part.start, part.stop] for party, part in rows.items()}
    session.ledger.write("reveal", value=VALUE, shape=[total + others], to=to)
    began = time.monotonic()
    contents = {split: images.contents for split, images in own.items()}
    context = b"\0".join([session.mesh.session_id, *(name.encode() for name in sorted([session.me, peer]))])

    def swap(outgoing: bytes, size: int) -> bytes:
        return session.mesh.exchange(Kind.BLINDED, {peer: [outgoing]}, {peer: size})[peer]

    places = intersect(contents, theirs, Pair(session.me, peer, context, swap))
    took = time.monotonic() - began
    if session.settings.data.quality is Quality.off:
        log.info("took part in the search for images in common with %s (%.2f s)", peer, took)
        return []
    found = _findings(peer, places)
    session.ledger.write(VALUE, peer=peer, findings=[dataclasses.asdict(finding) for finding in found])
    _tell(peer, own, places)
    common = sum(bool(where) for ones in places.values() for where in ones)
    leaking = sum(bool(where - {split}) for split, ones in places.items() for where in ones)
    log.info("%d of %d images are also at %s, %d in another split (%.2f s)", common, total, peer, leaking, took)
    return found


def _sizes(peer: str, me: str, splits: Sequence[str], message: object) -> dict[str, int]:
    """The number of images of each split that a peer announced. An owner works for each, so there is a limit."""
    try:
        found = strict_json.entries(message, splits)
        return {split: strict_json.whole(found[split], 0, MAX_IMAGES) for split in splits}
    except strict_json.JsonError:
        what = f"{peer} announced to {me} no numbers of images of {', '.join(splits)} to compare"
        raise SessionError(what) from None


def _as_announced(session: Session, peer: str, theirs: Mapping[str, int], announced: Mapping[str, int]) -> None:
    """Whether a peer's sets are as large as all were told. Copies of train images are not compared."""
    for split, count in theirs.items():
        copies = session.settings.data.augment.copies if split == "train" else 1
        if count * copies != announced[split]:
            raise SessionError(
                f"{peer} would compare {count} images of {split} with {session.me}, and announced "
                f"{announced[split] // copies} to all: ask its operator"
            )


def _findings(peer: str, places: Mapping[str, Sequence[frozenset[str]]]) -> list[Finding]:
    """How many images of each split the peer has in the same split, and in each other; a zero if it has none."""
    counts = Counter((split, other) for split, ones in places.items() for where in ones for other in where)
    found = []
    for split in places:
        for other in places:
            same = split == other
            kind, where = (ELSEWHERE, split) if same else (ELSEWHERE_LEAKS, f"{split}/{other}")
            if counts[split, other]:
                found.append(Finding(kind.format(owner=peer), where, counts[split, other]))
    return found or [Finding(ELSEWHERE.format(owner=peer), "all", 0)]


def _tell(peer: str, own: Mapping[str, Split], places: Mapping[str, Sequence[frozenset[str]]]) -> None:
    for split, ones in places.items():
        # Copies come after the images that they were made of.
        for name, where in zip(own[split].ids, ones, strict=False):
            if where:
                log.info("%s of %s is also at %s, there in %s", name, split, peer, ", ".join(sorted(where)))
