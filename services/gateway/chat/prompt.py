"""How large a prompt can be, in tokens, before anybody has tokenised it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from services.gateway.budget.prices import PricedModel

#: What a message costs beside its strings: role, separators.
TOKENS_PER_MESSAGE = 16
#: The guess that rates count by; a bound would turn users away four times too early.
BYTES_PER_TOKEN_GUESS = 4
#: Bytes between the strings of tools that are about nothing else.
PUNCTUATION = 256


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's measures: UTF-8 bytes of its strings (images apart), images, messages."""

    text_bytes: int
    images: int
    messages: int

    def bound(self, model: PricedModel) -> int:
        """The most tokens that this prompt can be."""
        text = -(-self.text_bytes // model.prompt_bytes_per_token)
        return text + TOKENS_PER_MESSAGE * self.messages + self.images * model.max_tokens_per_image

    @property
    def estimate(self) -> int:
        """About how many tokens its text is."""
        return self.text_bytes // BYTES_PER_TOKEN_GUESS


def utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def text_bytes(value: Any) -> int:
    """UTF-8 bytes of all strings in a decoded value, keys of objects included."""
    if isinstance(value, str):
        return utf8_length(value)
    if isinstance(value, list):
        return sum(map(text_bytes, value))
    if isinstance(value, dict):
        return sum(utf8_length(key) + text_bytes(item) for key, item in value.items())
    if isinstance(value, msgspec.Struct):
        return sum(text_bytes(getattr(value, name)) for name in value.__struct_fields__)
    return 0


def schema_bytes(value: Any) -> int:
    """How much tools or a response format count: their strings, or what stands between them where that is more.

    A list of a million booleans has no string, and is prompt all the same.
    """
    text = text_bytes(value)
    between = len(msgspec.json.encode(value)) - text
    return max(text, between - PUNCTUATION)
