"""Inputs: an owner splits a value into shares for the compute parties.

The share of every compute party but one is drawn from a keystream that the owner and that party alone hold. The remaining share, the
value less all others, stays with the owner if it computes itself, else it is sent to the last compute party. So no two compute parties hold
a key that tells anything of an input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mpc_imaging.parties.session import Session
from mpc_imaging.transport.frames import Kind


def holder_of(session: Session, owner: str) -> str:
    """The compute party whose share of `owner`'s inputs is not drawn from a keystream."""
    return owner if owner in session.compute else session.compute[-1]


def share(session: Session, name: str, value: torch.Tensor) -> torch.Tensor | None:
    """Called by the owner of `value` (int64, fixed point): gives every compute party its share; returns the owner's, if it computes."""
    holder = holder_of(session, session.me)
    rest = value
    for party in session.compute:
        if party != holder:
            rest = rest - session.stream(party, f"input {session.me}").ring(value.shape)
    session.ledger.write("input", value=name, owner=session.me, shape=list(value.shape))
    if holder == session.me:
        return rest
    session.mesh.send(holder, Kind.SHARE, memoryview(rest.contiguous().view(-1).numpy()).cast("B"))
    return None


def receive(session: Session, owner: str, name: str, shape: Sequence[int]) -> torch.Tensor:
    """Called by a compute party that is not the owner: its share of `owner`'s value of public `shape`."""
    session.ledger.write("input", value=name, owner=owner, shape=list(shape))
    shape = torch.Size(shape)
    if holder_of(session, owner) != session.me:
        return session.stream(owner, f"input {owner}").ring(shape)
    payload = session.mesh.receive(owner, Kind.SHARE, 8 * shape.numel())
    return torch.frombuffer(payload, dtype=torch.int64).view(shape) if payload else torch.empty(shape, dtype=torch.int64)


def broadcast(session: Session, owner: str, name: str, value: torch.Tensor | None, shape: Sequence[int]) -> torch.Tensor | None:
    """A value that its owner declared public to the compute parties (int64), at each of them; None elsewhere."""
    shape = torch.Size(shape)
    if session.me == owner:
        session.ledger.write("public", value=name, owner=owner, shape=list(shape))
        for party in session.compute:
            if party != owner:
                session.mesh.send(party, Kind.SHARE, memoryview(value.contiguous().view(-1).numpy()).cast("B"))
        return value if session.rank is not None else None
    if session.rank is None:
        return None
    session.ledger.write("public", value=name, owner=owner, shape=list(shape))
    payload = session.mesh.receive(owner, Kind.SHARE, 8 * shape.numel())
    return torch.frombuffer(payload, dtype=torch.int64).view(shape)
