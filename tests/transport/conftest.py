from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transport import parties


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parties.certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def town(certificates: Path) -> Iterator[parties.Town]:
    town = parties.Town(certificates)
    yield town
    town.close()


@pytest.fixture(autouse=True)
def short_goodbyes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw peers do not close when they are told the cause: do not wait a second for them in every test."""
    monkeypatch.setattr("mpc_imaging.transport.channel.LINGER_S", 0.2)
