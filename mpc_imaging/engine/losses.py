"""Training losses on shares: the value, where the policy reveals it, and the gradient for the logits.

Both are sums over the batch, not means: dividing (p - y) by the batch size would cost five of the 16 bits of fraction
before the backward pass; the optimiser divides once, at the parameters. Definitions equal
`mpc_imaging.baselines.plaintext.loss_function`, times the batch size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpc_imaging.engine import approximations as approx
from mpc_imaging.engine.tensors import rescaled
from mpc_imaging.settings import Loss

if TYPE_CHECKING:
    from crypten.mpc import MPCTensor


def loss_and_gradient(
    kind: Loss, logits: MPCTensor, onehot: MPCTensor, want_loss: bool
) -> tuple[MPCTensor | None, MPCTensor]:
    """Loss summed over the batch (scalar; None unless wanted) and its gradient for the logits (N, K).

    `logits` and `onehot` are (N, K); `logits` must be detached from the autograd graph.
    """
    logits, classes = rescaled(logits), logits.size(1)
    if kind is Loss.cross_entropy:
        e, total, shifted = approx.softmax_parts(logits, 1)
        pairs = [(e, approx.reciprocal(total, float(classes)).expand(*e.size()))]
        if want_loss:
            pairs.append((shifted, onehot))
        products = approx.products(pairs)
        gradient = products[0] - onehot
        loss = approx.log(total, float(classes)).sum() - products[1].sum() if want_loss else None
    elif kind is Loss.binary_cross_entropy:
        gradient = (approx.sigmoid(logits) - onehot) / classes
        loss = (approx.softplus(logits) - logits * onehot).sum() / classes if want_loss else None
    else:
        difference = logits - onehot
        gradient = difference * (2.0 / classes)
        loss = difference.square().sum() / classes if want_loss else None
    return loss, gradient
