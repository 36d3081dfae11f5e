"""Strict JSON for input from outside, so that two readers can't read one text differently."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn, TypeVar

import msgspec

_Object = TypeVar("_Object")

# Strings are matched whole (also one that never ends), so that brackets in them don't count. Linear: no
# alternative can take back what another has matched.
_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def decode(raw: bytes, kind: type[_Object]) -> _Object:
    """A typed object without repeated members, at any depth.

    :raises ValueError: the bytes are malformed.
    """
    try:
        _load(raw)
        return msgspec.json.decode(raw, type=kind)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse(raw: bytes, *, depth: int) -> Any:
    """A value of any kind, from UTF-8.

    :param depth: the most brackets that may be open at a time.
    :raises ValueError: whatever is wrong with the bytes; text that isn't Unicode (lone surrogates in escapes) could not
        be stored or logged.
    """
    text = raw.decode("utf-8")
    opened = 0
    for token in _BRACKET.finditer(text):
        opened += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if opened > depth:
            raise ValueError("nested too deeply")
    value = _load(text)
    json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _load(text: bytes | str) -> Any:
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member occurs twice")
    return members


def _refuse(_constant: str) -> NoReturn:
    raise ValueError("not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number beyond a double")
    return value
