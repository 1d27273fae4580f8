"""Which stored session the compute parties take next: what they tell each other, and the rule that decides.

A hello is a small JSON object: ``party``, ``store`` and ``plan`` (hex), ``count`` of sessions, ``next`` (the lowest
session that this party has not marked used) and ``witness`` (for each peer the highest ``next`` that this party has
known of it). Functions here are pure; `randomness.store` makes hellos and keeps what was agreed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpc_imaging.randomness.store_files import REDO, StoreError

_MAX_COUNT = 1 << 48
# Sessions that a party gives up at most to meet its peers at their next one. Each run that fails costs one.
MAX_JUMP = 16


def is_index(value: Any, limit: int = _MAX_COUNT) -> bool:
    """Whether a value from JSON is a whole number from 0 to `limit`; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= limit


def _check_form(name: str, hello: Any, everyone: set[str]) -> None:
    try:
        witness = hello["witness"]
        good = (
            hello["party"] == name
            and is_index(hello["count"])
            and is_index(hello["next"], hello["count"])
            and witness.keys() == everyone - {name}
            and all(is_index(value, hello["count"]) for value in witness.values())
            and isinstance(hello["store"], str)
            and isinstance(hello["plan"], str)
            and len(hello) == 6
        )
    except (TypeError, KeyError, AttributeError):
        good = False
    if not good:
        raise StoreError(f"{name} does not describe a store of these compute parties; check its settings, or update it")


def _check(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """All hellos by party; every party meets the same faults, in the same order."""
    me = mine["party"]
    absent = mine["witness"].keys() - theirs.keys()
    if absent:
        raise StoreError(f"{', '.join(sorted(absent))} did not say which stored session comes next")
    hellos = dict(sorted({**theirs, me: mine}.items()))
    for name, hello in hellos.items():
        _check_form(name, hello, set(hellos))
    for name, hello in hellos.items():
        if hello["plan"] != mine["plan"]:
            raise StoreError(
                f"{name}'s store is for another plan than {me}'s; use the folders of one run of preprocess"
            )
        if (hello["store"], hello["count"]) != (mine["store"], mine["count"]):
            raise StoreError(f"{name} and {me} use different stores; use the folders of one run of preprocess")
    for name, hello in hellos.items():
        for peer, seen in hello["witness"].items():
            if hellos[peer]["next"] < seen:
                raise StoreError(
                    f"{peer}'s store was put back: its next session is {hellos[peer]['next']}, "
                    f"{name} has seen {seen}; {REDO} and never copy a store in use"
                )
    return hellos


def agree(mine: Mapping[str, Any], theirs: Mapping[str, Any], max_jump: int = MAX_JUMP) -> int:
    """The session to take: the highest ``next`` of all parties.

    mine: this party's hello. theirs: those of all its peers, as received (nothing about them is trusted). max_jump:
    sessions that this party would give up for it, at most.
    Raises `StoreError` naming the peer: for anything that is no hello, another store or plan, a store that lies behind
    what any party has seen of it, one that lies too far ahead of this party's, and when all sessions are used.
    """
    hellos = _check(mine, theirs)
    index = max(hello["next"] for hello in hellos.values())
    me, jump = mine["party"], index - mine["next"]
    if jump > max_jump:
        ahead = ", ".join(name for name, hello in hellos.items() if hello["next"] == index)
        raise StoreError(
            f"{ahead}'s next stored session is {index}, {me}'s is {mine['next']}: {me} would lose {jump} sessions, and "
            f"has marked none; ask {ahead} why, and only if its reason is good set randomness.max_jump={jump} at {me}, "
            "for one run"
        )
    if index >= mine["count"]:
        raise StoreError(f"all {mine['count']} sessions of the store are used; {REDO}")
    return index


def check_marked(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raise `StoreError` unless every peer has marked the same sessions used as this party."""
    for name, hello in _check(mine, theirs).items():
        if hello["next"] != mine["next"]:
            raise StoreError(
                f"{name} has marked other sessions used than {mine['party']}: its next one is {hello['next']}, "
                f"not {mine['next']}; run again"
            )
