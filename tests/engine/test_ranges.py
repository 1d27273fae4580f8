"""What layers and training steps watch for the range check, between real processes."""

from dataclasses import replace

import pytest
import torch

from mpc_imaging.engine import gates, layers
from mpc_imaging.engine.tensors import no_grad
from mpc_imaging.protocols.coins import TossedCoins
from mpc_imaging.protocols.ranges import RangeCheck


def _checked(body, *tensors):
    """Bits of the verdict after ``body``, with a range check."""
    before = gates.context()
    gates.set_context(replace(before, check=RangeCheck(TossedCoins(b"session"))))
    try:
        body(*tensors)
        verdict = gates.range_verdict()
        return [] if verdict is None else [list(verdict.places), (verdict.bits, 0)]
    finally:
        gates.set_context(before)


def linear(x, w):
    return _told(_checked(lambda x, w: layers.linear(x, w, None), x, w))


def parameter(x, w):
    return _told(_checked(lambda x, w: (gates.watch_parameter(x, "a"), gates.watch_parameter(w, "b")), x, w))


def evaluation(x, w):
    def body(x, w):
        with no_grad():
            layers.linear(x, w, None)

    return _told(_checked(body, x, w))


def bounded(x, w):
    """The input is watched in place of the result, which would be too large; then the result of another layer is."""

    def body(x, w):
        with no_grad(), layers.inputs_in_range():
            layers.linear(layers.in_range(x, 1 << 20), w, None)
        gates.context().check.place = "after"
        with no_grad():
            layers.linear(x, w, None)

    return _told(_checked(body, x, w))


def _told(result):
    from mpc_imaging.engine.tensors import from_share

    places, (bits, _) = result
    return {"places": places, "bits": from_share(bits, 0)}


@pytest.mark.parametrize(("value", "fits"), [(2.0**19, True), (2.0**22, False), (-(2.0**22), False)])
def test_results_of_layers(parties, value, fits):
    x = torch.randn(4, 100)
    x[2] = 0
    x[2, 5] = value
    result = parties.run(linear, x, torch.eye(100), requires_grad=True)
    assert result["bits"].tolist() == [fits, fits], "2**21 is the bound at 16 bits of fraction"


def test_parameters_and_their_places(parties):
    small, large = torch.randn(10, 100), torch.randn(10, 100)
    large[3, 7] = 8200
    assert parties.run(parameter, small, large)["places"] == ["a", "b"]
    assert parties.run(parameter, small, large)["bits"].tolist() == [0, 1, 0]
    assert parties.run(parameter, small, small * 30)["bits"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("size", [1, 2.0**22])
def test_results_are_watched_outside_of_training_too(parties, size):
    assert parties.run(evaluation, torch.ones(4, 3), torch.eye(3) * size)["bits"].tolist() == [size == 1] * 2


@pytest.mark.parametrize(("size", "bits"), [(15.0, [0, 1, 0]), (17.0, [0, 0, 0])])
def test_a_bounded_input_is_watched_in_place_of_the_result(parties, size, bits):
    """16 is the bound, and at 2**21 a result would leave the range."""
    result = parties.run(bounded, torch.full((1, 1), size), torch.eye(1) * 2.0**20)
    assert result["places"] == ["values", "after"] and result["bits"].tolist() == bits


def test_nothing_is_watched_without_a_check(parties):
    assert parties.run(unchecked, torch.randn(4, 3), torch.randn(3, 3)) == [False, True]


def unchecked(x, w):
    layers.linear(x, w, None)
    return [gates.watching(), gates.range_verdict() is None]
