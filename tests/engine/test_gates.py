"""CrypTen's API on this package's protocols, between real processes."""

import pytest
import torch
import torch.nn.functional as F

ULP = 2.0**-16


def _close(a, b, units=2.0):
    assert (a - b.double()).abs().max().item() <= units * ULP, (a - b.double()).abs().max().item() / ULP


def arithmetic(x, y):
    return {
        "add": x + y,
        "rsub": 1 - x,
        "mul": x * y,
        "scaled": x * 0.3,
        "by_three": x / 3,
        "by_float": x / 0.7,
        "square": x.square(),
        "matmul": x.matmul(y.t()),
        "public": x.matmul(torch.eye(x.size(1)) * 0.5),
        "mean": x.mean(0),
        "sum": x.sum(),
    }


def test_arithmetic(parties):
    x, y = torch.randn(2, 5, 7)
    r = parties.run(arithmetic, x, y)
    expected = {
        "add": x + y, "rsub": 1 - x, "mul": x * y, "scaled": x * 0.3, "by_three": x / 3, "by_float": x / 0.7,
        "square": x.square(), "matmul": x @ y.T, "public": x * 0.5, "mean": x.mean(0), "sum": x.sum(),
    }  # fmt: skip
    for name, value in expected.items():
        _close(r[name], value, 40 if name in ("matmul", "sum", "scaled") else 8)


def comparisons(x, y):
    return {
        "lt": x < y, "ge": x.ge(y), "eq": x.eq(y), "ne": x.ne(y), "relu": x.relu(), "abs": x.abs(), "sign": x.sign(),
        "hardtanh": x.hardtanh(-0.5, 0.5), "max": x.max(), "argmax": x.argmax(dim=1),
        "index": x.argmax(dim=1, one_hot=False), "max_dim": x.max(1)[0], "where": x.where(x < y, y),
    }  # fmt: skip


def test_comparisons(parties):
    x, y = torch.randn(2, 6, 5)
    y[0] = x[0]
    r = parties.run(comparisons, x, y)
    expected = {
        "lt": x < y, "ge": x >= y, "eq": x == y, "ne": x != y, "relu": x.relu(), "abs": x.abs(), "sign": x.sign(),
        "hardtanh": F.hardtanh(x, -0.5, 0.5), "max": x.max(), "argmax": F.one_hot(x.argmax(1), 5), "index": x.argmax(1),
        "max_dim": x.max(1)[0], "where": torch.where(x < y, x, y),
    }  # fmt: skip
    for name, value in expected.items():
        _close(r[name], value.double(), 1)


def tie(x):
    return x.argmax(dim=1), x.max(1)[1], x.argmax(dim=1, one_hot=False)


def test_of_equal_values_the_first_wins_as_in_torch(two):
    x = torch.tensor([[1.0] * 7, [0, 5, 5, 0, 5, 1, 2], [0, 1, 2, 3, 4, 4, 4], [2, 1, 0, 0, 0, 1, 2]])
    first = F.one_hot(x.argmax(1), 7).double()
    one_hot, of_max, index = two.run(tie, x)
    assert torch.equal(one_hot, first) and torch.equal(of_max, first)
    assert torch.equal(index, x.argmax(1).double())


def of_nothing(x):
    return {
        "relu": x.relu(), "mul": x * x, "square": x.square(), "div": x / 3, "matmul": x.t().matmul(x), "eq": x.eq(x),
        "max": x.max(1)[0],
    }  # fmt: skip


def test_empty_tensors(parties):
    r = parties.run(of_nothing, torch.empty(0, 3))
    assert {name: tuple(value.shape) for name, value in r.items()} == {
        "relu": (0, 3), "mul": (0, 3), "square": (0, 3), "div": (0, 3), "matmul": (3, 3), "eq": (0, 3), "max": (0,),
    }  # fmt: skip
    assert not r["matmul"].any()


def divided(x):
    return {
        "by_large": x / 1000.5,
        "by_tiny": x / 0.001,
        "by_negative": x / -7,
        "by_several": x / torch.tensor([2.5, 8]),
    }


def test_division_keeps_small_quotients(two):
    """CrypTen multiplies by the rounded reciprocal, which is 0.7 % off for 1000.5."""
    x = torch.randn(50, 2) * 100
    r = two.run(divided, x)
    _close(r["by_large"], x.double() / 1000.5, 2)
    _close(r["by_negative"], x.double() / -7, 2)
    assert ((r["by_tiny"] - x.double() / 0.001).abs() < 1e-6 * x.abs() * 1000 + 1000 * ULP).all()
    assert (r["by_several"] - x.double() / torch.tensor([2.5, 8])).abs().max() < 300 * ULP


def by_zero(x):
    for zero in (0, 0.0, torch.tensor(0.0)):
        with pytest.raises(ZeroDivisionError):
            x / zero


def test_division_by_zero(two):
    two.run(by_zero, torch.ones(2))


def max_pool(x, **params):
    return x.max_pool2d(**params)


@pytest.mark.parametrize(
    "params",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (2, 3), "stride": (1, 2), "dilation": (2, 1)},
        {"kernel_size": 3, "stride": 2, "ceil_mode": True},
        {"kernel_size": 2, "stride": 2, "padding": 1, "ceil_mode": True},
    ],
)
def test_max_pool_equals_torch(two, params):
    x = torch.randn(2, 3, 9, 8) - 3  # below zero, where padding with zeros would win
    _close(two.run(max_pool, x, **params), F.max_pool2d(x, **params), 1)


def pooled_one_hot(x):
    return x.max_pool2d(2, return_indices=True)[1]


def test_max_pool_one_hot(three):
    hot = three.run(pooled_one_hot, torch.randn(1, 2, 6, 6))
    assert torch.equal(hot.sum((4, 5)), torch.ones(1, 2, 3, 3, dtype=torch.float64))


def binary(x):
    from crypten.mpc import ptype

    b = x.to(ptype.binary)
    return b.to(ptype.arithmetic)


def test_crypten_binary_circuits_still_work(parties):
    x = torch.randn(6)
    _close(parties.run(binary, x), x, 1)


def printed(x):
    return [repr(x), repr(x._tensor), str(x.share.tolist()[0])]


def test_printing_a_share_prints_no_contents(two):
    whole, inner, number = two.run(printed, torch.randn(3))
    assert "hidden" in whole and "hidden" in inner
    assert number not in whole and number not in inner


def opened(x):
    return x.get_plain_text()


def test_plain_text_is_exact(two):
    x = torch.tensor([-40.0, -1 / 3, -(2.0**-16), 0.1, 2.0**20])
    assert torch.equal(two.run(opened, x), (torch.round(x.double() * 2**16) / 2**16).float())
