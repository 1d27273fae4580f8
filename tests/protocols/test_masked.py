"""Masks follow versions of values: found again through views, dropped with the tensor, renewed after a write."""

import gc
import weakref

import pytest
import torch

from mpc_imaging.protocols.context import Context, ThreadChannel
from mpc_imaging.protocols.masked import Masked, Masks
from mpc_imaging.randomness.demands import Mask
from mpc_imaging.randomness.provider import SimulatedProvider
from mpc_imaging.randomness.streams import fresh_key
from tests.protocols.parties import demands, run


@pytest.fixture
def ctx():
    """One party alone: its share is the value, and what is opened is the value less the mask."""
    (channel,) = ThreadChannel.group(1)
    return Context(channel, SimulatedProvider(0, 1, [fresh_key()]))


def _open(ctx, *shares):
    """Opens, and checks that each value comes out; returns the masks' numbers."""
    opened = ctx.masks.open(ctx, shares)
    for masked, share in zip(opened, shares, strict=True):
        assert torch.equal(masked.mask + masked.opened, share)
        assert masked.ref.size == masked.mask.shape == share.shape
    return [masked.ref.index for masked in opened]


def _wide(*shape):
    return torch.randint(-(2**63), 2**63 - 1, shape)


def test_one_round_for_all_new_values(ctx):
    x, y, w = _wide(2, 3), _wide(4), _wide()
    assert _open(ctx, x, y, w) == [0, 1, 2]
    assert _open(ctx, y, x, x, w) == [1, 0, 0, 2]
    assert ctx.channel.rounds == 1
    new = _wide(3)
    assert _open(ctx, x, new, new) == [0, 3, 3]
    assert ctx.channel.rounds == 2


VIEWS = {
    "transposed": lambda x: x.transpose(1, 3),
    "reshaped": lambda x: x.reshape(6, -1),
    "flat": lambda x: x.view(-1),
    "permuted": lambda x: x.permute(3, 0, 2, 1),
    "unsqueezed": lambda x: x.unsqueeze(1),
    "view of a view": lambda x: x.permute(3, 0, 2, 1).unflatten(0, (1, 5)).squeeze(0),
    "unfolded batch": lambda x: x.flatten(0, 1).unflatten(0, (3, 2)),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views_of_all_elements_share_a_mask(ctx, view):
    x = _wide(2, 3, 4, 5)
    assert _open(ctx, x) == [0]
    assert _open(ctx, view(x), x) == [0, 0]
    assert ctx.channel.rounds == 1


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_the_view_may_come_first(ctx, view):
    x = _wide(2, 3, 4, 5)
    assert _open(ctx, view(x)) == [0]
    assert _open(ctx, x, x.mT, view(x)) == [0, 0, 0]


PARTS = {
    "slice": lambda x: x[1:],
    "column": lambda x: x[:, 1],
    "strided": lambda x: x[:, ::2],
    "expanded": lambda x: x[:, :1].expand(4, 6),
    "broadcast": lambda x: x[0].expand(4, 6),
    "diagonal": lambda x: x.diagonal(),
    "windows": lambda x: x.view(-1).unfold(0, 3, 1),
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_parts_have_masks_of_their_own(ctx, part):
    x = _wide(4, 6)
    y = part(x)
    assert _open(ctx, x, y) == [0, 1]
    assert _open(ctx, y, x) == [1, 0]


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_a_write_to_a_part_renews_the_whole(ctx, part):
    x = _wide(4, 6)
    y = part(x)
    assert _open(ctx, x, y) == [0, 1]
    x[0, 0] += 1
    assert _open(ctx, y, x) == [2, 3]


def test_a_base_that_is_not_contiguous(ctx):
    base = _wide(3, 4).t().contiguous().t()
    turned = torch.empty_strided((3, 4), (1, 3), dtype=torch.int64).copy_(base)
    view = turned.t()
    assert _open(ctx, turned, view) == [0, 1]


def test_overlapping_views_with_as_many_elements_as_their_base(ctx):
    x = _wide(4)
    y = x.as_strided((2, 2), (1, 1), 1)
    assert _open(ctx, y, x) == [0, 0]


def test_views_with_an_offset(ctx):
    storage = _wide(20)
    x = torch.empty(0, dtype=torch.int64).set_(storage.untyped_storage(), 5, (3, 4), (4, 1))
    assert _open(ctx, x.t(), x) == [0, 0]


WRITES = {
    "add_": lambda x: x.add_(1),
    "+=": lambda x: x.__iadd__(1),
    "item": lambda x: x.__setitem__((0, 0), 3),
    "slice": lambda x: x[1:].zero_(),
    "view": lambda x: x.view(-1)[3:4].fill_(9),
    "detached": lambda x: x.detach().mul_(3),
    "copy_": lambda x: x.copy_(_wide(4, 4)),
    "out=": lambda x: torch.add(x, 5, out=x),
    "set_": lambda x: x.set_(_wide(4, 4)),
    "resize_": lambda x: x.resize_(2, 2),
    "t_": lambda x: x.t_(),
    "index_put_": lambda x: x.index_put_((torch.tensor([1]), torch.tensor([1])), torch.tensor([7])),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_takes_a_fresh_mask(ctx, write):
    x = _wide(4, 4).t().contiguous()
    assert _open(ctx, x) == [0]
    write(x)
    assert _open(ctx, x) == [1]
    assert _open(ctx, x.view(x.shape)) == [1 if x.is_contiguous() else 2]


def test_a_view_that_has_left_its_base(ctx):
    """`set_`, as CrypTen writes in place, leaves torch's record of the base behind."""
    base = _wide(20)
    view = base.view(4, 5)
    assert _open(ctx, view, base) == [0, 0]
    view.set_(_wide(4, 5))
    assert view._base is base
    assert _open(ctx, view, base) == [1, 2]
    assert _open(ctx, base.view(5, 4), view) == [2, 1]


def test_a_base_that_has_left_its_view(ctx):
    base = _wide(20)
    view = base.view(4, 5)
    base.set_(_wide(20))
    assert _open(ctx, view, base, base.view(2, 10)) == [0, 1, 1]


def test_a_copy_takes_a_fresh_mask(ctx):
    """So does a detached tensor: torch does not say what it is a view of."""
    x = _wide(5)
    assert _open(ctx, x, x.clone(), x + 0, x.detach()) == [0, 1, 2, 3]


def test_a_write_behind_torchs_back_gives_the_old_value_and_opens_nothing(ctx):
    x = _wide(5)
    before = x.clone()
    assert _open(ctx, x) == [0]
    x.numpy()[:] = 3
    x.data.add_(1)
    (masked,) = ctx.masks.open(ctx, [x])
    assert torch.equal(masked.mask + masked.opened, before)
    assert masked.ref.index == 0 and ctx.channel.rounds == 1


def test_entries_go_with_their_tensor(ctx):
    x = _wide(5)
    (masked,) = ctx.masks.open(ctx, [x.view(5, 1)])
    mask = weakref.ref(masked.mask)
    del masked
    assert len(ctx.masks) == 1
    del x
    gc.collect()
    assert len(ctx.masks) == 0 and mask() is None


def test_older_versions_do_not_stay_in_memory(ctx):
    x, old = _wide(5), []
    for _ in range(3):
        ctx.masks.open(ctx, [x])
        old.append(weakref.ref(ctx.masks._entries[id(x)].masked))
        x += 1
    ctx.masks.open(ctx, [x])
    gc.collect()
    assert [ref() for ref in old] == [None] * 3
    assert len(ctx.masks) == 1


def test_a_view_keeps_its_base_and_its_mask(ctx):
    view = _wide(3, 4).t()
    assert _open(ctx, view) == [0]
    gc.collect()
    assert _open(ctx, view, view.t()) == [0, 0]


def test_masks_do_not_keep_tensors(ctx):
    x = _wide(5)
    ref = weakref.ref(x)
    ctx.masks.open(ctx, [x])
    del x
    assert ref() is None


def test_tensors_in_a_reference_cycle(ctx):
    x = _wide(5)
    x.itself = x
    ctx.masks.open(ctx, [x])
    del x
    gc.collect()
    assert len(ctx.masks) == 0


def test_the_number_of_a_dead_tensor_never_finds_its_mask(ctx):
    """Python gives a dead object's number to a new one, soon."""
    numbers, masks, again = set(), set(), 0
    for _ in range(300):
        x = torch.arange(5)
        again += id(x) in numbers
        numbers.add(id(x))
        masks.update(_open(ctx, x))
        del x
    assert again > 100, "numbers were not used again: this test shows nothing"
    assert len(masks) == 300


def test_an_entry_of_another_tensor_is_not_used(ctx):
    """Even if nobody was told that the old tensor died."""
    old, new = _wide(5), _wide(5)
    ctx.masks.open(ctx, [old])
    ctx.masks._entries[id(new)] = ctx.masks._entries[id(old)]
    assert _open(ctx, new) == [1]


def test_a_failed_round_does_not_leave_a_mask_behind(ctx):
    x, sent = _wide(5), []
    channel = ctx.channel

    class Broken:
        rank, parties = 0, 1

        def open_ring(self, shares):
            sent.extend(shares)
            raise ConnectionError

    object.__setattr__(ctx, "channel", Broken())
    with pytest.raises(ConnectionError):
        ctx.masks.open(ctx, [x])
    x += 1
    object.__setattr__(ctx, "channel", channel)
    assert _open(ctx, x) == [1]


def test_sessions_do_not_share_masks(ctx):
    x = _wide(5)
    (masked,) = ctx.masks.open(ctx, [x])
    assert len(Masks()) == 0
    other = Context(ThreadChannel.group(1)[0], SimulatedProvider(0, 1, [fresh_key()]))
    assert not torch.equal(masked.opened, other.masks.open(other, [x])[0].opened)


@pytest.mark.parametrize("shape", [(0,), (3, 0), ()])
def test_nothing_and_scalars(ctx, shape):
    assert _open(ctx, _wide(*shape)) == [0]


def test_printing_shows_no_share(ctx):
    x = torch.full((3,), 1234567)
    (masked,) = ctx.masks.open(ctx, [x])
    text = repr(masked)
    assert isinstance(masked, Masked) and text == "Masked(mask 0, shape=(3,), share hidden)"
    assert str(masked.mask[0].item()) not in text


@pytest.mark.parametrize("parties", [2, 3])
def test_masks_of_several_parties_add_up(parties):
    x, y = _wide(3, 4), _wide(5)

    def program(ctx, x, y):
        one, two = ctx.masks.open(ctx, [x.t(), y])
        public = one.opened if ctx.first else torch.zeros_like(one.opened)
        return one.mask + public, two.mask

    (total, mask), ctxs = run(program, parties, x, y)
    assert torch.equal(total, x.t())
    assert not torch.equal(mask, y)
    assert demands(ctxs[0]) == [Mask(12), Mask(5)]
