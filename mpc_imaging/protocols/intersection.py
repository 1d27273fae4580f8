"""Private set intersection: each of two owners learns which of its own elements the other has too, and no more.

Diffie-Hellman in a group of prime order (Meadows, IEEE S&P 1986; Huberman, Franklin and Hogg, EC 1999), both ways at
once: A sends H(x)^a for each of its x, B sends H(y)^b; each raises what it got to its own exponent and sends that back
in the order in which it came. A then holds H(x)^ab, knows which x each belongs to, and compares with the H(y)^ba that
it made of B's. Owners are semi-honest, H is a random oracle, decisional Diffie-Hellman is hard.

Several sets at each side (the splits of a data set): each has an exponent of its own, so that the protocol runs between
every set here and every set there, and nobody can link an element of one set to the same element in another. An element
that a set has twice, or that is no content at all (b""), is sent as a random point: all elements of a set differ, and
its size is the public number of images.

Why not hashes under a key that both owners know: each could try candidate images on the other's hashes, ever after.
Here only what was put into a set before can be tested, and exponents die with the call. Elements are sent in random
order, so their places say nothing; what comes back in the sender's order tells its places to the sender alone.

The group is P-256, of which only x-coordinates are sent: 32 bytes, and x(kP) = x(k(-P)). Its order is prime, so no
element lies in a small subgroup, and `cryptography` refuses every x that is not on the curve or not below the field's
prime. H(x) is the first of SHA-256(context, content, 0), (…, 1), … on the curve, two tries on average: uniform among
all x-coordinates. The number of tries depends on the content; only their sum over all elements could ever be timed.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec

from mpc_imaging.errors import TransportError

ELEMENT_BYTES = 32
CHUNK = 4096  # elements of one exchange: under a second of work, so that no peer seems dead

_CURVE = ec.SECP256R1()
_EVEN = b"\x02"  # the SEC 1 prefix of a point by its x-coordinate alone; which of the two it is does not matter here
_DOMAIN = b"mpc_imaging intersection 1"

# Sends bytes to the peer and returns the given number of bytes from it.
Swap = Callable[[bytes, int], bytes]


class IntersectionError(TransportError):
    """What a peer sent is no part of the protocol; names both parties and the step."""


@dataclass(frozen=True)
class Pair:
    """Who talks to whom, for error messages, and how. ``context``: public bytes, of this session and these two."""

    me: str
    peer: str
    context: bytes
    swap: Swap


@dataclass(frozen=True)
class _Set:
    """One of this side's sets, in the random order in which it is sent, under its own exponent.

    ``order[k]`` is the place of the k-th sent element among the contents. ``sent`` grows as it is sent.
    """

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    contents: Sequence[bytes] = field(repr=False)
    order: Sequence[int] = field(repr=False)
    sent: list[bytes] = field(default_factory=list, repr=False)

    @classmethod
    def make(cls, contents: Sequence[bytes]) -> _Set:
        """A set with a fresh exponent, in a fresh order."""
        order = list(range(len(contents)))
        secrets.SystemRandom().shuffle(order)
        return cls(ec.generate_private_key(_CURVE), contents, order)

    def blinded(self, context: bytes) -> Iterator[bytes]:
        """Every element under the exponent; a repeat, or nothing at all, as a random point."""
        first = _first_places(self.contents)
        for place in self.order:
            content = self.contents[place]
            real = content and first[content] == place
            x = hash_to_group(context, content if real else secrets.token_bytes(ELEMENT_BYTES))
            self.sent.append(self.raised(_point(x)))
            yield self.sent[-1]

    def raised(self, point: ec.EllipticCurvePublicKey) -> bytes:
        """A point under the exponent."""
        return self.key.exchange(ec.ECDH(), point)


def intersect(
    mine: Mapping[str, Sequence[bytes]], theirs: Mapping[str, int], pair: Pair
) -> dict[str, list[frozenset[str]]]:
    """For each element of my sets, the names of the peer's sets that have it too; both sides call this.

    mine: sets of contents of any length, such as digests; b"" is like nothing. theirs: the sizes of the peer's sets.
    Both sides must have sets of the same names, in the same order. Raises `IntersectionError`, and what ``pair.swap``
    raises.
    """
    sets = {name: _Set.make(contents) for name, contents in mine.items()}
    total, others = sum(map(len, mine.values())), sum(theirs.values())
    blinded = (element for own in sets.values() for element in own.blinded(pair.context))
    received = _exchange(pair, "blinded images", blinded, others)
    if not {element for own in sets.values() for element in own.sent}.isdisjoint(received):
        raise IntersectionError(f"{pair.peer} sent {pair.me}'s own blinded images back as its own")
    # Theirs under both exponents: once for each of my sets, kept to compare with and sent back in the order received.
    doubled: dict[str, list[bytes]] = {name: [] for name in sets}
    returned = _exchange(pair, "doubly blinded images", _raised(received, sets, doubled), total * len(theirs))
    return _matches(sets, doubled, theirs, returned)


def hash_to_group(context: bytes, content: bytes) -> bytes:
    """The x-coordinate of a point that nobody knows the logarithm of: 32 bytes."""
    start = hashlib.sha256(_DOMAIN + hashlib.sha256(context).digest() + hashlib.sha256(content).digest())
    for counter in itertools.count():
        attempt = start.copy()
        attempt.update(counter.to_bytes(4, "big"))
        if _point(attempt.digest()) is not None:
            return attempt.digest()


def _point(x: bytes) -> ec.EllipticCurvePublicKey | None:
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, _EVEN + x)
    except ValueError:
        return None


def _first_places(contents: Sequence[bytes]) -> dict[bytes, int]:
    first: dict[bytes, int] = {}
    for place, content in enumerate(contents):
        first.setdefault(content, place)
    return first


def _raised(received: Sequence[bytes], sets: Mapping[str, _Set], doubled: dict[str, list[bytes]]) -> Iterator[bytes]:
    for element in received:
        point = _point(element)
        for name, own in sets.items():
            doubled[name].append(own.raised(point))
            yield doubled[name][-1]


def _exchange(pair: Pair, step: str, outgoing: Iterator[bytes], due: int) -> list[bytes]:
    """Send all of ``outgoing`` and read ``due`` elements, chunk by chunk; every one must be a point, and none twice."""
    received: list[bytes] = []
    while True:
        sending = b"".join(itertools.islice(outgoing, CHUNK))
        size = min(CHUNK, due - len(received)) * ELEMENT_BYTES
        if not sending and not size:
            break
        part = pair.swap(sending, size)
        if len(part) != size:
            raise IntersectionError(f"{pair.peer} sent {pair.me} {len(part)} bytes of {step} where {size} were due")
        elements = [bytes(part[at : at + ELEMENT_BYTES]) for at in range(0, size, ELEMENT_BYTES)]
        for number, element in enumerate(elements, len(received)):
            if _point(element) is None:
                raise IntersectionError(f"{pair.peer} sent {pair.me} no point of P-256 as number {number} of {step}")
        received += elements
    if len(set(received)) < len(received):
        raise IntersectionError(f"{pair.peer} sent {pair.me} the same point twice among its {step}")
    return received


def _matches(
    sets: Mapping[str, _Set], doubled: Mapping[str, Sequence[bytes]], theirs: Mapping[str, int],
    returned: Sequence[bytes],
) -> dict[str, list[frozenset[str]]]:  # fmt: skip
    """Compare mine under both exponents, as they came back, with theirs."""
    results, answers = {}, iter(returned)
    for name, own in sets.items():
        elements = iter(doubled[name])
        held = {other: set(itertools.islice(elements, size)) for other, size in theirs.items()}
        found: dict[bytes, frozenset[str]] = {b"": frozenset()}
        for place in own.order:
            answer = {other: next(answers) for other in theirs}
            where = frozenset(other for other, element in answer.items() if element in held[other])
            # A repeat was sent as a random point, which is nowhere: the first of the same content tells for all.
            found[own.contents[place]] = found.get(own.contents[place], frozenset()) | where
        results[name] = [found[content] for content in own.contents]
    return results
