"""Roots of numbers of any size."""

import torch


def scaled(v):
    from mpc_imaging.engine import gates, octaves
    from mpc_imaging.engine.tensors import from_share

    u, a = octaves.scaled(gates.context(), v.share)
    return {"u": from_share(u), "a": from_share(a, 0), "root": octaves.root(u)}


def test_all_sizes_are_scaled_into_one_range(parties):
    powers = torch.arange(0, 60, dtype=torch.float64)
    between = torch.rand(1000, dtype=torch.float64).mul(59.9).exp2().round()
    v = torch.cat([2.0**powers, (1.9 * 2.0**powers).floor(), between])
    r = parties.run(scaled, v / 2**16)  # whole numbers, as they are encoded
    x, factor = 8 * r["u"] + 9, 2.0**28 / r["a"]
    assert x.min() > 15 / 16 - 1e-3
    assert x.max() < 17 + 1e-3
    assert torch.equal(factor.log2() % 2, torch.zeros_like(v))
    assert (x * factor**2 / v - 1).abs().max() < 2e-4
    assert (r["root"] * factor / v.sqrt() - 1).abs().max() < 1.5e-3


def test_zero(parties):
    r = parties.run(scaled, torch.zeros(3))
    assert (8 * r["u"] + 9).abs().max() < 1e-3 and torch.equal(r["a"], torch.full((3,), 2.0**30, dtype=torch.float64))
