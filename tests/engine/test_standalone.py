"""Installing for other people's tests: on CrypTen's own communicator, with a simulated dealer, on one machine only."""

import warnings

import numpy as np
import pytest
import torch
from torch.distributed import ReduceOp

from mpc_imaging import engine
from mpc_imaging.engine import compat, gates, standalone
from mpc_imaging.engine.standalone import CommunicatorChannel, SimulatedDealerWarning
from mpc_imaging.errors import ConfigError, PolicyError

crypten = compat.load()


@pytest.fixture
def party(monkeypatch, tmp_path):
    """The environment of a single party; CrypTen as it came afterwards."""
    values = {"RENDEZVOUS": f"file://{tmp_path}/meet", "WORLD_SIZE": "1", "RANK": "0", "DISTRIBUTED_BACKEND": "gloo"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    yield
    engine.uninstall()
    if crypten.communicator.is_initialized():
        crypten.uninit()


def _install(**options):
    with pytest.warns(SimulatedDealerWarning, match="every party knows all masks"):
        engine.install(**options)


def _works():
    x = crypten.cryptensor(torch.tensor([1.5, -2]))
    return torch.equal((x * x + x.relu()).get_plain_text(), torch.tensor([3.75, 4]))


def test_before_and_after_init(party):
    stock = crypten.init
    _install()
    with pytest.raises(RuntimeError, match="no secure session"):
        gates.context()
    stock()
    assert _works()
    engine.uninstall()
    _install()
    assert _works()


def test_twice_is_harmless_and_warns_once(party):
    _install()
    crypten.init()
    before = gates.context()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.install()
        engine.install(fraction_bits=12)
    assert gates.context() is before and crypten.cfg.encoder.precision_bits == 12
    assert _works()


def test_uninit_and_init_again_take_fresh_keys(party, tmp_path, monkeypatch):
    _install()
    crypten.init()
    first = crypten.generators["local"][torch.device("cpu")], gates.context()
    crypten.uninit()
    with pytest.raises(RuntimeError, match="no secure session"):
        gates.context()
    monkeypatch.setenv("RENDEZVOUS", f"file://{tmp_path}/again")
    crypten.init()
    assert crypten.generators["local"][torch.device("cpu")] is not first[0] and gates.context() is not first[1]
    assert _works()
    with pytest.warns(RuntimeWarning, match="already initialized"):
        crypten.init()


def test_precision_stays_crypten_s_own(party):
    crypten.cfg.encoder.precision_bits = 20
    try:
        _install()
        crypten.init()
        assert crypten.cryptensor(torch.ones(1)).share.item() == 1 << 20
    finally:
        engine.uninstall()
        crypten.cfg.encoder.precision_bits = 16


def test_sealing_on_request(party):
    _install(sealed=True)
    crypten.init()
    with pytest.raises(PolicyError):
        crypten.cryptensor(torch.ones(1)).get_plain_text()


def test_seeds_and_threads_are_refused(party):
    _install()
    with pytest.raises(PolicyError, match="fresh keys"):
        crypten.manual_seed(1, 2, 3)
    with pytest.raises(ConfigError, match="processes"):
        crypten.init_thread(0, 1)


@pytest.mark.parametrize("rendezvous", ["tcp://192.0.2.7:4000", "env://"])
def test_a_rendezvous_elsewhere_is_refused(party, monkeypatch, rendezvous):
    monkeypatch.setenv("RENDEZVOUS", rendezvous)
    monkeypatch.setenv("MASTER_ADDR", "192.0.2.7")
    with pytest.raises(ConfigError, match=r"192\.0\.2\.7 is not on this machine.*RENDEZVOUS=tcp://127\.0\.0\.1"):
        standalone.connect(Board(0, 1))


@pytest.mark.parametrize("rendezvous", ["tcp://127.0.0.1:4000", "tcp://localhost:4000", "env://", "tcp://[::1]:1"])
def test_a_rendezvous_here_is_not(party, monkeypatch, rendezvous):
    monkeypatch.setenv("RENDEZVOUS", rendezvous)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    standalone.connect(Board(0, 1))


def test_parties_on_another_machine_are_refused(party):
    with pytest.raises(ConfigError, match=r"parties \[1\] run on other machines than party 0"):
        standalone.connect(Board(0, 2, elsewhere=True))


class Board:
    """A communicator whose peers send what this party does, twice as large."""

    def __init__(self, rank, parties, elsewhere=False):
        self.rank, self.parties, self.elsewhere = rank, parties, elsewhere

    def get_rank(self):
        return self.rank

    def get_world_size(self):
        return self.parties

    def all_gather(self, tensor):
        return [tensor + (1 if self.elsewhere and i else 0) for i in range(self.parties)]

    def broadcast(self, tensor, src):
        return tensor

    def all_reduce(self, tensor, op=ReduceOp.SUM):
        assert tensor.numel(), "gloo takes no empty tensors"
        return tensor + 2 * tensor if op == ReduceOp.SUM else tensor ^ (2 * tensor)


def test_channel_opens_tensors_together_and_apart():
    channel = CommunicatorChannel(Board(1, 2))
    assert (channel.rank, channel.parties) == (1, 2)
    shares = [torch.arange(6).view(2, 3), torch.empty(0, 2, dtype=torch.int64), torch.tensor(7)]
    opened = channel.open_ring(shares)
    assert [torch.equal(o, 3 * s) for o, s in zip(opened, shares, strict=True)] == [True] * 3
    # Masks look at opened values from the beginning of their memory.
    assert all(o.storage_offset() == 0 and o.is_contiguous() for o in opened)
    opened[0].zero_()
    assert torch.equal(shares[0], torch.arange(6).view(2, 3))
    assert channel.open_ring([torch.empty(0, dtype=torch.int64)])[0].shape == (0,)


def test_channel_opens_bits():
    bits = np.array([[1, 2], [40, 0]], np.uint8)
    opened = CommunicatorChannel(Board(0, 2)).open_bits(bits[:, ::-1])
    assert opened.dtype == np.uint8 and (opened == (bits ^ (2 * bits))[:, ::-1]).all()
    assert CommunicatorChannel(Board(0, 2)).open_bits(np.zeros((0, 3), np.uint8)).shape == (0, 3)


def test_neighbours_share_their_generators(party, monkeypatch):
    secret = torch.arange(4)
    monkeypatch.setattr(Board, "broadcast", lambda self, tensor, src: secret)
    drawn = []
    for rank in range(3):
        _, streams = standalone.connect(Board(rank, 3))
        drawn.append({name: stream.words(4).tolist() for name, stream in streams.items()})
    for rank in range(3):
        assert drawn[rank]["next"] == drawn[(rank + 1) % 3]["prev"]
        assert drawn[rank]["global"] == drawn[0]["global"]
        assert drawn[rank]["next"] != drawn[rank]["prev"] and drawn[rank]["local"] != drawn[rank - 1]["local"]


def test_the_package_offers_both_functions():
    assert callable(engine.install) and callable(engine.uninstall)
    with pytest.raises(AttributeError, match="nothing"):
        engine.nothing  # noqa: B018
