# Annotations stay unpostponed here: the structs are made in a function, where msgspec could not look names up.
"""The shapes that messages, tools and response formats may have.

Each is decoded strictly first. Where a client sends members that are not forwarded (SDKs send back what a model
answered, `annotations` and all), the lenient twin drops them and the value is encoded anew; else the bytes that
came in go out as they are.

What would cost money that no usage tells of is not forwarded: `cache_control` (storage, by the hour), and a `format`
that makes a video of an image.
"""

import binascii
import re
from typing import Annotated, Any, Literal

import msgspec

from services.gateway.chat.prompt import text_bytes, utf8_length
from services.gateway.errors import InvalidRequest

Object = dict[str, Any]

MAX_MESSAGES, MAX_PARTS, MAX_TOOLS = 4096, 256, 256

#: No user info, no port, no backslash: nothing that two parsers could read as two hosts.
_HTTPS = re.compile(r"https://([A-Za-z0-9.-]{1,253})(?:[/?#][!-\[\]-~]*)?")
#: What comes before the bytes of an image. Nothing else may be there: LiteLLM hands the type on as it stands.
_DATA = re.compile(r"data:image/[a-z0-9][a-z0-9.+-]{0,31};base64,", re.IGNORECASE)


class _Shapes:
    """Decoders of one strictness."""

    def __init__(self, *, strict: bool) -> None:
        class Base(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=strict):
            pass

        class ImageUrl(Base):
            url: str
            detail: str | None = None

        class Part(Base):
            type: Literal["text", "image_url"]
            text: str | None = None
            image_url: str | ImageUrl | None = None

        class Signatures(Base):
            thought_signature: str | None = None
            thought_signatures: list[str] | None = None

        class Thinking(Base):
            type: Literal["thinking", "redacted_thinking"]
            thinking: str | None = None
            signature: str | None = None
            data: str | None = None

        class Called(Base):
            name: str | None = None
            arguments: str = ""
            provider_specific_fields: Signatures | None = None

        class ToolCall(Base):
            function: Called
            id: str | None = None
            type: Literal["function"] = "function"
            index: int | None = None
            provider_specific_fields: Signatures | None = None

        class Message(Base):
            role: Literal["system", "developer", "user", "assistant", "tool", "function"]
            content: str | Annotated[list[Part], msgspec.Meta(max_length=MAX_PARTS)] | None = None
            name: str | None = None
            tool_calls: list[ToolCall] | None = None
            tool_call_id: str | None = None
            function_call: Called | None = None
            refusal: str | None = None
            reasoning_content: str | None = None
            thinking_blocks: list[Thinking] | None = None
            provider_specific_fields: Signatures | None = None

        class Function(Base):
            name: Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9_.:-]{1,128}$")]
            description: str | None = None
            parameters: Object | None = None
            strict: bool | None = None

        class Tool(Base):
            type: Literal["function"]
            function: Function

        class JsonSchema(Base):
            name: str
            schema: Object | None = None
            description: str | None = None
            strict: bool | None = None

        class ResponseFormat(Base):
            type: Literal["text", "json_object", "json_schema"]
            json_schema: JsonSchema | None = None

        self.decoders: dict[str, msgspec.json.Decoder[Any]] = {
            "messages": msgspec.json.Decoder(
                Annotated[list[Message], msgspec.Meta(min_length=1, max_length=MAX_MESSAGES)]
            ),
            "tools": msgspec.json.Decoder(Annotated[list[Tool], msgspec.Meta(max_length=MAX_TOOLS)]),
            "response_format": msgspec.json.Decoder(ResponseFormat),
        }


_STRICT = _Shapes(strict=True).decoders
_LENIENT = _Shapes(strict=False).decoders


def decode(name: str, raw: msgspec.Raw) -> tuple[Any, msgspec.Raw]:
    """A field's value, and the bytes to forward for it.

    :raises msgspec.DecodeError: the value has not that shape; the path in its message starts at the field.
    :raises UnicodeDecodeError, RecursionError: likewise.
    """
    try:
        return _STRICT[name].decode(raw), raw
    except msgspec.ValidationError:
        value = _LENIENT[name].decode(raw)
        return value, msgspec.Raw(msgspec.json.encode(value))


def measure(messages: list[Any], image_hosts: frozenset[str]) -> tuple[int, int]:
    """UTF-8 bytes of all strings in messages, and the number of images, whose URLs don't count as text.

    :raises InvalidRequest: a part without its value, or an image that may not be used.
    """
    size = images = 0
    for number, message in enumerate(messages):
        role, content, *others = msgspec.structs.astuple(message)
        size += len(role)
        if content.__class__ is str:
            size += utf8_length(content)
        elif content is not None:
            for position, part in enumerate(content):
                size += _measure_part(part, image_hosts, f"messages[{number}].content[{position}]")
                images += part.type == "image_url"
        elif role != "assistant":
            raise InvalidRequest("A message of this role needs content.", param=f"messages[{number}].content")
        size += sum(text_bytes(value) for value in others if value is not None)
    return size, images


def _measure_part(part: Any, image_hosts: frozenset[str], param: str) -> int:
    if part.type == "text":
        if part.text is None or part.image_url is not None:
            raise InvalidRequest("A text part needs `text` and nothing else.", param=f"{param}.text")
        return len("text") + utf8_length(part.text)
    image = part.image_url
    if image is None or part.text is not None:
        raise InvalidRequest("An image part needs `image_url` and nothing else.", param=f"{param}.image_url")
    url, detail = (image, None) if isinstance(image, str) else (image.url, image.detail)
    if not _may_use(url, image_hosts):
        raise InvalidRequest("Images are sent as `data:image/...;base64,` URLs.", param=f"{param}.image_url.url")
    return len("image_url") + text_bytes(detail)


def _may_use(url: str, hosts: frozenset[str]) -> bool:
    if kind := _DATA.match(url):
        try:
            return bool(binascii.a2b_base64(url[kind.end() :], strict_mode=True))
        except ValueError:
            return False
    match = _HTTPS.fullmatch(url)
    return match is not None and match[1].lower() in hosts
