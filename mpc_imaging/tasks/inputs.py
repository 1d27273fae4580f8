"""Inputs of a session: what each owner announces and shares, and what the compute parties hold afterwards."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mpc_imaging import strict_json
from mpc_imaging.engine.encoding import encode
from mpc_imaging.errors import SessionError
from mpc_imaging.parties import sharing
from mpc_imaging.parties.session import PATIENT_S, Session
from mpc_imaging.tasks.features import label_shape, sample_shape

if TYPE_CHECKING:
    from mpc_imaging.data import Split

IDS_PER_MESSAGE = 4000
MAX_IMAGES = 10_000_000
MAX_DIMENSIONS = 4  # of one sample: slices, channels, rows, columns
# What a pseudonym may look like: it is written into a CSV file that people open in a spreadsheet.
PSEUDONYM = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass(frozen=True)
class Catalogue:
    """What is public about the images: how many each owner has of each split, and the shape of one."""

    counts: Mapping[str, Mapping[str, int]]
    image_shape: tuple[int, ...]

    @property
    def digest(self) -> str:
        """SHA-256 (hex), the same wherever the same is known."""
        text = json.dumps([list(self.image_shape), self.counts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def total(self, split: str) -> int:
        """Images of a split over all owners."""
        return sum(counts[split] for counts in self.counts.values())

    def spans(self, split: str) -> dict[str, slice]:
        """Rows of each owner in the joint order of a split."""
        spans, start = {}, 0
        for owner, counts in self.counts.items():
            spans[owner] = slice(start, start + counts[split])
            start += counts[split]
        return spans


def announce(
    session: Session, splits: Sequence[str], own: Mapping[str, Split] | None, backbone: str | None = None
) -> Catalogue:
    """Every party tells the first compute party that it is ready, an owner also its counts; that one tells everybody.

    own: this party's rows of each split, if it owns any. backbone: the digest of the network that made them. Returns
    when all are ready: before, some may have trained in plaintext for long.
    Raises `SessionError` for counts or shapes that cannot be, or that do not fit the settings, and for owners whose
    backbones differ.
    """
    mesh, leader = session.mesh, session.compute[0]
    mine: dict[str, Any] = {}
    if own is not None:
        mine = {"counts": {split: len(own[split]) for split in splits}, "shape": list(own[splits[0]].images.shape[1:])}
        mine |= {} if backbone is None else {"backbone": backbone}
    dealer = session.settings.dealer()
    if session.me != leader:
        mesh.send_json(leader, mine)
        return _checked(session, splits, mesh.receive_json(leader, wait_s=PATIENT_S), sender=leader)
    others = [peer for peer in mesh.peers if peer != dealer]
    table = {leader: mine} | {name: mesh.receive_json(name, wait_s=PATIENT_S) for name in others}
    owners = session.settings.data_owners()
    for name in others:
        if name not in owners and table[name] != {}:
            raise SessionError(f"{name} sent {session.me} numbers of images, and owns none")
    catalogue = _checked(session, splits, {owner: table[owner] for owner in owners})
    _check_backbones(session, table)
    # What was understood, not what was received: nobody can pass anything on through the first compute party.
    shape = list(catalogue.image_shape)
    clean = {owner: {"counts": counts, "shape": shape} for owner, counts in catalogue.counts.items()}
    for name in others:
        mesh.send_json(name, clean)
    return catalogue


def confirm(session: Session, catalogue: Catalogue) -> None:
    """Wait until every party but the dealer has come here, and check that all were told the same numbers of images.

    Raises `SessionError` where they were not.
    """
    mesh, dealer = session.mesh, session.settings.dealer()
    mine = {"told": catalogue.digest}
    outside = [name for name in mesh.peers if name not in session.compute and name != dealer]
    if session.rank is None:
        for name in session.compute:
            mesh.send_json(name, mine)
    else:
        for name in outside:
            _same(session, name, mine)
        for name in session.others:
            mesh.send_json(name, mine)
    for name in session.compute:
        if name != session.me:
            _same(session, name, mine)
    if session.rank is not None:
        for name in outside:
            mesh.send_json(name, mine)


def _same(session: Session, peer: str, mine: Mapping[str, str]) -> None:
    if session.mesh.receive_json(peer, wait_s=PATIENT_S) != mine:
        leader = session.compute[0]
        raise SessionError(
            f"{peer} was told other numbers of images than {session.me}: {leader} passed them on; ask its operator"
        )


def _check_backbones(session: Session, table: Mapping[str, Mapping[str, object]]) -> None:
    """Whether the weights of all owners' backbones, in the messages of all, are the same."""
    first, *others = session.settings.data_owners()
    for owner in others:
        if table[owner].get("backbone") != table[first].get("backbone"):
            raise SessionError(
                f"the backbone of {owner} has other weights than that of {first}; "
                "give all data owners the same file in model.backbone.path"
            )


def announce_ids(
    session: Session, catalogue: Catalogue, split: str, own: Split | None, recipients: Collection[str]
) -> dict[str, list[str]]:
    """Pseudonyms of all images of a split, by owner, for ``recipients``, who see outputs of images not their own.

    Raises `SessionError` for pseudonyms that are too many, too few, ill-formed or not unique.
    """
    leader = session.compute[0]
    if not recipients or session.me not in (leader, *catalogue.counts, *recipients):
        return {}
    ids: dict[str, list[str]] = {}
    for owner, counts in catalogue.counts.items():
        ids[owner] = []
        # A control message holds 1 MiB.
        for start in range(0, counts[split], IDS_PER_MESSAGE):
            part = own.ids[start : start + IDS_PER_MESSAGE] if owner == session.me else None
            ids[owner] += _pass_on(session, part, owner, leader, recipients) or []
    if session.me in (leader, *recipients):
        _check_ids(catalogue, split, ids)
    return ids


def _check_ids(catalogue: Catalogue, split: str, ids: Mapping[str, list[str]]) -> None:
    seen: set[str] = set()
    for owner, names in ids.items():
        if not all(map(PSEUDONYM.fullmatch, names)):
            raise SessionError(f"{owner} named images of {split} by something else than pseudonyms")
        before = len(seen)
        seen.update(names)
        if not len(names) == catalogue.counts[owner][split] == len(seen) - before:
            raise SessionError(f"{owner} announced {catalogue.counts[owner][split]} images of {split} but named others")


def _pass_on(
    session: Session, part: list[str] | None, owner: str, leader: str, recipients: Collection[str]
) -> list[str] | None:
    """One message from an owner through the leader to the recipients; at these three the pseudonyms in it."""
    if session.me == leader:
        part = _strings(owner, session.mesh.receive_json(owner, wait_s=PATIENT_S)) if part is None else part
        for peer in recipients:
            if peer not in (leader, owner):
                session.mesh.send_json(peer, part)
    elif session.me == owner:
        session.mesh.send_json(leader, part)
    elif session.me in recipients:
        part = _strings(leader, session.mesh.receive_json(leader, wait_s=PATIENT_S))
    return part


def _strings(sender: str, message: object) -> list[str]:
    try:
        return [strict_json.text(name) for name in strict_json.listed(message, IDS_PER_MESSAGE)]
    except strict_json.JsonError:
        raise SessionError(f"{sender} sent something else than a list of pseudonyms") from None


def _checked(session: Session, splits: Sequence[str], table: object, sender: str | None = None) -> Catalogue:
    """The catalogue in a message of ``sender``; None: put together here from the messages of all."""
    owners = session.settings.data_owners()
    read, whose = {}, f"{sender} sent"
    try:
        parts = strict_json.entries(table, owners)
        for owner in owners:
            whose = f"{sender or owner} sent"
            read[owner] = _announced(parts[owner], splits, backbones=sender is None)
    except strict_json.JsonError:
        raise SessionError(f"{whose} {session.me} no numbers of images as they should be") from None
    counts = {owner: found for owner, (found, _) in read.items()}
    shapes = {owner: shape for owner, (_, shape) in read.items()}
    if set(shapes.values()) != {sample_shape(session.settings)}:
        raise SessionError(
            "image shapes differ from data.slices, data.channels and data.image_size: "
            + ", ".join(f"{owner} has {'x'.join(map(str, shape))}" for owner, shape in shapes.items())
            + "; set these keys alike"
        )
    empty = [split for split in splits if not sum(counts[owner][split] for owner in owners)]
    if empty:
        raise SessionError(f"no owner has an image of {', '.join(empty)}; add some, or choose another task.split")
    return Catalogue(counts, shapes[owners[0]])


def _announced(part: object, splits: Sequence[str], backbones: bool) -> tuple[dict[str, int], tuple[int, ...]]:
    """The counts and the shape that an owner announced. A party takes memory for them, so they have a limit.

    backbones: whether the digest of one may be there too. Raises `JsonError`.
    """
    found = strict_json.entries(part, ["counts", "shape"], ["backbone"] if backbones else [])
    if "backbone" in found:
        strict_json.digest(found["backbone"])
    counts = strict_json.entries(found["counts"], splits)
    shape = tuple(strict_json.whole(size, 0, MAX_IMAGES) for size in strict_json.listed(found["shape"], MAX_DIMENSIONS))
    return {split: strict_json.whole(counts[split], 0, MAX_IMAGES) for split in splits}, shape


def share_images(
    session: Session, catalogue: Catalogue, split: str, own: Split | None, with_labels: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """All owners share a split; ``own`` holds this party's rows, if it owns any.

    At a compute party: shares (int64, fixed point) of the images (N, C, H, W), volumes (N, S, C, H, W) or features
    (N, F), and of the labels (N, K), one-hot or several ones in a row, or masks (N, H, W), in joint order; the labels
    None unless asked for. Elsewhere (None, None).
    Raises `EncodingError` for pixels that fixed point cannot hold, `TransportError` if the session ends meanwhile.
    """
    bits = session.settings.protocol.fraction_bits
    images, labels, shape = [], [], label_shape(session.settings)
    for owner, counts in catalogue.counts.items():
        count = counts[split]
        if not count:
            continue
        if owner == session.me:
            values = [(f"images {split}", encode(own.images, bits), images)]
            if with_labels:
                rows = own.labels if own.labels.dim() > 1 else torch.nn.functional.one_hot(own.labels, *shape)
                values.append((f"labels {split}", rows << bits, labels))
            for name, value, parts in values:
                parts.append(sharing.share(session, name, value))
        elif session.rank is not None:
            images.append(sharing.receive(session, owner, f"images {split}", (count, *catalogue.image_shape)))
            if with_labels:
                labels.append(sharing.receive(session, owner, f"labels {split}", (count, *shape)))
    if session.rank is None:
        return None, None
    return torch.cat(images), torch.cat(labels) if with_labels else None
