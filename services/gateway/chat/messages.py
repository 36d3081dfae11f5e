# No postponed annotations here: the structs are made in a function, where msgspec could not look names up.
"""The shapes that messages, tools and response formats may have.

The bytes that came in go out. If a client sends members that are not forwarded (SDKs send back a model's whole
answer, ``annotations`` included), those members are cut out, and nothing else changes.

Members that cost money without showing in the usage are not forwarded: ``cache_control`` (storage, by the hour), a
``format`` that makes a video of an image, and ``audio`` of earlier answers.
"""

import binascii
import re
from collections.abc import Sized
from typing import Annotated, Any, Literal, TypedDict

import msgspec

from services.gateway.errors import InvalidRequest, RequestTooLarge
from services.gateway.relay.prompt import text_bytes, utf8_length
from services.gateway.relay.raw_json import separators, starts

MAX_MESSAGES, MAX_PARTS, MAX_TOOLS = 4096, 256, 256
#: Messages, parts, tool calls and thinking blocks of one request, all of which are walked.
MAX_WALKED = 8192
#: Bytes of tools, and of a response format.
MAX_SCHEMA_BYTES = 1024 * 1024

_NULL = msgspec.Raw(b"null")

#: No user info, port or backslash: nothing that two parsers could read as different hosts.
_HTTPS = re.compile(r"https://([A-Za-z0-9.-]{1,253})(?:[/?#][!-\[\]-~]*)?")
#: The start of an image's ``data:`` URL. Nothing else is allowed, since LiteLLM passes the type on unchanged.
_DATA = re.compile(r"data:image/[a-z0-9][a-z0-9.+-]{0,31};base64,", re.IGNORECASE)


def _decoders(*, strict: bool) -> dict[str, msgspec.json.Decoder[Any]]:
    """A decoder per field. Strict ones refuse members that are not forwarded, the others skip them."""

    class Base(msgspec.Struct, forbid_unknown_fields=strict, gc=False):
        pass

    class ImageUrl(Base):
        url: str
        detail: str | None = None

    class Part(Base):
        type: Literal["text", "image_url", "refusal"]
        text: str | None = None
        image_url: str | ImageUrl | None = None
        refusal: str | None = None

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
        tool_calls: list[ToolCall] | None = None
        function_call: Called | None = None
        thinking_blocks: list[Thinking] | None = None
        name: str | None = None
        tool_call_id: str | None = None
        refusal: str | None = None
        reasoning_content: str | None = None
        provider_specific_fields: Signatures | None = None

    class Function(Base):
        name: Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9_.:-]{1,128}$")]
        description: str | None = None
        parameters: msgspec.Raw = _NULL
        strict: bool | None = None

    class Tool(Base):
        type: Literal["function"]
        function: Function

    class JsonSchema(Base):
        name: str
        schema: msgspec.Raw = _NULL
        description: str | None = None
        strict: bool | None = None

    class ResponseFormat(Base):
        type: Literal["text", "json_object", "json_schema"]
        json_schema: JsonSchema | None = None

    return {
        "messages": msgspec.json.Decoder(Annotated[list[Message], msgspec.Meta(min_length=1, max_length=MAX_MESSAGES)]),
        "tools": msgspec.json.Decoder(Annotated[list[Tool], msgspec.Meta(max_length=MAX_TOOLS)]),
        "response_format": msgspec.json.Decoder(ResponseFormat),
    }


_STRICT, _LENIENT = _decoders(strict=True), _decoders(strict=False)


def _kept(names: str, /, **nested: Any) -> Any:
    """The type of an object's forwarded members, whose bytes are kept. Decoding it skips all others."""
    typed_dict: Any = TypedDict  # a type checker wants literals
    return typed_dict("Kept", {**dict.fromkeys(names.split(), msgspec.Raw), **nested}, total=False)


def _list(of: Any) -> Any:
    return list[of]


# A decoded object has its members in the order in which they came, and is encoded in that order. A member that may be
# a text as well as an object or a list is kept whole, and looked at by itself.
_PROVIDER = "provider_specific_fields"
_CALLED = _kept(f"name arguments {_PROVIDER}")
_TOOL_CALL = _kept(f"id type index {_PROVIDER}", function=_CALLED)
_MESSAGE = _kept(
    f"role content name tool_call_id refusal reasoning_content {_PROVIDER}",
    tool_calls=_list(_TOOL_CALL) | None,
    function_call=_CALLED | None,
    thinking_blocks=_list(_kept("type thinking signature data")) | None,
)
_TOOL = _kept("type", function=_kept("name description parameters strict"))
_FORWARDED: dict[str, msgspec.json.Decoder[Any]] = {
    "messages": msgspec.json.Decoder(_list(_MESSAGE)),
    "tools": msgspec.json.Decoder(_list(_TOOL)),
    "response_format": msgspec.json.Decoder(_kept("type", json_schema=_kept("name schema description strict") | None)),
}
_parts = msgspec.json.Decoder(_list(_kept("type text refusal image_url")))
_image = msgspec.json.Decoder(_kept("url detail"))
_signatures = msgspec.json.Decoder(_kept("thought_signature thought_signatures"))


def _leave_out(name: str, raw: msgspec.Raw) -> msgspec.Raw:
    """The bytes of a field without the members that are not forwarded."""
    value = _FORWARDED[name].decode(raw)
    if name == "messages":
        for message in value:
            _leave_out_of_message(message)
    return msgspec.Raw(msgspec.json.encode(value))


def _leave_out_of_message(message: dict[str, Any]) -> None:
    if (content := message.get("content")) is not None and starts(content, "["):
        message["content"] = parts = _parts.decode(content)
        for part in parts:
            if (image := part.get("image_url")) is not None and starts(image, "{"):
                part["image_url"] = _image.decode(image)
    if _PROVIDER in message:
        _leave_out_of_provider(message)
    for call in message.get("tool_calls") or ():
        if _PROVIDER in call:
            _leave_out_of_provider(call)
        if _PROVIDER in call["function"]:
            _leave_out_of_provider(call["function"])
    if (called := message.get("function_call")) is not None and _PROVIDER in called:
        _leave_out_of_provider(called)


def _leave_out_of_provider(owner: dict[str, Any]) -> None:
    """Keep the signatures. If the object had only other members, the owner loses it."""
    sent = owner[_PROVIDER]
    if starts(sent, "n"):
        return
    if signatures := _signatures.decode(sent):
        owner[_PROVIDER] = signatures
    elif bytes(sent)[1:-1].strip():
        del owner[_PROVIDER]


def decode(name: str, raw: msgspec.Raw) -> tuple[Any, msgspec.Raw]:
    """A field's value, and the bytes to forward for it.

    :raises msgspec.DecodeError: the value has another shape; the path in the message starts at the field.
    :raises UnicodeDecodeError, RecursionError: likewise.
    """
    try:
        return _STRICT[name].decode(raw), raw
    except msgspec.ValidationError:
        value = _LENIENT[name].decode(raw)
        return value, _leave_out(name, raw)


def decode_schema(name: str, raw: msgspec.Raw) -> msgspec.Raw | None:
    """The bytes to forward of tools or a response format, whose JSON Schemas are not checked; None for no tools.

    :raises InvalidRequest: a schema is not an object.
    :raises RequestTooLarge: it is too large.
    :raises msgspec.DecodeError, UnicodeDecodeError, RecursionError: as ``decode``.
    """
    if len(raw) > MAX_SCHEMA_BYTES:
        raise RequestTooLarge(f"This is larger than {MAX_SCHEMA_BYTES} bytes.", param=name)
    if starts(raw, "n"):
        return raw if name == "response_format" else None
    value, forwarded = decode(name, raw)
    if not value:
        return None
    if name == "tools":
        schemas = {f"[{at}].function.parameters": tool.function.parameters for at, tool in enumerate(value)}
    else:
        schemas = {".json_schema.schema": value.json_schema.schema} if value.json_schema else {}
    for path, schema in schemas.items():
        if not starts(schema, "{") and not starts(schema, "n"):
            raise InvalidRequest("Expected an object, a JSON Schema.", param=f"{name}{path}")
    return forwarded


class _Calls(msgspec.Struct, gc=False):
    tool_calls: msgspec.Raw = _NULL
    function_call: msgspec.Raw = _NULL


_calls = msgspec.json.Decoder(list[_Calls])


def measure(messages: list[Any], forwarded: msgspec.Raw, image_hosts: frozenset[str]) -> tuple[int, int, int]:
    """The size of messages: UTF-8 bytes of all strings (of tool calls: all bytes), separators in tool calls, images.

    The URLs of images don't count as text.

    :param forwarded: the bytes of the messages.
    :raises InvalidRequest: a part lacks its value, or an image is not allowed.
    :raises RequestTooLarge: there are more than ``MAX_WALKED`` messages and parts of them.
    """
    size = inner = images = 0
    walked, with_calls = len(messages), False
    for number, message in enumerate(messages):
        role, content, tool_calls, function_call, thinking, *others = msgspec.structs.astuple(message)
        size += len(role)
        if content.__class__ is str:
            size += utf8_length(content)
        elif content is None:
            if role != "assistant":
                raise InvalidRequest("A message of this role needs content.", param=f"messages[{number}].content")
        else:
            walked = _walk(walked, content)
            for position, part in enumerate(content):
                size += _measure_part(part, role, image_hosts, f"messages[{number}].content[{position}]")
                images += part.type == "image_url"
        if tool_calls is not None or function_call is not None:
            walked = _walk(walked, tool_calls or ())
            with_calls = True
        if thinking is not None:
            walked = _walk(walked, thinking)
            size += text_bytes(thinking)
        for value in others:
            if value is not None:
                size += text_bytes(value)
    if with_calls:
        for calls in _calls.decode(forwarded):
            for raw in (calls.tool_calls, calls.function_call):
                if not starts(raw, "n"):
                    size += len(raw)
                    inner += separators(bytes(raw))
    return size, inner, images


def _walk(walked: int, items: Sized) -> int:
    """:raises RequestTooLarge: there are too many messages and parts."""
    walked += len(items)
    if walked > MAX_WALKED:
        raise RequestTooLarge(f"There are more than {MAX_WALKED} messages and parts.", param="messages")
    return walked


def _measure_part(part: Any, role: str, image_hosts: frozenset[str], param: str) -> int:
    kind, value = part.type, getattr(part, part.type)
    if value is None or any(getattr(part, other) is not None for other in _PART_KINDS if other != kind):
        raise InvalidRequest(f"A part of this type needs `{kind}` and nothing else.", param=f"{param}.{kind}")
    if kind == "refusal" and role != "assistant":
        raise InvalidRequest("Only an assistant's message has refusals.", param=f"{param}.type")
    if kind != "image_url":
        return len(kind) + utf8_length(value)
    url, detail = (value, None) if isinstance(value, str) else (value.url, value.detail)
    if not _may_use(url, image_hosts):
        hosts = f" or as https URLs of {', '.join(sorted(image_hosts))}" if image_hosts else ""
        raise InvalidRequest(
            f"Images are sent as `data:image/...;base64,` URLs{hosts}.", param=f"{param}.image_url.url"
        )
    return len(kind) + text_bytes(detail)


_PART_KINDS = ("text", "image_url", "refusal")


def _may_use(url: str, hosts: frozenset[str]) -> bool:
    if kind := _DATA.match(url):
        try:
            return bool(binascii.a2b_base64(url[kind.end() :], strict_mode=True))
        except ValueError:
            return False
    match = _HTTPS.fullmatch(url)
    return match is not None and match[1].lower() in hosts
