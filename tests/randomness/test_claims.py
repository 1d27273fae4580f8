import copy
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from mpc_imaging.randomness.claims import MAX_JUMP, agree, check_marked
from mpc_imaging.randomness.store import StoreError
from tests.randomness.stores import OTHER_PLAN, PARTIES, PLAN, no_sync, open_store, write  # noqa: F401


def hello(party, index, **witness):
    names = {"a", "b", "c"} - {party}
    return {
        "party": party, "store": "00" * 16, "plan": PLAN, "count": 10, "next": index,
        "witness": {**dict.fromkeys(names, 0), **witness},
    }  # fmt: skip


def test_all_jump_to_the_maximum():
    everyone = {name: hello(name, index) for name, index in zip("abc", (3, 7, 5), strict=True)}
    for me in everyone:
        assert agree(everyone[me], {name: value for name, value in everyone.items() if name != me}) == 7
    assert agree({**hello("a", 4), "witness": {}}, {}) == 4


def test_a_peer_that_would_burn_the_store_is_named():
    """One party that claims a high index would take all sessions between away from the others."""
    many = {"count": 1000}
    mine, theirs = hello("a", 5) | many, {"b": hello("b", 5) | many, "c": hello("c", 5) | many}
    for index in (5 + MAX_JUMP + 1, 999, 1000):
        theirs["c"]["next"] = index
        with pytest.raises(StoreError) as caught:
            agree(mine, theirs)
        assert str(caught.value) == (
            f"c's next stored session is {index}, a's is 5: a would lose {index - 5} sessions, and has marked none; "
            f"ask c why, and only if its reason is good set randomness.max_jump={index - 5} at a, for one run"
        )
    assert agree(mine, theirs | {"c": hello("c", 5 + MAX_JUMP) | many}) == 5 + MAX_JUMP
    assert agree(mine, theirs | {"c": hello("c", 900) | many}, max_jump=895) == 900
    with pytest.raises(StoreError, match="b, c's next stored session is 900, a's is 5"):
        agree(mine, {name: hello(name, 900) | many for name in ("b", "c")}, max_jump=894)
    # Whoever is ahead loses nothing.
    assert agree(hello("a", 900) | many, {"b": hello("b", 5) | many, "c": hello("c", 6) | many}) == 900


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"store": "11" * 16}, "b and a use different stores"),
        ({"count": 11}, "b and a use different stores"),
        ({"plan": OTHER_PLAN}, "b's store is for another plan than a's"),
        ({"next": 3}, "b's store was put back: its next session is 3, c has seen 4"),
        ({"witness": {"a": 6, "c": 0}}, "a's store was put back: its next session is 5, b has seen 6"),
        ({"next": 10}, "all 10 sessions of the store are used"),
    ],
)
def test_peers_that_differ_are_named(change, message):
    with pytest.raises(StoreError, match=message):
        agree(hello("a", 5), {"b": {**hello("b", 5), **change}, "c": hello("c", 5, b=4)})


@pytest.mark.parametrize("junk", [None, 3, [], "x", {}, {"party": "b"}, {"witness": 7}, [["party", "b"]]])
def test_hellos_that_are_none(junk):
    with pytest.raises(StoreError, match="b does not describe a store of these compute parties"):
        agree(hello("a", 5), {"b": junk, "c": hello("c", 5)})


@pytest.mark.parametrize(
    "change",
    [
        {"party": "c"}, {"next": -1}, {"next": 11}, {"next": True}, {"next": "5"}, {"next": 5.0}, {"next": None},
        {"count": -1}, {"count": 1 << 60}, {"store": 5}, {"plan": None}, {"witness": {"a": 0}}, {"witness": []},
        {"witness": {"a": 0, "c": 0, "d": 0}}, {"witness": {"a": 11, "c": 0}}, {"witness": {"a": "0", "c": 0}},
    ],
)  # fmt: skip
def test_fields_that_are_nonsense(change):
    theirs = {"b": {**hello("b", 5), **change}, "c": hello("c", 5)}
    for function in (agree, check_marked):
        with pytest.raises(StoreError, match="b does not describe a store"):
            function(hello("a", 5), theirs)


def test_a_silent_or_unknown_peer():
    with pytest.raises(StoreError, match="b, c did not say"):
        agree(hello("a", 5), {})
    with pytest.raises(StoreError, match="a does not describe"):
        agree(hello("a", 5), {"b": hello("b", 5), "c": hello("c", 5), "d": hello("d", 5)})


def test_agree_changes_nothing():
    mine, theirs = hello("a", 5), {"b": hello("b", 6), "c": hello("c", 5)}
    before = copy.deepcopy((mine, theirs))
    agree(mine, theirs)
    assert (mine, theirs) == before


# For each party: how far it comes in this session (0: dies before its mark, 1: after it, 2: computes), and whether its
# folder is then put back to what it was at the beginning.
EVENTS = st.lists(st.tuples(*[st.tuples(st.integers(0, 2), st.booleans())] * 3), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(EVENTS, st.sampled_from([None, *PARTIES]))
def test_histories_of_crashes_and_of_folders_put_back(events, honest):
    """No session is computed twice as long as one folder is never put back; without any, nothing is ever refused."""
    put_back = set(PARTIES) - {honest} if honest else set()
    with tempfile.TemporaryDirectory() as name:
        root, used = Path(name) / "STORE", {party: [] for party in PARTIES}
        write(root, count=len(events) + 1, messages=[])
        shutil.copytree(root, Path(name) / "copy")
        restored = set()
        for event in events:
            fates = dict(zip(PARTIES, event, strict=True))
            try:
                run_session(root, {party: depth for party, (depth, _) in fates.items()}, used)
            except StoreError as error:
                assert restored, str(error)
                assert any(f"{party}'s store was put back" in str(error) for party in restored)
            for party, (_, restore) in fates.items():
                if restore and party in put_back:
                    shutil.rmtree(root / party)
                    shutil.copytree(Path(name) / "copy" / party, root / party)
                    restored.add(party)
        for indices in used.values():
            assert indices == sorted(set(indices))


def run_session(root, depths, used):
    stores = {party: open_store(root, party) for party in PARTIES}
    try:
        first = {party: store.hello() for party, store in stores.items()}
        alive = [party for party in PARTIES if depths[party] > 0]
        indices = {stores[party].claim(without(first, party)) for party in alive}
        assert len(indices) <= 1
        if len(alive) < len(PARTIES):
            return  # a second hello is missing: nobody computes
        second = {party: store.hello() for party, store in stores.items()}
        for party in PARTIES:
            if depths[party] > 1:
                with stores[party].confirm(without(second, party)) as session:
                    used[party].append(session.number)
    finally:
        for store in stores.values():
            store.close()


def without(everyone, party):
    return {name: value for name, value in everyone.items() if name != party}
