"""Groups of compute parties, started once."""

import pytest

from tests.engine.parties import Parties


@pytest.fixture(scope="session")
def two(tmp_path_factory):
    """Two compute parties."""
    group = Parties(2, tmp_path_factory.mktemp("two"))
    yield group
    group.close()


@pytest.fixture(scope="session")
def precise(tmp_path_factory):
    """Two compute parties, with 24 bits of fraction."""
    group = Parties(2, tmp_path_factory.mktemp("precise"), 24)
    yield group
    group.close()


@pytest.fixture(scope="session")
def three(tmp_path_factory):
    """Three compute parties."""
    group = Parties(3, tmp_path_factory.mktemp("three"))
    yield group
    group.close()


@pytest.fixture(params=["two", "three"])
def parties(request):
    """Two, then three."""
    return request.getfixturevalue(request.param)
