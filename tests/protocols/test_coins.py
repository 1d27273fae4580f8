"""Coins are the same at all parties, never repeated, and nobody's choice."""

import hashlib

import pytest
import torch

from mpc_imaging.errors import SessionError
from mpc_imaging.protocols import coins
from mpc_imaging.protocols.coins import BLIND_BYTES, VALUE_BYTES, TossedCoins, UncheckedCoins
from tests.protocols.parties import run

SESSION = b"a session"
OPENING = VALUE_BYTES + BLIND_BYTES


def _toss(parties, times=3, kinds=None, sessions=None):
    """Each party's keystreams' first bytes, and how many rounds they took."""
    found = {}

    def program(ctx):
        rank = ctx.channel.rank
        tossed = (kinds or {}).get(rank, TossedCoins)((sessions or {}).get(rank, SESSION))
        found[rank] = [bytes(tossed.toss(ctx.channel).octets(16)) for _ in range(times)]
        found[rank, "rounds"] = ctx.channel.rounds
        return torch.zeros(1)

    run(program, parties)
    return found


@pytest.mark.parametrize("parties", [2, 3])
def test_all_parties_have_the_same_coins_and_fresh_ones_each_time(parties):
    found = _toss(parties)
    assert all(found[rank] == found[0] for rank in range(parties))
    assert len(set(found[0] + _toss(parties)[0])) == 6
    assert found[0, "rounds"] == 4, "one for the first commitments, then one a toss"


class _ChoosesLate(TossedCoins):
    """Opens another value than it committed to, as one would that has seen what the others opened."""

    def _commit(self, rank):
        promised = super()._commit(rank)
        self._mine = bytes(OPENING)
        return promised


class _Mirrors(TossedCoins):
    """Sends its peer's commitment and opening as its own, so that both contributions are equal."""

    def begin(self, channel):
        promised = channel.swap(bytes(hashlib.sha256().digest_size))
        self._commitments = channel.swap(promised[1 - channel.rank])

    def toss(self, channel):
        messages = channel.swap(bytes(OPENING + 64))
        return channel.swap(messages[1 - channel.rank])


class _WaitsForAnother(TossedCoins):
    """The honest party, which takes part in two swaps where the mirror needs to see its message first."""

    def begin(self, channel):
        first = self._commit(channel.rank)
        channel.swap(first)
        self._commitments = channel.swap(first)

    def toss(self, channel):
        class _Twice:
            rank, name_of = channel.rank, staticmethod(channel.name_of)

            @staticmethod
            def swap(message):
                channel.swap(message)
                return channel.swap(message)

        if not self._commitments:
            self.begin(channel)
        return TossedCoins.toss(self, _Twice)


@pytest.mark.parametrize("rank", [0, 1])
def test_another_opening_than_promised_is_noticed_by_name(rank):
    with pytest.raises(SessionError, match=f"range check 1: party {rank} opened other coins than it had committed to"):
        _toss(2, kinds={rank: _ChoosesLate})


def test_another_partys_commitment_is_not_ones_own():
    """Even where the peer's messages are seen first."""
    honest = {}

    def program(ctx):
        rank = ctx.channel.rank
        if rank == 1:
            mirror = _Mirrors(SESSION)
            mirror.begin(ctx.channel)
            mirror.toss(ctx.channel)
        else:
            with pytest.raises(SessionError, match="party 1 opened other coins"):
                _WaitsForAnother(SESSION).toss(ctx.channel)
            honest["refused"] = True
        return torch.zeros(1)

    run(program, 2)
    assert honest["refused"]


def test_coins_of_another_session_or_toss_are_refused():
    with pytest.raises(SessionError, match="opened other coins"):
        _toss(2, sessions={1: b"another"})
    opening = bytes(OPENING)
    digests = {coins.commitment(s, n, r, opening) for s in (SESSION, b"another") for n in (0, 1) for r in (0, 1)}
    assert len(digests) == 8


def test_a_dry_run_swaps_as_many_bytes_and_checks_nothing():
    sent = {}

    class _Nobody:
        rank, parties = 0, 2

        def swap(self, message):
            sent.setdefault("sizes", []).append(len(message))
            return [message, bytes(len(message))]

        def name_of(self, rank):
            return str(rank)

    UncheckedCoins(SESSION).toss(_Nobody())
    assert sent["sizes"] == [32, OPENING + 64]


def test_nothing_of_ones_own_part_is_printed():
    tossed = TossedCoins(SESSION)
    tossed._commit(0)
    assert tossed._mine.hex() not in repr(tossed) and repr(tossed._mine) not in repr(tossed)


class _Equivocates(TossedCoins):
    """Promises and opens one thing to party 0 and another to party 1; its channel sends each its own."""

    def begin(self, channel):
        self._twin = TossedCoins(self.session)
        mine, other = self._commit(2), self._twin._commit(2)
        self._commitments = channel.swap({0: mine, 1: other, 2: mine})

    def toss(self, channel):
        def seen(promise):
            return hashlib.sha256(coins._LABEL + b" seen" + b"".join([*self._commitments[:2], promise])).digest()

        self.begin(channel)
        promises = [coins.commitment(self.session, 0, 2, each._mine) for each in (self, self._twin)]
        parts = [each._mine + seen(p) + bytes(32) for each, p in zip((self, self._twin), promises, strict=True)]
        channel.swap({0: parts[0], 1: parts[1], 2: parts[0]})


def test_other_coins_to_one_than_to_another_are_noticed():
    """With three parties; else the honest ones would go on with different coins."""
    refused = []

    def program(ctx):
        rank, swap = ctx.channel.rank, ctx.channel.swap

        def own(message):
            return [m[rank] if isinstance(m, dict) else m for m in swap(message)]

        ctx.channel.swap = own
        if rank == 2:
            _Equivocates(SESSION).toss(ctx.channel)
        else:
            with pytest.raises(SessionError, match="was promised other coins than this party"):
                TossedCoins(SESSION).toss(ctx.channel)
            refused.append(rank)
        return torch.zeros(1)

    run(program, 3)
    assert sorted(refused) == [0, 1]
