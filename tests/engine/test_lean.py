"""Each replacement of `lean` has a test that fails with CrypTen's own."""

import pytest
import torch

from mpc_imaging.engine import compat
from mpc_imaging.engine.tensors import from_share
from mpc_imaging.errors import EncodingError
from tests.engine.alone import alone

crypten = compat.load()

from crypten.encoder import FixedPointEncoder  # noqa: E402
from crypten.mpc import MPCTensor  # noqa: E402
from crypten.mpc.primitives import ArithmeticSharedTensor, BinarySharedTensor  # noqa: E402

ONE, WORDS = 1 << 16, torch.tensor([3 << 16, -5 << 15])


def _refuse(*args, **kwargs):
    raise AssertionError("this costs time at every call")


class Refusing:
    def __getattr__(self, name):
        _refuse()


def test_plain_attributes_ask_no_settings():
    with alone():
        x = from_share(WORDS)
        crypten.cfg.__dict__["debug"] = Refusing()
        assert x.share is x._tensor.share and x.encoder.scale == ONE and x.ptype is not None
        with pytest.raises(AssertionError):
            x.relu  # noqa: B018  (dispatched, so CrypTen may have to validate it)


def test_validation_mode_still_validates():
    with alone(), crypten.cfg.temp_override({"debug.validation_mode": True}):
        x = from_share(WORDS)
        assert x.relu.__name__ == "validation_function"
        x._tensor.share[0] += 0
        assert torch.equal(x.relu().get_plain_text(), torch.tensor([3.0, 0]))


def test_what_is_no_method_of_the_class_is_found():
    with alone(), crypten.no_grad():
        assert torch.equal(from_share(WORDS).relu6().get_plain_text(), torch.tensor([3.0, 0]))
        with pytest.raises(AttributeError):
            from_share(WORDS).nothing  # noqa: B018


RESULTS = {
    "from_shares": lambda x: MPCTensor.from_shares(WORDS),
    "clone": lambda x: x.clone(),
    "shallow_copy": lambda x: x.shallow_copy(),
    "sum": lambda x: x + x,
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_begin_with_no_empty_tensor(name, monkeypatch):
    with alone():
        x = from_share(WORDS)
        monkeypatch.setattr(MPCTensor, "__init__", _refuse)
        assert isinstance(RESULTS[name](x), MPCTensor)


def test_static_functions_draw_no_masks(monkeypatch):
    """CrypTen makes an empty tensor to find `cat` and `stack`."""
    with alone():
        x = from_share(WORDS)
        monkeypatch.setattr(ArithmeticSharedTensor, "PRZS", _refuse)
        assert crypten.cat([x, x]).size() == (4,) and crypten.stack([x, x]).size() == (2, 2)


def test_an_empty_list_is_an_empty_tensor():
    with alone():
        assert crypten.cryptensor([]).size() == (0,)
        assert crypten.cryptensor([], ptype=crypten.mpc.binary)._tensor.__class__ is BinarySharedTensor


def test_an_empty_list_with_a_source_has_the_size_of_that(monkeypatch):
    """`broadcast_size` was lost, and so was the tensor, at all parties but the source."""
    with alone(parties=2):
        monkeypatch.setattr(crypten.communicator.get(), "broadcast_obj", lambda size, src: torch.Size((2, 3)))
        x = MPCTensor([], src=1, broadcast_size=True, requires_grad=True)
        assert x.size() == (2, 3) and x.requires_grad
        assert MPCTensor([], ptype=crypten.mpc.binary, src=1, broadcast_size=True).size() == (2, 3)


WILD = torch.tensor([float("nan"), 1.0, 1e30])


def test_what_cannot_be_encoded_may_be_written_over():
    """`crypten.nn.init` is called with tensors made of `torch.empty`, whose memory holds anything."""
    with alone():
        x = crypten.cryptensor(WILD.clone(), requires_grad=True)
        assert x.size() == (3,) and x.shape == (3,) and x.dim() == 1 and x.nelement() == x.numel() == 3
        assert crypten.nn.init.ones_(x) is x
        assert x._tensor.__class__ is ArithmeticSharedTensor and torch.equal(
            (x + x).get_plain_text(), 2 * torch.ones(3)
        )
        y = crypten.cryptensor(WILD)
        y.copy_(x.detach())
        assert torch.equal(y.get_plain_text(), torch.ones(3))
        y = crypten.cryptensor(WILD)
        y.share = x.share
        assert torch.equal(y.get_plain_text(), torch.ones(3))


USES = {
    "open": lambda x: x.get_plain_text(), "add": lambda x: x + 1, "added": lambda x: x.detach() * 0 + x,
    "relu": lambda x: x.relu(), "view": lambda x: x.view(1, 3), "index": lambda x: x[0], "clone": lambda x: x.clone(),
    "share": lambda x: x.share, "max": lambda x: x.max(), "write": lambda x: x.__setitem__(0, 1.0),
    "print": repr, "neg": lambda x: -x, "stack": lambda x: crypten.stack([x, x]), "set a part": lambda x: x.mul_(2),
}  # fmt: skip


@pytest.mark.parametrize("name", USES)
def test_what_cannot_be_encoded_cannot_be_used(name):
    """The error is that of encoding it, whatever is done with it."""
    with alone():
        x = crypten.cryptensor(WILD, requires_grad=name in ("add", "relu"))
        with pytest.raises(EncodingError, match="not finite"):
            USES[name](x)


def test_numbers_and_lists_that_cannot_be_encoded_are_refused_at_once():
    with alone():
        for value in (float("nan"), [1.0, float("inf")], 2**70):
            with pytest.raises(EncodingError):
                crypten.cryptensor(value)


def test_bits_times_fractions():
    """A comparison's result has no bits of fraction; CrypTen rounds the other operand to a whole number."""
    with alone():
        bit = crypten.cryptensor(torch.tensor([-1.0, 2])) > 0
        half = torch.tensor([0.0, 0.5])
        assert torch.equal((bit * 0.5).get_plain_text(), half)
        assert torch.equal((bit + 0.5).get_plain_text(), torch.tensor([0.5, 1.5]))
        assert torch.equal((bit * torch.tensor([0.5, 0.5])).get_plain_text(), half)
        assert torch.equal((0.25 - bit).get_plain_text(), torch.tensor([0.25, -0.75]))
        # Whole numbers leave it one, with nothing to truncate.
        assert torch.equal((bit * 3.0).get_plain_text(), torch.tensor([0, 3]))


def test_encoders_set_each_field_once(monkeypatch):
    monkeypatch.setattr(FixedPointEncoder, "__setattr__", _refuse)
    with alone(fraction_bits=12):
        assert FixedPointEncoder()._precision_bits == 12 and FixedPointEncoder().scale == 1 << 12
        assert FixedPointEncoder(3)._precision_bits == 3 and FixedPointEncoder(3).scale == 8


def test_fields_of_an_encoder_still_follow_each_other():
    with alone():
        encoder = FixedPointEncoder()
        encoder._scale = 1
        assert encoder._precision_bits == 0
        encoder._precision_bits = 5
        assert encoder.scale == 32


def test_whole_numbers_are_shared_exactly():
    whole = torch.tensor([2**24 + 1, -(2**40) - 1, 2**46 - 1])
    with alone():
        assert torch.equal(crypten.cryptensor(whole).share, whole << 16)
        assert crypten.cryptensor(whole).encoder.scale == ONE


def test_sources_are_still_checked():
    with alone(parties=2):
        with pytest.raises(AssertionError, match="source party"):
            crypten.cryptensor(WORDS, src=2)
        foreign = torch.ones(2)
        foreign.src = 1
        with pytest.raises(AssertionError, match="source of data"):
            crypten.cryptensor(foreign, src=0)
        with pytest.raises(AssertionError, match="must provide a data tensor"):
            ArithmeticSharedTensor()


OPERATIONS = {
    "add": lambda x: x + x, "add public": lambda x: x + 1, "sub": lambda x: x - x, "neg": lambda x: -x,
    "mul": lambda x: x * x, "mul public": lambda x: x * 0.5, "mul whole": lambda x: x * 3,
    "square": lambda x: x.square(), "matmul": lambda x: x.matmul(x), "div": lambda x: x / 3,
    "div public": lambda x: x / 0.3,
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_operands_are_not_copied(name, monkeypatch):
    with alone(), crypten.no_grad():
        x = from_share(WORDS)
        for kind in (MPCTensor, ArithmeticSharedTensor):
            monkeypatch.setattr(kind, "clone", _refuse)
        OPERATIONS[name](x)
        assert torch.equal(x.share, WORDS)


def test_operands_keep_their_encoding():
    """CrypTen rescales the second operand of a sum in place."""
    with alone():
        x, y = from_share(WORDS), from_share(torch.tensor([1, 2]), 0)
        assert torch.equal((x + y).get_plain_text(), torch.tensor([4.0, -0.5]))
        assert torch.equal((y - x).get_plain_text(), torch.tensor([-2.0, 4.5]))
        assert y.encoder.scale == 1 and torch.equal(y.share, torch.tensor([1, 2]))


def test_products_of_different_precision():
    """CrypTen divides by the first one's scale, and says that the result has it."""
    with alone():
        x, y = from_share(torch.tensor([3 << 20]), 20), from_share(torch.tensor([-5 << 7]), 8)
        for product in (x * y, y * x, x.mul(y)):
            assert product.get_plain_text().item() == -7.5
        whole = from_share(torch.tensor([2]), 0)
        assert (x * whole).get_plain_text().item() == 6 and (whole * x).get_plain_text().item() == 6


def test_results_of_public_sums_can_be_written_to(monkeypatch):
    """CrypTen's share memory between elements where broadcast, at all parties but the first."""
    with alone():
        monkeypatch.setattr(ArithmeticSharedTensor, "rank", 1)
        x = from_share(torch.tensor([ONE]))
        for y in (x + torch.ones(3), x + 1):
            y.share[0] = 7
            assert y.share.tolist()[1:] == [ONE] * (y.nelement() - 1) and x.share.tolist() == [ONE]


def test_writing_in_place_reaches_views():
    with alone():
        x = from_share(torch.tensor([ONE, 2 * ONE]))
        x[:1]._tensor.add_(1)
        x[1:]._tensor.mul_(from_share(torch.tensor([3 * ONE]))._tensor)
        assert torch.equal(x.get_plain_text(), torch.tensor([2.0, 6.0]))


def test_whole_numbers_multiply_without_truncation():
    with alone() as demands:
        x = from_share(WORDS)
        assert torch.equal((x * torch.tensor([2, -3])).get_plain_text(), torch.tensor([6.0, 7.5]))
        assert not demands


def test_sums_with_other_things():
    with alone(), pytest.raises(TypeError, match="Cannot add"):
        from_share(WORDS)._tensor.add("text")


def test_data_counts_writes():
    """The protocols find a masked value by its tensor's count of writes: those through `.data` must not be missed."""
    with alone():
        x = from_share(torch.tensor([3 << 16]))
        assert (x * x).get_plain_text().item() == 9
        x.data.fill_(2 << 16)
        assert (x * x).get_plain_text().item() == 4
        x.data = torch.tensor([5 << 16])
        assert (x * x).get_plain_text().item() == 25


def test_detached_values_leave_the_graph():
    """CrypTen's stay in it, and a product with one gets no gradient."""
    with alone():
        x = from_share(WORDS, requires_grad=True)
        y = x * 2
        (y * y.detach()).sum().backward()
        assert torch.equal(x.grad.get_plain_text(), torch.tensor([12.0, -10.0]))
        assert y.detach().share is not y.share


def test_indexing_is_recorded():
    """CrypTen's is not: Python finds `__getitem__` in the class, and the gradient is silently lost."""
    with alone():
        x = from_share(WORDS, requires_grad=True)
        (x[1] * 2).sum().backward()
        assert torch.equal(x.grad.get_plain_text(), torch.tensor([0.0, 2]))
        assert not x.detach()[1].requires_grad
