"""The policy decides rows, not only values."""

import pytest

from mpc_imaging.errors import PolicyError
from mpc_imaging.parties import policy
from mpc_imaging.settings import PartySettings, PolicySettings, Role, Settings, TopologySettings

SPANS = {"a": slice(0, 3), "b": slice(3, 5)}


def _settings(**reveal):
    parties = {
        "a": PartySettings([Role.data_owner, Role.compute, Role.model_owner]),
        "b": PartySettings([Role.data_owner, Role.compute, Role.receiver]),
        "dealer": PartySettings([Role.dealer]),
    }
    return Settings(topology=TopologySettings(parties=parties), policy=PolicySettings(reveal=reveal))


def test_image_owner_sees_its_rows_and_a_receiver_all():
    rows = policy.allowed_rows(_settings(logits=["image_owner", "receiver"]), "logits", SPANS, 5)
    assert rows == {"a": slice(0, 3), "b": slice(0, 5)}
    assert policy.allowed_rows(_settings(weights=["model_owner"]), "weights", {}, 1) == {"a": slice(0, 1)}


def test_what_is_not_listed_is_not_opened():
    assert policy.allowed_rows(_settings(logits=["a"]), "predictions", SPANS, 5) == {}


@pytest.mark.parametrize("rows", [{"b": slice(0, 3)}, {"a": slice(0, 4)}, {"dealer": slice(0, 1)}])
def test_more_than_the_policy_opens(rows):
    settings = _settings(logits=["image_owner"])
    with pytest.raises(PolicyError, match="policy.reveal.logits"):
        policy.require(settings, "logits", rows, SPANS, 5)


def test_unknown_value():
    with pytest.raises(PolicyError, match="'images' is no value"):
        policy.allowed_rows(_settings(), "images", SPANS, 5)
