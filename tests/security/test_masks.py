"""A changed value under an old mask is impossible: two openings under one mask would tell the difference of the values.

The attacker sees every opening. The values in these tests are small, masks are uniform on 64 bits: so two opened words
that are closer together than values are were opened under one mask, whatever the program did in between; and whoever
also knew the masks could say which opening each served.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mpc_imaging.protocols import bilinear, compare, tournament
from mpc_imaging.protocols.context import Context, ThreadChannel
from mpc_imaging.protocols.fss import KeyComparison
from mpc_imaging.protocols.masked import Masks, _source
from mpc_imaging.protocols.selection import select
from mpc_imaging.protocols.tables import TableComparison
from mpc_imaging.protocols.truncate import truncate
from mpc_imaging.randomness.demands import Group, Mask
from mpc_imaging.randomness.provider import SimulatedProvider
from mpc_imaging.randomness.ring import BilinearOp
from mpc_imaging.randomness.streams import Stream, fresh_key
from tests.protocols.parties import run_in, share, total

SMALL = 1 << 20  # values are smaller
MUL, MATMUL = BilinearOp("mul"), BilinearOp("matmul")


class Wire(ThreadChannel):
    """Writes down every ring opening, in the clear, as the parties and the network between them see it."""

    def open_ring(self, shares):
        opened = super().open_ring(shares)
        self.openings.extend(value.reshape(-1).numpy().view(np.uint64).copy() for value in opened)
        return opened


class Spy:
    """Writes down everything that the dealer gave to one party."""

    def __init__(self, provider):
        self._provider, self.log, self.drawn = provider, provider.log, []

    def get(self, demand):
        dealt = self._provider.get(demand)
        self.drawn.append((demand, dealt))
        return dealt


def watched(parties=2, comparison=None, provider=Spy):
    """Contexts that are listened to."""
    keys = [fresh_key() for _ in range(parties)]
    ctxs = []
    for wire in Wire.group(parties):
        wire.openings = []
        simulated = provider(SimulatedProvider(wire.rank, parties, keys))
        ctxs.append(Context(wire, simulated, comparison or TableComparison()))
    return ctxs


def closest(openings):
    """The least distance between any two opened words, modulo 2**64."""
    words = np.sort(np.concatenate(openings))
    gaps = np.diff(words, append=words[:1])  # the last one goes around
    return int(gaps.min())


def assert_no_mask_twice(ctxs):
    """What anybody can check who only listens."""
    openings = ctxs[0].channel.openings
    count = sum(map(len, openings))
    assert 1 < count < 20_000  # so that the distance of independent words is below 2**22 once in 10,000 runs
    assert closest(openings) > 4 * SMALL


def masks_of(ctxs):
    """Every mask modulo 2**64 in the clear: of each demand, the sum of all parties' shares."""
    masks = {}
    for entries in zip(*(ctx.provider.drawn for ctx in ctxs), strict=True):
        demand = entries[0][0]
        groups = [field.group for field in demand.random()]
        if Group.RING in groups:
            place = groups.index(Group.RING)
            masks[entries[0][1].index] = demand, sum(dealt.shares[place] for _, dealt in entries)
    return masks


def openings_under_masks(ctxs):
    """For each mask, the values (or values + 2**62) that were opened under it: for whoever knows the dealer's masks."""
    found = {}
    for index, (demand, mask) in masks_of(ctxs).items():
        found[index] = []
        for opened in ctxs[0].channel.openings:
            if len(opened) != len(mask):
                continue
            value = (opened + mask if isinstance(demand, Mask) else opened - mask).view(np.int64)
            offset = np.int64(1 << 62)
            for plain in (value, value - offset):
                if np.all(np.abs(plain) < 8 * SMALL):
                    found[index].append(plain)
    return found


def assert_each_mask_once(ctxs):
    uses = openings_under_masks(ctxs)
    assert {index: len(values) for index, values in uses.items()} == dict.fromkeys(uses, 1)


def small(*shape):
    return torch.randint(-1000, 1000, shape)


def everywhere(ctxs, program, *inputs):
    """The sum of all parties' results of a program on shares of the inputs."""
    return total(run_in(ctxs, program, *inputs))


# The attack works, where there is something to attack.


class Repeating(Spy):
    """A dealer that gives the first mask again."""

    def get(self, demand):
        if isinstance(demand, Mask) and self.drawn:
            return self.drawn[0][1]
        return super().get(demand)


class Forgetful(Masks):
    """Opens the new version of a value under the old one's mask as well."""

    def open(self, ctx, shares):
        before = [self._entries.get(id(_source(share))) for share in shares]
        old = [entry and entry.masked for entry in before]
        result = super().open(ctx, shares)
        for part, was, now in zip(shares, old, result, strict=True):
            if was is not None and was.ref.index != now.ref.index:
                ctx.channel.open_ring([part.reshape(-1) - was.mask])
        return result


def _write_and_multiply(ctx, w, x):
    first = bilinear.multiply(ctx, MUL, w, x)
    w += 7 if ctx.first else 0
    return first, bilinear.multiply(ctx, MUL, w, x)


def test_the_attack_finds_a_dealer_that_repeats_itself():
    ctxs = watched(provider=Repeating)
    everywhere(ctxs, _write_and_multiply, small(20), small(20))
    assert closest(ctxs[0].channel.openings) < 2 * SMALL


def test_the_attack_finds_masks_that_stay_through_a_write():
    ctxs = [Context(c.channel, c.provider, c.comparison, Forgetful()) for c in watched()]
    everywhere(ctxs, _write_and_multiply, small(20), small(20))
    assert closest(ctxs[0].channel.openings) == 7, "the difference of the two versions lies open"
    uses = openings_under_masks(ctxs)
    assert sorted(len(values) for values in uses.values()) == [1, 1, 2]


# Writes


def _first(ctx, value):
    """A public constant as a share: the first party adds it. The others add zero, which is a write like any other."""
    return value if ctx.first else 0


WRITES = {
    "in place": lambda ctx, w: w.add_(_first(ctx, 7)),
    "augmented": lambda ctx, w: w.__iadd__(_first(ctx, 7)),
    "through a transposed view": lambda ctx, w: w.t().add_(_first(ctx, 7)),
    "through a slice": lambda ctx, w: w[1:].add_(_first(ctx, 7)),
    "through one element": lambda ctx, w: w.__setitem__((0, 0), _first(ctx, 99)),
    "through a flat view": lambda ctx, w: w.view(-1)[3:9].mul_(2),
    "through a detached tensor": lambda ctx, w: w.detach().add_(_first(ctx, 7)),
    "copied over": lambda ctx, w: w.copy_(w * 2),
    "as output": lambda ctx, w: torch.add(w, _first(ctx, 7), out=w),
    "new storage": lambda ctx, w: w.set_(w + _first(ctx, 7)),
    "a step of an optimiser": lambda ctx, w: w.sub_(w * 3),
    "under no_grad": torch.no_grad()(lambda ctx, w: w.add_(_first(ctx, 7))),
}


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_after_a_write_the_product_is_of_the_new_value_under_a_new_mask(write, parties):
    ctxs = watched(parties)

    def program(ctx, w, x):
        before = bilinear.multiply(ctx, MATMUL, w, x)
        write(ctx, w)
        after = bilinear.multiply(ctx, MATMUL, w, x)
        turned = bilinear.multiply(ctx, MATMUL, x.t(), w.t())
        return before, after, turned, w

    w, x = small(6, 4), small(4, 5)
    before, after, turned, changed = everywhere(ctxs, program, w, x)
    assert not torch.equal(w, changed)
    assert torch.equal(before, w @ x)
    assert torch.equal(after, changed @ x) and torch.equal(turned, x.t() @ changed.t())
    assert_no_mask_twice(ctxs)
    assert_each_mask_once(ctxs)
    assert [len(opened) for opened in ctxs[0].channel.openings] == [24, 20, 24], "w, x, and w again"


@pytest.mark.parametrize("write", ["numpy", "data"])
def test_a_write_behind_torchs_back_opens_nothing_under_the_old_mask(write):
    ctxs = watched()

    def program(ctx, w, x):
        bilinear.multiply(ctx, MUL, w, x)
        opened = len(ctx.channel.openings)
        if write == "numpy":
            w.numpy()[:] += np.int64(_first(ctx, 7))
        else:
            w.data.add_(_first(ctx, 7))
        stale = bilinear.multiply(ctx, MUL, w, x)
        assert len(ctx.channel.openings) == opened
        # The next write that torch sees takes a new mask for everything that was written.
        w += 0
        return stale, bilinear.multiply(ctx, MUL, w, x)

    w, x = small(20), small(20)
    stale, fresh = everywhere(ctxs, program, w, x)
    assert torch.equal(stale, w * x)
    assert torch.equal(fresh, (w + 7) * x)
    assert_no_mask_twice(ctxs)
    assert_each_mask_once(ctxs)


def test_a_write_while_the_masked_value_is_used():
    """What is opened is the share as it was when the mask was subtracted, and nothing looks at it again."""
    ctxs = watched()

    def program(ctx, w, x):
        (masked,) = ctx.masks.open(ctx, [w])
        w.zero_()
        again = ctx.masks.open(ctx, [w])[0]
        assert again.ref.index != masked.ref.index
        public = masked.opened if ctx.first else 0
        return masked.mask + public

    w = small(20)
    assert torch.equal(everywhere(ctxs, program, w, w), w)
    assert_no_mask_twice(ctxs)


def test_a_new_tensor_for_each_step_of_an_optimiser():
    """Old weights die, and Python gives their numbers to new ones."""
    ctxs = watched()

    def program(ctx, w, x):
        results = []
        for _ in range(30):
            results.append(bilinear.multiply(ctx, MUL, w, x))
            w = w - 3 * _first(ctx, 1)
        return tuple(results)

    w, x = small(10), small(10)
    for step, result in enumerate(everywhere(ctxs, program, w, x)):
        assert torch.equal(result, (w - 3 * step) * x)
    assert_no_mask_twice(ctxs)
    assert_each_mask_once(ctxs)
    assert len(masks_of(ctxs)) == 31


def test_numbers_of_dead_tensors():
    ctxs = watched()

    def program(ctx, x):
        seen, again = set(), 0
        for step in range(200):
            w = x + _first(ctx, step)
            again += id(w) in seen
            seen.add(id(w))
            ctx.masks.open(ctx, [w])
            del w
        return torch.tensor(again)

    assert everywhere(ctxs, program, small(5)) > 100, "no number came again: this test shows nothing"
    assert_no_mask_twice(ctxs)
    assert_each_mask_once(ctxs)


# One opening for many products


def test_weights_at_inference_are_opened_once():
    ctxs = watched()

    def program(ctx, w, v, x):
        results = []
        for image in x:
            hidden = compare.relu(ctx, bilinear.multiply(ctx, MATMUL, image.clone(), w.t()))[0]
            results.append(bilinear.multiply(ctx, MATMUL, hidden, v.t()))
        return tuple(results)

    w, v, x = (torch.randint(-9, 9, shape) for shape in ((5, 6), (3, 5), (4, 2, 6)))
    results = everywhere(ctxs, program, w, v, x)
    for image, result in zip(x, results, strict=True):
        assert torch.equal(result, (image @ w.t()).clamp(min=0) @ v.t())
    uses = openings_under_masks(ctxs)
    opened = [values[0] for values in uses.values()]
    for weight in (w, v):
        assert sum(np.array_equal(value, weight.view(-1).numpy()) for value in opened) == 1
    assert_no_mask_twice(ctxs)
    assert_each_mask_once(ctxs)


VIEWS = {
    "transposed": (lambda w: w.t(), 0),
    "reshaped": (lambda w: w.reshape(4, 6), 0),
    "permuted": (lambda w: w.view(2, 3, 4).permute(2, 0, 1), 0),
    "the whole slice": (lambda w: w[:], 0),
    "a slice": (lambda w: w[1:3], 8),
    "a column": (lambda w: w[:, 2], 6),
    "expanded": (lambda w: w[:1].expand(6, 4), 24),
    "copied": (lambda w: w.clone(), 24),
}


@pytest.mark.parametrize(("view", "opened"), VIEWS.values(), ids=VIEWS)
def test_views_take_their_values_mask_or_one_of_their_own(view, opened):
    ctxs = watched()

    def program(ctx, w):
        bilinear.multiply(ctx, MUL, w, w)
        return bilinear.multiply(ctx, MUL, view(w), view(w))

    w = small(6, 4)
    assert torch.equal(everywhere(ctxs, program, w), view(w) * view(w))
    sizes = [len(values) for values in ctxs[0].channel.openings]
    # Two views of a part are two tensors: each has a mask of its own.
    assert sizes == [24] + [opened] * 2 * bool(opened)
    assert_no_mask_twice(ctxs)
    assert_each_mask_once(ctxs)


# Whole programs


FAMILIES = [pytest.param(2, KeyComparison(40), id="fss-2"), pytest.param(3, TableComparison(), id="tables-3")]


@pytest.mark.parametrize(("parties", "comparison"), FAMILIES)
def test_training_steps(parties, comparison):
    """Every mask of a program that uses all protocols is used for one opening, and every opening has a mask."""
    ctxs = watched(parties, comparison)

    def program(ctx, w, x, g):
        for _ in range(3):
            y = bilinear.multiply(ctx, MATMUL, x, w.t())
            z, sign = compare.relu(ctx, y, 4)
            pooled, levels = tournament.maximum(ctx, z.view(4, 2, 3), 2, 1)
            back = tournament.distribute(ctx, g, levels, 2).reshape(4, 6)
            back = select(ctx, sign.bits(), back, 2).selected()
            grad = bilinear.multiply(ctx, MATMUL, back.t(), x)
            w -= truncate(ctx, grad, 6)
        return w

    everywhere(
        ctxs, program, torch.randint(-9, 9, (6, 5)), torch.randint(-9, 9, (4, 5)), torch.randint(-9, 9, (4, 2, 1))
    )
    assert_no_mask_twice(ctxs)
    uses = openings_under_masks(ctxs)
    openings = ctxs[0].channel.openings
    assert sum(len(values) for values in uses.values()) == len(openings)
    assert_each_mask_once(ctxs)
    # Openings and masks have the same number of elements: nothing was opened without a mask, none was left over.
    assert sum(map(len, openings)) == sum(len(mask) for _, mask in masks_of(ctxs).values())


STEPS = st.lists(
    st.sampled_from(
        ["w+=", "w.t+=", "w[1:]+=", "w=w+", "w.set", "w numpy", "x+=", "wx", "xw", "ww", "w.t w", "w[1:]x", "relu w"]
    ),
    min_size=2,
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_any_program(steps):
    """Products are of the value at the last write that torch saw, or of a later one; no mask is used twice."""
    ctxs = watched()
    w0, x0 = small(3, 3), small(3, 3)

    def program(ctx, w, x):
        results = []
        for step in steps:
            if step == "w+=":
                w += _first(ctx, 5)
            elif step == "w.t+=":
                w.t()[0] += _first(ctx, 3)
            elif step == "w[1:]+=":
                w[1:] += _first(ctx, 2)
            elif step == "w=w+":
                w = w + _first(ctx, 1)
            elif step == "w.set":
                w.set_(w * 2)
            elif step == "w numpy":
                w.numpy()[0] += np.int64(_first(ctx, 11))
            elif step == "x+=":
                x += _first(ctx, 4)
            elif step == "relu w":
                results.append(compare.relu(ctx, w)[0])
            else:
                pairs = {"wx": (w, x), "xw": (x, w), "ww": (w, w), "w.t w": (w.t(), w), "w[1:]x": (w[1:], x[1:])}
                results.append(bilinear.multiply(ctx, MUL, *pairs[step]))
        return tuple(results) or w

    expected, w, x, kept = [], w0.clone(), x0.clone(), None
    for step in steps:  # the same in the clear; kept: w as it was masked, until torch sees a write
        if step == "w+=":
            w, kept = w + 5, None
        elif step == "w.t+=":
            w, kept = w.clone(), None
            w.t()[0] += 3
        elif step == "w[1:]+=":
            w, kept = w.clone(), None
            w[1:] += 2
        elif step == "w=w+":
            w, kept = w + 1, None
        elif step == "w.set":
            w, kept = w * 2, None
        elif step == "w numpy":
            w = w.clone()
            w[0] += 11
        elif step == "x+=":
            x = x + 4
        elif step == "relu w":
            expected.append(w.clamp(min=0))
        elif step == "w[1:]x":
            expected.append(w[1:] * x[1:])
        else:
            kept = w if kept is None else kept
            pairs = {"wx": (kept, x), "xw": (x, kept), "ww": (kept, kept), "w.t w": (kept.t(), kept)}
            expected.append(pairs[step][0] * pairs[step][1])
    result = everywhere(ctxs, program, w0, x0)
    if expected:
        for got, want in zip(result, expected, strict=True):
            assert torch.equal(got, want)
        assert_no_mask_twice(ctxs)
        assert_each_mask_once(ctxs)


# Sessions


def test_sessions_with_the_same_tensors_share_no_mask():
    """A tensor that lives through two sessions is masked anew in the second."""
    first, second = watched(), watched()
    w = small(20)
    shares = share(w, 2)

    for ctxs in (first, second):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda ctx: ctx.masks.open(ctx, [shares[ctx.channel.rank]]), ctxs))
    openings = [first[0].channel.openings[0], second[0].channel.openings[0]]
    assert closest(openings) > 4 * SMALL


def test_masks_are_uniform():
    """The openings of one and the same value, again and again."""
    ctxs = watched()

    def program(ctx, x):
        for _ in range(2):
            ctx.masks.open(ctx, [x])
            x += 0
        return x

    everywhere(ctxs, program, torch.zeros(100_000, dtype=torch.int64))
    for opened in ctxs[0].channel.openings:
        bits = np.unpackbits(opened.view(np.uint8).reshape(-1, 8), axis=1)
        assert np.abs(bits.mean(0) - 0.5).max() * 2 * len(bits) ** 0.5 < 6
    # A share of a value is no mask: a stream that is drawn again would be.
    assert not np.array_equal(*ctxs[0].channel.openings)
    assert Stream(bytes(32)).words(2)[0] != Stream(bytes(32)).words(2)[1]
