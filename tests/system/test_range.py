"""Narrow comparisons: values that fit run as ever; one that does not ends the run before anything is opened."""

import pytest

from tests.system.command import TINY, mpc_imaging


@pytest.mark.slow
def test_values_that_fit(tmp_path):
    run = mpc_imaging(*TINY, "protocol=fss", "protocol.comparison_bits=36", cwd=tmp_path)
    assert run.code == 0, run.output
    assert run.metrics["fidelity"]["agreeing"] == run.metrics["images"]
    values = [value for event, value in run.events("hospital_a") if event == "reveal"]
    assert values[0] == "range_ok" and {"logits", "metrics"} <= set(values)


def test_a_value_that_does_not(tmp_path):
    run = mpc_imaging(*TINY, "protocol=fss", "protocol.comparison_bits=19", cwd=tmp_path)
    assert run.code == 1
    assert "a value was too large for protocol.comparison_bits=19; nothing that depends on it was opened" in run.output
    for party in ("hospital_a", "hospital_b"):
        assert [value for event, value in run.events(party) if event == "reveal"] == ["range_ok"]
        assert not list((run.folder / "parties" / party).glob("*.csv"))


@pytest.mark.slow
def test_without_the_check_nothing_is_opened_for_it(tmp_path):
    options = ("protocol=fss", "protocol.comparison_bits=36", "protocol.range_check=false")
    run = mpc_imaging(*TINY, *options, cwd=tmp_path)
    assert run.code == 0, run.output
    assert "range_ok" not in [value for _, value in run.events("hospital_a")]
