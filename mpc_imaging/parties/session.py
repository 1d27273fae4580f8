"""A session: connected parties that agree on what they run, and the keys that each pair of them shares.

Every party links to every compute party, and owners that compare their images (``duplicates`` in the policy) to each
other; with stored randomness the dealer takes no part. The handshake compares the version of the package and a digest
of each public section of the settings, so that a mismatch is named before anything is shared, and agrees on a key with
each peer inside the TLS connection.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

import mpc_imaging
from mpc_imaging import strict_json
from mpc_imaging.errors import (
    EncodingError,
    PolicyError,
    PrivacyError,
    ProblemsError,
    RandomnessError,
    RangeError,
    SessionError,
    TransportError,
)
from mpc_imaging.parties.ledger import Ledger
from mpc_imaging.randomness.streams import KEY_BYTES, Stream, derive_key, fresh_key
from mpc_imaging.settings import Settings, public_digests, split_address
from mpc_imaging.transport.certificates import CertificateError, Credentials
from mpc_imaging.transport.frames import one_line
from mpc_imaging.transport.loopback import LoopbackMesh
from mpc_imaging.transport.mesh import Mesh

# Where a peer may rightly be silent for long (it reads images, trains in plaintext, or the others compute): wait as
# long as it lives.
PATIENT_S = math.inf

# What these say names parties, steps, shapes and settings only. Others may name a file, and a file a patient.
_FIT_FOR_PEERS = (EncodingError, PolicyError, PrivacyError, RandomnessError, SessionError, TransportError)


def public_cause(error: BaseException) -> str:
    """What peers, and the ledger, may know of the error that ended a party's session. Its log has the whole text."""
    if isinstance(error, RangeError):
        return error.public
    if isinstance(error, _FIT_FOR_PEERS) and not isinstance(error, CertificateError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "stopped by its operator"
    return f"{error.what if isinstance(error, ProblemsError) else type(error).__name__}; its own log says more"


class _NoLedger:
    def write(self, event: str, **details: Any) -> None:
        pass


class Session:
    """One party's side of a session.

    Use as a context manager: an error inside tells all peers its public cause and ends the session.

    Attributes: ``settings``, ``mesh``, ``ledger``, ``credentials`` (None in a rehearsal), ``me``, ``compute`` (the
    compute parties' names, by rank), ``rank`` (this party's place among them, or None), and ``one_machine``: whether
    the launcher runs all parties here.
    """

    def __init__(
        self,
        settings: Settings,
        mesh: Mesh,
        ledger: Ledger,
        keys: dict[str, bytes] | None = None,
        credentials: Credentials | None = None,
        one_machine: bool = False,
    ) -> None:
        self.one_machine = one_machine
        self.settings, self.mesh, self.ledger, self.credentials = settings, mesh, ledger, credentials
        self.me = mesh.me
        self.compute = settings.compute_parties()
        self.rank = self.compute.index(self.me) if self.me in self.compute else None
        self._keys = _handshake(settings, mesh) if keys is None else keys
        self._streams: dict[tuple[str, str], Stream] = {}
        ledger.write(
            "session",
            session=mesh.session_id.hex(),
            party=self.me,
            peers=list(mesh.peers),
            version=mpc_imaging.__version__,
            settings=public_digests(settings),
            policy=settings.policy.reveal,
        )

    @classmethod
    def open(
        cls,
        settings: Settings,
        me: str,
        folder: Path,
        certificates: Path,
        listener: socket.socket | None = None,
        one_machine: bool = False,
    ) -> Session:
        """Connect to all peers of ``me`` and shake hands.

        folder: gets the ledger. certificates: holds ca.crt, party.crt and party.key of ``me``. listener: where peers
        connect, if not at the address of ``me`` in the topology; closed in the end. one_machine: as said above.
        Raises `CertificateError` for a folder that cannot be used, `TransportError` for peers that are missing or not
        who they should be, `SessionError` for peers that run something else and for a ledger that was altered.
        """
        order, compute = settings.participants(), settings.compute_parties()
        credentials = Credentials(certificates)
        mesh = Mesh.connect(
            me=me,
            order=order,
            links=_links(settings, me),
            addresses={name: split_address(party.address) for name, party in settings.topology.parties.items()},
            credentials=credentials,
            listener=listener,
            connect_timeout_s=settings.transport.connect_timeout_s,
            timeout_s=settings.transport.timeout_s,
            leader=compute[0],
        )
        try:
            ledger = Ledger(folder / "ledger.jsonl")
            return cls(settings, mesh, ledger, credentials=credentials, one_machine=one_machine)
        except BaseException as error:
            mesh.abort(public_cause(error))
            raise

    @classmethod
    def rehearsal(cls, settings: Settings, mesh: LoopbackMesh) -> Session:
        """A session with nobody: nobody shook hands, keys are thrown away, and no ledger is kept."""
        return cls(settings, mesh, _NoLedger(), {name: fresh_key() for name in mesh.peers})

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session = self.mesh.session_id.hex()
        if error is None:
            try:
                self.ledger.write("end", session=session)
            except BaseException as failure:
                self.mesh.abort(public_cause(failure))
                raise
            self.mesh.close()
            return
        with contextlib.suppress(OSError):
            self.ledger.write("abort", session=session, cause=public_cause(error))
        self.mesh.abort(public_cause(error))

    @property
    def first(self) -> bool:
        """Whether this is the first compute party."""
        return self.rank == 0

    @property
    def others(self) -> list[str]:
        """The other compute parties, by rank."""
        return [name for name in self.compute if name != self.me]

    def swap(self, mine: Any, wait_s: float | None = None) -> dict[str, Any]:
        """Tell every other compute party ``mine`` (JSON), and hear theirs, by name; ``wait_s`` as in `Mesh.receive`."""
        for name in self.others:
            self.mesh.send_json(name, mine)
        return {name: self.mesh.receive_json(name, wait_s=wait_s) for name in self.others}

    def key(self, peer: str, purpose: str) -> bytes:
        """The key that this party and ``peer`` share for one purpose, in this session."""
        return derive_key(self._keys[peer], self.mesh.session_id, purpose)

    def stream(self, peer: str, purpose: str) -> Stream:
        """The keystream that this party and ``peer`` share for one purpose; both must draw in the same order."""
        if (peer, purpose) not in self._streams:
            self._streams[peer, purpose] = Stream(self.key(peer, purpose))
        return self._streams[peer, purpose]

    def agree_on_plan(self, digest: str | None) -> None:
        """Wait until all compute parties have made their plan, and check that it is the same.

        digest: this compute party's; None at other parties, which so do not share anything too early.
        Raises `SessionError` if plans differ.
        """
        if self.rank is not None:
            for name in self.mesh.peers:
                if name != self.settings.dealer():
                    self.mesh.send_json(name, {"plan": digest})
        for name in self.compute:
            if name == self.me:
                continue
            theirs = _plan_digest(self.mesh.receive_json(name, wait_s=PATIENT_S), name, self.me)
            if self.rank is not None and theirs != digest:
                raise SessionError(f"{name} and {self.me} made different plans; run both from the same version")

    def zero_share(self, shape: torch.Size) -> torch.Tensor:
        """This compute party's part of a fresh random sharing of zero: int64 of ``shape``."""
        share = torch.zeros(shape, dtype=torch.int64)
        for rank, name in enumerate(self.compute):
            if name != self.me:
                part = self.stream(name, "zero").ring(shape)
                share += part if self.rank < rank else -part
        return share


def _links(settings: Settings, me: str) -> list[str]:
    """The parties that ``me`` talks to."""
    order, compute, owners = settings.participants(), settings.compute_parties(), settings.data_owners()
    linked = order if me in compute else compute
    if settings.finds_duplicates() and me in owners:
        linked = [*linked, *owners]
    return [name for name in order if name in linked and name != me]


def _plan_digest(message: object, name: str, me: str) -> str | None:
    """The digest of a plan that a compute party announced, None if it has no plan."""
    try:
        digest = strict_json.entries(message, ["plan"])["plan"]
        return None if digest is None else strict_json.digest(digest)
    except strict_json.JsonError as error:
        raise SessionError(f"{name} told {me} no digest of its plan ({error}); update it or {me}") from None


def _handshake(settings: Settings, mesh: Mesh) -> dict[str, bytes]:
    """Compare version and settings with every peer; the key shared with each."""
    mine = {name: secrets.token_bytes(KEY_BYTES) for name in mesh.peers}
    digests = public_digests(settings)
    for name in mesh.peers:
        mesh.send_json(name, {"version": mpc_imaging.__version__, "settings": digests, "nonce": mine[name].hex()})
    keys = {}
    for name in mesh.peers:
        hello = mesh.receive_json(name)
        try:
            # Of another version, nothing else needs to be as it is here.
            version = strict_json.mapping(hello)["version"]
            if not isinstance(version, str):
                raise strict_json.JsonError("no version")
            if version == mpc_imaging.__version__:
                strict_json.entries(hello, ["version", "settings", "nonce"])
                theirs = {key: strict_json.text(value) for key, value in strict_json.mapping(hello["settings"]).items()}
                nonce = bytes.fromhex(strict_json.text(hello["nonce"]))
        except (KeyError, ValueError):
            raise SessionError(f"{name} does not speak this package's handshake; update it or {mesh.me}") from None
        if version != mpc_imaging.__version__:
            shown = one_line(version, 40)
            raise SessionError(f"{name} runs version {shown} and {mesh.me} {mpc_imaging.__version__}; install the same")
        # A peer's own words do not belong in our log: sections that only it has are not named.
        different = [key for key in digests if digests[key] != theirs.get(key)]
        if different or theirs.keys() - digests.keys():
            sections = ", ".join(sorted(different)) or f"sections that {mesh.me} does not have"
            raise SessionError(
                f"{name} and {mesh.me} run different settings in: {sections}; compare both with --cfg job"
            )
        if len(nonce) != KEY_BYTES:
            raise SessionError(f"{name} sent a nonce of {len(nonce)} bytes to {mesh.me}, not {KEY_BYTES}")
        first, second = sorted([(mesh.me, mine[name]), (name, nonce)])
        keys[name] = derive_key(first[1] + second[1], mesh.session_id, f"pair {first[0]} {second[0]}")
    return keys
