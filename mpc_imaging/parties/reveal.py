"""The one place where a real value is opened: it asks the policy, writes the ledger, and only then moves shares."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mpc_imaging.parties import policy
from mpc_imaging.parties.session import PATIENT_S, Session
from mpc_imaging.randomness.ring import from_octets, octets, size_of
from mpc_imaging.transport.frames import Kind


def reveal(
    session: Session,
    value: str,
    share: torch.Tensor | None,
    shape: torch.Size,
    spans: Mapping[str, slice] | None = None,
) -> torch.Tensor | None:
    """Open ``value`` to those whom the policy names; every party of the session calls this in the same order.

    share: this compute party's int64 share of ``shape``; None at other parties.
    spans: rows of each image owner, for values with a row for each image.
    Returns the rows that this party may see (int64 fixed point), or None. Opens nothing if the policy names nobody.
    Raises `PolicyError` for a value that no policy may name, before anything is written or sent, and `TransportError`
    if a compute party does not send its share.
    """
    total = shape[0] if shape else 1
    rows = policy.allowed_rows(session.settings, value, spans or {}, total)
    if not rows:
        return None
    return _open(session, value, share, shape, rows, spans or {})


def _open(
    session: Session,
    value: str,
    share: torch.Tensor | None,
    shape: torch.Size,
    rows: Mapping[str, slice],
    spans: Mapping[str, slice],
) -> torch.Tensor | None:
    """Open ``rows`` of a value, after the policy was asked once more for exactly these rows."""
    total = shape[0] if shape else 1
    policy.require(session.settings, value, rows, spans, total)
    mine = rows.get(session.me)
    if session.rank is None and mine is None:
        return None
    computes = session.rank is not None
    to = {party: [part.start, part.stop] for party, part in rows.items() if computes or party == session.me}
    session.ledger.write("reveal", value=value, shape=list(shape), to=to)
    width = shape.numel() // total if total else 0
    if computes:
        # A fresh sharing of zero: what a recipient gets is uniform but for its sum, whatever was computed before.
        share = (share + session.zero_share(share.shape)).reshape(total, width)
    received = _swap(session, share, rows, width)
    if mine is None:
        return None
    result = share[mine].clone() if computes else torch.zeros(mine.stop - mine.start, width, dtype=torch.int64)
    for part in received:
        result += part
    return result.view(mine.stop - mine.start, *shape[1:]) if shape else result.view(shape)


def _swap(session: Session, share: torch.Tensor | None, rows: Mapping[str, slice], width: int) -> list[torch.Tensor]:
    """Send every recipient its rows of this party's share; the other parties' shares of this party's own rows."""
    sizes = {party: (part.stop - part.start, width) for party, part in rows.items() if part.stop > part.start and width}
    mine = sizes.get(session.me)
    senders = session.others if mine else []
    if share is None:
        # The compute parties may need hours before they get here.
        received = [session.mesh.receive(name, Kind.REVEAL, size_of(mine), wait_s=PATIENT_S) for name in senders]
    else:
        outgoing = {party: [octets(share[rows[party]])] for party in sizes if party != session.me}
        incoming = {name: size_of(mine) for name in senders}
        received = list(session.mesh.exchange(Kind.REVEAL, outgoing, incoming).values())
    return [from_octets(payload, mine) for payload in received]
