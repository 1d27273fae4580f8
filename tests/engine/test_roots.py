"""Inverse square roots on shares."""

import torch


def root(x, octaves):
    from mpc_imaging.engine import gates
    from mpc_imaging.engine.roots import inverse_root

    return inverse_root(gates.context(), x, octaves)


def test_inverse_roots_and_one_for_what_is_small(parties):
    x = torch.cat([torch.logspace(-4, 4, 400, dtype=torch.float64), torch.tensor([0.0, 1, 4, 16, 4.0**8 - 1])])
    y = parties.run(root, x, octaves=8)
    exact = x.clamp(min=1).rsqrt()
    assert torch.all((y - exact).abs() < 3e-4 * exact + 2 * 2.0**-16)
