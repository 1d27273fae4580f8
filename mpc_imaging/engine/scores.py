"""How well a model does, found on shares: only the result is opened, never a score, a histogram or a count.

The AUC comes from a histogram of the scores of each class, with half credit for pairs that share a bin. The bins' edges
are public, in units of the scores' mean deviation from their mean: both are found on shares, and scores are shifted and
scaled by them, which moves no AUC. So 64 bins serve scores of any size. A score finds its bin by binary search: with B
bins that is log2(B) comparisons, and not B. All integers are below 2**62 for up to a million images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from mpc_imaging.engine import approximations as approx, gates
from mpc_imaging.engine.losses import loss_and_gradient
from mpc_imaging.engine.tensors import argmax_onehot, crypten, from_share, no_grad, precision, share_of
from mpc_imaging.protocols import compare
from mpc_imaging.settings import Loss

if TYPE_CHECKING:
    from crypten.mpc import MPCTensor

# What stands for an AUC that is undefined, because a class has no images or all of them.
UNDEFINED = -1.0

# Scores that are handled together.
CHUNK = 1 << 13
# Mean deviations up to 2**16 are brought to one scale; larger ones are taken as they are.
SPREAD_BITS = 16
# The histogram reaches from -3 to 3, in units of between one and two mean deviations.
REACH = 3
WEIGHT_BITS = 8

# `tasks.job.Job.segment`: runs body(*args), and may know what it costs.
Segment = Callable[..., Any]


def auc(
    logits: torch.Tensor,
    labels: torch.Tensor,
    bins: int,
    positive: int | None,
    multi_label: bool,
    segment: Segment,
) -> torch.Tensor:
    """Share (int64 scalar, at the session's precision) of the AUC, or of `UNDEFINED` if it is for one class.

    logits, labels: shares (N, K) at the session's precision; labels are 0 and 1. bins: rounded up
    to a power of two, 4 or more. Two classes: that of `positive`, by the difference of the logits. More: the mean over
    all classes of each against the rest, by the log-odds of the class; with `multi_label`, by its logit.
    """
    with no_grad():
        if multi_label:
            scores = logits
        elif logits.shape[1] == 2:
            scores = logits[:, [positive]] - logits[:, [1 - positive]]
            labels = labels[:, [positive]]
        else:
            parts = [segment(("log-odds", len(logits[rows])), _log_odds, logits[rows]) for rows in _chunks(logits)]
            scores = torch.cat(parts)
        scores = _magnified(scores, segment)
        counts: torch.Tensor | None = None
        for rows in _chunks(scores):
            part = segment(("histogram", len(scores[rows])), _histogram, scores[rows], labels[rows], bins)
            counts = part if counts is None else counts + part
        return _settled(_mean_auc(_truncated(counts, precision()), len(scores)))


def loss(kind: Loss, logits: torch.Tensor, targets: torch.Tensor, segment: Segment) -> torch.Tensor:
    """Share (int64 scalar, at the session's precision) of the loss summed over images; shapes as in `auc`."""
    return _summed("validation loss", _loss, logits, targets, segment, kind)


def hits(logits: torch.Tensor, labels: torch.Tensor, multi_label: bool, segment: Segment) -> torch.Tensor:
    """Share (int64 scalar, at the session's precision) of how many predictions are right; shapes as in `auc`.

    A prediction is the class of an image, or with `multi_label` whether it has one of them.
    """
    return _summed("validation hits", _label_hits if multi_label else _class_hits, logits, labels, segment)


def _chunks(x: torch.Tensor) -> Iterator[slice]:
    size = max(1, CHUNK // x.shape[1])
    for start in range(0, len(x), size):
        yield slice(start, min(start + size, len(x)))


def _summed(
    name: str,
    body: Callable[..., torch.Tensor],
    logits: torch.Tensor,
    labels: torch.Tensor,
    segment: Segment,
    *args: Any,
) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.int64)
    with no_grad():
        for rows in _chunks(logits):
            total = total + segment((name, len(logits[rows])), body, logits[rows], labels[rows], *args)
    return total


def _settled(share: torch.Tensor) -> torch.Tensor:
    """The result of a segment, whose narrow comparisons are checked within it: a rehearsal runs some of them only."""
    gates.settle_ranges()
    return share


def _loss(logits: torch.Tensor, targets: torch.Tensor, kind: Loss) -> torch.Tensor:
    return _settled(share_of(loss_and_gradient(kind, from_share(logits), from_share(targets), True)[0]))


def _class_hits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return _settled(share_of((from_share(labels) * argmax_onehot(from_share(logits))).sum()))


def _label_hits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    present, predicted = from_share(labels), from_share(logits) > 0
    agreeing = present * (2 * predicted - 1)  # a label that is there and said to be, less one that is said not to be
    return _settled(share_of(agreeing.sum()) + (share_of((1 - predicted).sum()) << precision()))


def _log_odds(logits: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of each class's probability p, (N, K) for K > 2.

    It is the logit less the log-sum-exp of the others. For all but the largest logit the others include the largest;
    for that one a second softmax is taken, with the mean of the others in its place, which cannot be the largest.
    """
    x = from_share(logits)
    classes = x.size(1)
    top, hot = x.max(1, keepdim=True)
    shifted = x - top
    e = approx.exp_nonpositive(shifted)
    without = x + hot * ((x.sum(1, keepdim=True) - top) / (classes - 1) - top)
    second = without.max(1, keepdim=True)[0]
    others = (approx.exp_nonpositive(without - second) * (1 - hot)).sum(1, keepdim=True)
    rest = e.sum(1, keepdim=True) - e
    margin, rest = shifted + hot * (top - second), rest + hot * (others - rest)
    return _settled(share_of(margin - approx.log(rest, float(classes - 1))))


# The histogram. From here on shares are of whole numbers.


def _whole(share: torch.Tensor) -> MPCTensor:
    return from_share(share, 0)


def _truncated(share: torch.Tensor, bits: int) -> torch.Tensor:
    result = from_share(share)
    result.div_(2**bits)
    return share_of(result)


def negative(share: torch.Tensor) -> torch.Tensor:
    """Share of [x < 0], on all bits whatever `protocol.comparison_bits` says: counts and scaled scores are large."""
    if not gates.installed():
        return share_of(_whole(share) < 0)
    ctx = gates.context()
    return compare.less_than_zero(replace(ctx, comparison=ctx.comparison.wide()), share)


def _multiplier(x: torch.Tensor, highest: int, unit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Share of the power of two that brings x to between unit * 2**(highest - 1) and twice that, and of [x < unit].

    x: shares (C,) of whole numbers; one below `unit` gets 2**highest. One comparison for each of the bits, together.
    """
    bounds = torch.tensor([unit << (highest - k) for k in range(1, highest + 1)])
    below = negative(share_of(_whole(x.expand(highest, -1).contiguous()) - bounds.unsqueeze(1)))
    steps = torch.tensor([1 << (k - 1) for k in range(1, highest + 1)]).unsqueeze(1)
    return share_of(_whole((below * steps).sum(0)) + 1), below[-1]


def _magnified(scores: torch.Tensor, segment: Segment) -> torch.Tensor:
    """Scores (N, C) less their mean, times the power of two that makes their mean deviation nearly 2**top or more.

    top: `_top`. Each column has its own mean, roughly, and its own factor.
    """
    count = len(scores)
    bits = count.bit_length()
    centred = scores - _truncated(scores.sum(0) * round(2 ** (bits + WEIGHT_BITS) / count), bits + WEIGHT_BITS)
    spread = torch.zeros(scores.shape[1], dtype=torch.int64)
    for rows in _chunks(centred):
        spread = spread + segment(("spread", len(centred[rows])), _spread, centred[rows])
    factor, _ = _multiplier(spread, _top(), count)
    return share_of(_whole(centred) * _whole(factor.unsqueeze(0)))


def _top() -> int:
    return precision() + SPREAD_BITS


def _spread(centred: torch.Tensor) -> torch.Tensor:
    return _settled(share_of(from_share(centred).abs()).sum(0))


def _histogram(scores: torch.Tensor, labels: torch.Tensor, bins: int) -> torch.Tensor:
    """Counts (C, 2, B) of the images that have a label and of all, by bin; at the session's precision, as `labels`."""
    digits = _digits(scores, max(2, (bins - 1).bit_length()))
    half = (len(digits) + 1) // 2
    high, low = _onehot(digits[:half]), _onehot(digits[half:])
    labelled = share_of(from_share(labels.unsqueeze(2)) * high)
    left = torch.cat([labelled, share_of(high) << precision()], 2)  # (N, C, 2 H)
    counts = share_of(_whole(left.permute(1, 2, 0)).matmul(_whole(share_of(low).transpose(0, 1))))
    return counts.reshape(len(counts), 2, -1)


def _digits(scores: torch.Tensor, count: int) -> list[MPCTensor]:
    """The bin's binary digits, highest first: [REACH << top] is taken off a score where it is not below."""
    rest = share_of(_whole(scores) + (REACH << _top()))
    digits = []
    for _ in range(count):
        step = (2 * REACH << _top()) >> (len(digits) + 1)
        digit = 1 - _whole(negative(share_of(_whole(rest) - step)))
        rest = rest - share_of(digit) * step
        digits.append(digit)
    return digits


def _onehot(digits: list[MPCTensor]) -> MPCTensor:
    """(N, C, 2**d) from d binary digits (N, C), highest first."""
    if len(digits) == 1:
        return crypten.stack([1 - digits[0], digits[0]], 2)
    half = (len(digits) + 1) // 2
    high, low = share_of(_onehot(digits[:half])), share_of(_onehot(digits[half:]))
    product = _whole(high.unsqueeze(3)) * _whole(low.unsqueeze(2))
    return _whole(share_of(product).flatten(2))


def _mean_auc(counts: torch.Tensor, total: int) -> torch.Tensor:
    """The mean AUC of all columns from counts (C, 2, B), or `UNDEFINED`; `total` images, of which no more are counted.

    Of P images with the label and M without, those of a bin win against those without in all bins below, and half of
    the time against those in their own. Twice the wins and twice P M are brought to a common scale before the division.
    """
    positives, everyone = counts.unbind(1)
    negatives = everyone - positives
    below = negatives.cumsum(1) * 2 - negatives  # twice those in the bins below, and once those of the bin
    left = torch.cat([positives, positives.sum(1, keepdim=True)], 1)
    right = torch.cat([below, negatives.sum(1, keepdim=True) * 2], 1)
    products = share_of(_whole(left) * _whole(right))
    wins, pairs = products[:, :-1].sum(1), products[:, -1]
    top = max(1, (total * total // 2).bit_length())
    factor, undefined = _multiplier(pairs, top, 1)
    scaled = share_of(_whole(torch.stack([wins, pairs])) * _whole(factor.unsqueeze(0)))
    # Nothing times anything is nothing: without pairs the denominator becomes 1.
    scaled = scaled + torch.stack([torch.zeros_like(undefined), undefined << (top - 1)])
    shift = top - 1 - precision()
    wins, pairs = (_truncated(scaled, shift) if shift > 0 else scaled << -shift).unbind(0)
    ratio = from_share(wins) * approx.reciprocal(from_share(pairs), 2.0)
    return _or_undefined(share_of(ratio), undefined)


def _or_undefined(values: torch.Tensor, undefined: torch.Tensor) -> torch.Tensor:
    """The mean of values (C,), or `UNDEFINED` if one is: its value is 0 then, and `undefined` (C,) is 1."""
    if len(values) == 1:
        return values[0] - (undefined[0] << precision())
    mean = from_share(values.sum()) / len(values)
    some = 1 - _whole(negative(share_of(_whole(undefined.sum().reshape(1)) - 1))).reshape(())
    return share_of(mean - (mean - UNDEFINED) * some)
