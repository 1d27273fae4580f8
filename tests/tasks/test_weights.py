"""Starting weights: where they come from, who holds what, and share files that do not fit."""

import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from mpc_imaging.engine.encoding import decode, encode
from mpc_imaging.errors import DataError, ModelError, PeerLostError, SessionError
from mpc_imaging.models.build import build
from mpc_imaging.models.weights import save_weights
from mpc_imaging.parties import sealed
from mpc_imaging.settings import ModelSettings, PhantomSettings, TaskKind, WeightsSource
from mpc_imaging.tasks import weights

LOGISTIC = {"in_channels": 1, "image_size": 2, "num_classes": 2}


@pytest.fixture
def logistic(consortium):
    """A consortium whose model is a logistic regression on 2x2 pixels, and what its public seed gives."""

    def make(topology, source=WeightsSource.pretrain, secret=True):
        parties = consortium(topology)
        parties.settings.model = ModelSettings("logistic", "mpc_imaging.models.zoo.Logistic", dict(LOGISTIC))
        parties.settings.model.weights.source = source
        parties.settings.model.weights.secret = secret
        return parties, build(parties.settings.model, parties.settings.seed)

    return make


def _trained(module):
    """The owner's module: other weights than those of the public seed."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.5)
    return module


def _sharing(parties, owner_module):
    """Each party's part; modules are prepared beforehand, since threads would disturb each other's random numbers."""
    public = weights.prepared_module(parties.settings)
    owned = None if owner_module is None else weights.prepared_module(parties.settings, owner_module)

    def part(session):
        if session.me == session.settings.dealer():
            return None
        mine = owned if session.me == session.settings.model_owner() else None
        return weights.share_weights(session, mine or public)

    return part


def _joined(results, parties, module):
    """The sum of all shares, and the state that it should be."""
    shares = [results[name] for name in parties.settings.compute_parties()]
    bits = parties.settings.protocol.fraction_bits
    state = weights.floating_state(weights.prepared_module(parties.settings, module))
    assert all(share.keys() == state.keys() for share in shares)
    return {name: sum(share[name] for share in shares) for name in state}, {
        k: encode(v, bits) for k, v in state.items()
    }


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("topology", ["two", "three", "outside"])
def test_secret_weights_reconstruct_and_only_compute_parties_hold_shares(logistic, topology):
    parties, module = logistic(topology)
    owner_module = _trained(module)
    results = parties.all(_sharing(parties, owner_module))
    joined, expected = _joined(results, parties, owner_module)
    assert _equal(joined, expected)
    for name in parties.names:
        assert (results[name] is not None) == (name in parties.settings.compute_parties())
        for key, share in (results[name] or {}).items():
            assert (share != expected[key]).any()


def test_weights_of_the_public_seed_cost_nothing(logistic):
    parties, module = logistic("three", WeightsSource.seed)
    results = parties.all(_sharing(parties, None))
    joined, expected = _joined(results, parties, module)
    assert _equal(joined, expected) and not parties.frames


@pytest.mark.parametrize("topology", ["two", "outside"])
def test_public_weights_are_plain_for_inference(logistic, topology):
    parties, module = logistic(topology, secret=False)
    owner_module = _trained(module)
    results = parties.all(_sharing(parties, owner_module))
    for name in parties.settings.compute_parties():
        for key, value in results[name].items():
            assert value.dtype is torch.float32
            assert (value - owner_module.state_dict()[key]).abs().max() < 1e-4


def test_public_weights_become_secret_in_training(logistic):
    parties, module = logistic("two", secret=False)
    parties.settings.task.kind = TaskKind.train
    owner_module = _trained(module)
    results = parties.all(_sharing(parties, owner_module))
    joined, expected = _joined(results, parties, owner_module)
    assert _equal(joined, expected)
    assert all((results["b"][key] != 0).any() for key in expected)


# The owner's module


def test_weights_from_a_file(logistic, tmp_path):
    parties, module = logistic("two", WeightsSource.file)
    path = tmp_path / "mine.safetensors"
    parties.settings.model.weights.path = str(path)
    with pytest.raises(ModelError, match="there is no weights file"):
        weights.owner_module(parties.settings, tmp_path)
    save_weights(_trained(module).state_dict(), path)
    assert _equal(weights.owner_module(parties.settings, tmp_path).state_dict(), module.state_dict())
    save_weights({"other.weight": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match="3 model problems"):
        weights.owner_module(parties.settings, tmp_path)


def test_pretraining_leaves_its_weights_and_tells_its_progress(logistic, tmp_path):
    parties, module = logistic("two")
    settings = parties.settings
    settings.data.phantoms = PhantomSettings(train=6, val=2, test=2)
    settings.model.pretrain.epochs = 2
    seen = []
    trained = weights.owner_module(settings, tmp_path, lambda epoch, epochs: seen.append((epoch, epochs)))
    assert seen == [(1, 2), (2, 2)] and not trained.training
    assert _equal(load_file(tmp_path / "weights.safetensors"), dict(trained.state_dict()))
    assert not _equal(dict(trained.state_dict()), dict(module.state_dict()))


def test_a_model_for_other_classes_is_refused(logistic, tmp_path):
    parties, _ = logistic("two")
    parties.settings.data.class_names = ["one", "two", "three"]
    with pytest.raises(ModelError, match=r"the model gives \(2,\) for an image, not a score for each"):
        weights.prepared_module(parties.settings)
    with pytest.raises(ModelError, match="the model gives"):
        weights.owner_module(parties.settings, tmp_path)  # before anything is read or trained


# Share files


@pytest.fixture
def shared(logistic, tmp_path):
    """A consortium that reads share files of `tmp_path`, as if of a training run."""

    def make(topology="two", run="run"):
        parties, module = logistic(topology)
        folders = {name: tmp_path / run / "parties" / name for name in parties.names}
        for folder in folders.values():
            folder.mkdir(parents=True)

        sharing = _sharing(parties, _trained(module))

        def part(session):
            shares = sharing(session)
            if session.rank is not None:
                weights.write_shares(session, shares, folders[session.me], 40, {"privacy": {"epsilon": 2.5}})

        parties.all(part)
        return tmp_path / run, module

    return make


def _copy(source, target, name="b"):
    """A party's share file of one run in the place of another's, with its key."""
    for file in (weights.SHARES, "share.key"):
        (target / "parties" / name / file).write_bytes((source / file).read_bytes())


def _reading(logistic, run, topology="two"):
    parties, _ = logistic(topology, WeightsSource.shares)
    parties.settings.model.weights.path = str(run)
    return parties


@pytest.mark.parametrize("topology", ["two", "three", "outside"])
def test_share_files_give_the_weights_again(logistic, shared, topology):
    run, module = shared(topology)
    parties = _reading(logistic, run, topology)
    joined, expected = _joined(parties.all(_sharing(parties, None)), parties, module)
    assert _equal(joined, expected)
    assert not parties.sent("SHARE", "REVEAL")


def test_only_their_owner_reads_share_files(logistic, tmp_path):
    """Whatever the umask, and whatever file was there before."""
    parties, module = logistic("two")
    old = tmp_path / weights.SHARES
    old.write_bytes(b"old")
    old.chmod(0o666)

    sharing = _sharing(parties, module)

    def part(session):
        shares = sharing(session)
        if session.me == "a":
            weights.write_shares(session, shares, tmp_path)

    before = os.umask(0)
    try:
        parties.all(part)
    finally:
        os.umask(before)
    assert stat.S_IMODE(old.stat().st_mode) == 0o600 and old.read_bytes() != b"old"
    assert not list(tmp_path.glob(".*")), "nothing temporary is left"


def _refused(parties, *texts):
    """Both compute parties end, and the first error that is no lost peer says what is wrong."""
    results = parties.run(_sharing(parties, None))
    errors = [result for result in results.values() if isinstance(result, DataError | SessionError)]
    assert errors and all(isinstance(results[name], Exception) for name in parties.settings.compute_parties())
    for text in texts:
        assert any(text in str(error) for error in errors), errors
    return results


def test_another_partys_file(logistic, shared):
    run, _ = shared()
    _copy(run / "parties" / "a", run)
    _refused(_reading(logistic, run), "the share file of a was given to b; each party loads its own")


def test_other_parties_and_another_precision_at_once(logistic, shared):
    run, _ = shared("three")
    parties = _reading(logistic, run)
    parties.settings.protocol.fraction_bits = 20
    _refused(parties, "2 data problems", "made by a, b, c, not by", "have 16 bits of fraction")


def test_another_model(logistic, shared):
    run, _ = shared()
    parties = _reading(logistic, run)
    parties.settings.data.image_size = 3
    parties.settings.model.kwargs = LOGISTIC | {"image_size": 3}
    _refused(parties, "the shares are those of another model; set model as in the training run")


def test_files_of_two_runs(logistic, shared):
    (one, _), (other, _) = shared(), shared(run="other")
    _copy(other / "parties" / "b", one)
    results = _refused(_reading(logistic, one), "hold shares of different training runs; give both the same run's")
    assert isinstance(results["a"], SessionError | PeerLostError) and "different training runs" in str(results["b"])


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


def _plain(path):
    save_file({"linear.weight": torch.zeros(2, 4)}, path)


def _checkpoint(path):
    key = (path.parent / "share.key").read_bytes()
    content = sealed.unseal(path, key)
    sealed.seal(path, content.tensors, content.header | {"kind": "checkpoint"}, key)


def _other_key(path):
    (path.parent / "share.key").write_bytes(bytes(32))


def _folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda path: path.unlink(), "the share file of a is missing; give the run folder of the training run"),
        (_truncate, "the share file of a is damaged"),
        (lambda path: path.write_bytes(b""), "the share file of a is no sealed share file"),
        (lambda path: path.write_bytes(os.urandom(500)), "the share file of a is no sealed share file"),
        (_plain, "the share file of a is no sealed share file; give the run folder of a training run"),
        (_checkpoint, "the share file of a is a checkpoint; give the run folder of a training run that ended"),
        (_other_key, "the share file of a was sealed with another key"),
        (_folder, "the share file of a cannot be read"),
    ],
    ids=["missing", "truncated", "empty", "random", "plain", "checkpoint", "other key", "folder"],
)
def test_files_that_are_no_share_files(logistic, shared, damage, text):
    run, _ = shared()
    damage(run / "parties" / "a" / weights.SHARES)
    results = _refused(_reading(logistic, run), text)
    assert str(run) not in str(results["a"]), "the message names no path"
    assert isinstance(results["b"], PeerLostError) and "a: data problems; its own log says more" in str(results["b"])


def test_a_file_given_by_its_own_path(logistic, shared):
    """On a machine of its own a party may name the file itself."""
    run, _ = shared()
    settings = _reading(logistic, run / "parties" / "b" / weights.SHARES).settings
    shares, header = weights.read_share_file(settings, "b")
    assert header["party"] == "b" and header["fraction_bits"] == 16 and header["step"] == 40
    assert header["privacy"] == {"epsilon": 2.5}, "whatever else was to be kept"
    assert all(share.dtype is torch.int64 for share in shares.values())
    assert all(decode(share, 16).abs().max() > 1e6 for share in shares.values()), "a share looks like no weight"
