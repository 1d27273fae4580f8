"""Inputs: an owner splits a value into shares for the compute parties.

The share of every compute party but one is drawn from a keystream that the owner and that party alone hold. The
remaining share, the value less all others, stays with the owner if it computes itself, else it is sent to the last
compute party. So no two compute parties hold a key that tells anything of an input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mpc_imaging.parties.session import PATIENT_S, Session
from mpc_imaging.randomness.ring import from_octets, octets, size_of
from mpc_imaging.transport.frames import Kind


def holder_of(session: Session, owner: str) -> str:
    """The compute party whose share of ``owner``'s inputs is not drawn from a keystream."""
    return owner if owner in session.compute else session.compute[-1]


def noted(session: Session, owner: str, name: str, shape: Sequence[int]) -> None:
    """Write into the ledger what ``owner`` shares: of ``shape``, or in parts of so much at most.

    Called by the owner and by those who compute.
    """
    session.ledger.write("input", value=name, owner=owner, shape=list(shape))


def share(session: Session, name: str | None, value: torch.Tensor) -> torch.Tensor | None:
    """Called by the owner of ``value`` (int64, fixed point, any shape): gives every compute party its share.

    Returns the owner's own share, int64 of the same shape, if it computes. ``name`` goes into the ledger, unless it is
    None: then the value is a part of what was `noted` before.
    Raises `TransportError` if the session ends meanwhile.
    """
    holder = holder_of(session, session.me)
    # In order of the shape, as at those who receive: a product of a view must find the same mask at all.
    rest = value.contiguous()
    for party in session.compute:
        if party != holder:
            rest = rest - session.stream(party, f"input {session.me}").ring(value.shape)
    if name is not None:
        noted(session, session.me, name, value.shape)
    if holder == session.me:
        return rest
    session.mesh.send(holder, Kind.SHARE, octets(rest), wait_s=PATIENT_S)
    return None


def receive(session: Session, owner: str, name: str | None, shape: Sequence[int]) -> torch.Tensor:
    """Called by a compute party that is not the owner: its share of ``owner``'s value, int64 of the public ``shape``.

    ``name``: as in `share`.
    Raises `TransportError` if the owner sends something else, or nothing within the timeout.
    """
    if name is not None:
        noted(session, owner, name, shape)
    if holder_of(session, owner) != session.me:
        return session.stream(owner, f"input {owner}").ring(shape)
    return from_octets(session.mesh.receive(owner, Kind.SHARE, size_of(shape)), shape)


def broadcast(
    session: Session, owner: str, name: str, value: torch.Tensor | None, shape: Sequence[int]
) -> torch.Tensor | None:
    """A value (int64, of ``shape``) that its owner declared public to the compute parties; every party calls this.

    Returns the value at each compute party, None elsewhere. Raises as `receive`.
    """
    computes = session.rank is not None
    if session.me == owner:
        session.ledger.write("public", value=name, owner=owner, shape=list(shape))
        for party in session.compute:
            if party != owner:
                session.mesh.send(party, Kind.SHARE, octets(value), wait_s=PATIENT_S)
        return value if computes else None
    if not computes:
        return None
    session.ledger.write("public", value=name, owner=owner, shape=list(shape))
    return from_octets(session.mesh.receive(owner, Kind.SHARE, size_of(shape)), shape)
