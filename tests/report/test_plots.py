from __future__ import annotations

import base64
import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes

from mpc_imaging.report import plots


def svg(uri: str) -> bytes:
    head, body = uri.split(",", 1)
    assert head == "data:image/svg+xml;base64"
    return base64.b64decode(body)


@pytest.fixture
def drawn(monkeypatch):
    """What was drawn: the arguments of every line and bar."""
    calls = {"plot": [], "barh": []}
    for name, made in calls.items():
        original = getattr(Axes, name)

        def spy(self, *args, _made=made, _original=original, **kwargs):
            _made.append((args, kwargs))
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(Axes, name, spy)
    return calls


def test_a_figure_is_well_formed_the_same_each_time_and_leaves_no_style_behind():
    before = dict(matplotlib.rcParams)
    first, second = (svg(plots.confusion_matrices({"Secure": [[5, 1], [2, 7]]}, ["no", "yes"])) for _ in range(2))
    assert first == second
    assert ElementTree.fromstring(first).tag.endswith("svg")
    assert dict(matplotlib.rcParams) == before
    assert not re.search(rb'href="(?!#|data:)', first)


def test_confusion_matrices_of_many_classes_and_of_classes_without_images():
    names = [f"class {k}" for k in range(20)]
    svg(plots.confusion_matrices({"Secure": np.eye(20, dtype=int), "Plaintext": np.zeros((20, 20), dtype=int)}, names))


def test_the_binary_roc_passes_through_its_points(drawn):
    scores = np.array([[0.1, 0.9], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]])
    plots.roc_curves({"Secure": scores}, np.array([1, 0, 0, 1]), {"Secure": 0.75}, [1])
    (x, y), style = drawn["plot"][-1]
    assert list(zip(x, y, strict=True)) == [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]
    assert style["label"] == "Secure, AUC 0.7500"


def test_the_macro_roc_has_the_mean_of_the_areas(drawn):
    generator = np.random.default_rng(0)
    labels, scores = generator.integers(0, 3, 90), generator.normal(size=(90, 3))
    scores[np.arange(90), labels] += 1
    plots.roc_curves({"Secure": scores, "Plaintext": scores}, labels, {}, [0, 1, 2])
    from mpc_imaging.report.metrics import classification_metrics

    x, y = drawn["plot"][-1][0]
    area = classification_metrics(scores, labels, None)["auc"]
    # Interpolation slants what is upright in the single curves, so the areas agree only to the step between two images.
    assert np.trapezoid(y, x) == pytest.approx(area, abs=0.02)
    assert [style["color"] for _, style in drawn["plot"]][1:] == [plots.PLAINTEXT, plots.SECURE]


@pytest.mark.parametrize(
    ("val", "panels"), [(None, 1), ({"accuracy": 0.8, "auc": None}, 2), ({"accuracy": 0.8, "auc": 0.9}, 2)]
)
def test_training_curves_show_what_was_revealed(drawn, val, panels):
    history = [{"epoch": 1, "loss": 0.7, "val": val}, {"epoch": 2, "loss": None, "val": val}]
    svg(plots.training_curves({"Secure": history, "Plaintext": history}))
    assert len(drawn["plot"]) == 2 * panels
    assert drawn["plot"][0][0] == ((1,), (0.7,))
    if val:
        assert set(drawn["plot"][-1][0][1]) == {val["auc"] or val["accuracy"]}


def test_logits_of_many_images_make_no_heavy_figure():
    plain = np.random.default_rng(0).normal(size=(4000, 2))
    assert len(svg(plots.logit_agreement(plain + 1e-4, plain, ["a", "b"]))) < 200_000
    svg(plots.logit_agreement(plain[:1], plain[:1], ["a", "b"]))  # one image, no error at all


def test_layer_costs_draw_every_layer_or_the_slowest_of_many(drawn):
    layers = [
        {"name": f"conv{k}", "op": "conv2d", "rounds": 2, "sent_bytes": 2_000_000, "seconds": float(k % 40)}
        for k in range(60)
    ]
    svg(plots.layer_costs(layers[:3]))
    assert [args[1] for args, _ in drawn["barh"]] == [[0.0, 1.0, 2.0], [2, 2, 2], [2.0, 2.0, 2.0]]
    shown = plots.costliest(layers)
    assert len(shown) == 30 and layers[39] in shown and layers[0] not in shown
    assert [layers.index(layer) for layer in shown] == sorted(layers.index(layer) for layer in shown)


def test_a_row_without_an_operation_has_a_name_alone(monkeypatch):
    names = []
    original = Axes.set_yticks
    monkeypatch.setattr(Axes, "set_yticks", lambda self, at, text: names.append(text) or original(self, at, text))
    rows = [("range check", ""), ("conv1", "conv2d")]
    svg(plots.layer_costs([{"name": n, "op": op, "rounds": 3, "sent_bytes": 1e6, "seconds": 0.1} for n, op in rows]))
    assert names[0] == ["range check", "conv1  (conv2d)"]
