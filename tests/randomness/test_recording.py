"""The provider that records what a program demands."""

import numpy as np

from mpc_imaging.randomness.demands import Mask, MaskRef, Output, Product, SignKeys, TruncationPair
from mpc_imaging.randomness.plan import Call, Plan, Segment
from mpc_imaging.randomness.provider import SimulatedProvider
from mpc_imaging.randomness.recording import RecordingProvider
from mpc_imaging.randomness.ring import BilinearOp


def _product(x, y, count=3):
    return Product(BilinearOp("mul"), *(MaskRef(index, count, (count,), (1,)) for index in (x, y)))


class Program:
    """Something with weights, batches and epochs; `flat` runs everything, else what repeats is repeated."""

    def __init__(self, provider, flat):
        self.provider, self.flat = provider, flat
        self.weights = self.labels = None
        self.seen = {}

    def mask(self):
        index = self.provider.count
        self.provider.get(Mask(3))
        return index

    def segment(self, key, body):
        if self.flat:
            return body()
        before = self.seen.get(key)
        if before and before[1]:
            return self.provider.repeat(before[0])
        self.provider.begin()
        body()
        number = self.provider.end(key)
        self.seen[key] = number, before is not None and before[0] == number
        return None

    def batch(self):
        x = self.mask()
        if self.weights is None:
            self.weights = self.mask()
        self.provider.get(_product(x, self.weights))
        self.provider.get(SignKeys(3, 32, 16, Output.truncated))

    def epoch(self):
        self.weights = None
        inner, self.seen = self.seen, {}
        for _ in range(5):
            self.segment("batch", self.batch)
        self.seen = inner
        if self.labels is None:
            self.labels = self.mask()
        self.provider.get(_product(self.weights, self.labels))
        self.provider.get(TruncationPair(3, 16))

    def run(self, epochs):
        self.mask()
        for _ in range(epochs):
            self.segment("epoch", self.epoch)
        for _ in range(4):
            self.segment("batch", self.batch)
        return self.provider.plan()[0]


def test_a_plan_with_repetitions_is_the_flat_one():
    flat, short = RecordingProvider(0, 2), RecordingProvider(0, 2)
    long_plan, plan = Program(flat, True).run(7), Program(short, False).run(7)
    assert list(plan) == list(long_plan)
    assert short.count == flat.count == plan.count
    assert all(plan.tally(rank) == long_plan.tally(rank) for rank in (0, 1))
    assert sum(len(s.items) for s in plan.segments) < 60 < plan.count == len(list(plan))


def test_equal_segments_are_listed_once():
    plan = Program(RecordingProvider(0, 2), False).run(7)
    root = plan.segments[-1]
    epochs = [item for item in root.items if isinstance(item, Call)][:2]
    assert [call.times for call in epochs] == [1, 6], "the first brings the labels' mask, the others are alike"


def test_recording_is_deterministic():
    plans = [Program(RecordingProvider(rank, 2), False).run(3) for rank in (0, 1, 0)]
    assert len({plan.digest for plan in plans}) == 1


def test_segments_that_demand_nothing_leave_no_trace():
    provider = RecordingProvider(0, 2)
    provider.begin()
    provider.repeat(provider.end("nothing"))
    provider.get(Mask(3))
    plan, _ = provider.plan()
    assert plan == Plan(2, (Segment(0, (Mask(3),)),))


def test_labels_follow_their_demands():
    provider = RecordingProvider(0, 2)
    provider.begin()
    for label, demand in (("first", Mask(3)), ("second", TruncationPair(3, 16)), ("first", TruncationPair(2, 16))):
        provider.label = label
        provider.get(demand)
    provider.repeat(provider.end("step"))
    plan, labels = provider.plan()
    assert {name: t.truncations for name, t in plan.tallies(0, labels).items()} == {"first": 4, "second": 6}


def test_zeros_have_the_shapes_of_what_a_dealer_gives():
    demands = [
        Mask(3), TruncationPair(5, 16), SignKeys(9, 32, 16, Output.truncated), SignKeys(9, 20, 0, Output.bit),
        _product(0, 0),
    ]  # fmt: skip
    for rank in (0, 1):
        real, zeros = SimulatedProvider(rank, 2, [bytes(32), bytes(31) + b"1"]), RecordingProvider(rank, 2)
        for index, demand in enumerate(demands):
            theirs, ours = real.get(demand), zeros.get(demand)
            assert ours.index == theirs.index == index and len(ours.key_id) == len(theirs.key_id)
            arrays = zip(
                (*ours.shares, *ours.own, ours.common), (*theirs.shares, *theirs.own, theirs.common), strict=True
            )
            assert all(a.dtype == b.dtype and a.shape == b.shape and not np.any(a) for a, b in arrays)
