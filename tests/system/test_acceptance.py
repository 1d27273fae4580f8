"""What the project promises on real data: inference equals plaintext, and training follows it.

``pytest tests/system/test_acceptance.py -rP`` prints the numbers.
"""

import json

import pytest

from tests.system.command import mpc_imaging

pytestmark = pytest.mark.slow


def _run(*arguments, cwd):
    run = mpc_imaging(*arguments, cwd=cwd, timeout_s=1200)
    assert run.code == 0, run.output
    m = run.metrics
    print(f"{m['name']}, {m['topology']}: secure AUC {m['secure']['auc']:.4f}, plaintext {m['plaintext']['auc']:.4f}")
    print(json.dumps({"fidelity": m["fidelity"], "cost": m["cost"]}))
    return m


def _losses(m):
    """(secure, plaintext) mean training loss of each epoch."""
    losses = [(a["loss"], b["loss"]) for a, b in zip(m["history"]["secure"], m["history"]["plaintext"], strict=True)]
    print("losses, secure and plaintext:", ", ".join(f"{secure:.4f} {plain:.4f}" for secure, plain in losses))
    return losses


@pytest.mark.parametrize("topology", ["two_hospitals", "three_hospitals", "outsourced"])
def test_pneumonia_inference_equals_plaintext(medical_data, tmp_path, topology):
    path = medical_data / "pneumoniamnist.npz"
    m = _run("experiment=pneumonia_infer", f"data.path={path}", f"topology={topology}", cwd=tmp_path)
    assert m["fidelity"]["images"] == 624 and m["fidelity"]["agreeing"] >= 623
    assert m["fidelity"]["max_logit_error"] < 0.01
    assert m["secure"]["auc"] > 0.9


@pytest.mark.parametrize("topology", ["two_hospitals", "three_hospitals", "outsourced"])
def test_breast_training_follows_plaintext(medical_data, tmp_path, topology):
    path = medical_data / "breastmnist.npz"
    m = _run("experiment=breast_train", f"data.path={path}", f"topology={topology}", cwd=tmp_path)
    assert m["secure"]["auc"] == pytest.approx(m["plaintext"]["auc"], abs=0.02)
    assert all(secure == pytest.approx(plain, rel=0.02) for secure, plain in _losses(m))


def test_the_demo_follows_plaintext(tmp_path):
    m = _run("experiment=demo", cwd=tmp_path)
    assert m["secure"]["auc"] == pytest.approx(m["plaintext"]["auc"], abs=0.01)
    assert m["plaintext"]["auc"] > 0.9
    assert len(_losses(m)) == 8


def test_pneumonia_training_reaches_plaintext(medical_data, tmp_path):
    m = _run("experiment=pneumonia_train", f"data.path={medical_data / 'pneumoniamnist.npz'}", cwd=tmp_path)
    assert m["secure"]["auc"] == pytest.approx(m["plaintext"]["auc"], abs=0.01) and m["secure"]["auc"] > 0.9
    assert m["secure"]["accuracy"] == pytest.approx(m["plaintext"]["accuracy"], abs=0.015)
    assert m["cost"]["online_s"] < 900
