"""Every replacement in CrypTen has a test that fails without it; and taking them out leaves CrypTen as it came."""

import pytest
import torch

from mpc_imaging.engine import compat, gates, gradients
from mpc_imaging.engine.config import FlatConfig
from mpc_imaging.engine.provider import CrypTenProvider
from mpc_imaging.engine.tensors import from_share
from mpc_imaging.errors import PolicyError, TransportError
from mpc_imaging.randomness.streams import Stream, fresh_key
from tests.engine.alone import SilentMesh, alone
from tests.protocols.parties import share

crypten = compat.load()

from crypten.common import rng  # noqa: E402
from crypten.config.config import CrypTenConfig  # noqa: E402
from crypten.cryptensor import CrypTensor  # noqa: E402
from crypten.encoder import FixedPointEncoder  # noqa: E402
from crypten.mpc import MPCTensor, ptype  # noqa: E402
from crypten.mpc.primitives import (  # noqa: E402
    ArithmeticSharedTensor,
    BinarySharedTensor,
    arithmetic,
    binary,
    converters,
)

OWNERS = (
    crypten, crypten.communicator, crypten.mpc, crypten.cfg, rng, arithmetic, binary, converters, CrypTensor, MPCTensor,
    ArithmeticSharedTensor, BinarySharedTensor, FixedPointEncoder,
)  # fmt: skip


def _snapshot():
    return [*(dict(vars(owner)) for owner in OWNERS), dict(crypten.gradients.FUNCTION_REGISTRY)]


def _changed(before, after):
    """Names that are missing, new or other objects, for each owner."""
    return [
        {name for name in a.keys() | b.keys() if a.get(name, ...) is not b.get(name, ...)}
        for a, b in zip(before, after, strict=True)
    ]


def test_uninstall_restores_every_attribute():
    before = _snapshot()
    with alone(sealed=True):
        assert all(_changed(before, _snapshot())), "an owner that is not touched need not be listed above"
        with alone(parties=2):
            pass
    assert not any(_changed(before, _snapshot()))
    with pytest.raises(RuntimeError, match="no secure session"):
        gates.context()


# Randomness


@pytest.fixture
def keys():
    return {name: fresh_key() for name in ("prev", "next", "local", "global")}


def test_masks_come_from_the_streams(keys):
    before, after, own = (Stream(keys[name]) for name in ("prev", "next", "local"))
    with alone(keys=keys):
        assert torch.equal(ArithmeticSharedTensor.PRZS((5,)).share, before.ring((5,)) - after.ring((5,)))
        assert torch.equal(BinarySharedTensor.PRZS((5,)).share, before.ring((5,)) ^ after.ring((5,)))
        assert torch.equal(ArithmeticSharedTensor.PRSS((2, 3)).share, own.ring((2, 3)))
        assert torch.equal(BinarySharedTensor.rand(4, bits=16).share, own.ring((4,)) & 0xFFFF)
        assert torch.equal(rng.generate_random_ring_element((3,)), own.ring((3,)))
        assert torch.equal(rng.generate_kbit_random_tensor((3,), bitlength=1), own.ring((3,)) & 1)


def _shares_after_seed():
    torch.manual_seed(12345)
    return [
        ArithmeticSharedTensor(torch.ones(3), src=0).share,
        BinarySharedTensor(torch.ones(3).long(), src=0).share,
        ArithmeticSharedTensor.PRSS((3,)).share,
        BinarySharedTensor.rand(3).share,
    ]


def test_torchs_seed_decides_no_share():
    with alone(parties=2):
        first, second = _shares_after_seed(), _shares_after_seed()
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_torchs_generator_is_never_used(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("torch's generator")

    with alone(parties=2):
        for name in ("randint", "rand", "randn"):
            monkeypatch.setattr(torch, name, refuse)
        x = MPCTensor(torch.ones(4), src=0)
        (x * x + x.relu()).to(ptype.binary).to(ptype.arithmetic)
        MPCTensor.rand(3)


def test_ring_elements_of_another_size():
    with alone():
        values = rng.generate_random_ring_element((10_000,), ring_size=2**16)
    assert values.min() >= -(2**15) and values.max() < 2**15
    assert values.unique().numel() > 8000


# Protocols


def test_triples_come_from_the_dealer():
    with alone(parties=2) as demands:
        assert isinstance(crypten.mpc.get_default_provider(), CrypTenProvider)
        a = BinarySharedTensor(torch.ones(4).long(), src=0)
        a & a
        assert demands == ["binary"]


def test_products_are_ours():
    with alone() as demands:
        x = from_share(torch.tensor([3 << 16, -5 << 15]))
        assert torch.equal((x * x).get_plain_text(), torch.tensor([9.0, 6.25]))
        assert torch.equal(x.square().get_plain_text(), torch.tensor([9.0, 6.25]))
        # The mask of x serves both.
        assert demands == ["mask", "product", "truncation", "product", "truncation"]


X, Y = torch.tensor([[1.5, -2.0], [0.5, -0.25]]), torch.tensor([[1.5, 1.0], [-0.5, -3.0]])
METHODS = {
    "lt": (lambda x, y: x < y, X < Y, ["comparison"]),
    "eq": (lambda x, y: x.eq(y), X == Y, ["comparison"]),
    "ne": (lambda x, y: x.ne(y), X != Y, ["comparison"]),
    "relu": (lambda x, y: x.relu(), X.relu(), ["comparison"]),
    "abs": (lambda x, y: x.abs(), X.abs(), ["comparison"]),
    "max": (lambda x, y: x.max(), X.max(), ["comparison"] * 2),
    "argmax": (lambda x, y: x.argmax(dim=0), torch.tensor([[1, 0], [0, 1]]), ["comparison", "selection"]),
    "max_pool2d": (lambda x, y: x.view(1, 1, 2, 2).max_pool2d(2), X.max().view(1, 1, 1, 1), ["comparison"] * 2),
}


@pytest.mark.parametrize("name", METHODS)
def test_comparisons_are_ours(name):
    method, expected, cost = METHODS[name]
    inputs = [(v * 2**16).long() for v in (X, Y)]
    with alone():
        result = method(*(from_share(v) for v in inputs)).get_plain_text()
    assert torch.equal(result.float(), expected.float())
    # Of two parties, where CrypTen has other circuits than for one or three.
    with alone(parties=2) as demands:
        method(*(from_share(v) for v in inputs))
        assert demands == cost


class FailsOnce(SilentMesh):
    """One fault of this party's network, which its peers do not see."""

    def __init__(self, error):
        self.error, self.exchanges = error, 0

    def exchange(self, kind, outgoing, incoming):
        self.exchanges += 1
        if self.exchanges == 1:
            raise self.error
        return super().exchange(kind, outgoing, incoming)


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), TransportError("first and second, step 3")])
def test_a_network_fault_does_not_change_the_protocol(error):
    mesh = FailsOnce(error)
    with alone(parties=2, mesh=mesh), pytest.raises(type(error)) as caught:
        from_share(torch.zeros(3).long()).to(ptype.binary)
    assert caught.value is error
    assert mesh.exchanges == 1, "CrypTen would try another protocol, alone"


# Truncation

NEAR_2_60 = torch.cat([2**60 - torch.arange(1, 5001), torch.arange(1, 5001) - 2**60])


def _ruined(quotient):
    return int(((quotient - (NEAR_2_60 >> 16)).abs() > 1).sum())


def test_stock_truncation_ruins_elements(monkeypatch):
    """What the replacement is for: each element of this size is lost with probability 1/16."""

    class TwoParties:
        get_world_size = staticmethod(lambda: 2)

    monkeypatch.setattr(crypten.communicator, "get", TwoParties)
    shares = share(NEAR_2_60, 2)
    parts = [ArithmeticSharedTensor.from_shares(part, precision=0).div_(2**16).share for part in shares]
    assert 400 < _ruined(parts[0] + parts[1]) < 900


def truncated(x):
    from mpc_imaging.engine.tensors import from_share

    result = from_share(x.share.clone(), 0)
    result._tensor.div_(2**16)
    return result


def test_truncation_never_ruins_an_element(parties):
    assert _ruined(parties.run(truncated, NEAR_2_60.double() / 2**16).long()) == 0


# Secrecy


def test_values_are_opened_by_reveal_only():
    with alone(parties=2, sealed=True):
        x = from_share(torch.tensor([1, 2, 3]))
        b = x.to(ptype.binary)
        for opening in (
            x.get_plain_text, x.reveal, x._tensor.get_plain_text, x._tensor.reveal, b.get_plain_text, b.reveal,
            b._tensor.get_plain_text, lambda: ArithmeticSharedTensor.reveal_batch([x._tensor]),
        ):  # fmt: skip
            with pytest.raises(PolicyError, match="mpc_imaging.parties.reveal"):
                opening()
        # No protocol needs them.
        (x * x).relu().to(ptype.binary).to(ptype.arithmetic)


@pytest.mark.parametrize("kind", [ptype.arithmetic, ptype.binary])
def test_no_share_is_printed(kind):
    with alone(parties=2):
        x = from_share(torch.tensor([1234567890123, 42])).to(kind)
        numbers = [str(value) for value in x.share.tolist()]
        for text in (repr(x), str(x), f"{x}", repr(x._tensor), f"{[x]}"):
            assert "hidden" in text and "(2,)" in text
            assert not any(number in text for number in numbers)


# Settings, communicator, gradients


def test_precision_of_the_session():
    with alone(fraction_bits=12):
        assert crypten.cfg.encoder.precision_bits == 12
        assert MPCTensor(torch.tensor([0.5])).share.item() == 1 << 11
    assert crypten.cfg.encoder.precision_bits == 16


def test_settings_are_flat_in_a_session_only():
    before = crypten.cfg.config
    with alone():
        assert type(crypten.cfg) is FlatConfig
        crypten.cfg.mpc.provider = "TTP"
    assert type(crypten.cfg) is CrypTenConfig
    assert crypten.cfg.config is before and crypten.cfg.mpc.provider == "TFP"


@pytest.mark.parametrize("protocol", ["beaver", "replicated"])
def test_products_are_ours_whatever_the_setting(protocol):
    """CrypTen's replicated products are not re-randomised (its issue 518)."""
    with alone(parties=3) as demands, crypten.cfg.temp_override({"mpc.protocol": protocol}):
        x = from_share(torch.tensor([3 << 16]))
        for product in (lambda: x * x, x.square, x._tensor.clone().square_):
            demands.clear()
            product()
            assert "product" in demands


def test_seeds_cannot_be_set():
    with alone(), pytest.raises(PolicyError, match="crypten.manual_seed"):
        crypten.manual_seed(1, 2, 3)


def test_dropout_drops():
    """CrypTen gives torch the generator that all parties share: a keystream would be refused."""
    with alone():
        x = from_share(torch.full((1000,), 1 << 16), requires_grad=True)
        kept = x.dropout(0.5).get_plain_text().round()
        assert set(kept.tolist()) == {0.0, 2.0} and 0.8 < kept.mean() < 1.2


def test_communicator_of_the_session():
    with alone(parties=3):
        assert crypten.communicator.is_initialized()
        assert crypten.communicator.get().get_world_size() == 3
        assert crypten.communicator.get().get_name() == "first"
    assert not crypten.communicator.is_initialized()


def test_gradients_of_the_session():
    stock = dict(crypten.gradients.FUNCTION_REGISTRY)
    with alone():
        assert crypten.gradients.get_grad_fn("relu") is gradients.ReLU
        assert crypten.gradients.get_grad_fn("conv_transpose2d") is gradients.ConvTranspose2d
    assert stock == crypten.gradients.FUNCTION_REGISTRY
    assert "conv_transpose2d" not in stock, "CrypTen would silently cut the graph there"
