"""The dealer and its clients: correlated randomness over the mesh. The dealer sees neither data, shares nor openings.

With a plan (`stream_plan`, `PlannedClient`) it works ahead of the parties and sends in the plan's order, as fast as
they take it. A session that may end early has a plan for each phase (`stream_phases`, `PhasedClient`). Without a plan
(`serve_requests`, `RequestingClient`) it answers the last compute party, which speaks for all.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence

from mpc_imaging import strict_json
from mpc_imaging.errors import RandomnessError, SessionError
from mpc_imaging.randomness import correlations, phases
from mpc_imaging.randomness.correlations import Dealt
from mpc_imaging.randomness.demands import Demand
from mpc_imaging.randomness.phases import Phases
from mpc_imaging.randomness.plan import Plan
from mpc_imaging.randomness.pool import DealingPool
from mpc_imaging.randomness.provider import DemandLog, PartyProvider, PlannedProvider
from mpc_imaging.randomness.streams import NumberedStreams
from mpc_imaging.transport.frames import Kind
from mpc_imaging.transport.mesh import Mesh

REQUEST_LIMIT = 1 << 20  # bytes; a request lists a few demands
PLAN_LIMIT = 1 << 26  # bytes; a plan lists each segment once


def stream_plan(mesh: Mesh, compute: Sequence[str], keys: Sequence[bytes], workers: int = 1) -> Plan:
    """Take the compute parties' plan, check that it is the same for all, and send what it lists; then wait for them.

    `keys[i]` is shared with compute party i alone. workers: see `DealingPool`. Raises `SessionError` if plans differ,
    `RandomnessError` for a plan that cannot be, `PeerLostError` if a party leaves before its end.
    """
    with DealingPool(workers) as pool:
        plan = _agreed_plan(mesh, compute, _request(mesh, compute))
        _deal(mesh, compute, pool, plan, keys, mesh.session_id)
    return plan


def stream_phases(
    mesh: Mesh, compute: Sequence[str], keys: Callable[[int], Sequence[bytes]], workers: int = 1
) -> list[Plan]:
    """`stream_plan` again and again, until the parties have no more phases; what they used, in order.

    ``keys(n)[i]`` is shared with compute party i alone, for phase n (from 0) alone.
    """
    used: list[Plan] = []
    with DealingPool(workers) as pool:
        while (request := _request(mesh, compute)) is not None:
            plan = _agreed_plan(mesh, compute, request)
            number = len(used)
            _deal(mesh, compute, pool, plan, keys(number), phases.key_id(mesh.session_id, number))
            used.append(plan)
    return used


def _deal(
    mesh: Mesh, compute: Sequence[str], pool: DealingPool, plan: Plan, keys: Sequence[bytes], key_id: bytes
) -> None:
    for messages in pool.deal(plan, keys, key_id):
        for party, message in zip(compute, messages, strict=True):
            if message:
                # The parties take it when they need it, which may be hours later.
                mesh.send(party, Kind.CORRECTION, message, wait_s=math.inf)
    # Fewer than planned where frames of a cine were dropped, but the same at all.
    used = {party: _demands(mesh.receive_json(party, wait_s=math.inf), party, plan.count) for party in compute}
    for party, count in used.items():
        if count != used[compute[0]]:
            raise SessionError(
                f"{party} used another part of its plan than {compute[0]}; run all parties from the same version"
            )


def _demands(message: object, party: str, most: int) -> int:
    try:
        return strict_json.whole(strict_json.entries(message, ["demands"])["demands"], 0, most)
    except strict_json.JsonError:
        raise SessionError(f"{party} did not say how much of its plan it used; run all from the same version") from None


def _request(mesh: Mesh, compute: Sequence[str]) -> object:
    payload = mesh.receive(compute[-1], Kind.REQUEST, limit=PLAN_LIMIT, wait_s=math.inf)
    return _json(payload, compute[-1], mesh.me)


def _agreed_plan(mesh: Mesh, compute: Sequence[str], request: object) -> Plan:
    plan = Plan.from_json(request)
    if plan.parties != len(compute):
        raise RandomnessError(f"{compute[-1]} sent {mesh.me} a plan for {plan.parties} compute parties")
    for party in compute:
        if not strict_json.same(mesh.receive_json(party, wait_s=math.inf), {"plan": plan.digest}):
            raise SessionError(f"{party} and {compute[-1]} made different plans; run all from the same version")
    for party in compute:
        mesh.send_json(party, {"plan": plan.digest})
    return plan


class PlannedClient(PlannedProvider):
    """Takes what the dealer sends by the plan, on which all must agree first; else raises `SessionError`."""

    def __init__(self, mesh: Mesh, dealer: str, key: bytes, rank: int, plan: Plan, key_id: bytes | None = None) -> None:
        super().__init__(key, rank, plan, mesh.session_id if key_id is None else key_id, self._receive)
        self._mesh, self._dealer = mesh, dealer
        if rank == plan.parties - 1:
            mesh.send(dealer, Kind.REQUEST, json.dumps(plan.to_json()).encode())
        mesh.send_json(dealer, {"plan": plan.digest})
        if not strict_json.same(mesh.receive_json(dealer, wait_s=math.inf), {"plan": plan.digest}):
            raise SessionError(f"{dealer} deals by another plan than {mesh.me}; run all from the same version")

    def _receive(self, size: int) -> bytearray:
        return self._mesh.receive(self._dealer, Kind.CORRECTION, size, wait_s=math.inf)

    def finish(self) -> None:
        """Check that the plan is used up, and tell the dealer so."""
        super().finish()
        self._mesh.send_json(self._dealer, {"demands": self.log.count})


class PhasedClient:
    """A `Provider` that takes what the dealer sends phase after phase, by the plan of each.

    ``key(n)`` is shared with the dealer for phase n alone. limit: bytes that are taken ahead when a phase begins, as
    `PlannedProvider.prefetch` has it. Raises as `PlannedClient`.
    """

    def __init__(
        self, mesh: Mesh, dealer: str, key: Callable[[int], bytes], rank: int, plans: Phases, limit: int
    ) -> None:
        self.rank, self.parties = rank, plans.parties
        self._mesh, self._dealer, self._key, self._plans, self._limit = mesh, dealer, key, plans.plans, limit
        self._number, self._waited_before = 0, 0.0
        self._current = self._begin(plans.plans[0])

    @property
    def waited_s(self) -> float:
        """Seconds that this party waited for the dealer."""
        return self._waited_before + self._current.waited_s

    def get(self, demand: Demand) -> Dealt:
        """See `Provider`."""
        return self._current.get(demand)

    def next(self, end: bool) -> None:
        """End a phase, all of whose plan must be used, and begin the next; with ``end`` the last."""
        self._current.finish()
        self._waited_before += self._current.waited_s
        self._number += 1
        place = len(self._plans) - 1 if end else self._number
        if not end and place >= len(self._plans) - 1:
            raise RandomnessError(f"phase {self._number} of the session is not planned: only its end is left")
        self._current = self._begin(self._plans[place])

    def _begin(self, plan: Plan) -> PlannedClient:
        number = self._number
        key_id = phases.key_id(self._mesh.session_id, number)
        client = PlannedClient(self._mesh, self._dealer, self._key(number), self.rank, plan, key_id)
        client.prefetch(self._limit)
        return client

    def finish(self) -> None:
        """Check that the last plan is used up, and tell the dealer that there are no more."""
        self._current.finish()
        if self.rank == self.parties - 1:
            self._mesh.send(self._dealer, Kind.REQUEST, b"null")


def serve_requests(mesh: Mesh, compute: Sequence[str], keys: Sequence[bytes]) -> DemandLog:
    """Answer demands until the last of `compute` has no more; then check that all parties used the same.

    `keys[i]` is shared with compute party i alone. Returns the log of the demands served, after all parties were told
    that they agree. Raises `RandomnessError` for a request that is no demand, `SessionError` if the parties used
    different randomness, `PeerLostError` if one of them leaves before its end.
    """
    speaker = compute[-1]
    streams = [NumberedStreams(key) for key in keys]
    log = DemandLog()
    while True:
        payload = mesh.receive(speaker, Kind.REQUEST, limit=REQUEST_LIMIT, wait_s=math.inf)
        request = _json(payload, speaker, mesh.me)
        if request is None:
            break
        if not isinstance(request, list):
            raise RandomnessError(f"{speaker} sent {mesh.me} a request that is no list of demands")
        for demand in map(correlations.from_json, request):
            index = log.add(demand)
            if any(ref.index >= index for ref in demand.references()):
                raise RandomnessError(f"demand {index} of {speaker} refers to one that comes later")
            for party, message in zip(compute, correlations.deal(demand, index, streams, mesh.session_id), strict=True):
                if message:
                    mesh.send(party, Kind.CORRECTION, message, wait_s=math.inf)
    for party in compute:
        if not strict_json.same(mesh.receive_json(party, wait_s=math.inf), log.summary()):
            raise SessionError(
                f"{party} used other randomness than {mesh.me} served; run all parties from the same version"
            )
    for party in compute:
        mesh.send_json(party, "same")
    return log


def _json(payload: bytearray, sender: str, me: str) -> object:
    try:
        return strict_json.loads(payload)
    except strict_json.JsonError as error:
        raise RandomnessError(f"{sender} sent {me} a request that cannot be read: {error}") from None


class RequestingClient(PartyProvider):
    """Takes correlated randomness at the moment of need. Only the last compute party asks the dealer, for all."""

    def __init__(self, mesh: Mesh, dealer: str, key: bytes, rank: int, parties: int) -> None:
        super().__init__(key, rank, parties, mesh.session_id)
        self._mesh, self._dealer = mesh, dealer
        self._asks = rank == parties - 1
        self._unasked: list[Demand] = []

    def _message(self, demand: Demand, index: int, size: int) -> bytearray:
        if self._asks:
            self._unasked.append(demand)
            # Masks alone need nothing from the dealer: they are named with the next demand that does.
            if demand.common_octets() or demand.derived():
                self._ask()
        if not size:
            return bytearray()
        start = time.perf_counter()
        message = self._mesh.receive(self._dealer, Kind.CORRECTION, size)
        self.waited_s += time.perf_counter() - start
        return message

    def _ask(self) -> None:
        request = json.dumps([correlations.to_json(demand) for demand in self._unasked]).encode()
        self._unasked.clear()
        self._mesh.send(self._dealer, Kind.REQUEST, request)

    def finish(self) -> None:
        """Tell the dealer that no more is needed, and wait until it has compared what all parties used.

        Raises `PeerLostError` with the dealer's cause if that was not the same.
        """
        if self._asks:
            if self._unasked:
                self._ask()
            self._mesh.send(self._dealer, Kind.REQUEST, b"null")
        self._mesh.send_json(self._dealer, self.log.summary())
        if self._mesh.receive_json(self._dealer, wait_s=math.inf) != "same":
            raise SessionError(f"{self._dealer} did not say that all used the same; run all from the same version")
