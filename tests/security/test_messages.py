"""What a peer or a file says in JSON is what was due, or ends in a typed error: no other, and no wrong type.

Every reader gets each of its messages with something else in every place, and then whatever hypothesis thinks of.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st

import mpc_imaging
from mpc_imaging.errors import MPCImagingError, PeerLostError
from mpc_imaging.parties import ledger, sealed, session as sessions
from mpc_imaging.parties.session import Session
from mpc_imaging.preprocess import read_plan
from mpc_imaging.randomness import claims, dealer, store_files
from mpc_imaging.randomness.plan import Plan
from mpc_imaging.settings import Settings, from_mapping, public_digests
from mpc_imaging.tasks import checkpoints, duplicates, federated, inputs, stopping
from mpc_imaging.tasks.feed import SessionFeed
from mpc_imaging.tasks.inputs import Catalogue
from mpc_imaging.transport.mesh import Mesh
from tests.randomness.test_plan import PLAN
from tests.test_settings import changed

HEX = "ab" * 32
OWNERS, OUTSIDE = ("hospital_a", "hospital_b"), ("cloud_a", "cloud_b")


class Heard(Mesh):
    """The real way from bytes to what was said, of one message that comes three times, whatever is waited for."""

    def __init__(self, me: str, peers: tuple[str, ...], text: str) -> None:
        self.me, self.peers, self.session_id = me, peers, b"s" * 16
        self.timeout_s, self.text, self.left = 1.0, text, 3
        self._channels = dict.fromkeys(peers, SimpleNamespace(receive_step=1))

    def receive(self, *_: Any, **__: Any) -> bytearray:
        self.left -= 1
        if self.left < 0:
            raise PeerLostError("it has said all")
        return bytearray(self.text.encode(errors="surrogatepass"))

    def send(self, *_: Any, **__: Any) -> None:
        pass

    def _fail(self, error: BaseException) -> None:
        pass


INSIDE = from_mapping(changed({}))  # read once: it takes a while
INSIDE.task.stream.frames_per_step = 2


def _session(me: str, text: str, settings: Settings = INSIDE) -> Session:
    peers = tuple(name for name in settings.participants() if name != me)
    return Session(settings, Heard(me, peers, text), SimpleNamespace(write=lambda *_, **__: None), {})


def _outside() -> Settings:
    roles = {name: {"roles": ["data_owner"]} for name in OWNERS} | {name: {"roles": ["compute"]} for name in OUTSIDE}
    roles["hospital_a"]["roles"] += ["model_owner", "receiver"]
    settings = from_mapping(changed({"topology.parties": roles | {"dealer": {"roles": ["dealer"]}}}))
    settings.resume = True
    return settings


ELSEWHERE = _outside()


def _handshake(text: str) -> object:
    return sessions._handshake(INSIDE, Heard("hospital_a", ("hospital_b",), text))


def _resuming(text: str) -> object:
    return checkpoints.starting_point(_session("hospital_a", text, ELSEWHERE), None, {})


def _latest(text: str) -> object:
    origin, step = checkpoints._latest(_session("hospital_a", text), {(HEX, 3): Path(), (HEX, 5): Path()})
    assert (origin, type(step)) == (HEX, int)
    return step


def _catalogue(me: str) -> Callable[[str], object]:
    def read(text: str) -> object:
        own = _own() if me in OWNERS else None
        catalogue = inputs.announce(_session(me, text), ["test"], own)
        assert all(type(n) is int for counts in catalogue.counts.values() for n in counts.values())
        assert all(type(n) is int for n in catalogue.image_shape)
        return catalogue

    return read


class _Own(SimpleNamespace):
    def __len__(self) -> int:
        return 2


def _own() -> dict[str, Any]:
    return {"test": _Own(images=torch.zeros(2, 1, 28, 28))}


def _ids(text: str) -> object:
    catalogue = Catalogue({"hospital_a": {"test": 0}, "hospital_b": {"test": 2}}, (1, 28, 28))
    return inputs.announce_ids(_session("hospital_a", text), catalogue, "test", None, ["hospital_a"])


def _sizes(text: str) -> object:
    mesh = Heard("hospital_a", ("hospital_b",), text)
    sizes = duplicates._sizes("hospital_b", "hospital_a", ["train", "test"], mesh.receive_json("hospital_b"))
    assert all(type(n) is int for n in sizes.values())
    return sizes


def _frames(text: str) -> object:
    catalogue = Catalogue({"hospital_b": {"test": 9}}, (1, 28, 28))
    return SessionFeed(_session("hospital_a", text), catalogue, None).next()


def _stop(text: str) -> object:
    job = SimpleNamespace(session=_session("hospital_a", text, ELSEWHERE), settings=ELSEWHERE)
    return stopping.BestEpoch._told(SimpleNamespace(_job=job), None)


def _trained(text: str) -> object:
    part = SimpleNamespace(_session=_session("hospital_a", text), _counts={"hospital_b": 3})
    return _meet(part)


def _meet(part: SimpleNamespace) -> object:
    (owner,) = [one for one in vars(federated).values() if isinstance(one, type) and hasattr(one, "_meet")]
    return owner._meet(part)


def _port(text: str) -> object:
    from mpc_imaging.engine import simulation

    port = simulation._port(Heard("hospital_b", ("hospital_a",), text), "hospital_a")
    assert type(port) is int
    return port


def _agrees(text: str) -> object:
    return _session("hospital_a", text).agree_on_plan(HEX)


def _waits_for_plan(text: str) -> object:
    return _session("hospital_a", text, ELSEWHERE).agree_on_plan(None)


def _plan(text: str) -> object:
    return Plan.from_json(dealer._request(Heard("dealer", OWNERS, text), OWNERS))


def _dealt(text: str) -> object:
    """What the dealer hears in the end: who used what."""
    mesh = Heard("dealer", OWNERS, text)
    mesh.receive = lambda peer, kind, **_: bytearray(b"null" if kind.name == "REQUEST" else text.encode())
    return dealer.serve_requests(mesh, OWNERS, [b"k" * 32] * 2)


HELLO = {"party": "b", "store": "00" * 16, "plan": HEX, "count": 10, "next": 5, "witness": {"a": 4}}


def _claim(text: str) -> object:
    theirs = Heard("a", ("b",), text).receive_json("b")
    index = claims.agree(HELLO | {"party": "a", "witness": {"b": 3}}, {"b": theirs})
    assert type(index) is int
    return index


def _file(read: Callable[[Path], object], wrap: Callable[[bytes], bytes] = lambda raw: raw) -> Callable[[str], object]:
    def of_text(text: str) -> object:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "file")
            path.write_bytes(wrap(text.encode(errors="surrogatepass")))
            return read(path)

    return of_text


def _sealed(raw: bytes) -> bytes:
    head = sealed._HEAD.pack(b"MPCSHARE", sealed.VERSION, len(raw), 0, bytes(12), bytes(16))
    return head + raw + bytes(16)


def _header(path: Path) -> object:
    header = sealed.read_header(path)
    assert all(type(header[name]) is str for name in ("kind", "session", "party")) and type(header["step"]) is int
    header["session"].encode()
    return checkpoints.Checkpoints._usable(_Checkpoints(), path.parent)


class _Checkpoints(checkpoints.Checkpoints):
    counts: Any = {}

    def __init__(self) -> None:
        self._session = _session("hospital_a", "")


@dataclass
class Reader:
    """What reads, something that it reads without an error, and whether it must refuse other types in it."""

    read: Callable[[str], object]
    sound: Any


READERS = {
    "handshake": Reader(
        _handshake,
        {"version": mpc_imaging.__version__, "settings": public_digests(INSIDE), "nonce": "00" * 32},
    ),
    "plan": Reader(_agrees, {"plan": HEX}),
    "plan elsewhere": Reader(_waits_for_plan, {"plan": HEX}),
    "point": Reader(_resuming, [1, 2, 3]),
    "checkpoints": Reader(_latest, [[HEX, 3], [HEX, 5]]),
    "catalogue": Reader(
        _catalogue("hospital_b"),
        {name: {"counts": {"test": 2}, "shape": [1, 28, 28]} for name in OWNERS},
    ),
    "counts": Reader(_catalogue("hospital_a"), {"counts": {"test": 2}, "shape": [1, 28, 28]}),
    "pseudonyms": Reader(_ids, ["hospital_b-test-1", "hospital_b-test-2"]),
    "sizes": Reader(_sizes, {"train": 3, "test": 2}),
    "frames": Reader(_frames, [0, 1]),
    "stop": Reader(_stop, {"stop": True}),
    "trained": Reader(_trained, {"trained": True}),
    "port": Reader(_port, {"port": 1234}),
    "request": Reader(_plan, PLAN.to_json()),
    "served": Reader(_dealt, {"demands": 0, "digest": dealer.DemandLog().summary()["digest"]}),
    "claim": Reader(_claim, HELLO),
    "plan file": Reader(_file(lambda path: read_plan(path, INSIDE)), PLAN.to_json()),
    "store": Reader(
        _file(lambda path: store_files.read_sealed(path, "a", "absent")),
        {
            "version": store_files.VERSION,
            "next": 3,
            "sha256": store_files._seal({"version": store_files.VERSION, "next": 3}),
        },
    ),
    "ledger": Reader(
        _file(ledger.read, lambda raw: raw + b"\n"),
        (entry := {"number": 0, "event": "end", "value": 3, "previous": ledger.GENESIS})
        | {"hash": ledger._digest(entry)},
    ),
}

# Of JSON, but never said: what has no number, what has too many digits, and what is too deep, as text.
TOKENS = [
    "1e999",
    "-1e999",
    "NaN",
    "-Infinity",
    "1" * 400,
    "9" * 5000,
    "[" * 100 + "]" * 100,
    '{"a":1,"a":1}',
    '"\\ud800"',
]
# Of another type than it seems, or none that was meant.
VALUES = [None, True, False, -1, 1.0, 0.5, 2**63, 2**70, "", "x", "é\n\x1b[31m", "9" * 10_000, [], {}, [[]], {"a": {}}]


class Raw(str):
    """A place that gets this text, as it is."""


def _text(message: Any) -> str:
    """JSON, with raw texts in it."""
    raw: list[str] = []

    def mark(value: Any) -> Any:
        if isinstance(value, Raw):
            raw.append(str(value))
            return f"\0raw {len(raw) - 1}\0"
        if isinstance(value, dict):
            return {key: mark(entry) for key, entry in value.items()}
        return [mark(entry) for entry in value] if isinstance(value, list) else value

    return re.sub(r'"\\u0000raw (\d+)\\u0000"', lambda found: raw[int(found[1])], json.dumps(mark(message)))


def _places(value: Any, place: tuple = ()) -> Iterator[tuple]:
    yield place
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from _places(entry, (*place, key))


def _put(message: Any, place: tuple, value: Any) -> Any:
    if not place:
        return value
    message = copy.deepcopy(message)
    node = message
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return message


def _ends_well(read: Callable[[str], object], text: str) -> bool:
    """Whether it was read; any error that is not typed goes on."""
    try:
        read(text)
    except MPCImagingError as error:
        assert len(str(error)) < 2000 and str(error).isprintable(), "it repeats what it was told"
        return False
    return True


@pytest.mark.parametrize("name", READERS)
def test_what_is_sound_is_read(name: str) -> None:
    assert _ends_well(READERS[name].read, json.dumps(READERS[name].sound))


@pytest.mark.parametrize("name", READERS)
def test_other_things_in_every_place(name: str) -> None:
    reader = READERS[name]
    places = list(_places(reader.sound))
    for place in places if len(places) < 40 else places[:: len(places) // 40]:
        for token in TOKENS:
            assert not _ends_well(reader.read, _text(_put(reader.sound, place, Raw(token)))), (place, token[:20])
        for value in VALUES:
            _ends_well(reader.read, _text(_put(reader.sound, place, value)))


@pytest.mark.parametrize("name", READERS)
def test_what_nobody_asked_for(name: str) -> None:
    """A further key, a key that is missing, a key twice, text behind the end, none at all."""
    reader, text = READERS[name], json.dumps(READERS[name].sound)
    others = [text + "{}", text[:-1], "", "\ufeff" + text, "\0"]
    if isinstance(reader.sound, dict):
        others += [
            text[:-1] + ', "further": 1}',
            *(text[:-1] + f", {json.dumps({k: v})[1:]}" for k, v in reader.sound.items()),
        ]
        others += [json.dumps({k: v for k, v in reader.sound.items() if k != left}) for left in reader.sound]
    for other in others:
        assert not _ends_well(reader.read, other), other[-80:]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from([HEX, *OWNERS])
    | st.sampled_from(TOKENS).map(Raw),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.parametrize("name", READERS)
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_comes(name: str, data: st.DataObject) -> None:
    reader = READERS[name]
    message = copy.deepcopy(reader.sound)
    for _ in range(data.draw(st.integers(1, 3))):
        message = _put(message, data.draw(st.sampled_from(list(_places(message)))), data.draw(_JSON))
    _ends_well(reader.read, _text(message))


@pytest.mark.parametrize("name", ["handshake", "checkpoints", "store", "ledger", "plan file"])
@hypothesis_settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.text(max_size=50) | st.binary(max_size=50).map(lambda raw: raw.decode(errors="surrogateescape")))
def test_text_that_is_no_json(name: str, text: str) -> None:
    _ends_well(READERS[name].read, text.encode(errors="replace").decode())


SEALED = {"kind": "checkpoint", "session": HEX, "party": "hospital_a", "step": 3, "parties": [], "settings": {}}


@pytest.mark.parametrize("place", list(_places(SEALED)))
def test_the_open_header_of_a_sealed_file(place: tuple) -> None:
    read = _file(_header, _sealed)
    for value in [*map(Raw, TOKENS), *VALUES]:
        assert not _ends_well(read, _text(_put(SEALED, place, value)))
