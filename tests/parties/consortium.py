"""Parties as threads of one process: real meshes, certificates, handshakes and ledgers; no engine, no data files."""

from __future__ import annotations

import copy
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mpc_imaging.parties import ledger
from mpc_imaging.parties.session import Session
from mpc_imaging.settings import DataSettings, PartySettings, Role, Settings, TopologySettings, TransportSettings
from mpc_imaging.transport.certificates import make_local
from tests.transport.parties import returned, together

HOSPITAL, COMPUTE, OWNER = ("data_owner", "compute", "receiver"), ("compute",), ("data_owner",)
TWO = {"a": (*HOSPITAL, "model_owner"), "b": HOSPITAL, "dealer": ("dealer",)}
THREE = {"a": (*HOSPITAL, "model_owner"), "b": HOSPITAL, "c": HOSPITAL, "dealer": ("dealer",)}
OUTSIDE = {
    "h1": OWNER, "h2": (*OWNER, "receiver"), "vendor": ("model_owner", "receiver"), "a": COMPUTE, "b": COMPUTE,
    "dealer": ("dealer",),
}  # fmt: skip
ALL = {"two": TWO, "three": THREE, "outside": OUTSIDE}

Part = Callable[[Session], Any]


class Consortium:
    """The parties of one test; `run` lets them meet and do something, each in a thread."""

    def __init__(self, folder: Path, certificates: Path, roles: Mapping[str, tuple[str, ...]]) -> None:
        self.folder, self.certificates, self.names = folder, certificates, list(roles)
        self.one_machine = True
        self.frames: list[tuple[str, str, str, bytes]] = []  # (sender, receiver, kind, payload), after the handshake
        self.listeners = {name: socket.create_server(("127.0.0.1", 0)) for name in roles}
        parties = {
            name: PartySettings([Role[role] for role in mine], f"127.0.0.1:{self.listeners[name].getsockname()[1]}")
            for name, mine in roles.items()
        }
        self.settings = Settings(
            topology=TopologySettings(parties=parties),
            data=DataSettings(positive_class=1, image_size=2),
            transport=TransportSettings(connect_timeout_s=5.0, timeout_s=5.0),
        )

    def join(self, name: str, part: Part, settings: Settings | None = None) -> Any:
        """Take part as one party; what ``part`` returned."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        mine = settings or copy.deepcopy(self.settings)
        listener = self.listeners[name]
        with Session.open(mine, name, folder, self.certificates / name, listener, self.one_machine) as session:
            session.mesh.observers.append(self._observer(name))
            return part(session)

    def run(self, part: Part | Mapping[str, Part], settings: Mapping[str, Settings] | None = None) -> dict[str, Any]:
        """What ``part`` (one for all, or one for each) returned or raised at each party; once for each consortium."""
        parts = part if isinstance(part, Mapping) else dict.fromkeys(self.names, part)
        settings = settings or {}
        return together(
            {
                name: lambda name=name: self.join(name, parts.get(name, lambda session: None), settings.get(name))
                for name in self.settings.participants()
            }
        )

    def all(self, part: Part | Mapping[str, Part], **options: Any) -> dict[str, Any]:
        """`run` where nothing may fail."""
        results = self.run(part, **options)
        return {name: returned(result) for name, result in results.items()}

    def sent(self, *kinds: str) -> list[tuple[str, str]]:
        """(sender, receiver) of every frame of some kinds."""
        return [(sender, receiver) for sender, receiver, kind, _ in self.frames if kind in kinds]

    def entries(self, name: str, event: str | None = None) -> list[dict[str, Any]]:
        """A party's ledger, or its entries of one event."""
        entries = ledger.read(self.folder / name / "ledger.jsonl")
        return [entry for entry in entries if event in (None, entry["event"])]

    def close(self) -> None:
        """Close the listeners of parties that never came."""
        for listener in self.listeners.values():
            listener.close()

    def _observer(self, name: str) -> Callable[[str, str, Any, bytes], None]:
        def observe(direction: str, peer: str, kind: Any, payload: bytes) -> None:
            if direction == "sent":
                self.frames.append((name, peer, kind.name, payload))

        return observe


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_local(folder, sorted({name for roles in ALL.values() for name in roles}))
    return folder


@pytest.fixture
def consortium(tmp_path: Path, certificates: Path) -> Iterator[Callable[[str], Consortium]]:
    """Makes a consortium by the name of its topology: two, three or outside."""
    made = []

    def make(name: str) -> Consortium:
        made.append(Consortium(tmp_path / str(len(made)), certificates, ALL[name]))
        return made[-1]

    yield make
    for one in made:
        one.close()
