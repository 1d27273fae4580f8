"""The budget of a private training run, and what is said about it."""

import dataclasses
import math

import pytest
import torch

from mpc_imaging.baselines.accounting import Mechanism, epsilon
from mpc_imaging.errors import PrivacyError
from mpc_imaging.protocols.noise import ClippedSum, HeadSum
from mpc_imaging.settings import Method, PrivacyName, Settings, TaskKind, WeightsSource
from mpc_imaging.tasks import privacy, weights
from mpc_imaging.tasks.checkpoints import Point, Start
from mpc_imaging.tasks.privacy import Budget, plaintext_gradients, session_budget


@pytest.fixture
def settings():
    settings = Settings()
    settings.task.kind, settings.privacy.name = TaskKind.train, PrivacyName.dp
    return settings


@pytest.fixture(autouse=True)
def two_parties(monkeypatch):
    monkeypatch.setattr(Settings, "compute_parties", lambda self: ["a", "b"])


def test_three_epochs(settings):
    budget = Budget(settings)
    assert budget.epsilon(3) == pytest.approx(8.39, abs=0.05)
    # Of both parties' noise together.
    assert budget.epsilon(3, outsiders=True) == pytest.approx(epsilon([Mechanism(math.sqrt(2), 3)], 1e-5), rel=1e-3)


def test_epochs_beyond_the_budget_are_refused(settings):
    settings.privacy.epsilon = 7.0
    budget = Budget(settings)
    budget.require(2)
    with pytest.raises(PrivacyError, match=r"3 epochs take epsilon 8.39, of privacy.epsilon=7; write task.epochs=2"):
        budget.require(3)


def test_earlier_sessions_have_spent_some(settings):
    settings.privacy.epsilon = 8.5
    earlier = Budget(settings).record(2)
    later = Budget(settings, earlier)
    later.require(1)
    assert later.epsilon(1) == pytest.approx(8.39, abs=0.05)
    with pytest.raises(PrivacyError, match="by earlier sessions"):
        later.require(2)
    record = later.record(1)
    assert [entry["epochs"] for entry in record] == [2, 1]
    spent = Budget(settings, record)
    with pytest.raises(PrivacyError, match="none is left"):
        spent.require(1)
    assert spent.entry(0)["earlier_sessions"] == 2


def test_no_budget_only_reports(settings):
    settings.privacy.noise_multiplier = 0.5
    Budget(settings).require(100)


def test_shares_without_a_record(settings):
    with pytest.raises(PrivacyError, match="trained without noise"):
        Budget(settings, None)
    for entry in ({}, {"noise_multiplier": "?", "epochs": 1, "parties": 2, "slack": 0}):
        with pytest.raises(PrivacyError, match="cannot be read"):
            Budget(settings, [entry]).epsilon(1)


def test_entry(settings):
    settings.privacy.outside = ["loss"]
    entry = Budget(settings).entry(3, ClippedSum(1.0, 1, 2, True))
    assert entry["epsilon_insiders"] > entry["epsilon_outsiders"] > 0
    assert entry["outside"] == ["loss"] and entry["sensitivity"] == pytest.approx(1, abs=1e-3)
    assert "replaced by zero" in entry["adjacency"] and "twice" in entry["adjacency"]
    assert "inputs" not in entry
    settings.privacy.input_norm = 5.0
    assert "own images only" in Budget(settings).entry(3)["inputs"]
    settings.task.method = Method.federated
    assert "owner's updates" in Budget(settings).entry(3)["adjacency"]


def test_no_noise_is_no_number(settings):
    settings.privacy.noise_multiplier = 0.0
    assert Budget(settings).entry(1)["epsilon_insiders"] is None


def test_what_the_sum_is(settings):
    shapes = {"a.weight": torch.Size([16, 1, 5, 5]), "a.bias": torch.Size([16]), "b.weight": torch.Size([2, 40])}
    assert privacy.gradient_sum(settings, shapes) == ClippedSum(1.0, 1, 1, True)
    settings.privacy.input_norm = 5.0
    settings.data.class_names = ["no", "yes", "perhaps"]
    head = {"weight": torch.Size([3, 40]), "bias": torch.Size([3])}
    bits = settings.protocol.fraction_bits
    assert privacy.gradient_sum(settings, head) == HeadSum(5.0, 40, 3, bits)


def test_without_privacy(settings):
    settings.privacy.name = PrivacyName.none
    assert not privacy.is_private(settings)
    job = dataclasses.make_dataclass("Job", ["settings"])(settings)
    assert privacy.private_gradients(job, None) is None


class _Session:
    """What `session_budget` reads of one."""

    me = "a"

    def __init__(self, settings, rank):
        self.settings, self.rank = settings, rank


def test_a_resumed_session_pays_again_for_what_it_may_have_shown(settings):
    settings.task.epochs = 3
    session = _Session(settings, 0)
    assert session_budget(session, Start()).epsilon(3) == pytest.approx(8.39, abs=0.05)
    resumed = Start(Point(2, 0, 8), True)
    assert session_budget(session, resumed).epsilon(3) == pytest.approx(Budget(settings).epsilon(4), rel=1e-3)
    settings.privacy.epsilon = 8.5
    with pytest.raises(PrivacyError, match="going on takes epsilon .* write a larger privacy.epsilon"):
        session_budget(session, resumed)


def test_shares_bring_what_they_have_spent(settings, monkeypatch):
    settings.model.weights.source, settings.task.epochs = WeightsSource.shares, 1
    header = {"privacy": Budget(settings).record(2)}
    monkeypatch.setattr(weights, "read_share_file", lambda settings, party: ({}, header))
    assert session_budget(_Session(settings, 0), Start()).epsilon(1) == pytest.approx(8.39, abs=0.05)
    header.clear()
    with pytest.raises(PrivacyError, match="trained without noise, which no budget can hold"):
        session_budget(_Session(settings, 0), Start())
    assert session_budget(_Session(settings, None), Start()) is None


def test_the_plaintext_baseline_has_the_noise_of_all_parties(settings):
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 2))
    made = plaintext_gradients(settings, module)
    assert made.deviation == pytest.approx(2**0.5, rel=0.02) and not made.head
    settings.privacy.name = PrivacyName.none
    assert plaintext_gradients(settings, module) is None


def test_an_owners_update_protects_its_images_half_as_well(settings):
    settings.task.method, settings.privacy.input_norm = Method.federated, 1.0
    earlier = Budget(settings).record(3)
    assert Budget(settings, earlier).epsilon(0) == pytest.approx(8.39, abs=0.05)
    settings.task.method = Method.joint
    halved = epsilon([Mechanism(0.5, 3), Mechanism(1.0, 3)], 1e-5)
    assert Budget(settings, earlier).epsilon(3) == pytest.approx(halved, rel=1e-3)
    images = Budget(settings).record(1)
    settings.task.method = Method.federated
    assert Budget(settings, images).epsilon(1) == math.inf
