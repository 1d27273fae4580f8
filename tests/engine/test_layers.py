"""Every operation of the secure modules equals torch's, on shares."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpc_imaging.models.convert import SecureModule, prepare


class Everything(nn.Module):
    """A network that uses each operation once."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, stride=1)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2, dilation=2)
        self.norm = nn.BatchNorm2d(2)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.line = nn.Conv1d(3, 2, 3, padding=1)
        self.head = nn.Linear(2 * 5 + 3, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(x) + 0.5
        x = F.relu(self.conv(x))
        x = torch.cat([F.max_pool2d(x, 2), F.avg_pool2d(x, 2)], 1)[:, 2:6]
        x = self.grouped(F.pad(x, (1, 2, 1, 2)))
        x = F.relu6(self.up(x) * 2)
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = F.interpolate(x, size=(9, 11), mode="bilinear", align_corners=False)
        y = self.line(x.mean(2))
        y = F.adaptive_avg_pool1d(y, 5).flatten(1)
        x = F.adaptive_avg_pool2d(x, (1, 1)).reshape(-1, 3)
        x = torch.cat([x, y], 1)
        x = F.leaky_relu(self.head(x), 0.1)
        return torch.sigmoid(x[:, :2]), torch.tanh(x[:, 2:]), F.softmax(self.last(x), 1)


class Numbers(nn.Module):
    """One output of the above, since a network that runs on shares has one."""

    def __init__(self):
        super().__init__()
        self.inner = Everything()

    def forward(self, x):
        return torch.cat(self.inner(x), 1)


def secure(x, module, public):
    from mpc_imaging.engine import layers, tensors

    prepared = prepare(module, training=False)
    model = SecureModule(prepared, layers)
    state = {k: v for k, v in prepared.state_dict().items() if v.is_floating_point()}
    first = tensors.crypten.communicator.get().get_rank() == 0
    encode = lambda v: (v * 2**16).round().long() * first  # noqa: E731
    model.load({k: v if public else tensors.from_share(encode(v)) for k, v in state.items()})
    with tensors.no_grad():
        return tensors.rescaled(model(x))


@pytest.fixture(scope="module")
def module():
    """With running statistics that are not the trivial ones."""
    torch.manual_seed(0)
    module = Numbers()
    module.train()(torch.randn(20, 2, 8, 10) * 2 + 1)
    return module.eval()


@pytest.mark.parametrize("public", [False, True])
def test_network_on_shares(two, module, public):
    x = torch.randn(2, 2, 8, 10)
    y = two.run(secure, x, module=module, public=public)
    assert (y - module(x).detach().double()).abs().max() < 3e-3


def rounds_of(x, module):
    from mpc_imaging.engine import layers, tensors

    prepared = prepare(module, training=False)
    model = SecureModule(prepared, layers)
    model.load(dict(prepared.state_dict()))
    with tensors.no_grad():
        return model(x)


def test_linear_layers_with_public_weights_cost_no_communication(two):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(2 * 36, 5)).eval()
    x = torch.randn(3, 1, 6, 6)
    two.run(rounds_of, x, module=module[:1])
    assert two.rounds == 0
    y = two.run(rounds_of, x, module=module)
    assert two.rounds == 1, "one truncation between two linear layers, none within"
    assert (y - module(x).detach().double()).abs().max() < 1e-3


def trained(x, module):
    from mpc_imaging.engine import layers, tensors

    prepared = prepare(module, training=True)
    model = SecureModule(prepared, layers)
    first = tensors.crypten.communicator.get().get_rank() == 0
    model.load({k: tensors.from_share((v * 2**16).round().long() * first) for k, v in prepared.state_dict().items()})
    for name in model.trainable():
        model.parameters[name].requires_grad = True
    y = model(x)
    y.backward(y.detach())
    return {name: model.parameters[name].grad for name in model.trainable()}


class Trainable(nn.Module):
    """What training supports, with a skip connection."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.line, self.head = nn.Conv1d(2, 2, 3), nn.Linear(2 * 6, 3)

    def forward(self, x):
        x = torch.relu(self.a(x))
        x = F.max_pool2d(x + self.b(x), 2)
        x = F.avg_pool2d(torch.sigmoid(self.up(x)), 2)
        x = torch.tanh(self.line(F.adaptive_avg_pool2d(x, (1, 8)).flatten(2)))
        return self.head(x.flatten(1))


def test_gradients_of_a_network(two):
    torch.manual_seed(0)
    module = Trainable()
    x = torch.randn(2, 1, 16, 16)
    grads = two.run(trained, x, module=module)
    y = module(x)
    y.backward(y.detach())
    for name, parameter in module.named_parameters():
        assert (grads[name] - parameter.grad.double()).abs().max() < 0.02 * (1 + parameter.grad.abs().max()), name


def reduced(x, name, dims, keepdim):
    from mpc_imaging.engine import layers

    y = getattr(layers, name)(x, dims, keepdim)
    y.backward(y.detach())
    return {"y": y, "x": x.grad}


@pytest.mark.parametrize("name", ["mean", "sum"])
@pytest.mark.parametrize(("dims", "keepdim"), [((1,), False), ((2, 0), False), ((2, 3), True), ((0, 1, 2, 3), False)])
def test_reductions_and_their_gradients(two, name, dims, keepdim):
    x = torch.randn(2, 3, 4, 5)
    found = two.run(reduced, x, requires_grad=True, name=name, dims=dims, keepdim=keepdim)
    x.requires_grad_()
    y = getattr(x, name)(dims, keepdim)
    y.backward(y.detach())
    assert found["y"].shape == y.shape
    for got, want in ((found["y"], y), (found["x"], x.grad)):
        assert (got - want.detach().double()).abs().max() < 2e-3
