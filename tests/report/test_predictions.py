from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.numpy import load_file

from mpc_imaging.errors import DataError
from mpc_imaging.report.predictions import read_predictions, write_atomically, write_json, write_predictions

NAMES = ["normal", "pneumonia"]
LOGITS = np.array([[2.0, -1.0], [0.5, 0.75]], dtype=np.float32)


def cells(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_files_hold_what_their_description_says(tmp_path):
    write_predictions(tmp_path, ["a-1", "a-2"], [0, 1], LOGITS, LOGITS.argmax(1), NAMES)
    header, first, second = cells(tmp_path)
    assert header == ["image_id", "label", "predicted", "score_normal", "score_pneumonia"]
    assert first[:3] == ["a-1", "0", "0"] and second[:3] == ["a-2", "1", "1"]
    assert float(first[4]) == pytest.approx(1 / (1 + np.exp(3.0)), rel=1e-8)
    logits = load_file(tmp_path / "logits.safetensors")["logits"]
    assert logits.dtype == np.float32 and np.array_equal(logits, LOGITS)


def test_predictions_without_logits_or_labels_leave_cells_empty(tmp_path):
    write_predictions(tmp_path, ["a-1", "a-2"], None, None, [1, 0], NAMES)
    assert cells(tmp_path)[1:] == [["a-1", "", "1", "", ""], ["a-2", "", "0", "", ""]]
    assert not (tmp_path / "logits.safetensors").exists()
    back = read_predictions(tmp_path)
    assert back.logits is None and back.labels.tolist() == [-1, -1] and back.predicted.tolist() == [1, 0]


# Cells of any text except what a csv file cannot hold: lone carriage returns come back as they are only when quoted.
text = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=12)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(text, unique=True, max_size=5),
    names=st.lists(text, min_size=2, max_size=4, unique=True),
    data=st.data(),
)
def test_written_predictions_are_read_back(tmp_path, ids, names, data):
    indices = st.integers(0, len(names) - 1)
    predicted = data.draw(st.lists(indices, min_size=len(ids), max_size=len(ids)))
    labels = data.draw(st.lists(st.integers(-1, len(names) - 1), min_size=len(ids), max_size=len(ids)))
    logits = np.random.default_rng(0).normal(0, 20, (len(ids), len(names))).astype(np.float32)
    write_predictions(tmp_path, ids, labels, logits, predicted, names)
    back = read_predictions(tmp_path)
    assert back.ids == ids and back.class_names == names
    assert back.labels.tolist() == labels and back.predicted.tolist() == predicted
    assert np.array_equal(back.logits, logits)


def test_logits_that_are_no_numbers_have_no_scores(tmp_path):
    write_predictions(tmp_path, ["a-1"], [0], [[np.nan, np.inf]], [0], NAMES)
    assert cells(tmp_path)[1] == ["a-1", "0", "0", "", ""]


def test_lengths_that_differ_are_refused(tmp_path):
    for labels, logits, predicted in [([0], LOGITS, [0, 1]), ([0, 1], LOGITS[:1], [0, 1]), ([0, 1], LOGITS, [0])]:
        with pytest.raises(DataError):
            write_predictions(tmp_path, ["a-1", "a-2"], labels, logits, predicted, NAMES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", ["", "id,label,predicted\n", "image_id,label,predicted,score_a,score_b\nx,0\n",
                "image_id,label,predicted,score_a,score_b\nx,secret,0,,\n"],
)  # fmt: skip
def test_damaged_predictions_are_refused_without_quoting_them(tmp_path, content):
    (tmp_path / "predictions.csv").write_text(content)
    with pytest.raises(DataError, match=r"predictions\.csv is damaged") as caught:
        read_predictions(tmp_path)
    assert "secret" not in str(caught.value)


def test_missing_files_and_logits_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_predictions(tmp_path)
    write_predictions(tmp_path, ["a-1", "a-2"], None, LOGITS, [0, 1], NAMES)
    rows = (tmp_path / "predictions.csv").read_text().splitlines(keepends=True)
    (tmp_path / "predictions.csv").write_text("".join(rows[:2]))
    with pytest.raises(DataError, match=r"holds logits \(2, 2\)"):
        read_predictions(tmp_path)
    (tmp_path / "logits.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="damaged or holds no logits"):
        read_predictions(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"half")
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_several_labels_have_columns_of_their_own(tmp_path):
    logits = np.array([[2.0, -1.0], [-800.0, 0.75]], dtype=np.float32)
    write_predictions(tmp_path, ["a-1", "a-2"], [[1, 0], [-1, -1]], logits, logits > 0, NAMES)
    header, first, second = cells(tmp_path)
    assert header[1:5] == ["label_normal", "label_pneumonia", "predicted_normal", "predicted_pneumonia"]
    assert first[1:5] == ["1", "0", "1", "0"] and second[1:5] == ["", "", "0", "1"]
    assert [float(first[5]), float(second[5])] == pytest.approx([1 / (1 + np.exp(-2.0)), 0], rel=1e-8)
    part = read_predictions(tmp_path)
    assert part.labels.tolist() == [[1, 0], [-1, -1]] and part.predicted.tolist() == [[1, 0], [0, 1]]
    assert part.class_names == NAMES and np.array_equal(part.logits, logits)
    (tmp_path / "logits.safetensors").unlink()
    write_predictions(tmp_path, [], [], None, np.zeros((0, 2)), NAMES)
    assert read_predictions(tmp_path).labels.shape == (0, 2)


def test_a_prediction_that_is_missing_is_damage(tmp_path):
    write_predictions(tmp_path, ["a-1"], [[1, 0]], None, [[1, 0]], NAMES)
    path = tmp_path / "predictions.csv"
    path.write_text(path.read_text().replace("a-1,1,0,1,0", "a-1,1,0,1,"))
    with pytest.raises(DataError, match="is damaged"):
        read_predictions(tmp_path)
