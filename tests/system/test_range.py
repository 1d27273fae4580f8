"""Values that fit run as ever; one that does not ends the run, named by step and layer, before anything is opened."""

# Without the check each of these runs ended with code 0 and garbage.

import json

import pytest

from mpc_imaging.models.weights import save_weights
from mpc_imaging.models.zoo import MLP, SmallCNN
from tests.system.command import TINY, mpc_imaging

TRAIN = (*TINY, "task=train", "task.batch_size=8", "task.epochs=2", "protocol.fraction_bits=24")
LAYERS = "policy.reveal.range_layer=[compute]"


def _reveals(run, party):
    return [value for event, value in run.events(party) if event == "reveal"]


def _causes(run):
    """What each party's ledger says of the end."""
    causes = {}
    for path in (run.folder / "parties").glob("*/ledger.jsonl"):
        last = json.loads(path.read_text().splitlines()[-1])
        causes[path.parent.name] = last.get("cause", last["event"])
    return causes


@pytest.mark.slow
def test_values_that_fit(tmp_path):
    run = mpc_imaging(*TINY, "protocol=fss", "protocol.comparison_bits=36", cwd=tmp_path)
    assert run.code == 0, run.output
    assert run.metrics["fidelity"]["agreeing"] == run.metrics["images"]
    values = _reveals(run, "hospital_a")
    assert values[0] == "range_ok" and {"logits", "metrics"} <= set(values)


def test_a_value_that_does_not(tmp_path):
    run = mpc_imaging(*TINY, "protocol=fss", "protocol.comparison_bits=19", LAYERS, cwd=tmp_path)
    assert run.code == 1
    assert "values left the range in layer classifier." in run.output
    assert "nothing that depends on them was opened; write more bits than protocol.comparison_bits=19" in run.output
    for party in ("hospital_a", "hospital_b"):
        assert _reveals(run, party) == ["range_ok", "range_layer"]
        assert not list((run.folder / "parties" / party).glob("*.csv"))


def _weights(tmp_path, model, name, factor):
    """Overrides for the model's weights with one tensor times a factor."""
    state = model.state_dict()
    state[name] *= factor
    save_weights(state, tmp_path / "scaled.safetensors")
    return ("model.weights.source=file", f"model.weights.path={tmp_path / 'scaled.safetensors'}")


SMALL = (*TINY, "model=small_cnn", "data.image_size=16", "task.batch_size=12")


@pytest.mark.parametrize(
    ("topology", "layer"),
    [
        ("two_hospitals", "features.3"),
        pytest.param("three_hospitals", "features.3", marks=pytest.mark.slow),
        pytest.param("two_hospitals", "features.0", marks=pytest.mark.slow),
        pytest.param("three_hospitals", "classifier.3", marks=pytest.mark.slow),
    ],
)
def test_weights_that_leave_no_room_are_refused_before_they_are_shared(tmp_path, topology, layer):
    weights = _weights(tmp_path, SmallCNN(image_size=16), f"{layer}.weight", 1e10)
    run = mpc_imaging(*SMALL, *weights, f"topology={topology}", cwd=tmp_path)
    assert run.code == 1
    assert f"{layer} (" in run.output and "its weights are too large for protocol.fraction_bits=16" in run.output
    assert "would leave the range" in run.output and "scale the weights down" in run.output
    for party in ("hospital_a", "hospital_b"):
        events = [event for event, _ in run.events(party)]
        assert "input" not in events and "reveal" not in events
        assert not list((run.folder / "parties" / party).glob("*.csv"))


@pytest.mark.parametrize("topology", ["two_hospitals", pytest.param("three_hospitals", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("bits", "factor"), [(16, 2.0**24), pytest.param(24, 400.0, marks=pytest.mark.slow)])
def test_activations_that_overflow_name_their_layer(tmp_path, topology, bits, factor):
    """Each layer has room for inputs of size 1; what comes out of the first is far larger."""
    state = SmallCNN(image_size=16).state_dict()
    for name in ("features.0.weight", "features.3.weight"):
        state[name] = state[name].abs() * factor
    save_weights(state, tmp_path / "scaled.safetensors")
    weights = ("model.weights.source=file", f"model.weights.path={tmp_path / 'scaled.safetensors'}")
    options = (f"topology={topology}", f"protocol.fraction_bits={bits}", LAYERS)
    run = mpc_imaging(*SMALL, *weights, *options, cwd=tmp_path)
    assert run.code == 1, run.output
    assert "values left the range in layer features.0, features.3" in run.output
    assert "nothing that depends on them was opened" in run.output
    assert f"lower protocol.fraction_bits={bits}, or scale images or weights down" in run.output
    for party in ("hospital_a", "hospital_b"):
        assert _reveals(run, party) == ["range_ok", "range_layer"]
        assert not list((run.folder / "parties" / party).glob("*.csv"))


@pytest.mark.slow
def test_without_the_check_nothing_is_opened_for_it(tmp_path):
    options = ("protocol=fss", "protocol.comparison_bits=36", "protocol.range_check=false")
    run = mpc_imaging(*TINY, *options, cwd=tmp_path)
    assert run.code == 0, run.output
    assert "range_ok" not in [value for _, value in run.events("hospital_a")]


@pytest.mark.slow  # the next one looks at the steps too, until one is out of range
@pytest.mark.parametrize("protocol", ["fss", "beaver"])
def test_training_that_stays_in_range_opens_one_bit_for_each_step(tmp_path, protocol):
    run = mpc_imaging(*TRAIN, f"protocol.name={protocol}", LAYERS, cwd=tmp_path)
    assert run.code == 0, run.output
    values = _reveals(run, "hospital_b")
    assert values.count("range_ok") == 6 + 2 + 1, "each step, the evaluation of each epoch, and the last one"
    assert "range_layer" not in values
    assert run.metrics["fidelity"]["max_logit_error"] < 0.01


def test_training_that_diverges_names_the_step_to_all(tmp_path):
    """Two steps at a rate of 50, and all values are garbage, which nothing else would tell."""
    run = mpc_imaging(*TRAIN, "topology=outsourced", "policy=aggregate_only", "task.lr=50", cwd=tmp_path)
    assert run.code == 1
    causes = _causes(run)
    assert len(causes) > 3 and all("(epoch 1): values left the range that the protocol" in c for c in causes.values())
    assert "lower task.lr" in run.output and "classifier" not in "".join(causes.values())
    computing = [party for party in causes if "range_ok" in _reveals(run, party)]
    assert len(computing) == 2
    for party in computing:
        assert set(_reveals(run, party)) == {"range_ok"}, "no loss, no metrics, no layer"


@pytest.mark.slow
def test_a_planted_weight_names_its_layer(tmp_path):
    state = MLP(image_size=12).state_dict()
    state["classifier.3.weight"] = state["classifier.3.weight"].abs() + 3000
    save_weights(state, tmp_path / "planted.safetensors")
    weights = ("model.weights.source=file", f"model.weights.path={tmp_path / 'planted.safetensors'}")
    run = mpc_imaging(*TRAIN, *weights, LAYERS, cwd=tmp_path)
    assert run.code == 1
    assert "step 1 (epoch 1): values left the range in layer classifier.3" in run.output
    assert _reveals(run, "hospital_a") == ["range_ok", "range_layer"]
