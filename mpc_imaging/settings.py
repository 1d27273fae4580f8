"""The one schema of the configuration: dataclasses, and how settings are read, written and compared.

`from_mapping` turns a composed configuration (plain dicts) into `Settings`, or raises one `ConfigError` that lists
every problem found, each with what to write instead (see `reading` and `validation`). Nothing here imports torch,
CrypTen or Hydra.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mpc_imaging.choices import (
    IMAGE_OWNER,
    PRODUCED,
    REVEALABLE as REVEALABLE,
    SPLITS as SPLITS,
    DataKind,
    Frames,
    Invalid,
    Loss,
    PartitionKind,
    ProtocolName,
    RandomnessMode,
    Role,
    TaskKind,
    WeightsSource,
)
from mpc_imaging.errors import ConfigError

# What a party may set on its own machine without the others noticing; everything else is compared in the handshake.
PRIVATE = (
    "transport.certificates",
    "transport.timeout_s",
    "transport.connect_timeout_s",
    "randomness.store",
    "data.path",
    "data.paths",
    "data.invalid",
    "model.weights.path",
    "topology.parties.*.address",
    "preprocess",
)


@dataclass
class PartySettings:
    """One institution: its roles, and where its peers reach it (``host:port``; port 0: chosen by the launcher)."""

    roles: list[Role] = field(default_factory=list)
    address: str = "127.0.0.1:0"


@dataclass
class TopologySettings:
    """The parties and their roles."""

    name: str = "two_hospitals"
    parties: dict[str, PartySettings] = field(default_factory=dict)


@dataclass
class ProtocolSettings:
    """The protocol and the fixed-point precision: a value v is held as round(v * 2**fraction_bits) modulo 2**64.

    comparison_bits: width of comparisons (fss); null: all bits, so that no value can be too large for it. range_check:
    whether a narrower width is checked, on shares, before anything is opened.
    """

    name: ProtocolName = ProtocolName.auto
    fraction_bits: int = 16
    comparison_bits: int | None = None
    range_check: bool = True


@dataclass
class TransportSettings:
    """Mutual TLS 1.3. ``certificates``: the folder with ca.crt, party.crt and party.key of this party."""

    name: str = "tls"
    certificates: str | None = None
    timeout_s: float = 60.0
    connect_timeout_s: float = 60.0


@dataclass
class RandomnessSettings:
    """Where correlated randomness comes from.

    buffer_mb: how much of it a compute party takes from the dealer before the task starts (stream). store: the folder
    that ``python -m mpc_imaging.preprocess`` wrote for this compute party, or the one with those of all (stored).
    """

    mode: RandomnessMode = RandomnessMode.stream
    buffer_mb: int = 512
    store: str | None = None


@dataclass
class PartitionSettings:
    """How one ``data.path`` for all is divided: each party keeps only its own rows, never splitting a patient."""

    kind: PartitionKind = PartitionKind.even
    fractions: dict[str, float] = field(default_factory=dict)
    skew: float = 0.8
    seed: int = 0


@dataclass
class LimitSettings:
    """At most so many images of a split, over all owners together; null: all of them."""

    train: int | None = None
    val: int | None = None
    test: int | None = None


@dataclass
class PhantomSettings:
    """Size of the generated chest phantoms: images in each split."""

    train: int = 400
    val: int = 80
    test: int = 120
    seed: int = 0


@dataclass
class DataSettings:
    """Images and labels. Pixels become (value in [0, 1] - mean) / std, with one entry per channel or one for all."""

    kind: DataKind = DataKind.phantoms
    path: str | None = None
    paths: dict[str, str] = field(default_factory=dict)
    dataset: str | None = None
    image_size: int = 28
    channels: int = 1
    mean: list[float] = field(default_factory=lambda: [0.5])
    std: list[float] = field(default_factory=lambda: [0.25])
    frames: Frames = Frames.first
    invalid: Invalid = Invalid.refuse
    class_names: list[str] = field(default_factory=lambda: ["negative", "positive"])
    positive_class: int | None = None
    partition: PartitionSettings = field(default_factory=PartitionSettings)
    limit: LimitSettings = field(default_factory=LimitSettings)
    phantoms: PhantomSettings = field(default_factory=PhantomSettings)


@dataclass
class WeightsSettings:
    """The starting weights. ``secret``: shared by the model owner; otherwise they are public to the compute parties."""

    source: WeightsSource = WeightsSource.seed
    path: str | None = None
    secret: bool = True


@dataclass
class PretrainSettings:
    """Plaintext training by the model owner on its own train split, before sharing (``weights.source=pretrain``)."""

    epochs: int = 5
    batch_size: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0001


@dataclass
class ModelSettings:
    """A torch module: the dotted name of a class or function, and its keyword arguments."""

    name: str = "small_cnn"
    _target_: str = "mpc_imaging.models.zoo.SmallCNN"
    kwargs: dict[str, Any] = field(default_factory=dict)
    weights: WeightsSettings = field(default_factory=WeightsSettings)
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)


@dataclass
class TaskSettings:
    """What to do. ``split``: what infer runs on, and train is tested on at the end; each epoch is evaluated on val."""

    kind: TaskKind = TaskKind.infer
    split: str = "test"
    batch_size: int = 32
    epochs: int = 3
    loss: Loss = Loss.cross_entropy
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    evaluate_each_epoch: bool = True
    eval_batch_size: int = 64


@dataclass
class PolicySettings:
    """Which named values may be opened, and to whom: a party, a role, or ``image_owner`` (its own rows only)."""

    name: str = "image_owners"
    reveal: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class PrivacySettings:
    """Differential privacy; only ``none`` is built so far."""

    name: str = "none"


@dataclass
class PreprocessSettings:
    """What ``python -m mpc_imaging.preprocess`` writes: ``count`` sessions, into a new folder ``store``."""

    count: int = 10
    store: str = "store"


@dataclass
class Settings:
    """Everything that a run needs to know, the same for every party except what `PRIVATE` names."""

    name: str = "run"
    seed: int = 0
    topology: TopologySettings = field(default_factory=TopologySettings)
    protocol: ProtocolSettings = field(default_factory=ProtocolSettings)
    transport: TransportSettings = field(default_factory=TransportSettings)
    randomness: RandomnessSettings = field(default_factory=RandomnessSettings)
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    task: TaskSettings = field(default_factory=TaskSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    preprocess: PreprocessSettings = field(default_factory=PreprocessSettings)

    def parties_with(self, role: Role) -> list[str]:
        """Names of the parties that have ``role``, in the topology's order (which is also the order of ranks)."""
        return [name for name, party in self.topology.parties.items() if role in party.roles]

    def compute_parties(self) -> list[str]:
        """The parties that hold shares and compute on them; a party's place in this list is its rank."""
        return self.parties_with(Role.compute)

    def data_owners(self) -> list[str]:
        """The parties whose images the run uses; joint results list their rows in this order."""
        return self.parties_with(Role.data_owner)

    def model_owner(self) -> str:
        """The one party that holds the weights."""
        return self.parties_with(Role.model_owner)[0]

    def dealer(self) -> str:
        """The one party that hands out correlated randomness."""
        return self.parties_with(Role.dealer)[0]

    def participants(self) -> list[str]:
        """The parties that meet in a session, in the topology's order: all, or all but the dealer with a store."""
        stored = self.randomness.mode is RandomnessMode.stored
        return [name for name, party in self.topology.parties.items() if not (stored and Role.dealer in party.roles)]

    def recipients(self, value: str) -> list[str]:
        """Parties to whom the policy opens ``value``, in the topology's order; ``image_owner`` is every data owner."""
        allowed: set[str] = set()
        for entry in self.policy.reveal.get(value, []):
            if entry in Role.__members__:
                allowed.update(self.parties_with(Role[entry]))
            elif entry == IMAGE_OWNER:
                allowed.update(self.data_owners())
            else:
                allowed.add(entry)
        return [name for name in self.topology.parties if name in allowed]

    def receivers(self) -> list[str]:
        """Parties to whom the policy opens at least one value that this task produces, in the topology's order."""
        allowed = {name for value in PRODUCED[self.task.kind] for name in self.recipients(value)}
        return [name for name in self.topology.parties if name in allowed]

    def checks_range(self) -> bool:
        """Whether values are compared on so few bits that they might be too large, and that is checked."""
        protocol = self.protocol
        return protocol.name is ProtocolName.fss and protocol.comparison_bits is not None and protocol.range_check

    def on_one_machine(self) -> bool:
        """Whether every address is a loopback address: only then may a run be simulated or compared with plaintext."""
        hosts = [split_address(self.topology.parties[name].address)[0] for name in self.participants()]
        return all(host in ("localhost", "::1") or host.startswith("127.") for host in hosts)


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` (or ``[ipv6]:port``) as (host, port); ValueError if it is not of that form."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or any(c in host for c in " /@") or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"{address!r} is not host:port")
    return host, int(port)


def from_mapping(mapping: Mapping[str, Any], party: str | None = None) -> Settings:
    """The settings that plain dicts describe; what they leave out keeps its default, and `auto` becomes what it means.

    ``party``: whose machine this is; None: one machine runs all parties, and every private value must be known.
    Raises ConfigError with all problems at once: unknown keys, wrong types, and what `validation` finds.
    """
    from mpc_imaging import reading, validation  # which import this module

    settings, problems = reading.read(mapping)
    if settings.protocol.name is ProtocolName.auto:
        two = len(settings.compute_parties()) == 2
        settings.protocol.name = ProtocolName.fss if two else ProtocolName.beaver
    problems += reading.unrelated(validation.find_problems(settings, party), problems)
    if problems:
        raise ConfigError([str(problem) for problem in problems])
    return settings


def to_mapping(settings: Any) -> dict[str, Any]:
    """Plain dicts, lists, strings and numbers (Enums by name), from which `from_mapping` makes equal settings."""

    def plain(value: Any) -> Any:
        if isinstance(value, Enum):
            return value.name
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value

    return plain(dataclasses.asdict(settings))


def load(path: Path, party: str | None = None) -> Settings:
    """The settings in a YAML file written by `save`; raises ConfigError as `from_mapping` does."""
    return from_mapping(OmegaConf.to_container(OmegaConf.load(path), resolve=True), party)


def save(settings: Settings, path: Path) -> None:
    """Write ``settings`` as YAML, complete and without interpolations."""
    OmegaConf.save(OmegaConf.create(to_mapping(settings)), path)


def public_digests(settings: Settings) -> dict[str, str]:
    """SHA-256 (hex) of each section without what `PRIVATE` names: parties compare them, and name what differs."""
    mapping = to_mapping(settings)
    for key in PRIVATE:
        _remove(mapping, key.split("."))
    mapping["topology"]["parties"] = list(mapping["topology"]["parties"].items())  # their order decides the ranks
    canonical = {
        section: json.dumps(value, sort_keys=True, separators=(",", ":")) for section, value in mapping.items()
    }
    return {section: hashlib.sha256(text.encode()).hexdigest() for section, text in canonical.items()}


def _remove(mapping: dict[str, Any], steps: list[str]) -> None:
    """Delete the entries that a dotted key (``*``: any entry) leads to."""
    for name in list(mapping) if steps[0] == "*" else steps[:1]:
        if len(steps) == 1:
            mapping.pop(name, None)
        else:
            _remove(mapping[name], steps[1:])
