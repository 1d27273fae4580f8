"""The nets and inputs are those of DESIGN §6, the same in every process, and what they should come to is known."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import CASES, LEARNING_RATE, TABLE, build_net, workload


@pytest.mark.parametrize(("name", "parameters"), [("W1", 33_542), ("W3", 118_282), ("W5", 11_689_512)])
def test_nets_have_the_published_sizes(name, parameters):
    assert sum(value.numel() for value in build_net(name).parameters()) == parameters


@pytest.mark.parametrize("name", ["W1", "W1_train", "W3", "W4_relu", "W4_matmul"])
def test_every_process_makes_the_same_inputs(name):
    case = CASES[name].sized(3, 10)
    first, second = workload(case), workload(case)
    assert torch.equal(first.first, second.first)
    for one, other in ((first.second, second.second), (first.labels, second.labels)):
        assert (one is None and other is None) or torch.equal(one, other)
    if first.module is not None:
        state = second.module.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in first.module.state_dict().items())


def test_making_inputs_leaves_torch_s_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    workload(CASES["W1"])
    assert torch.equal(torch.rand(1), expected)


def test_sizes_of_the_cases():
    assert workload(CASES["W1"]).first.shape == (1, 1, 28, 28)
    assert workload(CASES["W3"]).first.shape == (128, 784)
    assert workload(CASES["W4_relu"]).first.shape == (100_000,)
    assert workload(CASES["W4_matmul"]).second.shape == (512, 512)
    assert [case.title for case in TABLE[:3]] == ["W1 batch 1", "W1 batch 32", "W1_train batch 32"]


def test_the_reference_of_a_training_step_is_gradient_descent():
    work = workload(CASES["W3"].sized(4, None))
    module = work.module.double()
    loss = torch.nn.functional.cross_entropy(module(work.first.double()), work.labels.argmax(1))
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    after = work.reference()
    for (name, value), gradient in zip(module.named_parameters(), gradients, strict=True):
        assert torch.allclose(after[name], value - LEARNING_RATE * gradient, atol=1e-12)
