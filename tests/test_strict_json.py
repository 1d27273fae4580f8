"""JSON read strictly: what is refused of a text, and of what is in it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, strategies as st

from mpc_imaging import strict_json
from mpc_imaging.strict_json import JsonError, loads

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip


@given(PLAIN)
def test_all_that_json_says_is_read(value: Any) -> None:
    assert strict_json.same(loads(json.dumps(value).encode()), value)
    assert strict_json.same(loads(json.dumps(value, ensure_ascii=False, indent=1)), value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"1e999", "not finite"), (b"[-1e400]", "not finite"), (b"NaN", "not finite"), (b"-Infinity", "not finite"),
        (b"18446744073709551616", "64 bits"), (b"9" * 100_000, "64 bits"), (b"-" + b"9" * 30, "64 bits"),
        (b'{"a": 1, "a": 1}', "twice"), (b'[{"b": {"a": 1, "a": 2}}]', "twice"),
        (b"[" * 33 + b"]" * 33, "deep"), (b"[" * 100_000, "deep"), (b'{"a":' * 100_000, "deep"),
        (b'"\\ud800"', "no JSON"), (b'{"\\udc00": 1}', "no JSON"), (b"\xff", "no JSON"), (b"\xef\xbb\xbf1", "no JSON"),
        (b"", "no JSON"), (b"1 1", "no JSON"), (b"'a'", "no JSON"), (b"01", "no JSON"), (b'"a\nb"', "no JSON"),
    ],
    ids=lambda value: str(value[:12]),
)  # fmt: skip
def test_texts_that_are_refused(text: bytes, what: str) -> None:
    with pytest.raises(JsonError, match=what):
        loads(text)


def test_brackets_in_texts_are_no_lists() -> None:
    value = {"[" * 100: '"' + "{[" * 100, "\\": '\\"[[' * 50}
    assert loads(json.dumps(value)) == value


@pytest.mark.parametrize("text", ['\\"' * 500_000, '"' + '\\"' * 500_000, '"\\' * 500_000, "[]" * 500_000])
def test_no_text_takes_long(text: str) -> None:
    began = time.process_time()
    with pytest.raises(JsonError):
        loads(text)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("value", [True, 1.0, "1", None, [], -1, 8])
def test_no_whole_number_of_the_range(value: object) -> None:
    with pytest.raises(JsonError, match="no whole number from 0 to 7"):
        strict_json.whole(value, 0, 7)


def test_types_and_ranges() -> None:
    assert strict_json.whole(7, 0, 7) == 7 and strict_json.truth(False) is False
    assert strict_json.entries({"a": 1, "b": 2}, ["a"], ["b", "c"]) == {"a": 1, "b": 2}
    for wrong in ({"b": 2}, {"a": 1, "d": 2}, [], None, "a"):
        with pytest.raises(JsonError):
            strict_json.entries(wrong, ["a"], ["b"])
    for wrong in ("", "x" * 201, "a\nb", "\x1b[2J", 5, None):
        with pytest.raises(JsonError):
            strict_json.text(wrong)
    for wrong in ("AB", "a", "abc", "ab\n", "", 5):
        with pytest.raises(JsonError):
            strict_json.hexadecimal(wrong, 1)
    for wrong in ((), {}, "ab", [1, 2, 3]):
        with pytest.raises(JsonError):
            strict_json.listed(wrong, 2)
    for wrong in (0, 1, None, "true"):
        with pytest.raises(JsonError):
            strict_json.truth(wrong)
    assert not strict_json.same(1, True) and not strict_json.same([1], [1.0]) and strict_json.same({"a": 1}, {"a": 1})
