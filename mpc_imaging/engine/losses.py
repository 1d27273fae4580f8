"""Training losses on shares: the value, where the policy reveals it, and the gradient for the logits.

Both are sums over the batch, not means: dividing (p - y) by the batch size would cost five of the 16 bits of fraction
before the backward pass; the optimiser divides once, at the parameters. Definitions equal those of
`mpc_imaging.baselines.optimisers.loss_function`, times the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from mpc_imaging.baselines.optimisers import DICE_SMOOTHING, MAX_WEIGHT
from mpc_imaging.engine import approximations as approx, gates
from mpc_imaging.engine.tensors import crypten, from_share, precision, rescaled
from mpc_imaging.protocols import compare
from mpc_imaging.settings import Loss

if TYPE_CHECKING:
    from crypten.mpc import MPCTensor

FACTOR_BITS = 24


def loss_and_gradient(
    kind: Loss, logits: MPCTensor, targets: MPCTensor, want_loss: bool, weights: MPCTensor | None = None
) -> tuple[MPCTensor | None, MPCTensor]:
    """Loss summed over the batch (scalar; None unless wanted) and its gradient for the logits, times `gradient_scale`.

    `logits` and `targets` are (N, K), or (N, 1, H, W) and (N, H, W) for masks; `logits` must be detached from the
    autograd graph. `weights` (N, 1) multiply the loss of each image, in two rounds more.
    """
    if kind is Loss.dice_bce:
        each, gradient = _overlap(rescaled(logits).flatten(1), targets.flatten(1), want_loss)
        return None if each is None else each.sum(), gradient.view(*logits.size())
    each, gradient = _parts(kind, rescaled(logits), targets, want_loss)
    if weights is not None:
        both = gradient if each is None else crypten.cat([gradient, each], 1)
        both = both * weights.expand(*both.size())
        classes = logits.size(1)
        gradient, each = both[:, :classes], None if each is None else both[:, classes:]
    return None if each is None else each.sum(), gradient


def _parts(kind: Loss, logits: MPCTensor, targets: MPCTensor, want_loss: bool) -> tuple[MPCTensor | None, MPCTensor]:
    """The loss of each image (N, 1) and the gradient."""
    classes, each = logits.size(1), None
    if kind is Loss.cross_entropy:
        e, total, shifted = approx.softmax_parts(logits, 1)
        pairs = [(e, approx.reciprocal(total, float(classes)).expand(*e.size()))]
        if want_loss:
            pairs.append((shifted, targets))
        products = approx.products(pairs)
        gradient = products[0] - targets
        if want_loss:
            each = approx.log(total, float(classes)) - products[1].sum(1, keepdim=True)
    elif kind is Loss.binary_cross_entropy:
        gradient = (approx.sigmoid(logits) - targets) / classes
        if want_loss:
            each = (approx.softplus(logits) - logits * targets).sum(1, keepdim=True) / classes
    else:
        difference = logits - targets
        gradient = difference * (2.0 / classes)
        if want_loss:
            each = difference.square().sum(1, keepdim=True) / classes
    return each, gradient


def gradient_scale(kind: Loss, shape: Sequence[int]) -> int:
    """What gradients for logits of this shape, (N, K) or (N, 1, H, W), are multiplied by.

    One pixel's part in a mean over thousands would vanish in fixed point, and times their number the sums over pixels
    of the backward pass could leave the range: it is the power of two about half way.
    """
    return 1 << (math.prod(shape[1:]).bit_length() - 1) // 2 if kind is Loss.dice_bce else 1


def _overlap(logits: MPCTensor, masks: MPCTensor, want_loss: bool) -> tuple[MPCTensor | None, MPCTensor]:
    """The loss of each image (N, 1), binary cross-entropy plus 1 - Dice, and its gradient (N, P); see `loss_function`.

    With probabilities p and means over the P pixels, Dice is D = (2 mean(p t) + c) / (mean(p + t) + c), and
    P dD/dp = (2 t - D) / (mean(p + t) + c). Means, not sums, since those would need 14 bits more.
    """
    pixels = logits.size(1)
    p = approx.sigmoid(logits)
    both, square = approx.products([(p, masks), (p, p)])
    size = ((p + masks).sum(1, keepdim=True) / pixels) / DICE_SMOOTHING + 1
    inverse = approx.reciprocal(size, 2 / DICE_SMOOTHING + 1) / DICE_SMOOTHING
    dice = (both.sum(1, keepdim=True) * 2 / pixels + DICE_SMOOTHING) * inverse
    pull = (masks * 2 - dice.expand(*masks.size())) * inverse.expand(*masks.size())
    gradient = (p - masks - pull * (p - square)) / (pixels / gradient_scale(Loss.dice_bce, logits.size()))
    if not want_loss:
        return None, gradient
    cross_entropy = (approx.softplus(logits) - logits * masks).sum(1, keepdim=True) / pixels
    return cross_entropy + 1 - dice, gradient


def smoothed(kind: Loss, labels: MPCTensor, smoothing: float) -> MPCTensor:
    """Targets from labels (N, K) of 0 and 1, of which `smoothing` is spread over all classes; at most one round."""
    if not smoothing:
        return labels
    return labels * (1 - smoothing) + smoothing / (2 if kind is Loss.binary_cross_entropy else labels.size(1))


def image_weights(labels: MPCTensor, class_weights: Sequence[float], balanced: bool) -> MPCTensor | None:
    """Weights (N, 1) of images with labels (N, K) of 0 and 1: the sum of those of an image's classes; None for none.

    balanced: of a class with n of the N images N / (K n), `MAX_WEIGHT` at most, times its class weight; n stays secret.
    """
    if not class_weights and not balanced:
        return None
    count, classes = labels.size()
    given = torch.tensor(class_weights or [1.0] * classes, dtype=torch.float64)
    if not balanced:
        return labels.matmul(given.view(-1, 1))
    factor = MAX_WEIGHT * classes / count
    shares = labels.share.sum(0) * round(factor * 2**FACTOR_BITS)
    often = rescaled(from_share(shares, precision() + FACTOR_BITS))  # n in units of the n that has the largest weight
    weights = approx.reciprocal(_positive(often - 1) + 1, MAX_WEIGHT * classes) * (given * MAX_WEIGHT)
    return labels.matmul(weights.view(-1, 1))


def _positive(x: MPCTensor) -> MPCTensor:
    """max(x, 0), on all bits whatever `protocol.comparison_bits` says: frequencies may be larger than activations."""
    if not gates.installed():
        return x.relu()
    ctx = gates.context()
    return from_share(compare.relu(replace(ctx, comparison=ctx.comparison.wide()), x.share)[0])
