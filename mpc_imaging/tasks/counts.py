"""Predicted classes and how often they are right: shares, of which only the policy opens anything."""

from __future__ import annotations

import torch


def predicted_classes(logits: torch.Tensor | None) -> torch.Tensor | None:
    """Share (N, K) of the one-hot of each row's largest logit, as integers; None where nothing is computed."""
    if logits is None:
        return None
    from mpc_imaging.engine.tensors import argmax_onehot, from_share, no_grad, share_of

    with no_grad():
        return share_of(argmax_onehot(from_share(logits)))


def predicted_labels(logits: torch.Tensor | None) -> torch.Tensor | None:
    """Share (N, K) of whether each logit is above 0, as integers; None where nothing is computed."""
    if logits is None:
        return None
    from mpc_imaging.engine.tensors import from_share, no_grad, share_of

    with no_grad():
        return share_of(from_share(logits) > 0)


def confusion(predicted: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Share of the counts (K, K) of one-hot labels and predicted classes (N, K)."""
    from mpc_imaging.engine.tensors import from_share, no_grad, share_of

    with no_grad():
        return share_of(from_share(labels).transpose(0, 1).matmul(from_share(predicted, 0)))


def label_counts(predicted: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Share of true positives, false positives and false negatives (K, 3) of labels and predictions (N, K)."""
    from mpc_imaging.engine.tensors import from_share, no_grad, precision, share_of

    with no_grad():
        hits = share_of(from_share(labels) * from_share(predicted, 0)).sum(0)
    return torch.stack([hits, (predicted.sum(0) << precision()) - hits, labels.sum(0) - hits], 1)
