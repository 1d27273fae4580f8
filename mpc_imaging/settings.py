"""The one schema of the configuration: dataclasses, and how settings are read, written and compared.

`from_mapping` turns a composed configuration (plain dicts) into `Settings`, or raises one `ConfigError` that lists
every problem found, each with what to write instead (see `reading` and `validation`). Nothing here imports torch,
CrypTen or Hydra.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
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
    DataKind as DataKind,
    FeatureNorm as FeatureNorm,
    Frames as Frames,
    Invalid as Invalid,
    Loss as Loss,
    Method,
    Optimiser as Optimiser,
    PartitionKind as PartitionKind,
    PrivacyName as PrivacyName,
    ProtocolName,
    Quality as Quality,
    RandomnessMode,
    RateSchedule as RateSchedule,
    Role,
    StopMetric as StopMetric,
    TaskKind as TaskKind,
    WeightsSource as WeightsSource,
)
from mpc_imaging.errors import ConfigError
from mpc_imaging.schema import (
    ArraySettings as ArraySettings,
    AugmentSettings as AugmentSettings,
    BackboneSettings as BackboneSettings,
    CheckpointSettings as CheckpointSettings,
    DataSettings as DataSettings,
    EarlyStoppingSettings as EarlyStoppingSettings,
    FoldSettings as FoldSettings,
    LimitSettings as LimitSettings,
    ModelSettings as ModelSettings,
    PartitionSettings as PartitionSettings,
    PartySettings as PartySettings,
    PhantomSettings as PhantomSettings,
    PolicySettings as PolicySettings,
    PreprocessSettings as PreprocessSettings,
    PretrainSettings as PretrainSettings,
    PrivacySettings as PrivacySettings,
    ProtocolSettings as ProtocolSettings,
    RandomnessSettings as RandomnessSettings,
    ScheduleSettings as ScheduleSettings,
    StreamSettings as StreamSettings,
    TaskSettings as TaskSettings,
    TopologySettings as TopologySettings,
    TransportSettings as TransportSettings,
    WeightsSettings as WeightsSettings,
    WindowSettings as WindowSettings,
)

# What a party may set on its own machine without the others noticing; everything else is compared in the handshake.
PRIVATE = (
    "transport.certificates",
    "transport.timeout_s",
    "transport.connect_timeout_s",
    "randomness.store",
    "randomness.max_jump",
    "randomness.witness",
    "data.path",
    "data.paths",
    "data.invalid",
    "data.quality",
    "data.dicom_results",
    "data.pseudonym_key_file",
    "model.weights.path",
    "model.backbone.path",
    "model.allow_code",
    "checkpoint.path",
    "checkpoint.key_file",
    "topology.parties.*.address",
    "preprocess",
)


@dataclass
class Settings:
    """Everything that a run needs to know, the same for every party except what `PRIVATE` names."""

    name: str = "run"
    seed: int = 0
    resume: bool = False
    topology: TopologySettings = field(default_factory=TopologySettings)
    protocol: ProtocolSettings = field(default_factory=ProtocolSettings)
    transport: TransportSettings = field(default_factory=TransportSettings)
    randomness: RandomnessSettings = field(default_factory=RandomnessSettings)
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    task: TaskSettings = field(default_factory=TaskSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
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

    def produced(self) -> list[str]:
        """The values of the policy that this task produces for somebody to use."""
        none = {"epoch" if self.task.method is Method.federated else "update"} | ({"auc"} if self.data.masks else set())
        return [value for value in PRODUCED[self.task.kind] if value not in none]

    def receivers(self) -> list[str]:
        """Parties to whom the policy opens at least one value that this task produces, in the topology's order."""
        allowed = {name for value in self.produced() for name in self.recipients(value)}
        return [name for name in self.topology.parties if name in allowed]

    def needs_labels(self) -> bool:
        """Whether the owners share labels: to train, or to count what is right for somebody."""
        counted = any(self.recipients(value) for value in ("metrics", "auc") if value in self.produced())
        return self.task.kind is TaskKind.train or counted

    def checks_range(self) -> bool:
        """Whether the compute parties find out, before anything is opened, whether all values were in range."""
        return self.protocol.range_check and self.protocol.name is not ProtocolName.insecure_simulation

    def compares_narrowly(self) -> bool:
        """Whether values are compared on so few bits that they might be too large for it."""
        return self.protocol.name is ProtocolName.fss and self.protocol.comparison_bits is not None

    def finds_duplicates(self) -> bool:
        """Whether each owner finds out which of its images another owner has too."""
        return bool(self.recipients("duplicates")) and len(self.data_owners()) > 1

    def stops_early(self) -> bool:
        """Whether training may end before its last epoch, which all parties then learn."""
        stop = self.task.early_stopping
        chosen = self.task.kind is TaskKind.train and stop.metric is not StopMetric.none and stop.patience is not None
        return chosen and bool(self.recipients("epoch"))

    def has_loopback_addresses(self) -> bool:
        """Whether every address is a loopback address. This says nothing of where parties are (tunnels)."""
        hosts = [split_address(self.topology.parties[name].address)[0] for name in self.participants()]
        return all(host in ("localhost", "::1") or host.startswith("127.") for host in hosts)


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` (or ``[ipv6]:port``) as (host, port); ValueError if it is not of that form."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or any(c in host for c in " /@") or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"{address!r} is not host:port")
    return host, int(port)


def from_mapping(mapping: Mapping[str, Any], party: str | None = None, allow_code: Sequence[str] = ()) -> Settings:
    """The settings that plain dicts describe; what they leave out keeps its default, and `auto` becomes what it means.

    ``party``: whose machine this is; None: one machine runs all parties, and every private value must be known.
    ``allow_code``: `model.allow_code`, as this machine's operator wrote it; ``mapping`` may not have any, since others
    may have written what it comes from.
    Raises ConfigError with all problems at once: unknown keys, wrong types, and what `validation` finds.
    """
    from mpc_imaging import reading, validation  # which import this module

    settings, problems = reading.read(mapping)
    if settings.model.allow_code:
        what = "a file sets it, which may be somebody else's; write it on your own command line, if you trust that code"
        problems.append(reading.Problem("model.allow_code", what))
    settings.model.allow_code = list(allow_code)
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


def load(path: Path, party: str | None = None, allow_code: Sequence[str] = ()) -> Settings:
    """The settings in a YAML file written by `save`; arguments and errors as those of `from_mapping`."""
    return from_mapping(OmegaConf.to_container(OmegaConf.load(path), resolve=True), party, allow_code)


def save(settings: Settings, path: Path) -> None:
    """Write ``settings`` as YAML, without interpolations; complete but for `model.allow_code`, which no file sets."""
    mapping = to_mapping(settings)
    _remove(mapping, ["model", "allow_code"])
    OmegaConf.save(OmegaConf.create(mapping), path)


def public_digests(settings: Settings) -> dict[str, str]:
    """SHA-256 (hex) of each section without what `PRIVATE` names: parties compare them, and name what differs."""
    mapping = to_mapping(settings)
    for key in PRIVATE:
        _remove(mapping, key.split("."))
    if not settings.model.single_logit:  # so that checkpoints of version 0.1.0, which did not know it, are still found
        _remove(mapping, ["model", "single_logit"])
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
