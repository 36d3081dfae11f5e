"""JSON from outside, without the leniencies that let two readers see two things in one text."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

import msgspec

_Object = TypeVar("_Object")


def decode(raw: bytes, kind: type[_Object]) -> _Object:
    """A typed object; no member may stand there twice, at any depth.

    :raises ValueError: whatever is wrong with the bytes.
    """
    try:
        json.loads(raw, object_pairs_hook=_unique, parse_constant=_refuse)
        return msgspec.json.decode(raw, type=kind)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member stands there twice")
    return members


def _refuse(_constant: str) -> NoReturn:
    raise ValueError("not a JSON number")
