"""JSON from peers and files, read strictly: `loads` takes the text, the others what is in it, by its type and range.

Everything here raises `JsonError` that says what was wrong and repeats nothing of it; its caller knows who said it, and
raises an error of its own.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Collection
from typing import Any

MAX_DEPTH = 32  # lists and objects in one another
MAX_WHOLE = (1 << 64) - 1  # larger than any count, size or number of a message

# Also one that does not end, so that no text is looked at twice.
_TEXTS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKETS = re.compile(r"[^\[\]{}]+")
_STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}


class JsonError(ValueError):
    """No JSON, or something else in it than was due."""


def loads(raw: bytes | bytearray | str) -> Any:
    """What a JSON text in UTF-8 says: finite numbers, none beyond 64 bits, no key twice, nothing deep in itself.

    Raises `JsonError`.
    """
    try:
        text = raw if isinstance(raw, str) else bytes(raw).decode()
        brackets = _NO_BRACKETS.sub("", _TEXTS.sub("", text))
        if max(itertools.accumulate(map(_STEPS.__getitem__, brackets)), default=0) > MAX_DEPTH:
            raise JsonError(f"lists more than {MAX_DEPTH} deep")
        value = json.loads(
            text, parse_constant=_refuse, parse_float=_float, parse_int=_whole, object_pairs_hook=_object
        )
        if "\\u" in text:  # halves of characters, which no file or terminal takes
            json.dumps(value, ensure_ascii=False).encode()
    except JsonError:
        raise
    except (ValueError, RecursionError):
        raise JsonError("no JSON in UTF-8") from None
    return value


def _refuse(_: str) -> None:
    raise JsonError("a number that is not finite")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonError("a number that is not finite")
    return value


def _whole(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > MAX_WHOLE:
        raise JsonError("a number of more than 64 bits")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise JsonError("a key that is there twice")
    return found


def same(said: object, expected: object) -> bool:
    """Whether two values are the same JSON: 1, 1.0 and true are not."""
    return json.dumps(said, sort_keys=True) == json.dumps(expected, sort_keys=True)


def entries(value: object, names: Collection[str], optional: Collection[str] = ()) -> dict[str, Any]:
    """An object with all of ``names``, perhaps some of ``optional``, and nothing else."""
    if not isinstance(value, dict) or not set(names) <= value.keys() <= {*names, *optional}:
        raise JsonError(f"no object of {', '.join(names)}")
    return value


def mapping(value: object) -> dict[str, Any]:
    """An object of any keys."""
    if not isinstance(value, dict):
        raise JsonError("no object")
    return value


def listed(value: object, most: int) -> list[Any]:
    """A list of at most so many entries."""
    if not isinstance(value, list) or len(value) > most:
        raise JsonError(f"no list of at most {most}")
    return value


def whole(value: object, low: int = 0, high: int = MAX_WHOLE) -> int:
    """A whole number in a range, which true, false and 1.0 are not."""
    if type(value) is not int or not low <= value <= high:
        raise JsonError(f"no whole number from {low} to {high}")
    return value


def truth(value: object) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise JsonError("neither true nor false")
    return value


def text(value: object, most: int = 200) -> str:
    """Printable text of 1 to so many characters, on one line."""
    if not isinstance(value, str) or not 0 < len(value) <= most or not value.isprintable():
        raise JsonError(f"no printable text of at most {most} characters")
    return value


def hexadecimal(value: object, nbytes: int) -> str:
    """So many bytes as lower-case hex digits."""
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{2 * nbytes}}}", value):
        raise JsonError(f"no {nbytes} bytes in hex")
    return value


def digest(value: object) -> str:
    """SHA-256 in hex."""
    return hexadecimal(value, 32)
