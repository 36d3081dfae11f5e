"""A chat request: validated, and encoded anew with the parameters on the allow-list alone."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from services.gateway.chat import messages
from services.gateway.chat.config import ChatConfig
from services.gateway.chat.prompt import Prompt, schema_bytes
from services.gateway.errors import InvalidModel, InvalidRequest

MODEL_NAME = re.compile(r"[A-Za-z0-9./_:-]{1,128}")
MAX_CHOICES = 8

_Limit = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Stop = str | Annotated[list[str], Meta(max_length=16)] | None


_NULL = msgspec.Raw(b"null")


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class _Named(msgspec.Struct, frozen=True):
    name: Annotated[str, Meta(min_length=1, max_length=128)]


class _ToolChoice(msgspec.Struct, frozen=True):
    type: Literal["function"]
    function: _Named


class _Parameters(msgspec.Struct, frozen=True):
    """What is read of a body; members that do not stand here are dropped."""

    messages: msgspec.Raw
    model: Any = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: _Stop = None
    max_tokens: _Limit | None = None
    max_completion_tokens: _Limit | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: dict[Annotated[str, Meta(pattern=r"^[0-9]{1,9}$")], Annotated[float, Meta(ge=-100, le=100)]] | None = (
        None
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: msgspec.Raw = _NULL
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    tools: msgspec.Raw = _NULL
    tool_choice: Literal["none", "auto", "required"] | _ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Annotated[str, Meta(pattern=r"^[a-z]{1,16}$")] | None = None


#: Forwarded as they were read; the others are set by the gateway or have a default.
_AS_GIVEN = (
    "n",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "seed",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning_effort",
)
_decoder = msgspec.json.Decoder(_Parameters)
_encoder = msgspec.json.Encoder()


class ChatRequest:
    """A valid request.

    ``limit`` is the completion limit per choice, ``wants_usage`` whether the client asked for the usage chunk of a
    stream, ``prompt`` what the prompt measures.
    """

    __slots__ = ("_fields", "_limit_name", "limit", "model", "n", "prompt", "stream", "wants_usage")

    def __init__(self, given: _Parameters, fields: dict[str, Any], prompt: Prompt, config: ChatConfig) -> None:
        self.model: str = given.model
        self.stream = given.stream is True
        self.n = given.n or 1
        self.wants_usage = given.stream_options is not None and given.stream_options.include_usage is True
        self.prompt = prompt
        limit = given.max_completion_tokens or given.max_tokens
        self.limit = limit or config.max_completion_tokens
        old_name = given.max_tokens is not None and given.max_completion_tokens is None
        self._limit_name = "max_tokens" if old_name else "max_completion_tokens"
        fields["temperature"] = config.temperature if given.temperature is None else given.temperature
        fields["top_p"] = config.top_p if given.top_p is None else given.top_p
        for name in _AS_GIVEN:
            value = getattr(given, name)
            if value is not None:
                fields[name] = value
        self._fields = fields

    def encode(self, user: str, grant: int) -> bytes:
        """The body for LiteLLM."""
        body = {"model": self.model, **self._fields, self._limit_name: grant, "user": user, "stream": self.stream}
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        return _encoder.encode(body)


def parse(body: bytes, config: ChatConfig) -> ChatRequest:
    """Validate a body.

    :raises InvalidRequest: with the field at fault in ``param``.
    :raises InvalidModel: the model is not a model's name.
    """
    name: str | None = None
    try:
        given = _decoder.decode(body)
        if not isinstance(given.model, str) or not MODEL_NAME.fullmatch(given.model):
            raise InvalidModel("The model is not a model's name.")
        name = "messages"
        conversation, raw = messages.decode(name, given.messages)
        fields: dict[str, Any] = {name: raw}
        size, images = messages.measure(conversation, config.image_url_hosts)
        for name in ("tools", "response_format"):
            given_raw = getattr(given, name)
            if bytes(given_raw) != b"null":
                value, fields[name] = messages.decode(name, given_raw)
                size += schema_bytes(value)
        name = None
        if not body.isascii():
            body.decode()  # members that are dropped were not looked at
    except msgspec.ValidationError as error:
        raise _field_error(error, name) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest("The body is not valid JSON.", param=name) from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", param=name) from None
    except OverflowError:
        # a whole number of more than 64 bits, in a value that has to be encoded anew
        raise InvalidRequest("A number is out of range.", param=name) from None
    return ChatRequest(given, fields, Prompt(size, images, len(conversation)), config)


_WHERE = re.compile(r" - at (?:`key` in )?`\$(.*)`$")
_MISSING = re.compile(r"missing required field `(\w+)`")
_SAFE = ("Expected ", "Object missing required field ")


def _field_error(error: msgspec.ValidationError, name: str | None) -> InvalidRequest:
    """Names the field; says what was expected, but never what was sent."""
    text = str(error)
    where = _WHERE.search(text)
    path = where[1] if where else ""
    missing = _MISSING.search(text)
    if missing:
        path += f".{missing[1]}"
    param = (f"{name}{path}" if name else path.lstrip(".")).replace("[...]", "")
    reason = text[: where.start()] if where else text
    if not reason.startswith(_SAFE):
        reason = "The value is not allowed"
    return InvalidRequest(f"{reason}.", param=param or None)
