from __future__ import annotations

import pytest

from mpc_imaging.report import wording

from .conftest import make_settings


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0 s"), (0.0123, "12.3 ms"), (0.9999, "1 s"), (3.44, "3.44 s"), (59.99, "1 min 0 s"),
     (125, "2 min 5 s"), (3840, "1 h 4 min")],
)  # fmt: skip
def test_durations(value, text):
    assert wording.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0 B"), (812, "812 B"), (999.6, "1 kB"), (3_840_000, "3.84 MB"), (2.5e12, "2.5 TB")],
)
def test_sizes(value, text):
    assert wording.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, "0"), (0.00123, "0.0012"), (0.000031, "3.1 × 10⁻⁵"), (12.0, "12")]
)
def test_errors(value, text):
    assert wording.error(value) == text


@pytest.mark.parametrize(
    ("secure", "plaintext", "text"),
    [(0.9, 0.9, "0.0000"), (0.90001, 0.9, "0.0000"), (0.9, 0.91, "−0.0100"), (0.92, 0.9, "+0.0200"), (None, 0.9, "–")],
)
def test_differences(secure, plaintext, text):
    assert wording.difference(secure, plaintext) == text


def test_agreement_never_rounds_up_to_all():
    nearly = {"label_agreement": 99_999 / 100_000, "agreeing": 99_999, "images": 100_000}
    assert wording.agreement(nearly) == "99,999 of 100,000 (99.99 %)"
    assert wording.agreement({"label_agreement": 1.0, "agreeing": 5, "images": 5}) == "5 of 5 (100 %)"
    assert wording.agreement(None) == "–"


def test_the_summary_names_the_gap():
    fidelity = {"label_agreement": 623 / 624, "agreeing": 623, "images": 624, "auc_difference": 0.0003}
    metrics = {"secure": {}, "plaintext": {}, "fidelity": fidelity, "images": 624}
    assert wording.summary(metrics) == "Secure and plaintext agree on 623 of 624 labels; AUC differs by 0.0003."
    fidelity["auc_difference"] = None
    assert wording.summary(metrics) == "Secure and plaintext agree on 623 of 624 labels."


def test_reveals_list_what_is_shut_last_and_training_values_only_in_training():
    settings = make_settings()
    settings.policy.reveal = {"predictions": ["hospital_a"], "metrics": ["compute"]}
    rows = [(row["what"], row["to"]) for row in wording.reveals(settings)]
    assert rows == [
        ("Predicted classes", "hospital_a"),
        ("Counts of right and wrong, over all images", "every compute (hospital_a, hospital_b)"),
        ("Model outputs (logits)", "nobody"),
        ("AUC, over all images", "nobody"),
    ]
    settings.policy.reveal = {"range_ok": ["compute"]}
    assert {"what": "Whether all values were in range, before anything else", "to": rows[1][1]} in wording.reveals(
        settings
    )
    settings.policy.reveal = {"duplicates": ["image_owner"]}
    found = {"what": "Which images another owner has too, and in which of its splits"}
    assert found | {"to": "each image's owner, for its own images"} in wording.reveals(settings)
