"""Private gradients on shares against the same in plaintext, image by image."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpc_imaging.models.multiple_instance import MultipleInstance
from mpc_imaging.models.zoo import Head
from mpc_imaging.protocols.noise import ClippedSum, HeadSum
from mpc_imaging.settings import Loss


def silent(count, scale):
    return torch.zeros(count, dtype=torch.int64)


def shouting(count, scale):
    """What the party was asked for, as noise: so that tests see it."""
    return torch.full((count,), round(scale))


def backward(images, onehot, *state, module, make, options):
    """Gradients by name, after one private backward pass."""
    from mpc_imaging.engine import clipping, layers
    from mpc_imaging.engine.losses import loss_and_gradient
    from mpc_imaging.engine.tensors import no_grad
    from mpc_imaging.models.convert import prepare
    from mpc_imaging.models.secure_module import SecureModule
    from mpc_imaging.randomness.streams import Stream

    model = SecureModule(prepare(module, True), layers)
    model.load(dict(zip(model.parameter_shapes(), state, strict=True)))
    parameters = {name: model.parameters[name] for name in model.trainable()}
    for parameter in parameters.values():
        parameter.requires_grad = True
    draw = shouting if options.pop("noise", False) else silent
    factor = options.pop("factor", None)
    if make == "head":
        private = clipping.HeadGradients(parameters, HeadSum(**options), 1.5, draw)
    else:
        private = clipping.ClippedGradients(parameters, ClippedSum(**options), 1.5, Stream(bytes(32)), draw)
    logits = model(images)
    with no_grad():
        _, gradient = loss_and_gradient(Loss.cross_entropy, logits.detach(), onehot, False)
    with pytest.MonkeyPatch.context() as patch:
        if factor is not None:  # in place of what the inverse square root gives
            patch.setattr(clipping, "inverse_root", lambda ctx, x, octaves: x * 0 + factor)
        private.backward(logits, gradient, images.share)
    return {name: p.grad for name, p in parameters.items()}


def secure(parties, module, images, labels, make="clipped", **options):
    onehot = F.one_hot(labels, 2).double()
    state = [value.double() for value in module.state_dict().values()]
    return parties.run(backward, images, onehot, *state, module=module, make=make, options=options)


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients])


def per_image(module, images, labels):
    """Gradients (N, d) in double precision, parameters in their order."""
    module = module.double()
    rows = []
    for image, label in zip(images.double(), labels, strict=True):
        loss = F.cross_entropy(module(image.unsqueeze(0)), label.unsqueeze(0))
        rows.append(flat(torch.autograd.grad(loss, list(module.parameters()))))
    return torch.stack(rows)


def clipped(gradients, clip, micro_batch):
    groups = math.ceil(len(gradients) / micro_batch)
    sums = torch.stack([gradients[group::groups].sum(0) for group in range(groups)])
    bound = clip * micro_batch
    return (sums * (bound / sums.norm(dim=1, keepdim=True)).clamp(max=1)).sum(0)


def net():
    torch.manual_seed(3)

    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 2, bias=False),
    )  # fmt: skip


def batch(count, size=8):
    torch.manual_seed(4)
    return torch.randn(count, 1, size, size) * 2, torch.randint(2, (count,))


@pytest.mark.parametrize(("clip", "micro_batch"), [(0.5, 1), (1.0, 1), (3.0, 1), (0.3, 4)])
def test_gradients_are_those_clipped_in_plaintext(parties, clip, micro_batch):
    module, (images, labels) = net(), batch(10)
    result = secure(parties, module, images, labels, clip=clip, micro_batch=micro_batch, linear=2, materialised=True)
    gradients = per_image(module, images, labels)
    lengths = gradients.norm(dim=1)
    assert micro_batch > 1 or lengths.min() < 3 and lengths.max() > 1
    want = clipped(gradients, clip, micro_batch)
    got = flat(result.values())
    assert (got - want).norm() < 0.01 * want.norm()


def lengths_of_each(result):
    return flat(result.values()).norm()


@pytest.mark.parametrize("index", range(3))
def test_no_image_moves_the_sum_farther_than_the_sensitivity(two, index):
    """A batch of one: what is added for it is at most the bound, and close to it where its gradient is longer."""
    module, (images, labels) = net(), batch(3)
    total = {"clip": 0.5, "micro_batch": 1, "linear": 2, "materialised": True}
    length = lengths_of_each(secure(two, module, images[index : index + 1], labels[index : index + 1], **total))
    gradient = per_image(module, images[index : index + 1], labels[index : index + 1]).norm()
    assert length <= ClippedSum(**total).sensitivity
    assert length > 0.985 * min(0.5, gradient)


@pytest.mark.parametrize("scale", [200.0, 2000.0])
def test_what_is_too_large_counts_as_zero(two, scale):
    """Inputs so large that norms wrap around, or the root does not converge: beyond the check they would add anything.

    The other image is not touched.
    """
    module, (images, labels) = net(), batch(2)
    images[1] *= scale
    total = {"clip": 0.5, "micro_batch": 1, "linear": 2, "materialised": True}
    got = flat(secure(two, module, images, labels, **total).values())
    assert per_image(module, images, labels)[1].norm() > 128 * 0.5
    want = clipped(per_image(module, images[:1], labels[:1]), 0.5, 1)
    assert (got - want).norm() < 0.02 * want.norm()


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_nothing_depends_on_the_root(two, micro_batch):
    """With a factor of one for all, whatever is longer than the bound must be found out, and whatever is not, kept."""
    module, (images, labels) = net(), batch(12)
    images *= torch.logspace(-1, 3, 12).view(-1, 1, 1, 1)
    gradients = per_image(module, images, labels)
    groups = len(images) // micro_batch
    sums = torch.stack([gradients[group::groups].sum(0) for group in range(groups)])
    total = {"clip": 1.5, "micro_batch": micro_batch, "linear": 2, "materialised": True}
    short = sums.norm(dim=1) < 1.5 * micro_batch
    assert 0 < short.sum() < groups
    got = flat(secure(two, module, images, labels, factor=1.0, **total).values())
    want = sums[short].sum(0)
    assert (got - want).norm() < 0.02 * want.norm()
    for factor in (1.01, -0.5):
        assert flat(secure(two, module, images, labels, factor=factor, **total).values()).norm() == 0


def test_each_party_adds_all_of_the_noise(parties):
    module, (images, labels) = net(), batch(4)
    total = {"clip": 0.5, "micro_batch": 1, "linear": 2, "materialised": True}
    quiet = flat(secure(parties, module, images, labels, **total).values())
    loud = flat(secure(parties, module, images, labels, noise=True, **total).values())
    each = 1.5 * ClippedSum(**total).sensitivity
    assert torch.allclose(loud - quiet, torch.full_like(quiet, len(parties._pipes) * each), atol=0.02)


HEAD = {"input_norm": 3.0, "features": 12, "classes": 2, "fraction_bits": 16}


def test_heads(parties):
    torch.manual_seed(0)
    module, images, labels = Head(12), torch.randn(8, 12), torch.randint(2, (8,))
    got = secure(parties, module, images, labels, make="head", **HEAD)
    want = per_image(module, images, labels).sum(0)
    assert (flat(got.values()) - want).norm() < 0.002 * want.norm()
    loud = secure(parties, module, images, labels, make="head", noise=True, **HEAD)
    each = 1.5 * HeadSum(**HEAD).sensitivity * len(parties._pipes)
    difference = flat(loud.values()) - flat(got.values())
    assert torch.allclose(difference, torch.full_like(difference, each), atol=0.01)


def residuals(gradient):
    from mpc_imaging.engine.clipping import _clamped

    return _clamped(gradient)


def test_residuals_are_clipped_exactly(parties):
    values = torch.tensor([-3.0, -1.0, -0.5, 0.0, 1.0, 1.0 + 2**-16, 1000.0]).double()
    assert torch.equal(parties.run(residuals, values), values.clamp(-1, 1))


@pytest.mark.parametrize("module", [Head(12, hidden=4), nn.Sequential(nn.ReLU(), nn.Linear(12, 2))])
def test_heads_that_are_none(two, module):
    images, labels = torch.randn(4, 12), torch.randint(2, (4,))
    with pytest.raises(AssertionError, match="privacy.input_norm is for models of one linear layer"):
        secure(two, module, images, labels, make="head", **HEAD)


def test_parameters_of_other_layers_are_refused(two):
    module = nn.Sequential(nn.ConvTranspose2d(1, 2, 3), nn.Flatten(), nn.Linear(200, 2))
    images, labels = batch(2)
    with pytest.raises(AssertionError, match="privacy=dp takes linear layers"):
        secure(two, module, images, labels, clip=1.0, micro_batch=1, linear=1, materialised=True)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_layers_that_take_slices_for_images_are_refused(two, pool):
    """Their rows are no images: each slice would be clipped by itself, and a volume could add that many times more."""
    module = MultipleInstance(3, image_size=16, pool=pool, features=4)
    images, labels = torch.randn(2, 3, 1, 16, 16), torch.randint(2, (2,))
    with pytest.raises(AssertionError, match="6 rows for 2 images: privacy=dp takes layers over whole images"):
        secure(two, module, images, labels, clip=1.0, micro_batch=1, linear=2, materialised=True)


def at_the_edge(images, onehot, *state, module, options, bits):
    """`backward` of one image with the largest factor that passes the check, found by bisection; no noise.

    bits: of fraction. Each truncation of what is compared is rounded down, which makes gradients seem shortest.
    """
    import crypten

    from mpc_imaging.engine import clipping
    from mpc_imaging.engine.tensors import from_share

    def down(ctx, x, count):
        (known,) = ctx.channel.open_ring([x])
        return known >> count if ctx.first else torch.zeros_like(known)

    best, low, high = None, 0, 2**bits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crypten.cfg.encoder, "precision_bits", bits)
        patch.setattr(clipping, "truncate", down)
        images, onehot, *state = (from_share(x.share) for x in (images, onehot, *state))
        while high - low > 1:
            middle = (low + high) // 2
            choice = {**options, "factor": middle / 2**bits}
            gradients = backward(images, onehot, *state, module=module, make="clipped", options=choice)
            share = torch.cat([g.share.flatten() for g in gradients.values()])
            (units,) = clipping.gates.context().channel.open_ring([share])
            if units.any():
                best, low = units.double() / 2.0 ** gradients["0.weight"].encoder._precision_bits, middle
            else:
                high = middle
    return best.norm().item()


@pytest.mark.parametrize("bits", [8, 16])
def test_nothing_is_rounded_after_the_check(two, bits):
    """What passes at the edge is no longer than the sensitivity, at few bits as well: exactly that is added up."""
    module, (images, labels) = net(), batch(1)
    total = {"clip": 0.5, "micro_batch": 1, "linear": 2, "materialised": True}
    units = [x.double() * 2.0 ** (bits - 16) for x in (images, F.one_hot(labels, 2), *module.state_dict().values())]
    length = two.run(at_the_edge, *units, module=module, options=total, bits=bits)
    assert 0.48 < length <= ClippedSum(**total).sensitivity
