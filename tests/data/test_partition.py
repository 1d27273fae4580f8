"""Every division is disjoint, complete, alike everywhere, and keeps patients whole."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

from mpc_imaging.data.partition import divide
from mpc_imaging.data.rows import Row, subset
from mpc_imaging.errors import ConfigError, DataError
from mpc_imaging.settings import PartitionKind, PartitionSettings

CLASSES = 3
OWNERS = ["hospital_a", "hospital_b", "hospital_c", "hospital_d"]


@st.composite
def data_sets(draw: st.DrawFn) -> list[Row]:
    """Up to 60 patients with 1 to 4 images each; a patient has one split and site, not always one label."""
    rows: list[Row] = []
    for patient in range(draw(st.integers(1, 60))):
        split, site = draw(st.sampled_from(["train", "test"])), draw(st.sampled_from(["north", "south", "hospital_b"]))
        for _ in range(draw(st.integers(1, 4))):
            rows.append(Row(len(rows), split, draw(st.integers(0, CLASSES - 1)), f"p{patient}", site))
    return rows


@st.composite
def partitions(draw: st.DrawFn) -> tuple[list[str], PartitionSettings]:
    owners = OWNERS[: draw(st.integers(1, len(OWNERS)))]
    kind = draw(st.sampled_from([kind for kind in PartitionKind if kind is not PartitionKind.private]))
    weights = [draw(st.integers(1, 9)) for _ in owners]
    fractions = {name: weight / sum(weights) for name, weight in zip(owners, weights, strict=True)}
    skew = draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    return owners, PartitionSettings(kind=kind, fractions=fractions, skew=skew, seed=draw(st.integers(0, 3)))


@settings(max_examples=150, deadline=None)
@given(data_sets(), partitions())
def test_disjoint_complete_and_by_patient(rows: list[Row], choice: tuple[list[str], PartitionSettings]) -> None:
    owners, partition = choice
    divided = divide(rows, owners, partition, CLASSES)
    assert list(divided) == owners
    assert sorted(row.number for own in divided.values() for row in own) == [row.number for row in rows]
    for own in divided.values():
        assert [row.number for row in own] == sorted(row.number for row in own)
    owner_of = {(row.split, row.patient): set() for row in rows}
    for name, own in divided.items():
        for row in own:
            owner_of[row.split, row.patient].add(name)
    assert all(len(names) == 1 for names in owner_of.values())


@settings(max_examples=100, deadline=None)
@given(data_sets(), partitions())
def test_shares_are_kept_as_far_as_patients_allow(rows: list[Row], choice: tuple[list[str], PartitionSettings]) -> None:
    owners, partition = choice
    if partition.kind not in (PartitionKind.even, PartitionKind.fraction):
        return
    shares = partition.fractions if partition.kind is PartitionKind.fraction else dict.fromkeys(owners, 1 / len(owners))
    for split in ("train", "test"):
        sizes = Counter(row.patient for row in rows if row.split == split)
        if not sizes:
            continue
        for name, own in divide(rows, owners, partition, CLASSES).items():
            count = sum(row.split == split for row in own)
            assert count <= shares[name] * (sizes.total() + len(owners) * max(sizes.values())) + 1e-6


def single(count: int, labels: int = 2, **row: str) -> list[Row]:
    return [Row(i, "train", i % labels, f"p{i}", **row) for i in range(count)]


def test_even_is_even_in_images_and_in_classes() -> None:
    divided = divide(single(101), OWNERS[:2], PartitionSettings(), 2)
    assert sorted(len(own) for own in divided.values()) == [50, 51]
    for own in divided.values():
        assert abs(sum(row.label for row in own) - 25) <= 1


def test_the_seed_decides_and_the_order_of_the_rows_does_not() -> None:
    rows = single(40)
    first, again, other = (
        divide(rows, OWNERS[:2], PartitionSettings(seed=seed), 2)["hospital_a"] for seed in (0, 0, 1)
    )
    assert first == again != other
    shuffled = random.Random(0).sample(rows, len(rows))
    assert set(divide(shuffled, OWNERS[:2], PartitionSettings(), 2)["hospital_a"]) == set(first)
    # Pinned: another release of Python or a library must not divide the data of running sites anew.
    assert [row.number for row in first][:8] == [1, 3, 6, 7, 8, 9, 12, 13]


def test_fractions() -> None:
    partition = PartitionSettings(kind=PartitionKind.fraction, fractions={"hospital_a": 0.75, "hospital_b": 0.25})
    divided = divide(single(80), OWNERS[:2], partition, 2)
    assert [len(own) for own in divided.values()] == [60, 20]
    assert [sum(row.label for row in own) for own in divided.values()] == [30, 10]


@pytest.mark.parametrize(("skew", "share"), [(0.0, 0.5), (0.6, 0.8), (1.0, 1.0)])
def test_label_skew(skew: float, share: float) -> None:
    partition = PartitionSettings(kind=PartitionKind.label_skew, skew=skew)
    divided = divide(single(200), OWNERS[:2], partition, 2)
    assert sum(row.label == 0 for row in divided["hospital_a"]) == pytest.approx(100 * share, abs=1)
    assert sum(row.label == 1 for row in divided["hospital_b"]) == pytest.approx(100 * share, abs=1)


def test_label_skew_with_more_owners_than_classes() -> None:
    partition = PartitionSettings(kind=PartitionKind.label_skew, skew=1.0)
    divided = divide(single(80), OWNERS, partition, 2)
    assert [(len(own), {row.label for row in own}) for own in divided.values()] == [
        (20, {0}),
        (20, {1}),
        (20, {0}),
        (20, {1}),
    ]


def test_sites_go_to_the_owners_they_name_and_others_round_robin() -> None:
    partition = PartitionSettings(kind=PartitionKind.site)
    sites = ["hospital_b", "zurich", "accra", "bergen"]
    rows = [Row(i, "train", 0, f"p{i}", sites[i % 4]) for i in range(8)]
    divided = divide(rows, OWNERS[:3], partition, 2)
    assert {name: {row.site for row in own} for name, own in divided.items()} == {
        "hospital_a": {"accra", "zurich"},
        "hospital_b": {"hospital_b"},
        "hospital_c": {"bergen"},
    }
    with pytest.raises(DataError, match=r"rows 1, 3: no site.*write data.partition.kind=even"):
        divide([Row(1, "train", 0, "p"), Row(3, "train", 0, "q"), rows[0]], OWNERS[:2], partition, 2)


def test_private_data_is_not_divided() -> None:
    with pytest.raises(ConfigError, match=r"data\.paths"):
        divide(single(4), OWNERS[:2], PartitionSettings(kind=PartitionKind.private), 2)


@given(st.integers(1, 80), st.integers(0, 90), st.integers(0, 2))
def test_subsets_keep_the_balance_and_the_order(count: int, limit: int, seed: int) -> None:
    rows = [Row(i, "train", int(i % 4 == 0), f"p{i}") for i in range(count)]
    kept = subset(rows, limit, seed)
    assert len(kept) == min(limit, count)
    assert kept == [row for row in rows if row in kept]
    expected = sum(row.label for row in rows) * len(kept) / count
    assert abs(sum(row.label for row in kept) - expected) < 1
    assert kept == subset(rows, limit, seed)
    assert subset(rows, None, seed) == rows


def test_subsets_round_to_the_nearest_share_of_a_class() -> None:
    rows = [Row(i, "train", int(i >= 3), f"p{i}") for i in range(10)]
    for seed in range(5):
        assert sum(row.label for row in subset(rows, 4, seed)) == 3  # of 1.2 and 2.8


def test_combinations_of_labels_keep_their_balance() -> None:
    combinations = [(0, 0), (0, 1), (1, 1)]
    rows = [Row(i, "train", combinations[i % 3], f"p{i}") for i in range(60)]
    divided = divide(rows, OWNERS[:2], PartitionSettings(kind=PartitionKind.even), 2)
    for own in divided.values():
        assert Counter(row.label for row in own) == dict.fromkeys(combinations, 10)
    assert Counter(row.label for row in subset(rows, 30, 1)) == dict.fromkeys(combinations, 10)
