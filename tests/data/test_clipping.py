import torch

from mpc_imaging.data.clipping import clip_inputs


def test_only_longer_images_change_and_to_the_bound():
    torch.manual_seed(0)
    images = torch.randn(50, 1, 6, 6) * torch.logspace(-2, 2, 50).view(-1, 1, 1, 1)
    images[0] = 0
    clipped = clip_inputs(images, 5.0)
    lengths, before = clipped.double().flatten(1).norm(dim=1), images.flatten(1).norm(dim=1)
    assert clipped.dtype is images.dtype and clipped.shape == images.shape
    assert lengths.max() <= 5 and torch.all(lengths[before > 5] > 4.999) and (before > 5).any()
    assert torch.equal(clipped[before < 4.99], images[before < 4.99])
