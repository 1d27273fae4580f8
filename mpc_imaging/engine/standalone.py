"""The protocols over CrypTen's own communicator, with a simulated dealer: for tests and measurements on one machine.

Each party draws the correlated randomness of all from one secret that all know, and gloo encrypts nothing: there is no
security at all. `installation.install` without a session uses this; a session never does.
"""

from __future__ import annotations

import hashlib
import os
import socket
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from torch.distributed import ReduceOp

from mpc_imaging.errors import ConfigError
from mpc_imaging.protocols.context import Context
from mpc_imaging.protocols.fss import KeyComparison
from mpc_imaging.protocols.tables import TableComparison
from mpc_imaging.randomness.provider import SimulatedProvider
from mpc_imaging.randomness.streams import KEY_BYTES, Stream, derive_key, fresh_key

WORDS = KEY_BYTES // 8


class SimulatedDealerWarning(UserWarning):
    """All parties know all masks."""


class CommunicatorChannel:
    """A CrypTen communicator as the protocols' `Channel` (protocols.context)."""

    def __init__(self, communicator: Any) -> None:
        self._communicator = communicator
        self.rank, self.parties = communicator.get_rank(), communicator.get_world_size()

    def open_ring(self, shares: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Sum of all parties' shares; one round."""
        flat = torch.cat([share.flatten() for share in shares])
        parts = self._combined(flat, ReduceOp.SUM).split([share.numel() for share in shares])
        # Copies: each result has memory of its own, as a channel's have.
        return [part.view(share.shape).clone() for part, share in zip(parts, shares, strict=True)]

    def open_bits(self, shares: np.ndarray) -> np.ndarray:
        """Exclusive-or of all parties' packed bits; one round."""
        flat = torch.from_numpy(shares.reshape(-1).copy())
        return self._combined(flat, ReduceOp.BXOR).numpy().reshape(shares.shape)

    def swap(self, message: bytes) -> list[bytes]:
        """Every party's message, by rank; all have the same length. One round."""
        mine = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        return [bytes(part.numpy()) for part in self._communicator.all_gather(mine)]

    def name_of(self, rank: int) -> str:
        """What to call the party of a rank in an error."""
        return f"the process of rank {rank}"

    def _combined(self, values: torch.Tensor, op: ReduceOp) -> torch.Tensor:
        return self._communicator.all_reduce(values, op=op) if values.numel() else values


def warn() -> None:
    """Say once for each process what this mode is not."""
    warnings.warn(
        "mpc_imaging.engine.install without a session simulates the dealer: every party knows all masks and nothing is "
        "encrypted; for tests on one machine only (sessions: python -m mpc_imaging)",
        SimulatedDealerWarning,
        stacklevel=3,
    )


def connect(communicator: Any) -> tuple[Context, dict[str, Stream]]:
    """A context among the parties of an initialised communicator, and CrypTen's four generators; all call together.

    Raises `ConfigError` unless all parties run on this machine.
    """
    _check_rendezvous()
    _check_machine(communicator)
    rank, parties = communicator.get_rank(), communicator.get_world_size()
    secret = torch.frombuffer(bytearray(fresh_key()), dtype=torch.int64)
    # A clone: with one party, CrypTen's broadcast returns what it was given.
    secret = communicator.broadcast(secret.clone(), 0).numpy().tobytes()

    def key(label: str) -> bytes:
        return derive_key(secret, b"", f"simulated {label}")

    streams = {
        "prev": Stream(key(f"edge {(rank - 1) % parties}")),
        "next": Stream(key(f"edge {rank}")),
        "local": Stream(fresh_key()),
        "global": Stream(key("global")),
    }
    provider = SimulatedProvider(rank, parties, [key(f"party {i}") for i in range(parties)])
    comparison = KeyComparison() if parties == 2 else TableComparison()
    return Context(CommunicatorChannel(communicator), provider, comparison), streams


def _check_rendezvous() -> None:
    """Refuse a meeting point elsewhere. CrypTen reads it from the environment and from nowhere else."""
    where = os.environ.get("RENDEZVOUS", "")
    host = os.environ.get("MASTER_ADDR", "") if where.startswith("env:") else urlsplit(where).hostname
    if where.startswith("file:") or not host or _is_here(host):
        return
    raise ConfigError(
        [
            f"the rendezvous at {host} is not on this machine, and a simulated dealer is for tests on one machine; "
            "write RENDEZVOUS=tcp://127.0.0.1:PORT, or run a session (python -m mpc_imaging)"
        ]
    )


def _is_here(host: str) -> bool:
    """Whether an address of this machine: only those can be listened at."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
    except OSError:
        return False
    return True


def _check_machine(communicator: Any) -> None:
    """Refuse parties on other machines, which a shared file or a forwarded port lets meet."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        machine = socket.gethostname()
    mine = torch.frombuffer(bytearray(hashlib.sha256(machine.encode()).digest()), dtype=torch.int64)
    everyone = communicator.all_gather(mine)
    others = [rank for rank, theirs in enumerate(everyone) if not torch.equal(theirs, mine)]
    if others:
        raise ConfigError(
            [
                f"parties {others} run on other machines than party {communicator.get_rank()}, and a simulated dealer "
                "is for tests on one machine; run a session (python -m mpc_imaging)"
            ]
        )
