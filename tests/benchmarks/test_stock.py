"""The `crypten.nn` graphs are the nets that they stand for."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import build_net
from benchmarks.stock import to_crypten


@pytest.mark.parametrize(("name", "shape"), [("W1", (2, 1, 28, 28)), ("W3", (2, 784)), ("W5", (1, 3, 32, 32))])
def test_graph_computes_the_same_in_plaintext(name, shape, monkeypatch):
    for method in ("conv2d", "max_pool2d", "avg_pool2d"):  # which CrypTen's tensors have and torch's lack
        function = getattr(torch.nn.functional, method)
        monkeypatch.setattr(torch.Tensor, method, lambda x, *a, f=function, **k: f(x, *a, **k), raising=False)
    module = build_net(name)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # of an untrained net it does nothing
            torch.nn.init.uniform_(layer.running_mean, -1, 1)
            torch.nn.init.uniform_(layer.running_var, 0.5, 2)
    graph, names = to_crypten(module)
    graph.eval()
    images = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module(images)
        assert torch.allclose(graph(images), expected, atol=1e-4 * float(expected.abs().max()))
    assert sorted(names) == sorted(key for key, _ in graph.named_parameters())
    weights = {key for key, layer in module.named_modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)}
    assert {key.rpartition(".")[0] for key in names.values()} == weights
