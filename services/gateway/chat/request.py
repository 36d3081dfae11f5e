"""A chat request: validated, and forwarded with only the parameters on the allow-list, as the client wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from services.gateway.chat import messages
from services.gateway.relay.fields import NULL, Parameters, Reading, check_text, members, model_name
from services.gateway.relay.prompt import Prompt
from services.gateway.relay.raw_json import separators

MAX_CHOICES = 8

_Limit = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class _Named(msgspec.Struct, frozen=True):
    name: Annotated[str, Meta(min_length=1, max_length=128)]


class _ToolChoice(msgspec.Struct, frozen=True):
    type: Literal["function"]
    function: _Named


#: Parameters that are read separately; null counts as absent.
_TYPES: dict[str, Any] = {
    "stream": bool,
    "stream_options": _StreamOptions,
    "temperature": Annotated[float, Meta(ge=0, le=2)],
    "top_p": Annotated[float, Meta(ge=0, le=1)],
    "n": Annotated[int, Meta(ge=1, le=MAX_CHOICES)],
    "stop": str | Annotated[list[str], Meta(max_length=16)],
    "max_tokens": _Limit,
    "max_completion_tokens": _Limit,
    "presence_penalty": _Penalty,
    "frequency_penalty": _Penalty,
    "logit_bias": dict[Annotated[str, Meta(pattern=r"^[0-9]{1,9}$")], Annotated[float, Meta(ge=-100, le=100)]],
    "logprobs": bool,
    "top_logprobs": Annotated[int, Meta(ge=0, le=20)],
    "seed": Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)],
    "tool_choice": Literal["none", "auto", "required"] | _ToolChoice,
    "parallel_tool_calls": bool,
    "reasoning_effort": Annotated[str, Meta(pattern=r"^[a-z]{1,16}$")],
}


#: Parameters that the gateway sets itself.
_OURS = ("stream", "stream_options", "max_tokens", "max_completion_tokens")
#: Providers refuse these without tools.
_OF_TOOLS = ("tool_choice", "parallel_tool_calls")
PARAMETERS = Parameters(_TYPES, whole=("n", "max_tokens", "max_completion_tokens", "top_logprobs", "seed"))

#: The allowed values, where msgspec's message names only the value that was sent.
_ALLOWED = {
    "messages.role": "one of `system`, `developer`, `user`, `assistant`, `tool`, `function`",
    "messages.content.type": "`text`, `image_url`, or in an assistant's message `refusal`",
    "messages.tool_calls.type": "`function`",
    "messages.thinking_blocks.type": "`thinking` or `redacted_thinking`",
    "tools.type": "`function`",
    "tools.function.name": "1 to 128 of the characters A-Z a-z 0-9 _ . : -",
    "tool_choice": "`none`, `auto`, `required`, or an object that names a function",
    "tool_choice.type": "`function`",
    "response_format.type": "`text`, `json_object` or `json_schema`",
    "reasoning_effort": "a word of at most 16 lower-case letters, such as `low`",
    "logit_bias": "an object of token ids in digits, each with a number from -100 to 100",
}

#: Members of a body that are read; others are dropped.
_NAMES = frozenset(("model", "messages", "tools", "response_format", *_TYPES))
_encoder = msgspec.json.Encoder()
_NO_DEFAULTS: Mapping[str, float] = MappingProxyType({})


class ChatRequest:
    """A valid request.

    ``limit`` is the client's completion limit per choice, if it gave one; ``wants_usage``: it asked for the usage chunk
    of a stream; ``prompt``: the size of its prompt.
    """

    large_answer = False
    __slots__ = ("_fields", "_sampled", "limit", "model", "n", "prompt", "stream", "wants_usage")

    def __init__(self, model: str, fields: dict[str, msgspec.Raw], values: Mapping[str, Any], prompt: Prompt) -> None:
        """
        :param fields: the members that are forwarded unchanged.
        :param values: the parameters that are not null.
        """
        self.model = model
        self.stream: bool = values.get("stream", False)
        self.n: int = values.get("n", 1)
        options = values.get("stream_options")
        self.wants_usage = options is not None and options.include_usage is True
        self.limit: int | None = values.get("max_completion_tokens", values.get("max_tokens"))
        self.prompt, self._fields = prompt, fields
        self._sampled = "temperature" in values or "top_p" in values

    def encode(self, user: str, grant: int, limit_name: str, defaults: Mapping[str, float] = _NO_DEFAULTS) -> bytes:
        """The body for LiteLLM.

        :param limit_name: the model's name of the completion limit.
        :param defaults: ``temperature`` and ``top_p`` for a request that has neither.
        """
        body: dict[str, Any] = {"model": self.model, **self._fields}
        if not self._sampled:
            body.update(defaults)
        body |= {limit_name: grant, "user": user, "stream": self.stream}
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        return _encoder.encode(body)


def parse(body: bytes, image_hosts: frozenset[str]) -> ChatRequest:
    """Validate a body.

    :param image_hosts: hosts of https URLs of images that may be passed on.

    :raises InvalidRequest: with the field at fault in ``param``; ``Malformed`` if it is not JSON.
    :raises InvalidModel: the model is not a model's name.
    :raises RequestTooLarge: a field is too large.
    """
    values: dict[str, Any] = {}
    with Reading(_ALLOWED) as reading:
        given = members(body, _NAMES)
        model = reading.model = model_name(given.pop("model", NULL))
        name = reading.name = "messages"
        conversation, raw = messages.decode(name, given.pop(name, NULL))
        size, inner, images = messages.measure(conversation, raw, image_hosts)
        fields = {name: raw}
        for name in ("tools", "response_format"):
            reading.name = name
            if name in given and (schema := messages.decode_schema(name, given.pop(name))) is not None:
                size += len(schema)
                inner += separators(bytes(schema))
                fields[name] = schema
        kept_back = _OURS if "tools" in fields else (*_OURS, *_OF_TOOLS)
        for name, raw in given.items():
            reading.name = name
            read = PARAMETERS.read(name, raw, values)
            if name not in kept_back:
                fields[name] = read
        reading.name = None
        check_text(body)
        return ChatRequest(model, fields, values, Prompt(size, images, len(conversation), inner))
