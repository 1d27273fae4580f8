"""The one place where a real value is opened: it asks the policy, writes the ledger, and only then moves shares."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mpc_imaging.parties import policy
from mpc_imaging.parties.session import PATIENT_S, Session
from mpc_imaging.transport.frames import Kind


def reveal(
    session: Session,
    value: str,
    share: torch.Tensor | None,
    shape: torch.Size,
    spans: Mapping[str, slice] | None = None,
) -> torch.Tensor | None:
    """Open `value` to those whom the policy names; every party of the session calls this in the same order.

    share: this compute party's int64 share of `shape`; None at other parties.
    spans: rows of each image owner, for values with a row for each image.
    Returns the rows that this party may see (int64 fixed point), or None. Opens nothing if the policy names nobody.
    """
    total = shape[0] if shape else 1
    spans = spans or {}
    rows = policy.allowed_rows(session.settings, value, spans, total)
    if not rows:
        return None
    return _open(session, value, share, shape, rows, spans)


def _open(session, value, share, shape, rows, spans) -> torch.Tensor | None:
    total = shape[0] if shape else 1
    policy.require(session.settings, value, rows, spans, total)
    mine = rows.get(session.me)
    if session.rank is None and mine is None:
        return None
    session.ledger.write(
        "reveal",
        value=value,
        shape=list(shape),
        to={party: [part.start, part.stop] for party, part in rows.items()} if session.rank is not None else [session.me],
    )
    width = shape.numel() // total if total else 0

    def size(part: slice) -> int:
        return 8 * width * (part.stop - part.start)

    outgoing = {}
    flat = None
    if session.rank is not None:
        # A fresh sharing of zero: what a recipient gets is uniform but for its sum, whatever was computed before.
        flat = (share + session.zero_share(share.shape)).reshape(total, width)
        outgoing = {
            party: [memoryview(flat[part].contiguous().view(-1).numpy()).cast("B")]
            for party, part in rows.items()
            if party != session.me and size(part)
        }
    senders = [name for name in session.compute if name != session.me] if mine is not None and size(mine) else []
    if session.rank is None:
        # The compute parties may need hours before they get here.
        received = {name: session.mesh.receive(name, Kind.REVEAL, size(mine), wait_s=PATIENT_S) for name in senders}
    else:
        received = session.mesh.exchange(Kind.REVEAL, outgoing, {name: size(mine) for name in senders})
    if mine is None:
        return None
    count = mine.stop - mine.start
    result = flat[mine].clone() if flat is not None else torch.zeros(count, width, dtype=torch.int64)
    for payload in received.values():
        result += torch.frombuffer(payload, dtype=torch.int64).view(count, width)
    return result.view(torch.Size([count, *shape[1:]]) if shape else shape)
