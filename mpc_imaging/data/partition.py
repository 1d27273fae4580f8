"""Divide one data set over its owners: disjoint, complete, alike on every party, and never splitting a patient.

Every kind but site deals a split's patients, in an order drawn by data.partition.seed, each to the owner who is
furthest below its share. They are dealt class by class, so that classes are balanced unless the kind says otherwise:

- even: equal shares.
- fraction: the shares in data.partition.fractions.
- label_skew: owner i's favourite class is class i modulo the number of classes. A share ``skew`` of each class goes to
  the owners who favour it, the rest to all alike: 0 is even, 1 leaves each class to those who favour it.
- site: an image goes to the owner that its ``site`` names. Sites that name no owner go, in alphabetical order,
  round-robin to the owners that no site names (to all owners if every one is named). A patient follows its first row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from mpc_imaging.data.manifest import name_rows
from mpc_imaging.data.rows import Row, shuffle_key
from mpc_imaging.errors import ConfigError, DataError
from mpc_imaging.settings import PartitionKind, PartitionSettings


def divide(
    rows: Sequence[Row], owners: Sequence[str], partition: PartitionSettings, num_classes: int
) -> dict[str, list[Row]]:
    """Return each owner's rows, in the order of ``rows``; an owner may be left without any.

    Raises:
        ConfigError: the kind is private, which divides nothing.
        DataError: the kind is site and rows name none.
    """
    if partition.kind is PartitionKind.private:
        raise ConfigError(
            ["data.partition.kind=private is for data.paths, one for each owner: write even to divide one data set"]
        )
    patients: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        patients[row.split, row.patient].append(row)
    if partition.kind is PartitionKind.site:
        owner_of_site = _sites(rows, owners)
        owner_of = {patient: owner_of_site[same[0].site] for patient, same in patients.items()}
    else:
        owner_of = _deal(patients, owners, partition, num_classes)
    return {name: [row for row in rows if owner_of[row.split, row.patient] == name] for name in owners}


def _deal(
    patients: Mapping[tuple[str, str], list[Row]],
    owners: Sequence[str],
    partition: PartitionSettings,
    num_classes: int,
) -> dict[tuple[str, str], str]:
    """Give every (split, patient) an owner by shares."""
    shares = _shares(owners, partition, num_classes)
    skewed = partition.kind is PartitionKind.label_skew
    held: dict[tuple[str, int], dict[str, int]] = defaultdict(lambda: dict.fromkeys(owners, 0))
    owner_of = {}
    for patient in sorted(
        patients, key=lambda patient: (patients[patient][0].label, shuffle_key(partition.seed, *patient))
    ):
        label, size = patients[patient][0].label, len(patients[patient])
        # Skewed shares hold within a class; all others over the whole split, so that rounding does not add up by class.
        counts = held[patient[0], label if skewed else 0]
        share = shares[label if skewed else 0]
        able = [name for name in owners if share[name] > 0]
        owner = min(able, key=lambda name: ((counts[name] + size) / share[name], owners.index(name)))  # noqa: B023
        counts[owner] += size
        owner_of[patient] = owner
    return owner_of


def _shares(owners: Sequence[str], partition: PartitionSettings, num_classes: int) -> list[Mapping[str, float]]:
    """Each class's shares of the owners."""
    if partition.kind is PartitionKind.fraction:
        return [partition.fractions] * num_classes
    even = dict.fromkeys(owners, 1 / len(owners))
    if partition.kind is PartitionKind.even:
        return [even] * num_classes
    shares = []
    for label in range(num_classes):
        fans = [name for i, name in enumerate(owners) if i % num_classes == label]
        favoured = {name: 1 / len(fans) if name in fans else 0.0 for name in owners} if fans else even
        shares.append({n: (1 - partition.skew) * even[n] + partition.skew * favoured[n] for n in owners})
    return shares


def _sites(rows: Sequence[Row], owners: Sequence[str]) -> dict[str, str]:
    nowhere = [row.number for row in rows if not row.site]
    if nowhere:
        raise DataError(
            [
                f"{name_rows(nowhere)}: no site, but data.partition.kind=site: fill the column 'site' of manifest.csv, "
                "or write data.partition.kind=even"
            ]
        )
    sites = sorted({row.site for row in rows})
    unnamed = [name for name in owners if name not in sites] or list(owners)
    others = [site for site in sites if site not in owners]
    return {site: site for site in sites if site in owners} | {
        site: unnamed[i % len(unnamed)] for i, site in enumerate(others)
    }
