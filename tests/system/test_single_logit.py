"""A binary model with one logit, with real processes: weights of others, results for both classes, training."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from mpc_imaging.compose import compose_settings
from mpc_imaging.data import load_whole_split
from mpc_imaging.models.zoo import MLP
from tests.system.command import TINY, mpc_imaging

SINGLE = (*TINY, "model.kwargs.num_classes=1", "model.single_logit=true", "protocol.fraction_bits=20")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A network trained by somebody else, in torch, with BCEWithLogitsLoss; its file of weights."""
    folder = tmp_path_factory.mktemp("vendor")
    train = load_whole_split(compose_settings([*SINGLE]), folder, "train", "hospital_a")
    torch.manual_seed(5)
    network = MLP(image_size=12, num_classes=1)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(20):
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(network(train.images)[:, 0], train.labels.float()).backward()
        optimiser.step()
    save_file(network.state_dict(), folder / "published.safetensors")
    return network, folder / "published.safetensors"


@pytest.mark.slow
def test_weights_of_others_run_as_they_are(published, tmp_path):
    network, path = published
    source = ("model.weights.source=file", f"model.weights.path={path}")
    run = mpc_imaging(*SINGLE, *source, "task=infer", cwd=tmp_path)
    assert run.code == 0, run.output
    metrics = run.metrics
    assert metrics["fidelity"]["agreeing"] == metrics["images"] == 12
    assert metrics["fidelity"]["max_logit_error"] < 1e-3
    assert metrics["secure"]["auc"] == metrics["plaintext"]["auc"] > 0.5
    # The owner may see logits of its own rows, one for each class.
    logits = load_file(run.folder / "parties" / "hospital_a" / "logits.safetensors")["logits"]
    assert logits.shape[1] == 2 and not logits[:, 0].any()
    test = load_whole_split(compose_settings([*SINGLE]), tmp_path, "test", "hospital_a")
    expected = network(test.images).detach().flatten()
    assert all((expected - value).abs().min() < 1e-3 for value in logits[:, 1])


@pytest.mark.slow
def test_training_goes_on_from_them_and_keeps_their_names(published, tmp_path):
    network, path = published
    run = mpc_imaging(
        *SINGLE, "model.weights.source=file", f"model.weights.path={path}", "task=train",
        "policy.reveal.weights=[model_owner]", cwd=tmp_path,
    )  # fmt: skip
    assert run.code == 0, run.output
    secure, plain = run.metrics["history"]["secure"][0], run.metrics["history"]["plaintext"][0]
    assert secure["loss"] == pytest.approx(plain["loss"], abs=1e-3)
    assert run.metrics["fidelity"]["agreeing"] == 12
    (trained,) = (run.folder / "parties").glob("*/weights.safetensors")
    state = load_file(trained)
    assert sorted(state) == sorted(network.state_dict())
    assert any(not torch.allclose(state[name], value, atol=1e-4) for name, value in network.state_dict().items())
    network.load_state_dict(state)  # as the vendor would
