"""Which images form which training batch: public, and the same for secure training and for its plaintext baseline."""

from __future__ import annotations

import torch

from mpc_imaging.errors import ConfigError, DataError


def batch_schedule(n: int, batch_size: int, epochs: int, seed: int) -> list[list[torch.Tensor]]:
    """Row numbers of each batch of each epoch: ``schedule[epoch][batch]`` is an int64 tensor (B,).

    Every epoch is its own permutation of ``range(n)``; the last, smaller batch is kept. The schedule depends on the
    arguments alone, and more epochs only add to its end. It is public, so torch's generator is good enough here.

    Raises:
        DataError: there is nothing to train on.
        ConfigError: a batch size below 1 or a negative number of epochs.
    """
    if batch_size < 1 or epochs < 0:
        raise ConfigError([f"batches of {batch_size} images over {epochs} epochs: set batch_size >= 1 and epochs >= 0"])
    if n < 1:
        raise DataError(["the train split has no images: check data.path, data.limit.train and data.partition"])
    generator = torch.Generator().manual_seed(seed)
    return [list(torch.randperm(n, generator=generator).split(batch_size)) for _ in range(epochs)]
