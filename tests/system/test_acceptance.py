"""What the project promises on real data: inference equals plaintext, and training follows it."""

import pytest

from tests.system.command import mpc_imaging

OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("three_hospitals", "outsourced")]


@pytest.mark.parametrize("topology", ["two_hospitals", *OTHERS])
def test_pneumonia_inference_equals_plaintext(medical_data, tmp_path, topology):
    run = mpc_imaging(
        "experiment=pneumonia_infer", f"data.path={medical_data / 'pneumoniamnist.npz'}", f"topology={topology}",
        cwd=tmp_path, timeout_s=600,
    )  # fmt: skip
    assert run.code == 0, run.output
    fidelity = run.metrics["fidelity"]
    assert fidelity["images"] == 624 and fidelity["agreeing"] >= 623
    assert fidelity["max_logit_error"] < 0.01
    assert run.metrics["secure"]["auc"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["two_hospitals", "three_hospitals", "outsourced"])
def test_breast_training_follows_plaintext(medical_data, tmp_path, topology):
    run = mpc_imaging(
        "experiment=breast_train", f"data.path={medical_data / 'breastmnist.npz'}", f"topology={topology}",
        cwd=tmp_path, timeout_s=1200,
    )  # fmt: skip
    assert run.code == 0, run.output
    m = run.metrics
    assert m["secure"]["auc"] == pytest.approx(m["plaintext"]["auc"], abs=0.02)
    losses = [(a["loss"], b["loss"]) for a, b in zip(m["history"]["secure"], m["history"]["plaintext"], strict=True)]
    assert all(secure == pytest.approx(plain, rel=0.02) for secure, plain in losses), losses


@pytest.mark.slow
def test_the_demo_follows_plaintext(tmp_path):
    run = mpc_imaging("experiment=demo", cwd=tmp_path, timeout_s=600)
    assert run.code == 0, run.output
    assert run.metrics["secure"]["auc"] == pytest.approx(run.metrics["plaintext"]["auc"], abs=0.01)
    assert run.metrics["plaintext"]["auc"] > 0.9
