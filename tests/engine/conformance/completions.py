"""The parameters of CrypTen's methods that the other cases do not give, and its tensors' own business beside torch."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from mpc_imaging.engine import compat
from tests.engine.conformance.cases import EXACT, INPUTS, LOOSE, TRIGONOMETRY, Case, case, gradient
from tests.engine.conformance.edges import _values

crypten = compat.load()

from crypten.mpc import MPCTensor, ptype  # noqa: E402

_TWICE = torch.tensor([1, 0, 1])

PARAMETERS = {
    "sub": gradient(lambda x, y: x.sub(y)),
    "mul": gradient(lambda x, y: x.mul(y)),
    "neg": gradient(lambda x: x.neg()),
    "gt": case(lambda x, y: x.gt(y)),
    "ne": case(lambda near: near.ne(1)),
    "power operator": gradient(lambda small: small**2, lambda small: small**2),
    "odd powers": gradient(lambda unit: unit.pow(5) + unit.pow(7), close=(1e-3, 2e-3)),
    "pow 0 and 1": gradient(lambda x: x.pow(0) + x.pow(1)),
    "pow -2": gradient(lambda positive: (positive + 1).pow(-2), close=LOOSE),
    "number over": gradient(lambda positive: 2 / positive, close=LOOSE),
    "public over": gradient(
        lambda positive, p_x: positive.__rtruediv__(p_x), lambda x, p_x: p_x / x, close=(0.05, 0.02)
    ),
    "bit times fraction": case(lambda x: (x > 0) * 0.3, lambda x: (x > 0) * 0.3),
    "bit and fraction": case(lambda x: (x > 0) + 0.25, lambda x: (x > 0) + 0.25),
    "bit over": case(lambda x, p_positive: (x > 0).mul(p_positive), lambda x, p: (x > 0) * p),
    "where number": gradient(lambda x: crypten.where(x.detach() > 0, x, 0.3), lambda x: torch.where(x > 0, x, 0.3)),
    "dot weights": case(lambda v, w, p_v: v.dot(w, weights=p_v), lambda v, w, p_v: (v * p_v).dot(w)),
    "argmin keepdim": case(lambda x: x.argmin(1, keepdim=True, one_hot=False), lambda x: x.argmin(1, keepdim=True)),
    "argmax of all keepdim": case(lambda x: x.argmax(keepdim=True, one_hot=False), lambda x: x.argmax(keepdim=True)),
    "mean keepdim": gradient(lambda batch: batch.mean(1, keepdim=True)),
    "var keepdim": gradient(lambda batch: batch.var(1, keepdim=True)),
    "prod keepdim": case(lambda deep: deep.prod(dim=0, keepdim=True)),
    "sum of several": case(lambda batch: batch.sum((0, 2), keepdim=True)),
    "mean of several": case(lambda batch: batch.mean((0, 2))),
    "norm 1": gradient(lambda x: x.norm(p=1, dim=1), lambda x: x.norm(p=1, dim=1)),
    "norm 2": gradient(lambda x: x.norm(p=2, dim=1), lambda x: x.norm(p=2, dim=1), close=LOOSE),
    "norm inf": gradient(lambda x: x.norm(p=math.inf, dim=1), lambda x: x.norm(p=math.inf, dim=1)),
    "norm inf of all": gradient(lambda x: x.norm(p=math.inf), lambda x: x.norm(p=math.inf)),
    "norm keepdim": gradient(lambda x: x.norm("fro", 0, keepdim=True), lambda x: x.norm(2, 0, True), close=LOOSE),
    "norm 3": case(lambda unit: unit.norm(p=3), lambda unit: unit.norm(p=3), close=LOOSE),
    "flatten end": gradient(lambda batch: batch.flatten(start_dim=0, end_dim=1)),
    "transpose by name": case(lambda batch: batch.transpose(dim0=-1, dim1=0)),
    "permute one by one": gradient(lambda batch: batch.permute(2, 0, 1)),
    "permute from the end": gradient(lambda batch: batch.permute((-1, 0, 1))),
    "flip one by one": gradient(lambda x: x.flip(0, 1)),
    "roll without dimension": gradient(lambda x: x.roll(1)),
    "roll several": gradient(lambda x: x.roll((1, 2), (0, 1))),
    "narrow from the end": gradient(lambda x: x.narrow(-1, 1, 2)),
    "size": case(lambda x: torch.tensor([x.size(0), x.size(-1), len(x)])),
    "index twice": gradient(lambda x: x[_TWICE]),
    "index twice in columns": gradient(lambda x: x[:, _TWICE]),
    "index by a list": gradient(lambda x: x[[2, 0, 2]]),
    "index by a mask": gradient(lambda x: x[torch.tensor([True, False, True])]),
    "index with a new dimension": gradient(lambda x: x[:, None, 1]),
    "take twice": gradient(lambda x: x.take(torch.tensor([5, 5, 2])), lambda x: torch.take(x, torch.tensor([5, 5, 2]))),
    "take along": gradient(lambda x: x.take(_TWICE, dimension=-1), lambda x: x[:, _TWICE]),
    "take by a table": gradient(
        lambda x: x.take(torch.tensor([[0, 1], [1, 1]]), 0), lambda x: x[torch.tensor([[0, 1], [1, 1]])]
    ),
    "scatter": gradient(lambda x, y: x.scatter(1, torch.tensor([[0], [2], [1]]), y[:, :1])),
    "pad mode": case(
        lambda x: x.pad((0, 1, 2, 0), mode="constant", value=-1), lambda x: F.pad(x, (0, 1, 2, 0), value=-1)
    ),
    "pad by a secret": case(
        lambda x, scalar: x.pad((1, 1), value=scalar), lambda x, s: F.pad(x, (1, 1), value=float(s))
    ),
    "polynomial by name": gradient(
        lambda small: small.polynomial([0.5, 0.25], func="mul"), lambda x: x / 2 + x**2 / 4, close=(1e-3, 1e-3)
    ),
    "polynomial of one": gradient(lambda small: small.polynomial([0.5]), lambda x: x / 2),
    "polynomial of tensor": gradient(lambda small: small.polynomial(_COEFFICIENTS), lambda x: x + 2 * x**2 - x**3 / 2),
    "polynomial of tensor again": gradient(
        lambda small: small.polynomial(_COEFFICIENTS), lambda x: x + 2 * x**2 - x**3 / 2
    ),
    "reciprocal in 0 to 1": gradient(
        lambda unit: unit.reciprocal(input_in_01=True), lambda unit: 1 / unit, close=LOOSE
    ),
    "log in 0 to 1": gradient(lambda unit: unit.log(input_in_01=True), lambda unit: unit.log(), close=(0.05, 0.05)),
    "pos_pow": gradient(lambda positive: positive.pos_pow(2.5), lambda positive: positive**2.5, close=(0.08, 0.05)),
    "erf of larger": gradient(lambda small: (small / 2).erf(), close=LOOSE),
    "cossin": case(lambda small: list(small.cossin()), lambda small: [small.cos(), small.sin()], close=TRIGONOMETRY),
    "hardtanh by name": case(lambda x: x.hardtanh(min_value=-0.5, max_value=2), lambda x: F.hardtanh(x, -0.5, 2)),
    "hardtanh by the gradient's names": gradient(
        lambda x: x.hardtanh(min_val=-0.5, max_val=2.25), lambda x: F.hardtanh(x, -0.5, 2.25)
    ),
    "dropout in place": case(lambda x: x.dropout(0.5, training=False, inplace=True), lambda x: x),
    "dropout of nothing": gradient(lambda x: x.dropout(p=0.0), lambda x: x),
    "conv1d dilation": gradient(
        lambda seq, kernel1: seq.conv1d(kernel1, padding=2, dilation=2, stride=3),
        lambda seq, kernel1: F.conv1d(seq, kernel1, padding=2, dilation=2, stride=3),
    ),
    "conv_transpose1d": case(
        lambda seq_t, kernel1: seq_t.conv_transpose1d(kernel1, stride=2, output_padding=1, dilation=2, groups=2),
        lambda seq_t, kernel1: F.conv_transpose1d(seq_t, kernel1, stride=2, output_padding=1, dilation=2, groups=2),
    ),
    "conv_transpose2d": gradient(
        lambda image_t, kernel: image_t.conv_transpose2d(kernel, stride=2, dilation=(2, 1), groups=2),
        lambda image_t, kernel: F.conv_transpose2d(image_t, kernel, stride=2, dilation=(2, 1), groups=2),
    ),
    "conv2d of one pixel": gradient(
        lambda image, kernel: image[:, :, :3, :3].conv2d(kernel),
        lambda image, kernel: F.conv2d(image[:, :, :3, :3], kernel),
    ),
    "avg_pool2d of one image": case(lambda image: image[0].avg_pool2d(2), lambda image: F.avg_pool2d(image[0], 2)),
    "max_pool2d of one image": gradient(
        lambda image: image[0].max_pool2d(3, stride=2, padding=1), lambda image: F.max_pool2d(image[0], 3, 2, 1)
    ),
    "max_pool2d of larger windows": case(lambda image: image.max_pool2d(9), lambda image: F.max_pool2d(image, 9)),
    "avg_pool2d of larger windows": case(lambda image: image.avg_pool2d(9), lambda image: F.avg_pool2d(image, 9)),
    "conv2d of larger kernels": case(
        lambda image, kernel: image[:, :, :2].conv2d(kernel), lambda image, kernel: F.conv2d(image[:, :, :2], kernel)
    ),
    "matmul of other sizes": case(lambda x, y: x.matmul(y)),
    "add of other sizes": case(lambda x, m: x + m),
    "index beyond": case(lambda x: x[3]),
    "max_pool2d of no image": gradient(lambda image: image[:0].max_pool2d(2), lambda image: F.max_pool2d(image[:0], 2)),
    "max_pool2d of size 1": gradient(lambda image: image.max_pool2d(1), lambda image: image * 1),
    "max_pool2d of all": gradient(lambda image: image.max_pool2d(8), lambda image: F.max_pool2d(image, 8)),
    "adaptive_avg_pool2d of a number": gradient(
        lambda image: image.adaptive_avg_pool2d(2), lambda image: F.adaptive_avg_pool2d(image, 2)
    ),
    "adaptive_avg_pool2d of one side": gradient(
        lambda image: image.adaptive_avg_pool2d((None, 2)), lambda image: F.adaptive_avg_pool2d(image, (None, 2))
    ),
    "adaptive_avg_pool2d of none": case(lambda image: image.adaptive_avg_pool2d(None), lambda image: image),
    "adaptive_max_pool2d of a number": gradient(
        lambda image: image.adaptive_max_pool2d(1), lambda image: F.adaptive_max_pool2d(image, 1)
    ),
    "adaptive_max_pool2d of one side": gradient(
        lambda image: image.adaptive_max_pool2d((2, None)), lambda image: F.adaptive_max_pool2d(image, (2, None))
    ),
    "adaptive_max_pool2d indices": case(
        lambda image: _adaptive_windows(image, 4),
        lambda image: [F.adaptive_max_pool2d(image, 4), torch.ones(2, 3, 4, 4)],
    ),
    "adaptive_max_pool2d indices of as large": case(
        lambda image: _adaptive_windows(image, 8), lambda image: [image, torch.ones(2, 3, 8, 8)]
    ),
    "cosine_similarity": gradient(
        lambda x, y: x.cosine_similarity(y, dim=1, eps=1e-8), lambda x, y: F.cosine_similarity(x, y), close=LOOSE
    ),
    "cosine_similarity along": gradient(
        lambda x, y: x.cosine_similarity(y, 0), lambda x, y: F.cosine_similarity(x, y, 0), close=LOOSE
    ),
    "batchnorm in training": Case(
        lambda x, w, b: x.batchnorm(
            w, b, running_mean=None, running_var=None, training=True, eps=1e-3, momentum=0.1, inv_var=None
        ),
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True, eps=1e-3),
        (0.05, 0.03), True, {"x": INPUTS["seq"], "w": _values(3), "b": _values(3)},
    ),
    "binary_cross_entropy": gradient(
        lambda unit, p_bits: unit.binary_cross_entropy(target=crypten.cryptensor(p_bits), skip_forward=False),
        lambda unit, p_bits: F.binary_cross_entropy(unit, p_bits), close=LOOSE,
    ),
    "binary_cross_entropy_with_logits": gradient(
        lambda x, p_bits: x.binary_cross_entropy_with_logits(target=crypten.cryptensor(p_bits), skip_forward=False),
        lambda x, p_bits: F.binary_cross_entropy_with_logits(x, p_bits), close=LOOSE,
    ),
    "cross_entropy": gradient(
        lambda x, p_classes: x.cross_entropy(target=crypten.cryptensor(p_classes), skip_forward=False),
        lambda x, p_classes: F.cross_entropy(x, p_classes), close=LOOSE,
    ),
    "rappor_loss": gradient(
        lambda x, p_bits: x.rappor_loss(target=crypten.cryptensor(p_bits), alpha=0.8, skip_forward=False),
        lambda x, p_bits: F.binary_cross_entropy(0.8 * x.sigmoid() + 0.2 * (1 - x.sigmoid()), p_bits), close=LOOSE,
    ),
    "rappor_loss of no noise": gradient(
        lambda x, p_bits: x.rappor_loss(crypten.cryptensor(p_bits), 0.0),
        lambda x, p_bits: F.binary_cross_entropy_with_logits(x, p_bits), close=LOOSE,
    ),
    "weighted_sample": case(lambda positive: _sample(positive), lambda positive: torch.ones(3)),
    "randn": case(lambda p_x: _standard(crypten.randn(400)), lambda p_x: torch.ones(2)),
    "randn of the class": case(lambda p_x: _standard(MPCTensor.randn((200, 2))), lambda p_x: torch.ones(2)),
    "rand of the class": case(lambda p_x: torch.tensor(MPCTensor.rand(2, 3).size()), lambda p_x: torch.tensor([2, 3])),
}  # fmt: skip
_COEFFICIENTS = torch.tensor([1.0, 2, -0.5])
INPUTS["p_v"] = _values(6)
INPUTS["p_classes"] = F.one_hot(torch.tensor([2, 0, 3]), 4).float()


def _adaptive_windows(image: Any, size: int) -> list[Any]:
    value, hot = image.adaptive_max_pool2d((size, size), return_indices=True)
    return [value, hot.sum((-2, -1))]


def _sample(positive: Any) -> Any:
    sample, index = positive.weighted_sample(dim=1)
    return ((positive * index).sum(1) - sample) + index.sum(1)


def _standard(x: Any) -> torch.Tensor:
    values = x.get_plain_text()
    return torch.stack([(values.mean().abs() < 0.3).float(), (values.std() - 1).abs().lt(0.3).float()])


def _with_shares(x: Any) -> Any:
    return MPCTensor.from_shares(x.share << 2, precision=18, ptype=ptype.arithmetic)


def _overwritten(x: Any, y: Any) -> Any:
    copy = x.shallow_copy().clone()
    copy.set(y)
    other = x.clone()
    other.copy_(y)
    other.set(torch.ones(3, 4))
    return [copy, other, x]


def _switched(x: Any) -> list[torch.Tensor]:
    """Whether results are recorded: with gradients on, off, on within off, and as set."""
    found = [(x * 2).requires_grad]
    with crypten.no_grad():
        found.append((x * 2).requires_grad)
        with crypten.enable_grad():
            found.append((x * 2).requires_grad)
    crypten.set_grad_enabled(False)
    found.append((x * 2).requires_grad)
    crypten.set_grad_enabled(True)
    found += [x.detach().requires_grad, (x.clone().detach_() * 2).requires_grad]
    return torch.tensor(found)


def _given_gradient(x: Any) -> Any:
    """Of what `backward` is given."""
    y = x.relu()
    y.backward(y.new(torch.full((3, 4), 3.0)))
    return x.grad


def _revealed_to_one(x: Any) -> torch.Tensor:
    opened = x.reveal(dst=0)
    assert (opened is None) == (crypten.communicator.get().get_rank() != 0)
    return INPUTS["x"] if opened is None else opened


TENSORS = {
    "from_shares": case(_with_shares, lambda x: x),
    "new": case(lambda x, p_y: x.new(p_y), lambda x, p_y: p_y),
    "overwritten": case(_overwritten, lambda x, y: [y, torch.ones(3, 4), x]),
    "reveal": case(lambda x: x.reveal(), lambda x: (x.double() * 2**16).round().long(), close=(0.0, 0.0)),
    "reveal to one": case(
        lambda x: _revealed_to_one(x), lambda x: (x.double() * 2**16).round().long(), close=(0.0, 0.0)
    ),
    "cpu": case(lambda x: x.cpu(), lambda x: x),
    "to another precision": case(
        lambda x: x.to(ptype.binary).to(ptype=ptype.arithmetic, precision=16, bits=64), lambda x: x
    ),
    "gradients on and off": Case(
        _switched, lambda x: torch.tensor([True, False, True, False, False, False]), EXACT, False, None, True
    ),
    "gradient given": Case(_given_gradient, lambda x: 3.0 * (x > 0), EXACT, False, None, True),
    "kinds": case(
        lambda x: torch.tensor(
            [crypten.is_encrypted_tensor(x), crypten.is_encrypted_tensor(1), crypten.is_initialized()]
        ),
        lambda x: torch.tensor([True, False, True]),
    ),
    "cat of public": case(lambda p_x: crypten.cat([p_x, p_x], dim=1), lambda p_x: torch.cat([p_x, p_x], 1)),
    "cat of one": gradient(lambda x: crypten.cat([x], dim=1), lambda x: x * 1),
    "stack of one": gradient(lambda x: crypten.stack([x], dim=1), lambda x: x.unsqueeze(1)),
}


# Torch raises, and so must all parties.
REFUSED = {
    "max_pool2d of larger windows", "avg_pool2d of larger windows", "conv2d of larger kernels", "matmul of other sizes",
    "add of other sizes", "index beyond",
}  # fmt: skip
COMPLETIONS = {
    **{f"{'refused' if name in REFUSED else 'parameter'}: {name}": entry for name, entry in PARAMETERS.items()},
    **{f"tensor: {name}": entry for name, entry in TENSORS.items()},
}
