"""One party of stock CrypTen 0.4.1: gloo, trusted first party, `crypten.nn` modules, as CrypTen's own examples do it.

CrypTen is unchanged, but for stand-ins without which it cannot be imported on a current torch (`engine.compat.load`),
and counters around it. Its `from_pytorch` does not work on a current torch, so the nets become the `crypten.nn.Graph`
that it would make. ResNet-18's batch-norms are folded into its convolutions first, which favours CrypTen: it
would compute inverse square roots of secret variances.

The offline time is that spent in the trusted first party's functions, making triples. CrypTen does this amid the
computation, but could do it before (its providers have a cache), so it is not held against the online time.
"""

from __future__ import annotations

import copy
import operator
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from benchmarks.cases import LEARNING_RATE, LOSS_VALUE, Case, Job, Workload, workload
from benchmarks.gloo import CountingCommunicator
from benchmarks.processes import RANKS
from mpc_imaging.engine import compat
from mpc_imaging.models.passes import fold_batch_norm

crypten = compat.load()

from crypten.mpc.provider import TrustedFirstParty  # noqa: E402  (needs compat.load)


class _Stopwatch:
    """Seconds spent in the trusted first party's functions."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for name in TrustedFirstParty.TRACEABLE_FUNCTIONS:
            setattr(TrustedFirstParty, name, self._timed(getattr(TrustedFirstParty, name)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


class StockParty:
    """One of two CrypTen processes; they meet at a file in `folder`. Call `run` once for each repetition."""

    def __init__(self, folder: Path, name: str, case: Case) -> None:
        self._rank = RANKS.index(name)
        # CrypTen reads these from the environment and from nowhere else.
        os.environ |= {
            "RENDEZVOUS": f"file://{folder / 'rendezvous'}",
            "WORLD_SIZE": str(len(RANKS)),
            "RANK": str(self._rank),
            "DISTRIBUTED_BACKEND": "gloo",
        }
        crypten.init()
        self._communicator = CountingCommunicator.install()
        self._provider = _Stopwatch()
        self._workload = workload(case)

    def run(self) -> tuple[dict[str, dict[str, float]], dict[str, torch.Tensor]]:
        """Share the inputs, and compute: the cost of ``setup`` and ``compute``, and the results as CrypTen opens them.

        Costs have the keys of `tasks.compute.Meter`. Opening is not counted.
        """
        job = _prepare(self._workload)
        _, setup = self._metered(job.share)
        result, compute = self._metered(job.compute)
        plain = {name: value.get_plain_text().double() for name, value in result.items()}
        return {"setup": setup, "compute": compute}, plain

    def _metered(self, function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
        """What the function returns, and what it cost; both parties begin together."""
        self._communicator.barrier()
        rounds, sent, made = self._communicator.rounds, self._communicator.sent_bytes, self._provider.seconds
        started = time.perf_counter()
        result = function()
        return result, {
            "online_s": time.perf_counter() - started,
            # As it comes, CrypTen makes its triples when it needs them: nobody can have them before.
            "offline_s": 0.0,
            "triples_s": self._provider.seconds - made,
            "rounds": self._communicator.rounds - rounds,
            "sent_bytes": self._communicator.sent_bytes - sent,
            "dealer_bytes": 0,
        }


class _Job:
    """A repetition: secrets go in by `share`, `compute` returns encrypted results by name."""

    def __init__(self, work: Workload) -> None:
        self.work = work

    def share(self) -> None:
        """Party 0's tensor and party 1's; both parties give the size."""
        self.first = crypten.cryptensor(self.work.first, src=0)
        self.second = None if self.work.second is None else crypten.cryptensor(self.work.second, src=1)

    def compute(self) -> dict[str, Any]:
        """ReLU, or the product of two matrices."""
        with crypten.no_grad():
            y = self.first.relu() if self.second is None else self.first.matmul(self.second)
        return {"output": y}


class _Inference(_Job):
    def __init__(self, work: Workload) -> None:
        super().__init__(work)
        self.model, self.names = to_crypten(work.module)
        self.model.eval()

    def share(self) -> None:
        super().share()
        self.model.encrypt(src=1)

    def compute(self) -> dict[str, Any]:
        with crypten.no_grad():
            return {"output": self.model(self.first)}


class _Training(_Inference):
    def share(self) -> None:
        super().share()
        self.labels = crypten.cryptensor(self.work.labels, src=0)
        self.model.train()
        self.optimiser = crypten.optim.SGD(self.model.parameters(), lr=LEARNING_RATE)
        self.loss = crypten.nn.CrossEntropyLoss(skip_forward=not LOSS_VALUE)

    def compute(self) -> dict[str, Any]:
        self.optimiser.zero_grad()
        self.loss(self.model(self.first), self.labels).backward()
        self.optimiser.step()
        return {self.names[name]: value for name, value in self.model.named_parameters()}


def _prepare(work: Workload) -> _Job:
    return {Job.infer: _Inference, Job.train: _Training}.get(work.case.job, _Job)(work)


def to_crypten(module: nn.Module) -> tuple[Any, dict[str, str]]:
    """A net (in evaluation mode) as a `crypten.nn.Graph`, and torch's name of each of its parameters."""
    # A copy, since the trace shares its layers, and folding changes them.
    traced = fx.symbolic_trace(copy.deepcopy(module))
    fold_batch_norm(traced, training=False)
    nodes = [node for node in traced.graph.nodes if node.op not in ("placeholder", "output")]
    source = next(node for node in traced.graph.nodes if node.op == "placeholder")
    graph = crypten.nn.Graph(source.name, nodes[-1].name)
    names = {}
    for node in nodes:
        layer = traced.get_submodule(node.target) if node.op == "call_module" else None
        converted = _layer(node, layer)
        for name, value in layer.named_parameters() if layer is not None else ():
            converted.set_parameter(name, value.detach().clone().requires_grad_())
            names[f"{node.name}.{name}"] = f"{node.target}.{name}"
        graph.add_module(node.name, converted, [argument.name for argument in node.all_input_nodes])
    return graph, names


def _layer(node: fx.Node, layer: nn.Module | None) -> Any:
    if isinstance(layer, nn.Conv2d):
        sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
        return crypten.nn.Conv2d(*sizes, layer.dilation, layer.groups, layer.bias is not None)
    if isinstance(layer, nn.Linear):
        return crypten.nn.Linear(layer.in_features, layer.out_features)
    if isinstance(layer, nn.MaxPool2d):
        return crypten.nn.MaxPool2d(layer.kernel_size, layer.stride, layer.padding)
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return crypten.nn.AdaptiveAvgPool2d(layer.output_size)
    if isinstance(layer, nn.ReLU):
        return crypten.nn.ReLU()
    if isinstance(layer, nn.Flatten) or node.target is torch.flatten:
        return crypten.nn.Flatten()
    if node.target in (operator.add, operator.iadd):
        return crypten.nn.Add()
    raise NotImplementedError(f"{node.name}: no crypten.nn module for {node.target}")
