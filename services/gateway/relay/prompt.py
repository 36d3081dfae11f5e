"""A bound on a prompt's tokens, without a tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from services.gateway.catalogue.prices import PricedModel

#: Tokens of a message beside its strings: role, separators.
TOKENS_PER_MESSAGE = 16
#: Tokens that a ``,`` ``{`` ``[`` of tools, tool calls or a response format adds beside itself: templates write JSON
#: again, with spaces or with line breaks and indentation.
TOKENS_PER_SEPARATOR = 4
#: The estimate that rates count; the bound would refuse users four times too early.
BYTES_PER_TOKEN_GUESS = 4


class Prompt(msgspec.Struct, frozen=True):
    """A prompt's measures: bytes of text, images, messages, and separators in what is JSON within it.

    Text is the strings of messages as UTF-8 (URLs of images apart), and tools, tool calls and a response format as
    they are sent.
    """

    text_bytes: int
    images: int
    messages: int
    separators: int = 0

    def bound(self, model: PricedModel) -> int:
        """The most tokens that this prompt can have, if the model's row is right about bytes per token."""
        return (
            -(-self.text_bytes // model.prompt_bytes_per_token)
            + TOKENS_PER_SEPARATOR * self.separators
            + TOKENS_PER_MESSAGE * self.messages
            + self.images * model.max_tokens_per_image
        )

    @property
    def estimate(self) -> int:
        """About the number of tokens of its text."""
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
