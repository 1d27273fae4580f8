from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mpc_imaging.errors import DataError
from mpc_imaging.report.joint import joint_metrics, receiver_report, write_joint_report
from mpc_imaging.report.metrics import ONLY_COUNTS, ONLY_PREDICTIONS, classification_metrics, log_softmax
from mpc_imaging.report.predictions import write_predictions
from mpc_imaging.settings import ProtocolName

from .conftest import HOSPITALS, make_run


def expected(run, logits):
    return classification_metrics(log_softmax(logits), run.labels, run.settings.data.positive_class)


def test_image_owners_outputs_are_put_together_beside_plaintext(run):
    metrics = joint_metrics(run.folder, run.settings, run.plaintext)
    plain = run.plaintext.logits.numpy()
    assert metrics["secure"] == expected(run, run.secure)
    assert metrics["plaintext"] == expected(run, plain)
    assert metrics["images"] == metrics["fidelity"]["images"] == len(run.ids)
    largest = np.abs(run.secure.astype(float) - plain.astype(float)).max()
    assert metrics["fidelity"]["max_logit_error"] == pytest.approx(largest)
    assert metrics["fidelity"]["agreeing"] == (run.secure.argmax(1) == plain.argmax(1)).sum()
    assert (metrics["name"], metrics["task"], metrics["topology"]) == ("sample_run", "infer", "two_hospitals")
    assert (metrics["protocol"], metrics["insecure"], metrics["fraction_bits"]) == ("beaver", False, 16)


def test_outputs_meet_plaintext_by_image_id_not_by_row(run):
    shuffled = np.random.default_rng(0).permutation(len(run.ids))
    rows = torch.from_numpy(shuffled)
    other = replace(
        run.plaintext,
        ids=[run.ids[row] for row in shuffled],
        labels=run.plaintext.labels[rows],
        logits=run.plaintext.logits[rows],
    )
    straight = joint_metrics(run.folder, run.settings, run.plaintext)
    assert joint_metrics(run.folder, run.settings, other)["fidelity"] == straight["fidelity"]


def test_joint_training_stands_beside_federated(run):
    joint = replace(run.plaintext, logits=torch.from_numpy(run.secure))
    metrics = write_joint_report(run.folder, run.settings, run.plaintext, joint)
    assert metrics["reference"] == {"joint": expected(run, run.secure)}
    assert metrics["plaintext"] == expected(run, run.plaintext.logits.numpy())
    assert "Plaintext, joint" in (run.folder / "report.html").read_text()
    assert write_joint_report(run.folder, run.settings, run.plaintext)["reference"] == {}
    assert "Plaintext, joint" not in (run.folder / "report.html").read_text()


def test_cost_is_the_slowest_and_busiest_compute_party_and_all_that_the_dealer_sent(run):
    cost = joint_metrics(run.folder, run.settings, None)["cost"]
    assert cost == {"online_s": 2.25, "offline_s": 1.0, "rounds": 18, "sent_bytes": 4000, "dealer_bytes": 140_000}


def test_a_receiver_of_all_outputs_gets_labels_from_plaintext(tmp_path):
    run = make_run(tmp_path)
    run.write_result("hospital_a")
    names = run.settings.data.class_names
    write_predictions(run.party("hospital_a"), run.ids, None, run.secure, run.secure.argmax(1), names)
    assert joint_metrics(run.folder, run.settings, run.plaintext)["secure"] == expected(run, run.secure)
    alone = joint_metrics(run.folder, run.settings, None)
    assert alone["secure"]["accuracy"] is None and alone["plaintext"] is None and alone["fidelity"] is None
    assert alone["secure"]["reasons"]["accuracy"] == "no image has a known label"


def test_a_label_that_one_receiver_lacks_comes_from_the_images_owner(run):
    write_predictions(run.party("hospital_a"), run.ids, None, run.secure, run.secure.argmax(1), ["normal", "pneumonia"])
    rows = run.rows("hospital_b")
    metrics = joint_metrics(run.folder, run.settings, None)
    assert metrics["secure"]["confusion"] == classification_metrics(run.secure[rows], run.labels[rows], 1)["confusion"]
    assert "label unknown" in metrics["secure"]["reasons"]["labels"]


def test_predictions_alone_give_counts_and_agreement(tmp_path):
    run = make_run(tmp_path, classes=3)
    run.write_own_predictions(logits=False)
    run.write_result("hospital_a")
    metrics = joint_metrics(run.folder, run.settings, run.plaintext)
    assert metrics["secure"]["confusion"] == expected(run, run.secure)["confusion"]
    assert metrics["secure"]["auc"] is None and metrics["secure"]["reasons"]["auc"] == ONLY_PREDICTIONS
    assert metrics["fidelity"]["label_agreement"] is not None
    assert metrics["fidelity"]["reasons"]["max_logit_error"] == ONLY_PREDICTIONS


def test_aggregate_counts_stand_in_where_no_output_was_revealed(training):
    metrics = joint_metrics(training.folder, training.settings, training.plaintext)
    assert metrics["secure"] == training.counted()
    assert metrics["secure"]["reasons"] == {"auc": ONLY_COUNTS}
    assert metrics["plaintext"]["auc"] is not None and metrics["fidelity"] is None
    assert metrics["images"] == len(training.ids)


def test_history_joins_what_different_parties_were_shown(training):
    history = joint_metrics(training.folder, training.settings, training.plaintext)["history"]
    assert [entry["loss"] for entry in history["secure"]] == [0.9, 0.6]
    assert all(entry["val"]["accuracy"] == pytest.approx(0.85) for entry in history["secure"])
    assert history["plaintext"] == training.plaintext.history


def test_nothing_revealed_is_null_with_a_reason(tmp_path):
    run = make_run(tmp_path)
    run.write_result("hospital_a")
    metrics = joint_metrics(run.folder, run.settings, run.plaintext)
    assert metrics["secure"]["accuracy"] is None and metrics["secure"]["reasons"]["accuracy"]
    assert metrics["plaintext"]["accuracy"] is not None
    assert set(metrics["cost"].values()) == {None}


def test_a_run_without_results_or_with_damaged_ones_is_a_typed_error(tmp_path):
    run = make_run(tmp_path)
    with pytest.raises(DataError, match=r"no result\.json"):
        joint_metrics(run.folder, run.settings, None)
    for content in ("{", '{"metrics": NaN}'):
        (run.party("hospital_a") / "result.json").write_text(content)
        with pytest.raises(DataError, match="is damaged"):
            joint_metrics(run.folder, run.settings, None)


def test_the_joint_report_is_two_files_in_the_run_folder(run):
    run.settings.protocol.name = ProtocolName.insecure_simulation
    metrics = write_joint_report(run.folder, run.settings, run.plaintext)
    assert json.loads((run.folder / "metrics.json").read_text()) == metrics
    assert metrics["insecure"] and "Insecure simulation." in (run.folder / "report.html").read_text()


def test_a_receiver_reports_its_own_images_and_nothing_more(run):
    folder, rows = run.party("hospital_b"), run.rows("hospital_b")
    metrics = receiver_report(folder, run.settings, json.loads((folder / "result.json").read_text()))
    own = classification_metrics(log_softmax(run.secure[rows]), run.labels[rows], 1)
    assert metrics["secure"]["auc"] == own["auc"] and metrics["secure"]["confusion"] == own["confusion"]
    assert metrics["secure"]["reasons"]["labels"] == "outputs of 48 of 60 images were revealed here"
    assert metrics["plaintext"] is None and metrics["fidelity"] is None
    assert metrics["cost"]["dealer_bytes"] == 70_000
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    page = (folder / "report.html").read_text()
    assert "hospital_b" in page and not any(image_id in page for image_id in run.ids)


def test_a_receiver_of_counts_reports_all_images(training):
    result = training.write_result("hospital_b", metrics=training.counted())
    metrics = receiver_report(training.party("hospital_b"), training.settings, result)
    assert metrics["secure"] == training.counted() and metrics["images"] == len(training.ids)


def test_every_data_owner_is_read_in_a_topology_where_none_computes(run):
    for party in run.settings.topology.parties.values():
        party.roles = [role for role in party.roles if role.value != "compute"]
    for name in HOSPITALS:
        (run.party(name) / "result.json").unlink()
    metrics = joint_metrics(run.folder, run.settings, run.plaintext)  # the dealer's result alone is left
    assert metrics["secure"]["accuracy"] == expected(run, run.secure)["accuracy"]
    assert metrics["images"] == len(run.ids)
