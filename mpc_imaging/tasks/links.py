"""How much each link of a session will carry, and the TLS keys that are made ready for it before inputs are shared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mpc_imaging.parties.session import Session
from mpc_imaging.settings import Settings
from mpc_imaging.transport.renewal import spares
from mpc_imaging.transport.traffic import Counters, TrafficSnapshot

if TYPE_CHECKING:
    from mpc_imaging.randomness.plan import Tally

# Without a plan (randomness=on_demand) nobody knows: enough for 4 TB in each direction.
UNPLANNED_SPARES = 15
_WORD = 8  # bytes of a share of one value
# A header, and what `TlsSocket` counts for the few writes that one frame takes.
_FRAME_OCTETS = 2048


def carried(
    settings: Settings,
    me: str,
    counts: Mapping[str, Mapping[str, int]],
    image: int,
    weights: int,
    traffic: TrafficSnapshot,
    dealt: Tally,
) -> dict[str, int]:
    """Bytes, at most, in the busier direction of each link of compute party ``me``, by the name of its peer.

    counts: images of each owner and split. image: values of an image and its label together. weights: values of the
    model. traffic: what the task itself sends and receives. dealt: what the dealer sends to this party.
    """
    octets = {name: _busier(traffic.peer(name)) for name in settings.participants() if name != me}
    for owner, mine in counts.items():
        if owner != me:
            octets[owner] += sum(mine.values()) * (_WORD * image + _FRAME_OCTETS)
    if (model_owner := settings.model_owner()) in octets:
        octets[model_owner] += _WORD * weights
    if (dealer := settings.dealer()) in octets:
        octets[dealer] += dealt.octets + _FRAME_OCTETS * dealt.messages
    return octets


def make_ready(session: Session, octets: Mapping[str, int] | None) -> None:
    """Make TLS connections ready for what each link will carry; every party calls this, at the same place.

    octets: at compute parties, as `carried` says; None where there is no plan, and at other parties, who are told. Of
    two compute parties the first in the order of ranks says how many.
    Raises as `Mesh.prepare`.
    """
    if session.rank is None:
        session.mesh.prepare(dict.fromkeys(session.compute))
        return
    wanted: dict[str, int | None] = {}
    for peer in session.mesh.peers:
        told = peer in session.compute and session.compute.index(peer) < session.rank
        planned = UNPLANNED_SPARES if octets is None else spares(octets[peer])
        wanted[peer] = None if told else planned
    session.mesh.prepare(wanted)


def _busier(counters: Counters) -> int:
    sent = counters.sent_bytes + _FRAME_OCTETS * counters.sent_frames
    received = counters.received_bytes + _FRAME_OCTETS * counters.received_frames
    return max(sent + sent // 128, received + received // 128)
