"""Real meshes for the tests of the dealer."""

from tests.transport.conftest import certificates, short_goodbyes, town  # noqa: F401
