from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from mpc_imaging.errors import ConfigError
from mpc_imaging.settings import (
    PRIVATE,
    PartitionKind,
    ProtocolName,
    Role,
    Settings,
    TaskKind,
    from_mapping,
    load,
    public_digests,
    save,
    split_address,
    to_mapping,
)
from mpc_imaging.validation import validate

VALID: dict[str, Any] = {
    "topology": {
        "name": "two_hospitals",
        "parties": {
            "hospital_a": {"roles": ["data_owner", "compute", "model_owner", "receiver"]},
            "hospital_b": {"roles": ["data_owner", "compute", "receiver"]},
            "dealer": {"roles": ["dealer"]},
        },
    },
    "data": {"positive_class": 1},
    "policy": {
        "reveal": {
            "logits": ["image_owner"],
            "weights": ["model_owner"],
            "metrics": ["receiver"],
            "range_ok": ["compute"],
        }
    },
}


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """VALID with dotted keys set to other values (None for a party: removed)."""
    mapping = copy.deepcopy(VALID)
    for key, value in changes.items():
        *path, last = key.split(".")
        node = mapping
        for step in path:
            node = node.setdefault(step, {})
        if value is None and path[-1:] == ["parties"]:
            del node[last]
        else:
            node[last] = value
    return mapping


def problems(changes: dict[str, Any], party: str | None = None) -> list[str]:
    try:
        from_mapping(changed(changes), party)
    except ConfigError as error:
        assert all("\n" not in problem for problem in error.problems)
        return error.problems
    return []


def test_a_valid_mapping_is_read_and_typed() -> None:
    settings = from_mapping(changed({"task.kind": "train", "data.partition.kind": "label_skew", "task.lr": "1e-2"}))
    assert settings.task.kind is TaskKind.train
    assert settings.data.partition.kind is PartitionKind.label_skew
    assert settings.task.lr == 0.01
    assert settings.topology.parties["dealer"].roles == [Role.dealer]
    assert settings.task.batch_size == Settings().task.batch_size


def test_keys_and_types_are_reported_together() -> None:
    found = problems(
        {
            "tsak": {},
            "task.epoch": 3,
            "task.kind": "trian",
            "task.batch_size": 1.5,
            "topology.parties.hospital_b.roles": ["compute", "reciever"],
            "topology.parties.hospital_c": "compute",
            "data.class_names": [False, True],
            "data.positive_class": "???",
            "data.mean": 0.5,
            "data.limit": 5,
            "policy.reveal.logits": "receiver",
            "protocol.fraction_bits": "many",
        }
    )
    text = "\n".join(found)
    for expected in (
        "tsak: unknown key; did you mean task?",
        "task.epoch: unknown key; did you mean epochs?",
        "task.kind: 'trian' is not valid; did you mean train? (choices: infer, train, stream)",
        "task.batch_size: 1.5 is not valid; write a whole number",
        "topology.parties.hospital_b.roles: 'reciever' is not valid; did you mean receiver?",
        "topology.parties.hospital_c: 'compute' is no group of keys; write some of roles, address",
        "data.class_names: YAML reads yes, no, on, off as true or false; put quotes",
        "data.positive_class: must be given; write a whole number or null",
        "data.mean: 0.5 is not valid; write a list of numbers, like [0.5]",
        "data.limit: 5 is no group of keys",
        "policy.reveal: {'logits': 'receiver'",
        "protocol.fraction_bits: 'many' is not valid",
    ):
        assert expected in text
    assert len(found) == 12, text


def test_a_wrong_type_hides_its_mere_consequences_but_no_other_problem() -> None:
    found = problems({"topology.parties.hospital_b.roles": ["computes"], "task.batch_size": 0})
    assert [problem.split(":")[0] for problem in found] == ["topology.parties.hospital_b.roles", "task.batch_size"]


# One entry per rule: what is changed, and a part of the only problem that it makes.
SEMANTIC = [
    ({"topology.parties.hospital_b": None}, "topology.parties: only one compute party (hospital_a); add the role"),
    (
        {
            "topology.parties.hospital_a.roles": ["data_owner", "model_owner", "receiver"],
            "topology.parties.hospital_b.roles": ["data_owner", "receiver"],
        },
        "topology.parties: no compute party",
    ),
    ({"topology.parties.dealer.roles": ["dealer", "compute"]}, "a dealer may have no other role"),
    ({"topology.parties.dealer": None}, "topology.parties: no dealer; write exactly one"),
    ({"topology.parties.helper": {"roles": ["dealer"]}}, "2 dealers (dealer, helper)"),
    ({"topology.parties.hospital_a.roles": ["data_owner", "compute", "receiver"]}, "no model owner; give the role"),
    ({"topology.parties.vendor": {"roles": ["model_owner"]}}, "2 model owners (hospital_a, vendor)"),
    ({"topology.parties.idle": {"roles": []}}, "topology.parties.idle.roles: no role"),
    ({"topology.parties.twice": {"roles": ["receiver", "receiver"]}}, "a role is listed twice"),
    ({"topology.parties.Clinic": {"roles": ["receiver"]}}, "starts with a-z"),
    ({"topology.parties.2nd": {"roles": ["receiver"]}}, "starts with a-z"),
    ({"topology.parties.receiver": {"roles": ["compute"]}}, "could not tell the party receiver from the role"),
    ({"topology.parties.image_owner": {"roles": ["receiver"]}}, "could not tell the party image_owner"),
    ({"topology.parties.hospital_a.address": "localhost"}, "'localhost' is no address; write host:port"),
    ({"topology.parties.hospital_a.address": "h:70000"}, "'h:70000' is no address; write host:port"),
    (
        {"topology.parties.hospital_a.address": "h:9001", "topology.parties.hospital_b.address": "H:9001"},
        "topology.parties.hospital_b.address: the same as that of hospital_a",
    ),
    ({"policy.reveal.gradients": ["receiver"]}, "no such value can be revealed; choices: logits"),
    ({"policy.reveal.predictions": ["hospital_z"]}, "no party or role; did you mean hospital_"),
    ({"policy.reveal.metrics": ["image_owner"]}, "metrics belongs to no single image"),
    (
        {"policy.reveal.duplicates": ["data_owner"]},
        "policy.reveal.duplicates: an owner learns of its own images only; write image_owner in place of data_owner",
    ),
    (
        {"policy.reveal.weights": ["receiver"]},
        "weights may go to model_owner or to a party named here, not to receiver",
    ),
    (
        {
            "topology.parties.hospital_a.roles": ["data_owner", "compute", "model_owner"],
            "topology.parties.hospital_b.roles": ["data_owner", "compute"],
        },
        "policy.reveal.metrics: no party has the role receiver",
    ),
    ({"policy.reveal.logits": ["dealer"]}, "a dealer may learn nothing"),
    (
        {"policy.reveal": {"loss": ["receiver"], "range_ok": ["compute"]}},
        "nobody receives anything from infer; name a recipient of one of logits",
    ),
    ({"protocol.fraction_bits": 7}, "protocol.fraction_bits: 7 is out of range; write a whole number from 8 to 24"),
    ({"protocol.fraction_bits": 25}, "8 to 24"),
    ({"protocol.comparison_bits": 15}, "comparison_bits: 15 is out of range; write a whole number from 16 to 64, or"),
    ({"protocol.comparison_bits": 65}, "16 to 64, or null for all bits"),
    (
        {"protocol.comparison_bits": 26, "protocol.fraction_bits": 24},
        "too narrow for any value above 1 with fraction_bits=24; write 27 or more",
    ),
    (
        {"protocol.comparison_bits": 32, "protocol.name": "beaver"},
        "protocol.comparison_bits: beaver compares all bits, only fss (two compute parties) has a width; write null",
    ),
    (
        {"protocol.name": "fss", "topology.parties.hospital_c": {"roles": ["compute"]}},
        "protocol.name: fss takes 2 compute parties, not 3; write protocol=beaver, or auto",
    ),
    ({"randomness.buffer_mb": -1}, "randomness.buffer_mb: -1 is out of range; write a whole number from 0"),
    (
        {"randomness.mode": "stored"},
        "randomness.store: randomness=stored needs it; write the folder that python -m mpc_imaging.preprocess wrote",
    ),
    ({"randomness.store": "/store"}, "not read with randomness.mode=stream; write randomness=stored"),
    (
        {"randomness.mode": "stored", "randomness.store": "/store", "protocol.name": "insecure_simulation"},
        "randomness.mode: insecure_simulation uses no correlated randomness",
    ),
    ({"preprocess.count": 0}, "preprocess.count: 0 is out of range; write a whole number from 1"),
    ({"task.batch_size": 0}, "task.batch_size: 0 is out of range; write a whole number from 1"),
    ({"task.eval_batch_size": 0}, "task.eval_batch_size"),
    ({"task.epochs": 0}, "task.epochs"),
    ({"model.pretrain.epochs": 0}, "model.pretrain.epochs"),
    ({"task.lr": 0.0}, "task.lr: 0.0 is out of range; write a number above 0"),
    ({"task.lr": float("nan")}, "task.lr"),
    ({"task.momentum": 1.0}, "task.momentum: 1.0 is out of range; write a number from 0, below 1"),
    ({"task.weight_decay": -1}, "task.weight_decay"),
    ({"task.split": "tests"}, "task.split: 'tests' is no split; did you mean test?"),
    ({"transport.timeout_s": 0}, "transport.timeout_s"),
    ({"transport.name": "tcp"}, "transport.name: 'tcp' is not built; write tls"),
    ({"privacy.name": "dpp"}, "privacy.name: 'dpp' is not valid; did you mean dp?"),
    ({"seed": -1}, "seed: -1"),
    ({"name": "a/b"}, "becomes part of a folder's name"),
    ({"data.class_names": ["one"], "data.positive_class": 0}, "1 classes; name two or more"),
    ({"data.class_names": ["same", "same"]}, "two of one name"),
    ({"data.positive_class": None}, "needed to report sensitivity with two classes; write one of 0 (negative), 1 (pos"),
    ({"data.positive_class": 2}, "there is no class 2"),
    ({"data.channels": 2}, "data.channels: 2 is out of range; write 1 (grey) or 3 (colour)"),
    ({"data.channels": 3, "data.mean": [0.1, 0.2]}, "data.mean: 2 numbers for 3 channels; write 1 or 3"),
    ({"data.std": [0.0]}, "data.std: [0.0] cannot scale pixels"),
    ({"data.limit.test": 0}, "data.limit.test"),
    ({"data.path": "/images"}, "data.path: phantoms are generated"),
    ({"data.kind": "dicom"}, "no images for hospital_a, hospital_b; write data.path for all, or data.paths.hospital_a"),
    ({"data.kind": "medmnist"}, "or data.dataset to download one"),
    ({"data.kind": "dicom", "data.paths": {"hospital_a": "/a"}, "data.path": "/b"}, "none for hospital_b"),
    (
        {"data.kind": "dicom", "data.path": "/a", "data.paths": {"hospitl_c": "/b"}},
        "no party that reads images; did you",
    ),
    (
        {"data.kind": "dicom", "data.path": "/a", "data.partition.kind": "private"},
        "private, but hospital_a, hospital_b would use the same images",
    ),
    ({"data.kind": "medmnist", "data.path": "/a", "data.partition.kind": "site"}, "name no sites"),
    (
        {"data.partition.kind": "fraction", "data.partition.fractions": {"hospital_a": 1.0}},
        "data.partition.fractions.hospital_b: no share",
    ),
    (
        {"data.partition.kind": "fraction", "data.partition.fractions": {"hospital_a": 0.5, "hospital_b": 0.4}},
        "the shares add up to 0.9",
    ),
    ({"data.partition.skew": 1.5}, "data.partition.skew"),
    ({"model.weights.source": "file"}, "model.weights.path: weights.source=file needs it; write the path of a .safe"),
    ({"model.weights.source": "shares"}, "the folder of the run that trained"),
    (
        {"model.weights.source": "shares", "model.weights.path": "/run", "model.weights.secret": False},
        "shares of weights stay secret",
    ),
    ({"model.weights.path": "/w.safetensors"}, "not read with weights.source=seed"),
    ({"model._target_": "SmallCNN"}, "is no dotted name; write package.module.Class"),
    (
        {"protocol.name": "insecure_simulation", "topology.parties.dealer.address": "10.0.0.1:9000"},
        "insecure_simulation hides nothing and runs on one machine only",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), SEMANTIC, ids=[str(i) for i in range(len(SEMANTIC))])
def test_each_rule_finds_its_problem(changes: dict[str, Any], expected: str) -> None:
    (found,) = problems(changes)
    assert expected in found


def test_parties_that_differ_in_case_have_one_name() -> None:
    found = problems({"topology.parties.HOSPITAL_A": {"roles": ["receiver"]}})
    assert any("the same name as hospital_a" in problem for problem in found)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_insecure_simulation_takes_two_or_three_compute_parties(count: int) -> None:
    parties = {f"c{i}": {"roles": ["compute"]} for i in range(count)}
    parties |= {"owner": {"roles": ["data_owner", "model_owner", "receiver"]}, "dealer": {"roles": ["dealer"]}}
    found = problems({"topology.parties": parties, "protocol.name": "insecure_simulation"})
    assert any("takes 2 or 3 compute parties" in problem for problem in found) == (count not in (2, 3))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_auto_is_what_the_number_of_compute_parties_allows(count: int, tmp_path: Path) -> None:
    parties = {f"c{i}": {"roles": ["compute", "data_owner"]} for i in range(count)}
    parties |= {"owner": {"roles": ["model_owner", "receiver"]}, "dealer": {"roles": ["dealer"]}}
    expected = ProtocolName.fss if count == 2 else ProtocolName.beaver
    settings = from_mapping(changed({"topology.parties": parties}))
    explicit = from_mapping(changed({"topology.parties": parties, "protocol.name": expected.name}))
    assert settings.protocol.name is expected and public_digests(settings) == public_digests(explicit)
    save(settings, tmp_path / "settings.yaml")
    assert load(tmp_path / "settings.yaml") == settings
    assert "name: auto" not in (tmp_path / "settings.yaml").read_text()
    widths = problems({"topology.parties": parties, "protocol.name": "auto", "protocol.comparison_bits": 40})
    assert [text.split(":")[0] for text in widths] == ([] if count == 2 else ["protocol.comparison_bits"])


def test_no_dealer_takes_part_where_randomness_is_stored() -> None:
    stored = {"randomness.mode": "stored", "randomness.store": "/store"}
    settings = from_mapping(changed(stored))
    assert settings.participants() == ["hospital_a", "hospital_b"]
    assert from_mapping(VALID).participants() == ["hospital_a", "hospital_b", "dealer"]
    settings.topology.parties["dealer"].address = "elsewhere.example.org:9000"
    assert settings.has_loopback_addresses(), "nobody calls it"
    mine = {f"topology.parties.hospital_{x}.address": f"{x}:9001" for x in "ab"}
    assert problems(stored | mine, "hospital_a") == [], "port 0 of the dealer does not matter"
    found = problems({"randomness.mode": "stored"} | mine, "hospital_b")
    assert len(found) == 1 and found[0].startswith("randomness.store: ")


def test_a_dict_set_to_null_is_empty() -> None:
    assert from_mapping(changed({"model.kwargs": None, "data.paths": None})).model.kwargs == {}
    assert "policy.reveal: nobody receives anything" in problems({"policy.reveal": None})[0]


def test_all_semantic_problems_at_once() -> None:
    found = problems({"task.batch_size": 0, "task.split": "tests", "topology.parties.dealer": None, "data.std": [-1.0]})
    assert len(found) == 4


def test_private_values_are_required_only_of_the_party_that_uses_them() -> None:
    file = {"model.weights.source": "file"}
    dicom = {"data.kind": "dicom"}
    shares = {"model.weights.source": "shares"}
    addresses = {
        f"topology.parties.{name}.address": f"{name}:900{i}" for i, name in enumerate(VALID["topology"]["parties"])
    }
    assert problems(file | addresses, "hospital_b") == []
    assert len(problems(file | addresses, "hospital_a")) == 1
    assert problems(dicom | addresses, "dealer") == []
    assert problems(dicom | addresses, "hospital_b") == [
        "data.path: no images for hospital_b; write data.path, or data.paths.hospital_b"
    ]
    assert len(problems(shares | addresses, "hospital_b")) == 1
    assert problems(shares | addresses, "dealer") == []
    private = {"data.kind": "dicom", "data.path": "/mine", "data.partition.kind": "private"}
    assert problems(private | addresses, "hospital_a") == []


def test_the_model_owner_needs_images_only_to_pretrain() -> None:
    outsourced = {
        "hospital": {"roles": ["data_owner", "receiver"]},
        "vendor": {"roles": ["model_owner"]},
        "cloud_a": {"roles": ["compute"]},
        "cloud_b": {"roles": ["compute"]},
        "dealer": {"roles": ["dealer"]},
    }
    changes = {"topology.parties": outsourced, "data.kind": "dicom", "data.paths": {"hospital": "/h"}}
    assert problems(changes) == []
    assert "no images for vendor" in problems(changes | {"model.weights.source": "pretrain"})[0]


def test_a_party_on_its_own_machine_needs_real_ports_and_a_known_name() -> None:
    found = problems({}, "hospital_c")
    assert "party: 'hospital_c' is not in the topology; did you mean hospital_" in found[0]
    assert sum("port 0 is for runs on one machine" in problem for problem in found) == 3


def test_validate_returns_the_same_lines() -> None:
    settings = from_mapping(VALID)
    assert validate(settings) == []
    settings.task.batch_size = -1
    assert validate(settings) == ["task.batch_size: -1 is out of range; write a whole number from 1"]


def test_mapping_and_file_round_trip(tmp_path: Path) -> None:
    settings = from_mapping(changed({"data.paths": {}, "model.kwargs": {"sizes": [1, 2], "name": "x"}, "seed": 5}))
    assert from_mapping(to_mapping(settings)) == settings
    save(settings, tmp_path / "settings.yaml")
    assert load(tmp_path / "settings.yaml") == settings


def test_roles_and_recipients() -> None:
    policy = {"logits": ["image_owner", "model_owner"], "predictions": ["hospital_b"], "loss": ["receiver"]}
    policy["range_ok"] = ["compute"]
    settings = from_mapping(changed({"policy.reveal": policy}))
    assert settings.compute_parties() == ["hospital_a", "hospital_b"]
    assert settings.data_owners() == ["hospital_a", "hospital_b"]
    assert (settings.model_owner(), settings.dealer()) == ("hospital_a", "dealer")
    assert settings.recipients("logits") == ["hospital_a", "hospital_b"]
    assert settings.recipients("predictions") == ["hospital_b"]
    assert settings.recipients("weights") == []
    assert settings.receivers() == ["hospital_a", "hospital_b"]


def test_owners_compare_their_images_only_if_the_policy_says_so() -> None:
    assert not from_mapping(VALID).finds_duplicates()
    listed = {"policy.reveal.duplicates": ["image_owner"]}
    assert from_mapping(changed(listed)).finds_duplicates()
    alone = {"topology.parties.hospital_b.roles": ["compute", "receiver"]}
    assert not from_mapping(changed(listed | alone)).finds_duplicates(), "there is no other owner"
    assert "duplicates" not in from_mapping(changed(listed)).produced(), "nobody waits for it at the end"


def test_receivers_are_those_of_values_that_the_task_produces() -> None:
    policy = {"predictions": ["hospital_b"], "weights": ["model_owner"], "range_ok": ["compute"]}
    assert from_mapping(changed({"policy.reveal": policy})).receivers() == ["hospital_b"]
    train = from_mapping(changed({"policy.reveal": policy, "task.kind": "train"}))
    assert train.receivers() == ["hospital_a", "hospital_b"]


def test_digests_ignore_what_is_private_and_name_the_section_that_differs() -> None:
    base = public_digests(from_mapping(VALID))
    private = changed(
        {
            "transport.certificates": "/c",
            "transport.timeout_s": 5,
            "data.kind": "phantoms",
            "data.invalid": "skip",
            "preprocess.count": 3,
            "preprocess.store": "/s",
            "topology.parties.hospital_a.address": "10.1.1.1:9001",
        }
    )
    assert public_digests(from_mapping(private)) == base
    for key, value, section in (
        ("task.lr", 0.3, "task"),
        ("seed", 4, "seed"),
        ("data.partition.seed", 4, "data"),
        ("randomness.buffer_mb", 7, "randomness"),
        ("topology.parties.hospital_b.roles", ["compute", "data_owner"], "topology"),
        ("policy.reveal.logits", ["receiver"], "policy"),
    ):
        other = public_digests(from_mapping(changed({key: value})))
        assert {name for name in base if base[name] != other[name]} == {section}
    assert all(len(digest) == 64 for digest in base.values())


def test_every_private_key_exists_and_is_left_out_of_the_digests() -> None:
    settings = from_mapping(VALID)
    base = public_digests(settings)
    settings.data.path, settings.data.paths, settings.model.weights.path = "/a", {"hospital_a": "/b"}, "/c"
    settings.transport.connect_timeout_s = 1.5
    assert public_digests(settings) == base
    mapping = to_mapping(settings)
    for key in PRIVATE:
        node: Any = mapping
        for step in key.split("."):
            node = next(iter(node.values())) if step == "*" else node[step]


def test_the_order_of_parties_is_public_since_it_decides_ranks() -> None:
    mapping = copy.deepcopy(VALID)
    mapping["topology"]["parties"] = dict(reversed(mapping["topology"]["parties"].items()))
    assert public_digests(from_mapping(mapping))["topology"] != public_digests(from_mapping(VALID))["topology"]


@pytest.mark.parametrize("address", ["host:1", "10.0.0.1:65535", "[::1]:80"])
def test_addresses(address: str) -> None:
    host, port = split_address(address)
    assert address in (f"{host}:{port}", f"[{host}]:{port}")


@pytest.mark.parametrize(
    "address", ["host", ":80", "host:", "host:port", "host:65536", "http://host:80", "ho st:1", "h:-1"]
)
def test_bad_addresses(address: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        split_address(address)


def test_loopback_addresses() -> None:
    settings = from_mapping(VALID)
    settings.topology.parties["hospital_a"].address = "[::1]:80"
    settings.topology.parties["hospital_b"].address = "localhost:80"
    assert settings.has_loopback_addresses()
    settings.topology.parties["dealer"].address = "dealer.example.org:80"
    assert not settings.has_loopback_addresses()


def test_only_all_parties_together_are_a_simulation() -> None:
    """A party on its own is on a machine of its own, whatever addresses say: those of tunnels are loopback too."""
    simulated = {"protocol.name": "insecure_simulation"}
    assert problems(simulated) == []
    addresses = {
        f"topology.parties.{name}.address": f"127.0.0.1:{port}"
        for port, name in enumerate(("hospital_a", "hospital_b", "dealer"), 9001)
    }
    for name in ("hospital_a", "dealer"):
        (found,) = problems(simulated | addresses, name)
        assert found.startswith("protocol.name: insecure_simulation hides nothing: only python -m mpc_imaging runs it")
