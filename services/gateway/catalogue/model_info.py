"""LiteLLM's ``/model/info``, entry by entry: one that can't be read hides none of the others.

Operators may write entries of any shape and depth, so the list is split before anything is decoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import msgspec

from shared.domain.service_types import MAX_MODEL_NAME, is_model_name

#: The tokens that begin or end something in JSON. A string is one token, whatever is in it.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)
_MEMBER = re.compile(rb'\s*("[^"\\]*(?:\\.[^"\\]*)*")\s*:(.*)', re.DOTALL)


class _Answer(msgspec.Struct):
    data: list[msgspec.Raw]


def read(body: bytes) -> tuple[list[Mapping[str, Any]], dict[str, str]]:
    """``(entries that can be read, reasons by name why the others can't)``, prices as they are written.

    An entry without a name is named by its place in the list.

    :raises ValueError: it isn't a list of models.
    """
    entries: list[Mapping[str, Any]] = []
    unreadable: dict[str, str] = {}
    for number, raw in enumerate(_split(body), 1):
        try:
            entry = json.loads(raw, parse_float=Decimal)
            name = entry.get("model_name") if isinstance(entry, dict) else None
        except (ValueError, RecursionError) as error:
            unreadable[_shown(_name(raw), number)] = f"can't be read ({type(error).__name__})"
            continue
        if not isinstance(name, str) or not is_model_name(name):
            unreadable[_shown(name, number)] = (
                f"its model_name is not 1 to {MAX_MODEL_NAME} printable characters without spaces"
            )
        else:
            entries.append(entry)
    return entries, unreadable


def _shown(name: Any, number: int) -> str:
    """The name under which a refused entry is reported, in ASCII."""
    return ascii(name)[1:-1][:256] if isinstance(name, str) and name else f"entry {number}"


def _split(body: bytes) -> list[bytes]:
    """The bytes of each entry.

    :raises ValueError: it isn't a list of models.
    """
    try:
        return [bytes(raw) for raw in msgspec.json.decode(body, type=_Answer).data]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # no parser takes one of the entries, so brackets tell where each ends
    data = _members(body).get("data", b"")
    if not data.lstrip().startswith(b"["):
        raise ValueError("not a list of models")
    return [item for item in _children(data) if item.strip()]


def _name(raw: bytes) -> str | None:
    """The name in an entry that can't be decoded as a whole."""
    try:
        name = json.loads(_members(raw).get("model_name", b""))
    except (ValueError, RecursionError):
        return None
    return name if isinstance(name, str) else None


def _members(raw: bytes) -> dict[str, bytes]:
    """The members of an object, each with the bytes of its value."""
    found = (_MEMBER.fullmatch(child) for child in _children(raw))
    return {json.loads(member[1]): member[2] for member in found if member}


def _children(raw: bytes) -> Iterator[bytes]:
    """The items within the outermost brackets, which commas separate."""
    depth = start = 0
    for token in _TOKEN.finditer(raw):
        match token[0]:
            case b"[" | b"{":
                depth += 1
                if depth == 1:
                    start = token.end()
            case b"]" | b"}":
                depth -= 1
                if depth == 0:
                    yield raw[start : token.start()]
                    return
            case b"," if depth == 1:
                yield raw[start : token.start()]
                start = token.end()
