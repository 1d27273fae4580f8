"""The simulated dealer, and the log by which parties compare what they used."""

import numpy as np
import pytest

from mpc_imaging.errors import RandomnessError
from mpc_imaging.randomness import correlations as c
from mpc_imaging.randomness.provider import DemandLog, SimulatedProvider
from mpc_imaging.randomness.streams import fresh_key


@pytest.mark.parametrize("parties", [1, 2, 4])
def test_simulated_shares_add_up(parties):
    keys = [fresh_key() for _ in range(parties)]
    providers = [SimulatedProvider(rank, parties, keys) for rank in range(parties)]
    for _ in range(2):
        r, square = (sum(parts) for parts in zip(*(p.get(c.SquarePair(20)) for p in providers), strict=True))
        assert np.array_equal(square, r * r)
    assert len({str(provider.log.summary()) for provider in providers}) == 1


def test_number_of_keys():
    with pytest.raises(RandomnessError, match="3 parties needs 3 keys, not 2"):
        SimulatedProvider(0, 3, [fresh_key()] * 2)


def test_log_tells_order_kind_and_size():
    logs = []
    for demands in ([1, 2], [2, 1], [1], [1, 2, 0], [1, 2]):
        log = DemandLog()
        for count in demands:
            log.add(c.SquarePair(count))
        logs.append(log.summary())
    other = DemandLog()
    other.add(c.SharedBit(1))
    other.add(c.SharedBit(2))
    assert logs[0] == logs[4]
    assert len({str(log) for log in [*logs, other.summary()]}) == 5
    assert logs[0]["demands"] == 2
