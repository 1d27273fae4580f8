from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from mpc_imaging.data.schedule import batch_schedule
from mpc_imaging.errors import ConfigError, DataError


@given(n=st.integers(1, 60), batch_size=st.integers(1, 20), epochs=st.integers(0, 4), seed=st.integers(0, 2**40))
def test_every_epoch_visits_every_image_once_in_full_batches_but_the_last(n, batch_size, epochs, seed):
    schedule = batch_schedule(n, batch_size, epochs, seed)
    assert len(schedule) == epochs
    for batches in schedule:
        assert sorted(torch.cat(batches).tolist()) == list(range(n))
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert 1 <= len(batches[-1]) <= batch_size
        assert all(batch.dtype == torch.int64 for batch in batches)


def test_the_schedule_depends_on_its_arguments_alone_and_epochs_differ():
    before = torch.random.get_rng_state()
    first, again, longer = (batch_schedule(50, 8, epochs, 3) for epochs in (2, 2, 5))
    assert torch.equal(torch.random.get_rng_state(), before)
    for one, two, three in zip(first, again, longer, strict=False):
        assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(one, two, three, strict=True))
    assert not torch.equal(torch.cat(first[0]), torch.cat(first[1]))
    assert not torch.equal(torch.cat(first[0]), torch.cat(batch_schedule(50, 8, 1, 4)[0]))


def test_a_known_schedule_stays_as_it_is():
    """Parties with different releases of torch must draw the same batches."""
    (batches,) = batch_schedule(10, 4, 1, 0)
    assert [batch.tolist() for batch in batches] == [[4, 1, 7, 5], [3, 9, 0, 8], [6, 2]]


def test_nothing_to_train_on_and_impossible_batches_are_typed_errors():
    with pytest.raises(DataError, match="train split has no images"):
        batch_schedule(0, 8, 1, 0)
    with pytest.raises(ConfigError, match="batch_size >= 1"):
        batch_schedule(8, 0, 1, 0)
