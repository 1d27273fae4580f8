"""Settings that have the right types but cannot run: each check yields a `Problem` that says what to write instead.

``party`` is the party whose machine this is. None means that one machine runs all parties, so that private values
(paths) must be known for all of them; otherwise only that party's are looked at.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

from mpc_imaging import class_checks, mask_checks, model_checks, stream_checks, training_checks
from mpc_imaging.reading import Problem, did_you_mean
from mpc_imaging.settings import (
    IMAGE_OWNER,
    REVEALABLE,
    SPLITS,
    DataKind,
    PartitionKind,
    ProtocolName,
    RandomnessMode,
    Role,
    Settings,
    WeightsSource,
    split_address,
)

PARTY_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")

# What numbers are allowed to be, and the keys that must be so. Null is allowed where the schema allows it.
_RANGES: dict[str, tuple[Callable[[Any], bool], tuple[str, ...]]] = {
    "a whole number from 1": (
        lambda v: v >= 1,
        (
            "task.batch_size",
            "task.eval_batch_size",
            "task.epochs",
            "model.pretrain.epochs",
            "model.pretrain.batch_size",
            "data.image_size",
            "data.limit.train",
            "data.limit.val",
            "data.limit.test",
            "data.phantoms.train",
            "data.phantoms.val",
            "data.phantoms.test",
            "data.augment.copies",
            "task.schedule.step_epochs",
            "task.early_stopping.patience",
            "task.local_epochs",
            "privacy.micro_batch",
            "task.stream.queue",
            "task.stream.frames_per_step",
            "model.backbone.batch_size",
            "checkpoint.every",
            "checkpoint.keep",
            "preprocess.count",
        ),
    ),
    "a whole number from 0": (
        lambda v: v >= 0,
        (
            "randomness.buffer_mb",
            "randomness.max_jump",
            "data.window.index",
            "task.schedule.warmup_steps",
            "data.augment.shift",
            "model.backbone.features",
        ),
    ),
    "a whole number from 2 to 1024, or null for images": (lambda v: 2 <= v <= 1024, ("data.slices",)),
    "a whole number from 2, or null for the splits of the data": (lambda v: v >= 2, ("data.folds.count",)),
    "a whole number from 2 to 1024": (lambda v: 2 <= v <= 1024, ("task.auc_bins",)),
    "a number above 0": (
        lambda v: 0 < v < math.inf,
        (
            "task.lr",
            "model.pretrain.lr",
            "model.backbone.scale",
            "privacy.input_norm",
            "privacy.noise_multiplier",
            "privacy.epsilon",
            "task.stream.fps",
            "transport.timeout_s",
            "transport.connect_timeout_s",
        ),
    ),
    "a number from 0": (
        lambda v: 0 <= v < math.inf,
        ("task.weight_decay", "model.pretrain.weight_decay", "data.augment.rotate"),
    ),
    # Larger and smaller ones, or their inverses, would not fit into fixed point.
    "a number from 0.001 to 1000": (
        lambda v: 1e-3 <= v <= 1e3,
        ("task.clip_value", "task.clip_norm", "task.update_norm", "privacy.clip"),
    ),
    "a number from 0.00001 to 0.1": (lambda v: 1e-5 <= v <= 0.1, ("task.eps",)),
    "a number above 0, below 1": (lambda v: 0 < v < 1, ("privacy.delta",)),
    "a number from 0, below 1": (
        lambda v: 0 <= v < 1,
        ("task.momentum", "model.pretrain.momentum", "task.label_smoothing"),
    ),
    "a number from 0 to 1": (
        lambda v: 0 <= v <= 1,
        ("data.partition.skew", "data.augment.brightness", "task.schedule.factor"),
    ),
    "a whole number from 8 to 24": (lambda v: 8 <= v <= 24, ("protocol.fraction_bits",)),
    "a whole number from 16 to 64, or null for all bits": (lambda v: 16 <= v <= 64, ("protocol.comparison_bits",)),
    "1 (grey) or 3 (colour)": (lambda v: v in (1, 3), ("data.channels",)),
    "a whole number from 0 to 4294967295": (
        lambda v: 0 <= v < 2**32,
        ("seed", "data.partition.seed", "data.phantoms.seed", "data.arrays.seed"),
    ),
}


def validate(settings: Settings, party: str | None = None) -> list[str]:
    """All problems, one line each; an empty list if the settings can run."""
    return [str(problem) for problem in find_problems(settings, party)]


def find_problems(settings: Settings, party: str | None = None) -> list[Problem]:
    """All problems with the keys that they are about."""
    checks = (
        _names,
        _ranges,
        _roles,
        _addresses,
        _policy,
        _protocol,
        _randomness,
        *class_checks.CHECKS,
        _pixels,
        _sources,
        _partition,
        _weights,
        *training_checks.CHECKS,
        *mask_checks.CHECKS,
        *stream_checks.CHECKS,
        *model_checks.CHECKS,
    )
    return [problem for check in checks for problem in check(settings, party)]


def _names(settings: Settings, party: str | None) -> Iterator[Problem]:
    parties = settings.topology.parties
    if party is not None and party not in parties:
        yield Problem("party", f"{party!r} is not in the topology; {did_you_mean(party, parties)}")
    if not RUN_NAME.fullmatch(settings.name):
        yield Problem("name", f"{settings.name!r} becomes part of a folder's name; use letters, digits, _ . - only")
    if settings.transport.name != "tls":
        yield Problem("transport.name", f"{settings.transport.name!r} is not built; write tls")
    if settings.task.split not in SPLITS:
        yield Problem("task.split", f"{settings.task.split!r} is no split; {did_you_mean(settings.task.split, SPLITS)}")
    for name, entry in parties.items():
        key = f"topology.parties.{name}"
        if not PARTY_NAME.fullmatch(name):
            yield Problem(key, "a party's name starts with a-z and goes on with a-z, 0-9, _ or - (63 at most)")
        alike = [other for other in parties if other.lower() == name.lower()]
        if alike[0] != name:
            yield Problem(key, f"the same name as {alike[0]}; give each party a name of its own")
        taken = name == IMAGE_OWNER or (name in Role.__members__ and settings.parties_with(Role[name]) != [name])
        if taken and not (name == Role.dealer.name and Role.dealer in entry.roles):  # no policy names a dealer
            yield Problem(key, f"a policy could not tell the party {name} from the role; choose another name")


def _ranges(settings: Settings, party: str | None) -> Iterator[Problem]:
    for text, (allowed, keys) in _RANGES.items():
        for key in keys:
            value = attrgetter(key)(settings)
            if value is not None and not allowed(value):
                yield Problem(key, f"{value} is out of range; write {text}")


def _roles(settings: Settings, party: str | None) -> Iterator[Problem]:
    key = "topology.parties"
    for name, entry in settings.topology.parties.items():
        where = f"{key}.{name}.roles"
        if not entry.roles:
            yield Problem(where, f"no role; give it one of {', '.join(Role.__members__)}, or remove the party")
        if len(set(entry.roles)) < len(entry.roles):
            yield Problem(where, "a role is listed twice; list each once")
        others = [role.name for role in entry.roles if role is not Role.dealer]
        if Role.dealer in entry.roles and others:
            yield Problem(
                where, f"a dealer may have no other role, or it could unmask data; remove {', '.join(others)}"
            )
    compute, owners = settings.compute_parties(), settings.parties_with(Role.model_owner)
    dealers = settings.parties_with(Role.dealer)
    if len(compute) < 2:
        have = f"only one compute party ({compute[0]})" if compute else "no compute party"
        yield Problem(key, f"{have}; add the role compute until two parties or more have it")
    if len(dealers) != 1:
        have = f"{len(dealers)} dealers ({', '.join(dealers)})" if dealers else "no dealer"
        yield Problem(key, f"{have}; write exactly one party with roles: [dealer]")
    if not settings.data_owners():
        yield Problem(key, "no data owner; add the role data_owner to whoever has images")
    if len(owners) != 1:
        have = f"{len(owners)} model owners ({', '.join(owners)})" if owners else "no model owner"
        yield Problem(key, f"{have}; give the role model_owner to exactly one party")


def _addresses(settings: Settings, party: str | None) -> Iterator[Problem]:
    at: dict[tuple[str, int], list[str]] = defaultdict(list)
    for name, entry in settings.topology.parties.items():
        key = f"topology.parties.{name}.address"
        try:
            host, port = split_address(entry.address)
        except ValueError:
            yield Problem(key, f"{entry.address!r} is no address; write host:port, like hospital.example.org:9001")
            continue
        if port:
            at[host.lower(), port].append(name)
        elif party is not None and name in settings.participants():
            yield Problem(key, f"port 0 is for runs on one machine; write the port, like {host}:9001")
        if at[host.lower(), port][1:]:
            yield Problem(key, f"the same as that of {at[host.lower(), port][0]}; give each party its own host or port")


def _policy(settings: Settings, party: str | None) -> Iterator[Problem]:
    parties, dealers = settings.topology.parties, settings.parties_with(Role.dealer)
    roles = [role for role in Role.__members__ if role != Role.dealer.name]
    for value, recipients in settings.policy.reveal.items():
        key = f"policy.reveal.{value}"
        if value not in REVEALABLE:
            yield Problem(key, f"no such value can be revealed; {did_you_mean(value, REVEALABLE)}")
            continue
        for to in recipients:
            if to == Role.dealer.name or to in dealers:
                yield Problem(key, f"a dealer may learn nothing; remove {to}")
            elif value == "duplicates" and to != IMAGE_OWNER:
                yield Problem(key, f"an owner learns of its own images only; write {IMAGE_OWNER} in place of {to}")
            elif to == IMAGE_OWNER and value not in ("logits", "predictions", "duplicates"):
                yield Problem(key, f"{value} belongs to no single image; write receiver or a party in place of {to}")
            elif value == "weights" and to != Role.model_owner.name and to not in parties:
                yield Problem(key, f"weights may go to model_owner or to a party named here, not to {to}")
            elif to != IMAGE_OWNER and to not in parties and to not in roles:
                yield Problem(key, f"{to!r} is no party or role; {did_you_mean(to, [*parties, *roles, IMAGE_OWNER])}")
            elif to == Role.receiver.name and not settings.parties_with(Role.receiver):
                yield Problem(key, "no party has the role receiver; add it to one in the topology, or name a party")
    if parties and not settings.receivers():
        kind = settings.task.kind
        yield Problem(
            "policy.reveal",
            f"nobody receives anything from {kind.name}; name a recipient of one of {', '.join(settings.produced())}, "
            "like logits: [image_owner]",
        )


def _protocol(settings: Settings, party: str | None) -> Iterator[Problem]:
    protocol, count = settings.protocol, len(settings.compute_parties())
    if protocol.name is ProtocolName.fss and count > 2:
        yield Problem("protocol.name", f"fss takes 2 compute parties, not {count}; write protocol=beaver, or auto")
    if protocol.comparison_bits is not None and protocol.name is not ProtocolName.fss:
        what = f"{protocol.name.name} compares all bits, only fss (two compute parties) has a width; write null"
        yield Problem("protocol.comparison_bits", what)
    least = protocol.fraction_bits + 3
    if protocol.comparison_bits is not None and 16 <= protocol.comparison_bits < least:
        what = f"too narrow for any value above 1 with fraction_bits={protocol.fraction_bits}; write {least} or more"
        yield Problem("protocol.comparison_bits", what)
    if protocol.name is not ProtocolName.insecure_simulation:
        return
    if count not in (2, 3):
        yield Problem("protocol.name", f"insecure_simulation takes 2 or 3 compute parties, not {count}; write auto")
    if party is not None:
        what = "insecure_simulation hides nothing: only python -m mpc_imaging runs it, all parties at once; write auto"
        yield Problem("protocol.name", what)
        return
    try:
        local = settings.has_loopback_addresses()
    except ValueError:  # a malformed address, reported with the addresses
        return
    if not local:
        yield Problem("protocol.name", "insecure_simulation hides nothing and runs on one machine only; write auto")


def _randomness(settings: Settings, party: str | None) -> Iterator[Problem]:
    mode, store = settings.randomness.mode, settings.randomness.store
    if mode is not RandomnessMode.stored:
        if store:
            yield Problem("randomness.store", f"not read with randomness.mode={mode.name}; write randomness=stored")
        return
    if settings.protocol.name is ProtocolName.insecure_simulation:
        yield Problem("randomness.mode", "insecure_simulation uses no correlated randomness; leave out stored")
    elif not store and (party is None or party in settings.compute_parties()):
        what = "randomness=stored needs it; write the folder that python -m mpc_imaging.preprocess wrote"
        yield Problem("randomness.store", what)


def _pixels(settings: Settings, party: str | None) -> Iterator[Problem]:
    data = settings.data
    for key, values in (("data.mean", data.mean), ("data.std", data.std)):
        if len(values) not in {1, data.channels}:
            lengths = " or ".join(str(n) for n in sorted({1, data.channels}))
            yield Problem(key, f"{len(values)} numbers for {data.channels} channels; write {lengths}")
        if not all(map(math.isfinite, values)) or (key == "data.std" and any(value <= 0 for value in values)):
            yield Problem(key, f"{values} cannot scale pixels; write finite numbers, and a std above 0")


def _sources(settings: Settings, party: str | None) -> Iterator[Problem]:
    data, owners = settings.data, settings.data_owners()
    readers = owners + [name for name in settings.parties_with(Role.model_owner) if name not in owners]
    for name in data.paths:
        if name not in readers:
            yield Problem(f"data.paths.{name}", f"no party that reads images; {did_you_mean(name, readers)}")
    if data.kind is DataKind.phantoms:
        if data.path or data.paths:
            key = "data.path" if data.path else "data.paths"
            yield Problem(
                key, "phantoms are generated, nothing is read; write data=dicom, medmnist or arrays, or no path"
            )
        return
    without = [name for name in owners if name not in data.paths]
    if without and len(without) < len(owners) and party is None and data.partition.kind is not PartitionKind.private:
        yield Problem("data.paths", f"none for {', '.join(without)}; write one for each data owner, or data.path alone")
    if data.path or (data.kind is DataKind.medmnist and data.dataset):
        return
    if settings.model.weights.source is not WeightsSource.pretrain:
        readers = owners
    missing = [name for name in readers if name not in data.paths and party in (None, name)]
    if missing:
        either = "write data.path for all" if party is None else "write data.path"
        dataset = ", or data.dataset to download one" if data.kind is DataKind.medmnist else ""
        each = ", ".join(f"data.paths.{name}" for name in missing)
        yield Problem("data.path", f"no images for {', '.join(missing)}; {either}, or {each}{dataset}")


def _partition(settings: Settings, party: str | None) -> Iterator[Problem]:
    data, owners = settings.data, settings.data_owners()
    kind, fractions, key = data.partition.kind, data.partition.fractions, "data.partition.fractions"
    if kind is PartitionKind.fraction:
        for name in (name for name in fractions if name not in owners):
            yield Problem(f"{key}.{name}", f"no data owner; {did_you_mean(name, owners)}")
        for name in owners:
            if not fractions.get(name, 0) > 0:
                yield Problem(f"{key}.{name}", "no share; write one above 0, or take data_owner from the party's roles")
        if set(fractions) == set(owners) and not math.isclose(sum(fractions.values()), 1, abs_tol=1e-6):
            yield Problem(key, f"the shares add up to {sum(fractions.values()):g}; make them add up to 1")
    shared = [name for name in owners if name not in data.paths]
    if kind is PartitionKind.site and data.kind in (DataKind.medmnist, DataKind.arrays) and shared:
        yield Problem("data.partition.kind", f"{data.kind.name} files name no sites; write even or fraction")
    if kind is PartitionKind.private and party is None and len(owners) > 1 and shared:
        yield Problem(
            "data.partition.kind",
            f"private, but {', '.join(shared)} would use the same images; give each its own data.paths, or write even",
        )


def _weights(settings: Settings, party: str | None) -> Iterator[Problem]:
    weights, key = settings.model.weights, "model.weights.path"
    readers = {
        WeightsSource.file: settings.parties_with(Role.model_owner),
        WeightsSource.shares: settings.compute_parties(),
    }.get(weights.source, [])
    if not readers and weights.path:
        yield Problem(
            key, f"not read with weights.source={weights.source.name}; write model.weights.source=file or shares"
        )
    if readers and not weights.path and (party is None or party in readers):
        wanted = "a .safetensors file" if weights.source is WeightsSource.file else "the folder of the run that trained"
        yield Problem(key, f"weights.source={weights.source.name} needs it; write the path of {wanted}")
    if weights.source is WeightsSource.shares and not weights.secret:
        yield Problem("model.weights.secret", "shares of weights stay secret; write true, or weights.source=file")
