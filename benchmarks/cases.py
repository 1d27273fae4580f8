"""What is measured: the cases, their nets, inputs and plaintext results. Everything follows from a public seed.

The nets are fixed, so that numbers of different days can be compared; do not tune them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum

import torch
from torch import nn

SEED = 20240501
CLASSES = 10
LEARNING_RATE = 0.1
MATRIX_SIZE = 512
# Whether a training step computes the value of the loss beside its gradient, in both systems alike.
LOSS_VALUE = True


class Job(Enum):
    """What the compute parties do with the shared inputs."""

    infer = "infer"
    train = "train"
    relu = "relu"
    matmul = "matmul"


@dataclass(frozen=True)
class Case:
    """One line of the table. ``elements`` counts the values of a ReLU, and is 0 elsewhere."""

    name: str
    job: Job
    about: str
    batch: int = 1
    elements: int = 0

    @property
    def size(self) -> str:
        """How large the case is, for people."""
        if self.job is Job.relu:
            return f"{self.elements:,}"
        return f"{MATRIX_SIZE}³" if self.job is Job.matmul else f"batch {self.batch}"

    @property
    def title(self) -> str:
        """The case with its size, for people."""
        return f"{self.name} {self.size}"

    def sized(self, batch: int | None, elements: int | None) -> Case:
        """The same case with another size, where one is given."""
        return dataclasses.replace(self, batch=batch or self.batch, elements=elements or self.elements)


_ALL = (
    Case("W1", Job.infer, "small CNN on 1x28x28 images, inference"),
    Case("W1_train", Job.train, "the same CNN, one training step", batch=32),
    Case("W3", Job.train, "784-128-128-10 MLP, one training step", batch=128),
    Case("W4_relu", Job.relu, "ReLU of 100,000 values", elements=100_000),
    Case("W4_matmul", Job.matmul, "product of two 512x512 matrices"),
    Case("W5", Job.infer, "torchvision's ResNet-18 on 3x224x224 images, inference"),
)
CASES = {case.name: case for case in _ALL}
# What `all` runs: W1 in both sizes, the rest once.
TABLE = (CASES["W1"], CASES["W1"].sized(32, None), *_ALL[1:])


@dataclass(frozen=True)
class Workload:
    """A case's inputs: party 0 owns ``first`` and ``labels``, party 1 owns ``second`` and the weights of ``module``.

    first: images (N, C, H, W), values (n,) or a matrix. second: a matrix, or None. labels: one-hot (N, K), or None.
    module: the plain torch net in evaluation mode, or None.
    """

    case: Case
    first: torch.Tensor
    second: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    module: nn.Module | None = None

    def reference(self) -> dict[str, torch.Tensor]:
        """The right results in float64: ``output``, or each parameter by name after one step."""
        first = self.first.double()
        if self.case.job is Job.relu:
            return {"output": first.relu()}
        if self.case.job is Job.matmul:
            return {"output": first @ self.second.double()}
        module = build_net(self.case.name).double()
        if self.case.job is Job.infer:
            with torch.no_grad():
                return {"output": module(first)}
        optimiser = torch.optim.SGD(module.parameters(), LEARNING_RATE)
        nn.functional.cross_entropy(module(first), self.labels.argmax(1)).backward()
        optimiser.step()
        return {name: value.detach() for name, value in module.named_parameters()}

    def largest(self) -> float:
        """The largest size of what is compared: the inputs of ReLU and max-pool, in float32."""
        if self.module is None:
            return float(self.first.abs().max())
        sizes = []
        layers = [layer for layer in self.module.modules() if isinstance(layer, nn.ReLU | nn.MaxPool2d)]
        hooks = [layer.register_forward_pre_hook(lambda _, args: sizes.append(args[0].abs().max())) for layer in layers]
        with torch.no_grad():
            self.module(self.first)
        for hook in hooks:
            hook.remove()
        return float(max(sizes))


def workload(case: Case) -> Workload:
    """The inputs of a case, the same in every process."""
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    if case.job is Job.relu:
        return Workload(case, normal(case.elements))
    if case.job is Job.matmul:
        return Workload(case, normal(MATRIX_SIZE, MATRIX_SIZE), normal(MATRIX_SIZE, MATRIX_SIZE))
    shape = {"W3": (784,), "W5": (3, 224, 224)}.get(case.name, (1, 28, 28))
    labels = None
    images = normal(case.batch, *shape)
    if case.job is Job.train:
        drawn = torch.randint(CLASSES, (case.batch,), generator=generator)
        labels = nn.functional.one_hot(drawn, CLASSES).float()
    return Workload(case, images, labels=labels, module=build_net(case.name))


def build_net(name: str) -> nn.Module:
    """The net of a case in float32, initialised by torch from the public seed, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if name == "W5":
            # Imported here: no other case needs torchvision, which takes a second to load.
            from torchvision.models import resnet18

            return resnet18(weights=None).eval()
        return (_mlp() if name == "W3" else _cnn()).eval()


def _cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 100),
        nn.ReLU(),
        nn.Linear(100, CLASSES),
    )


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, CLASSES))
