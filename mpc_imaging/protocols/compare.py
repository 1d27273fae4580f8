"""What comparisons with zero are used for, whichever protocol the context compares with."""

from __future__ import annotations

import torch

from mpc_imaging.protocols.context import Context
from mpc_imaging.protocols.sign import Sign
from mpc_imaging.randomness.demands import Output


def less_than_zero(ctx: Context, x: torch.Tensor) -> torch.Tensor:
    """Share of [x < 0] as an integer 0 or 1, shaped like x."""
    return ctx.comparison.compare(ctx, x, Output.bit, 0).bit()


def relu(ctx: Context, x: torch.Tensor, shift: int = 0) -> tuple[torch.Tensor, Sign]:
    """Share of max(x, 0) / 2**shift, shaped like x, and the comparison, whose bit the gradient needs."""
    sign = ctx.comparison.compare(ctx, x, Output.truncated if shift else Output.value, shift)
    return sign.relu(), sign


def absolute(ctx: Context, x: torch.Tensor, shift: int = 0) -> torch.Tensor:
    """Share of |x| / 2**shift, shaped like x: v - 2 b v."""
    sign = ctx.comparison.compare(ctx, x, Output.truncated if shift else Output.value, shift)
    return sign.value() - 2 * sign.selected()


def maximum(ctx: Context, a: torch.Tensor, b: torch.Tensor, shift: int = 0) -> tuple[torch.Tensor, Sign]:
    """Share of the larger of two of one shape, and the comparison a < b.

    The larger one is not truncated; with a shift it is chosen by the truncated difference, so that of two values closer
    than 2**shift either may come out.
    """
    sign = ctx.comparison.compare(ctx, a - b, Output.value, shift)
    return b + sign.relu(), sign
