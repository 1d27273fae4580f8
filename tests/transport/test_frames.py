from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mpc_imaging.errors import TransportError
from mpc_imaging.transport.frames import (
    DEFAULT_LIMIT,
    HEADER_SIZE,
    VERSION,
    FrameError,
    Header,
    Kind,
    byte_views,
    check,
    decode,
    encode,
    one_line,
)

PAIR = {"sender": "hospital_b", "receiver": "hospital_a"}
SESSION = bytes(range(16))
kinds = st.sampled_from(Kind)
sessions = st.binary(min_size=16, max_size=16)
steps = st.integers(0, 2**64 - 1)


def test_layout_is_fixed():
    # Two machines may run different releases: what is on the wire changes only together with VERSION.
    header = encode(Kind.OPENING, SESSION, 7, 0x0102)
    assert header.hex() == "0104" + SESSION.hex() + "0000000000000007" + "0000000000000102"
    assert [int(kind) for kind in Kind] == list(range(1, 13))
    assert VERSION == 1


@given(kinds, sessions, steps, st.integers(0, DEFAULT_LIMIT))
def test_a_header_survives_the_way(kind, session, step, length):
    data = encode(kind, session, step, length)
    assert len(data) == HEADER_SIZE
    assert decode(data, **PAIR, session=session, step=step) == Header(kind, session, step, length)
    assert decode(data, **PAIR, session=None, step=step) == Header(kind, session, step, length)


@given(st.binary(max_size=2 * HEADER_SIZE))
def test_noise_is_refused(data):
    with pytest.raises(FrameError):
        decode(data, **PAIR, session=SESSION, step=0)


@given(st.integers(0, HEADER_SIZE - 1), st.integers(1, 255))
def test_one_changed_byte_is_refused_or_caught_by_the_checks(place, change):
    data = bytearray(encode(Kind.REVEAL, SESSION, 3, 64))
    data[place] ^= change
    with pytest.raises(FrameError, match="frame from hospital_b to hospital_a, step 3: "):
        header = decode(data, **PAIR, session=SESSION, step=3)
        check(header, **PAIR, kind=Kind.REVEAL, size=64, limit=None)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (encode(Kind.SHARE, SESSION, 4, 8), "it carries step 4: it was sent before (a replay)"),
        (encode(Kind.SHARE, SESSION, 6, 8), "it carries step 6: frames before it are missing"),
        (encode(Kind.SHARE, bytes(16), 5, 8), "it belongs to another session"),
        (encode(Kind.SHARE, SESSION, 5, 1001), "1001 bytes announced, at most 1000 allowed"),
        (encode(0, SESSION, 5, 8), "unknown kind 0"),
        (encode(13, SESSION, 5, 8), "unknown kind 13"),
        (b"\x02" + encode(Kind.SHARE, SESSION, 5, 8)[1:], "version 2 instead of 1"),
        (encode(Kind.SHARE, SESSION, 5, 8)[:-1], "a header has 34 bytes, not 33"),
    ],
)
def test_decode_says_what_is_wrong(data, problem):
    with pytest.raises(FrameError) as caught:
        decode(data, **PAIR, session=SESSION, step=5, limit=1000)
    assert problem in str(caught.value)
    assert (caught.value.sender, caught.value.receiver, caught.value.step) == ("hospital_b", "hospital_a", 5)
    assert isinstance(caught.value, TransportError)


def test_the_default_limit_is_four_gibibytes():
    assert decode(encode(Kind.SHARE, SESSION, 0, 1 << 32), **PAIR, session=SESSION, step=0).length == 1 << 32
    with pytest.raises(FrameError, match="announced"):
        decode(encode(Kind.SHARE, SESSION, 0, (1 << 32) + 1), **PAIR, session=SESSION, step=0)


@pytest.mark.parametrize(
    ("expected", "problem"),
    [
        ({"kind": Kind.REVEAL, "size": 8, "limit": None}, "SHARE came where REVEAL was due"),
        ({"kind": Kind.SHARE, "size": 7, "limit": None}, "8 bytes where 7 were due (1 trailing)"),
        ({"kind": Kind.SHARE, "size": 10, "limit": None}, "8 bytes where 10 were due (2 missing)"),
        ({"kind": Kind.SHARE, "size": None, "limit": 7}, "8 bytes announced, at most 7 allowed"),
    ],
)
def test_check_says_what_is_wrong(expected, problem):
    with pytest.raises(FrameError) as caught:
        check(Header(Kind.SHARE, SESSION, 2, 8), **PAIR, **expected)
    assert problem in str(caught.value)


def test_byte_views_take_any_buffer_without_copying():
    array = np.arange(6, dtype=np.int64).reshape(2, 3)
    views = byte_views([b"ab", bytearray(b"cd"), np.zeros((0, 4)), array, np.array(5, dtype=np.uint8), b""])
    assert b"".join(views) == b"abcd" + array.tobytes() + b"\x05"
    array[0, 0] = -1
    assert bytes(views[2][:8]) == b"\xff" * 8
    assert byte_views(b"") == []
    assert [bytes(view) for view in byte_views(b"xyz")] == [b"xyz"]


def test_byte_views_refuse_what_is_not_contiguous():
    with pytest.raises(TypeError, match="contiguous"):
        byte_views([np.zeros((4, 4))[:, ::2]])


@given(st.text())
def test_one_line_is_one_printable_line(text):
    line = one_line(text, 50)
    assert line.isprintable() and len(line) <= 50 and "\n" not in line
    assert one_line(line, 50) == line
