"""Reading whole answers of LiteLLM."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from services.gateway.errors import UpstreamError

T = TypeVar("T")


def read_answer(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Decode the members of an answer that matter.

    :raises UpstreamError: it is not an answer.
    """
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamError("The model's answer is not JSON.") from None


def token_count(numbers: Any, name: str) -> int | None:
    """A number of tokens within a usage object; None if it can't be one."""
    value = numbers.get(name) if isinstance(numbers, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        return None
    return int(value)
