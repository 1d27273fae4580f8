"""The best epoch, chosen on shares by compute parties that are processes, against the same choice in the open."""

from types import SimpleNamespace

import pytest
import torch

from mpc_imaging.errors import PeerLostError, SessionError
from mpc_imaging.settings import Loss, StopMetric, TaskKind
from mpc_imaging.tasks.inputs import Catalogue
from mpc_imaging.tasks.job import Job, once
from mpc_imaging.tasks.progress import Progress
from mpc_imaging.tasks.stopping import BestEpoch, validation_score

SHAPES = ((2, 3), (4,))


class FakeJob:
    """Opens what the policy allows among the compute parties, and notes it."""

    def __init__(self, patience, epochs, allowed, metric="accuracy"):
        task = SimpleNamespace(
            early_stopping=SimpleNamespace(patience=patience, metric=StopMetric[metric]), epochs=epochs,
            loss=Loss.cross_entropy, auc_bins=64,
        )  # fmt: skip
        self.settings = SimpleNamespace(
            task=task, data=SimpleNamespace(multi_label=False, positive_class=1),
            stops_early=lambda: allowed and patience is not None, receivers=lambda: ["a", "b"],
        )  # fmt: skip
        self.session = SimpleNamespace(first=False)
        self.allowed, self.opened, self.segment = allowed, [], once

    def open(self, value, share, shape, spans=None, bits=None):
        from mpc_imaging.engine import gates

        if not self.allowed:
            return None
        (opened,) = gates.context().channel.open_ring([share])
        assert value == "epoch" and bits == 0 and opened.shape == shape
        self.opened.append(opened.item())
        return opened.double()


def train(*epochs, patience, limit, allowed, resume_after=None):
    """Epochs (weights and a value, flat) one after another; what came of them, as every party has it."""
    from mpc_imaging.engine.tensors import from_share

    parameters = {f"p{i}": from_share(torch.zeros(shape, dtype=torch.int64)) for i, shape in enumerate(SHAPES)}
    model = SimpleNamespace(parameters=parameters, trainable=lambda: list(parameters))
    job = FakeJob(patience, limit, allowed)
    best, ran = BestEpoch(job, model), 0
    for number, epoch in enumerate(epochs, 1):
        *weights, value = epoch.share.split([6, 4, 1])
        for parameter, part in zip(parameters.values(), weights, strict=True):
            parameter.share = part.reshape(parameter.size()).clone()
        ran = number
        if best.update(number, value.reshape(())):
            break
        if number == resume_after:
            kept = {name: tensor.clone() for name, tensor in best.tensors().items()}
            best = BestEpoch(job, model)
            best.load(kept)
    number = best.finish()
    return parameters, {"number": number, "ran": ran, "opened": job.opened}


def _epochs(values):
    generator = torch.Generator().manual_seed(len(values))
    return [torch.cat([torch.randn(10, generator=generator), torch.tensor([value])]) for value in values]


def _check(group, values, **options):
    epochs = _epochs(values)
    parameters, told = group.run(train, *epochs, **options)
    best = max(range(told["ran"]), key=lambda i: (values[i], -i))
    kept = torch.cat([parameters[name].flatten() for name in parameters])
    assert torch.allclose(kept, epochs[best][:10].double(), atol=1e-4)
    return told, best + 1


VALUES = [0.5, 0.7, 0.7, 0.2, 0.1, 0.9]


def test_the_best_weights_are_kept_and_nothing_is_opened(parties):
    told, best = _check(parties, VALUES, patience=2, limit=6, allowed=False)
    assert told == {"number": None, "ran": 6, "opened": []} and best == 6


def test_training_stops_when_nothing_is_better(parties):
    told, best = _check(parties, VALUES, patience=2, limit=6, allowed=True)
    assert best == 2, "the first of equals"
    assert told == {"number": 2, "ran": 4, "opened": [0, 0, 0, 1, 2]}


@pytest.mark.parametrize(
    ("values", "patience", "ran"),
    [
        ([3.0, 2.0], 1, 2),
        ([3.0, 2.0, 5.0], 1, 2),
        ([-3.0, -2.0, -1.0, -4.0], 1, 4),
        ([1.0, 0.0, 2.0, 1.0, 1.5, 3.0, 2.0], 2, 5),
        ([1e6, 2e6, -1e6], 3, 3),
    ],
)
def test_how_long_training_goes_on(two, values, patience, ran):
    told, best = _check(two, values, patience=patience, limit=len(values), allowed=True)
    assert told["ran"] == ran and told["number"] == best
    stopped = ran < len(values)
    assert told["opened"] == [0] * (ran - 1) + [int(stopped), best]


def test_the_number_alone_may_be_opened(two):
    told, best = _check(two, VALUES, patience=None, limit=6, allowed=True)
    assert told == {"number": best, "ran": 6, "opened": [best]}


def test_it_goes_on_from_a_checkpoint(two):
    told, _ = _check(two, VALUES, patience=2, limit=6, allowed=True, resume_after=3)
    assert told == {"number": 2, "ran": 4, "opened": [0, 0, 0, 1, 2]}


def score(logits, labels, metric):
    from mpc_imaging.engine.tensors import from_share, share_of

    job = FakeJob(None, 1, False, metric)
    job.auc = lambda *shares: Job.auc(job, *shares)
    return from_share(validation_score(job, share_of(logits), share_of(labels)))


@pytest.mark.parametrize("metric", ["loss", "accuracy", "auc"])
def test_better_models_have_higher_scores(two, metric):
    labels = torch.arange(40) % 2
    onehot = torch.nn.functional.one_hot(labels, 2).double()
    noise = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
    values = [two.run(score, noise + quality * onehot, onehot, metric=metric).item() for quality in (-1, 0.3, 1, 3)]
    assert values == sorted(set(values))


def test_nothing_is_computed_elsewhere():
    assert validation_score(FakeJob(None, 1, False), None, None) is None


# All parties stop together


def _telling(bits):
    def part(session):
        if session.me == "dealer":
            return None
        job = Job(session, None, Catalogue({}, ()), None, Progress(shown=False))
        job.settings.task.kind = TaskKind.train
        job.settings.policy.reveal = {"epoch": ["compute", "h2"], "weights": ["vendor"], "loss": ["h2"]}
        if not job.expects_results():
            return "left"
        return BestEpoch(job, None)._told(bits.get(session.me))

    return part


@pytest.mark.parametrize("stop", [False, True])
def test_who_waits_for_results_is_told_whether_to_stop(consortium, stop):
    """The vendor, to whom the policy does not open the epoch; h2 has it already, h1 has left."""
    results = consortium("outside").all(_telling(dict.fromkeys(("a", "b", "h2"), stop)))
    assert results == {"a": stop, "b": stop, "h2": stop, "vendor": stop, "h1": "left", "dealer": None}


def test_a_message_that_does_not_tell(consortium):
    results = consortium("outside").run(_telling({"a": 1, "b": True, "h2": True}))
    assert isinstance(results["vendor"], SessionError) and "a did not tell vendor whether to stop" in str(
        results["vendor"]
    )
    assert all(isinstance(results[name], PeerLostError | bool | int) for name in ("a", "b", "h2"))
