"""The simulated dealer, and the log by which parties compare what they used."""

import itertools

import numpy as np
import pytest

from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness import correlations
from mpc_imaging.randomness.demands import (
    BitsRef,
    ComparisonMask,
    Mask,
    MaskRef,
    Output,
    Product,
    Selection,
    SharedBit,
    SignKeys,
    TruncationPair,
)  # fmt: skip
from mpc_imaging.randomness.plan import Call, Plan, Segment
from mpc_imaging.randomness.provider import (
    KEY_ID_BYTES,
    DemandLog,
    PartyProvider,
    PlannedProvider,
    SimulatedProvider,
)  # fmt: skip
from mpc_imaging.randomness.ring import BilinearOp
from mpc_imaging.randomness.streams import fresh_key


def _group(parties):
    keys = [fresh_key() for _ in range(parties)]
    return [SimulatedProvider(rank, parties, keys) for rank in range(parties)]


@pytest.mark.parametrize("parties", [1, 2, 3, 4, 5])
def test_simulated_shares_add_up(parties):
    providers = _group(parties)
    square = Product(BilinearOp("mul"), MaskRef(0, 20, (20,), (1,)), MaskRef(0, 20, (20,), (1,)))
    (r,) = (sum(parts) for parts in zip(*(p.get(Mask(20)).shares for p in providers), strict=True))
    for _ in range(2):
        (product,) = (sum(parts) for parts in zip(*(p.get(square).shares for p in providers), strict=True))
        assert np.array_equal(product, r * r)
        r16, shifted, _ = (
            sum(parts) for parts in zip(*(p.get(TruncationPair(9, 16)).shares for p in providers), strict=True)
        )
        assert np.array_equal(shifted, r16 >> np.uint64(16))
    assert len({str(provider.log.summary()) for provider in providers}) == 1
    assert providers[0].log.summary()["demands"] == 5


def test_simulated_keys_are_those_of_a_dealer():
    demand = SignKeys(9, 32, 16, Output.bit)
    a, b = (provider.get(demand) for provider in _group(2))
    assert np.array_equal(a.common, b.common) and a.key_id == b.key_id
    assert len(a.common) == demand.common_octets()
    assert not np.array_equal(a.own[0], b.own[0])


def test_demands_are_numbered():
    (provider,) = _group(1)
    assert [provider.get(SharedBit(3)).index for _ in range(4)] == [0, 1, 2, 3]


def test_number_of_keys():
    with pytest.raises(RandomnessError, match="3 parties needs 3 keys, not 2"):
        SimulatedProvider(0, 3, [fresh_key()] * 2)


def test_a_provider_asks_for_messages_of_the_size_that_the_dealer_sends():
    asked = []

    class Asked(PartyProvider):
        def _message(self, demand, index, size):
            asked.append((demand, index, size))
            return bytearray(size)

    demands = [Mask(5), SharedBit(9), TruncationPair(3, 16), Selection(9, 0, BitsRef(1, 9)), ComparisonMask(2)]
    provider = Asked(fresh_key(), 1, 3, bytes(KEY_ID_BYTES))
    for demand in demands:
        provider.get(demand)
    assert asked == [(d, i, correlations.message_octets(d, i, 1, 3)) for i, d in enumerate(demands)]
    assert [size for _, _, size in asked] == [0, 72, 0, 0, correlations.correction_octets(ComparisonMask(2))]


def test_log_tells_order_kind_and_size():
    logs = []
    for demands in ([1, 2], [2, 1], [1], [1, 2, 0], [1, 2]):
        log = DemandLog()
        for number, count in enumerate(demands):
            assert log.add(Mask(count)) == number
        logs.append(log.summary())
    other = DemandLog()
    other.add(SharedBit(1))
    other.add(SharedBit(2))
    assert logs[0] == logs[4]
    assert len({str(log) for log in [*logs, other.summary()]}) == 5
    assert logs[0]["demands"] == 2


def test_log_may_be_read_at_any_time():
    one, two = DemandLog(), DemandLog()
    for count in range(5):
        one.add(Mask(count))
        one.summary()
        two.add(Mask(count))
    assert one.summary() == two.summary() == one.summary()
    assert one.count == 5


def test_log_tells_references_apart():
    digests = set()
    for demand in (
        Selection(3, 0, BitsRef(0, 3)), Selection(3, 0, BitsRef(1, 3)), Selection(3, 1, BitsRef(0, 3)),
        Product(BilinearOp("mul"), MaskRef(0, 4, (4,), (1,)), MaskRef(0, 4, (4,), (1,))),
        Product(BilinearOp("mul"), MaskRef(0, 4, (2, 2), (2, 1)), MaskRef(0, 4, (2, 2), (2, 1))),
        Product(BilinearOp("mul"), MaskRef(0, 4, (2, 2), (1, 2)), MaskRef(0, 4, (2, 2), (2, 1))),
        Product(BilinearOp("matmul"), MaskRef(0, 4, (2, 2), (2, 1)), MaskRef(0, 4, (2, 2), (2, 1))),
    ):  # fmt: skip
        log = DemandLog()
        log.add(demand)
        digests.add(log.summary()["digest"])
    assert len(digests) == 7


STEP = Segment(1, (TruncationPair(4, 16), Selection(3, 0, BitsRef(0, 3))))
PLAN = Plan(2, (STEP, Segment(0, (SharedBit(3), Call(0, 2), Mask(2)))))


def _planned(rank, reads):
    """A party whose messages are zeros; `reads` collects their sizes."""

    def read(size):
        reads.append(size)
        return bytearray(size)

    return PlannedProvider(fresh_key(), rank, PLAN, bytes(KEY_ID_BYTES), read)


@pytest.mark.parametrize("limit", [0, 50, 1 << 40])
def test_planned_messages_are_read_in_order(limit):
    for rank in (0, 1):
        reads = []
        provider = _planned(rank, reads)
        provider.prefetch(limit)
        assert (len(reads) > 0) == (limit > 0)
        for index, demand in PLAN:
            assert provider.get(demand).index == index
        provider.finish()
        sizes = [correlations.message_octets(demand, index, rank, 2) for index, demand in PLAN]
        assert reads == [size for size in sizes if size]


@pytest.mark.parametrize("limit", [10, 30, 60, 90])
def test_all_parties_prefetch_up_to_the_same_demand(limit):
    providers = [_planned(rank, []) for rank in (0, 1)]
    for provider in providers:
        provider.prefetch(limit)
    assert len(providers[0]._ahead) == len(providers[1]._ahead) > 0


@pytest.mark.parametrize("limit", [0, 1 << 40])
def test_demands_must_be_those_of_the_plan(limit):
    demands = [demand for _, demand in PLAN]
    for count, wrong, wanted in ((0, SharedBit(4), "bit"), (1, Mask(4), "truncation"), (6, Mask(2), "nothing more")):
        provider = _planned(0, [])
        provider.prefetch(limit)
        for demand in demands[:count]:
            provider.get(demand)
        with pytest.raises(RandomnessError, match=f"demand {count} is {wrong.name}, but the plan has {wanted} here"):
            provider.get(wrong)


def test_a_plan_must_be_used_up():
    provider = _planned(0, [])
    for _, demand in list(PLAN)[:-1]:
        provider.get(demand)
    with pytest.raises(RandomnessError, match="ended after 5 demands, before its plan"):
        provider.finish()


@pytest.mark.parametrize("limit", [0, 50, 1 << 40])
@pytest.mark.parametrize("used", [0, 1, 3])
def test_what_is_left_of_a_plan_is_thrown_away(used, limit):
    """Every message is still read: the dealer sends all of them."""
    for rank in (0, 1):
        whole, reads = [], []
        _planned(rank, whole).prefetch(1 << 40)
        provider = _planned(rank, reads)
        provider.prefetch(limit)
        for _, demand in itertools.islice(PLAN, used):
            provider.get(demand)
        assert provider.discard() == PLAN.count - used
        assert reads == whole and provider.log.count == used
        provider.finish()
        with pytest.raises(RandomnessError, match="the plan has nothing more here"):
            provider.get(Mask(2))
