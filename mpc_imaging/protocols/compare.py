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
    """Share of max(x, 0) / 2**shift, shaped like x, and the comparison -x < 0, whose bit the gradient needs.

    It is -x that is compared: so the bit is 0 where x is 0, as torch's gradient is, and it costs no more. Zeros are
    common, since padding and black pixels stay so until a bias is added. With a shift, x is 0 where it is truncated to
    0, by chance where it is smaller than 2**shift.
    """
    sign = ctx.comparison.compare(ctx, -x, Output.truncated if shift else Output.value, shift)
    return -sign.selected(), sign


def clamp(ctx: Context, below: torch.Tensor, above: torch.Tensor, shift: int = 0) -> tuple[torch.Tensor, Sign]:
    """Share of min(max(x, low), high) - low, over 2**shift, from low - x and x - high, for low < high.

    And both comparisons, x > low and x < high, stacked: where x equals a bound, the gradient is 0, as torch's.
    """
    x = torch.stack([below, above])
    sign = ctx.comparison.compare(ctx, x, Output.truncated if shift else Output.value, shift)
    selected = sign.selected()
    return selected[1] - selected[0] - sign.value()[1], sign


def inside(sign: Sign) -> torch.Tensor:
    """Share of v where low < x < high, elsewhere of 0, for the comparisons of `clamp` and v twice, stacked."""
    selected = sign.selected()
    return selected[0] + selected[1] - sign.value()[1]


def absolute(ctx: Context, x: torch.Tensor, shift: int = 0) -> torch.Tensor:
    """Share of |x| / 2**shift, shaped like x: v - 2 b v."""
    sign = ctx.comparison.compare(ctx, x, Output.truncated if shift else Output.value, shift)
    return sign.value() - 2 * sign.selected()


def absolute_with_sign(ctx: Context, x: torch.Tensor, shift: int = 0) -> tuple[torch.Tensor, Sign]:
    """Share of |x| / 2**shift, shaped like x, and the comparisons x > 0 and x < 0, stacked: neither holds for 0."""
    sign = ctx.comparison.compare(ctx, torch.stack([-x, x]), Output.truncated if shift else Output.value, shift)
    return -sign.selected().sum(0), sign


def maximum(ctx: Context, a: torch.Tensor, b: torch.Tensor, shift: int = 0) -> tuple[torch.Tensor, Sign]:
    """Share of the larger of two of one shape, and the comparison a < b.

    The larger one is not truncated; with a shift it is chosen by the truncated difference, so that of two values closer
    than 2**shift either may come out.
    """
    sign = ctx.comparison.compare(ctx, a - b, Output.value, shift)
    return b + sign.relu(), sign
