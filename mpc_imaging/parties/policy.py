"""The policy: which named values may be opened, and to whom."""

from __future__ import annotations

from collections.abc import Mapping

from mpc_imaging.errors import PolicyError
from mpc_imaging.settings import IMAGE_OWNER, REVEALABLE, Settings

Rows = Mapping[str, slice]

# Whether all values were in range, opened to the compute parties; if not, then in which layers they were.
RANGE_OK = "range_ok"
RANGE_LAYER = "range_layer"


def allowed_rows(settings: Settings, value: str, spans: Rows, total: int) -> dict[str, slice]:
    """For each recipient of ``value`` the rows that it may see.

    A party or role that the policy names sees all ``total`` rows; ``image_owner`` sees only its own, ``spans[owner]``.
    Raises `PolicyError` for a value that no policy can name.
    """
    if value not in REVEALABLE:
        raise PolicyError(f"{value!r} is no value that a policy can open; it can open {', '.join(REVEALABLE)}")
    entries = settings.policy.reveal.get(value, [])
    everything = set(entries) - {IMAGE_OWNER}
    rows: dict[str, slice] = {}
    for party in settings.recipients(value):
        roles = {role.value for role in settings.topology.parties[party].roles}
        if party in everything or roles & everything:
            rows[party] = slice(0, total)
        elif party in spans:
            rows[party] = spans[party]
    return rows


def require(settings: Settings, value: str, rows: Rows, spans: Rows, total: int) -> None:
    """Raise `PolicyError` unless every recipient may see every row that it is about to get."""
    allowed = allowed_rows(settings, value, spans, total)
    for party, part in rows.items():
        limit = allowed.get(party)
        if limit is None or part.start < limit.start or part.stop > limit.stop:
            raise PolicyError(
                f"the policy does not open {value} (rows {part.start} to {part.stop}) to {party}; "
                f"list {party} or one of its roles under policy.reveal.{value}"
            )
