"""Ring elements as torch tensors (int64, any shape) and as flat numpy arrays (uint64), sharing memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def words(x: torch.Tensor) -> np.ndarray:
    """An int64 tensor as uint64 (N,); no copy if it is contiguous."""
    return x.contiguous().view(-1).numpy().view(np.uint64)


def tensor(values: np.ndarray, shape: Sequence[int]) -> torch.Tensor:
    """uint64 (N,) as an int64 tensor of `shape`; no copy."""
    return torch.from_numpy(values.view(np.int64)).view(torch.Size(shape))


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Blocks end to end; no copy of a single one."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
