"""POST /v1/embeddings: embeddings as a paid operation, and their documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from services.gateway.budget.models import Reservation, Usage
from services.gateway.catalogue.prices import PricedModel
from services.gateway.catalogue.services import Catalogue
from services.gateway.errors import InvalidRequest, RequestTooLarge
from services.gateway.relay import raw_json
from services.gateway.relay.answers import AnswerTally, read_answer, token_count
from services.gateway.relay.fields import NULL, Parameters, Reading, check_text, members, model_name
from services.gateway.relay.metrics import RESULTS, Labels
from services.gateway.relay.operation import OperationMetrics, Size, permitted
from services.gateway.relay.prompt import Prompt, utf8_length
from services.gateway.relay.views import paid
from services.gateway.settings import GatewaySettings
from services.gateway.upstream.client import MAX_ANSWER
from shared.domain.outcome import Outcome
from shared.domain.service_types import MAX_MODEL_NAME, ServiceType
from shared.telemetry.metrics import Registry
from shared.telemetry.openapi import Answer, Body

_PATH = "v1/embeddings"
#: Texts, or lists of tokens, of one request (OpenAI's limit).
MAX_ITEMS = 2048
#: So many that their vectors together are no large answer.
FEW_ITEMS = 16
#: The most bytes of text that LiteLLM makes of one token (the longest of OpenAI's cl100k_base are 128 spaces).
MAX_BYTES_OF_TOKEN = 128

#: About the bytes that one number of an embedding has in an answer.
BYTES_OF_NUMBER = {"float": 22, "base64": 16 / 3}
#: Bytes of an answer that is read from its end.
LONG_ANSWER = 2**20

_Text = Annotated[str, Meta(min_length=1)]
_Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Tokens = Annotated[list[_Token], Meta(min_length=1)]
_input = msgspec.json.Decoder(_Text | Annotated[list[_Text | _Token | _Tokens], Meta(min_length=1)])
_encoder = msgspec.json.Encoder()

_PARAMETERS = Parameters(
    {"encoding_format": Literal["float", "base64"], "dimensions": Annotated[int, Meta(ge=1, le=2**31 - 1)]},
    whole=("dimensions",),
)
_NAMES = frozenset(("model", "input", "encoding_format", "dimensions"))
_INPUTS = "a text, a list of texts, a list of tokens, or a list of such lists; none of them empty"
_ALLOWED = {"input": _INPUTS, "encoding_format": "`float` or `base64`"}


@dataclass(frozen=True, slots=True)
class _Amount:
    """UTF-8 bytes of text, and tokens that the client made itself."""

    text: int = 0
    tokens: int = 0

    @property
    def estimate(self) -> int:
        return Prompt(self.text, 0, 0).estimate + self.tokens


@dataclass(frozen=True, slots=True)
class Inputs:
    """A valid request: ``fields`` are forwarded unchanged, ``whole`` is the amount of all items."""

    stream: ClassVar[bool] = False
    model: str
    fields: dict[str, msgspec.Raw]
    items: int
    whole: _Amount
    largest: _Amount
    dimensions: int | None
    encoding: str

    @property
    def large_answer(self) -> bool:
        return self.items > FEW_ITEMS

    def size(self, model: PricedModel) -> Size:
        """Each item has the context window for itself. Tokens count as they are, unless LiteLLM makes text of them.

        :raises RequestTooLarge: an item exceeds the window; or all vectors together the largest answer, for which the
            user would pay and not get it.
        """
        numbers = self.items * (self.dimensions or model.vector_size or 0)
        if numbers * BYTES_OF_NUMBER[self.encoding] > MAX_ANSWER:
            raise RequestTooLarge("The answer would be too large: send fewer items, or ask for base64.", param="input")
        if model.context_window is not None and self.largest.estimate > model.context_window:
            raise RequestTooLarge("An item is larger than the model's context window.", param="input")
        text, tokens = self.whole.text, self.whole.tokens
        if model.decodes_tokens:
            text, tokens = text + tokens * MAX_BYTES_OF_TOKEN, 0
        return Size(Prompt(text, 0, self.items).bound(model) + tokens, self.whole.estimate)


def parse(body: bytes) -> Inputs:
    """Validate a body.

    :raises InvalidRequest: with the field at fault in ``param``; ``Malformed`` if it is not JSON.
    :raises InvalidModel: the model is not a model's name.
    """
    with Reading(_ALLOWED) as reading:
        given = members(body, _NAMES)
        model = model_name(given.pop("model", NULL))
        name = reading.name = "input"
        fields = {name: given.pop(name, NULL)}
        items = _items(_input.decode(fields[name]))
        values: dict[str, Any] = {}
        for name, raw in given.items():
            reading.name = name
            fields[name] = _PARAMETERS.read(name, raw, values)
        reading.name = None
        check_text(body)
        amounts = [_Amount(utf8_length(one)) if isinstance(one, str) else _Amount(0, len(one)) for one in items]
        whole = _Amount(sum(one.text for one in amounts), sum(one.tokens for one in amounts))
        largest = max(amounts, key=lambda one: one.estimate)
        encoding = values.get("encoding_format", "float")
        return Inputs(model, fields, len(items), whole, largest, values.get("dimensions"), encoding)


def _items(given: str | list[str | int | list[int]]) -> Sequence[str | list[int]]:
    """The texts, or the lists of tokens.

    :raises InvalidRequest: they are of several kinds, or too many.
    """
    if isinstance(given, str):
        return [given]
    tokens = [one for one in given if isinstance(one, int)]
    items = [one for one in given if not isinstance(one, int)]
    if not items:
        return [tokens]
    if tokens or len({type(one) for one in items}) > 1:
        raise InvalidRequest(f"Expected {_INPUTS}.", param="input")
    if len(items) > MAX_ITEMS:
        raise InvalidRequest(f"Expected at most {MAX_ITEMS} items.", param="input")
    return items


class _Answer(msgspec.Struct):
    usage: Any = None
    error: Any = None


_answer = msgspec.json.Decoder(_Answer)


def _end(body: bytes) -> _Answer | None:
    """The part of a long answer from its usage on, if that is a member of the answer; None for all others.

    Vectors may be 30 MB, which take 0.1 s to read, and LiteLLM writes the usage after them.
    """
    start = body.rfind(b'"usage"') if len(body) > LONG_ANSWER else -1
    if start < 0:
        return None
    try:
        return _answer.decode(b"{" + body[start:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class Tally(AnswerTally):
    """The count of one answer: the tokens of the input, and no completion."""

    def read_answer(self, body: bytes) -> bytes:
        answer = _end(body) or read_answer(body, _answer)
        self.error = answer.error
        counts = (token_count(answer.usage, name) or 0 for name in ("prompt_tokens", "total_tokens"))
        if tokens := max(counts):  # no input has none
            self.usage = Usage(tokens, 0)
        return body


class EmbeddingMetrics(OperationMetrics[Tally]):
    """The metrics of embeddings, declared in ``registry``; at most one per registry."""

    def __init__(self, registry: Registry) -> None:
        self._latency = registry.histogram(
            "embedding_latency_seconds", "Admitted requests for embeddings.", ("result", "model")
        )
        self._tokens = registry.counter(
            "embedding_tokens_total", "Tokens of embeddings, as reported.", ("model", "service_type", "purpose")
        )

    def preset(self, models: Iterable[str], rows: Iterable[ServiceType]) -> None:
        for result in RESULTS:
            self._latency.preset(result, "other")
        for row in rows:
            self._tokens.preset("other", row.name, "none")

    def ended(self, result: Outcome, seconds: float, labels: Labels, tally: Tally) -> None:
        self._latency.observe(seconds, result, labels[0])
        if tally.usage is not None:
            self._tokens.inc(*labels, by=tally.usage.prompt_tokens)


class Embeddings:
    """Embeddings of texts, or of tokens."""

    most_items = 3 * raw_json.MAX_ITEMS  # tokens are read several times faster than members and texts

    def __init__(self, settings: GatewaySettings, registry: Registry) -> None:
        self.metrics = EmbeddingMetrics(registry)
        self.deadline = settings.total_timeout_seconds

    def parse(self, body: bytes, row: ServiceType) -> Inputs:
        return parse(body)

    def model(self, asked: Inputs, row: ServiceType, catalogue: Catalogue) -> PricedModel:
        return permitted(asked.model, row, catalogue, embedding=True)

    def size(self, asked: Inputs, model: PricedModel) -> Size:
        return asked.size(model)

    def path(self, asked: Inputs) -> str:
        return _PATH

    def encode(self, asked: Inputs, reservation: Reservation) -> bytes:
        return _encoder.encode({"model": asked.model, **asked.fields, "user": reservation.ask.principal.user_id})

    def tally(self, asked: Inputs) -> Tally:
        return Tally()


_ITEM = {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "integer", "minimum": 0}}]}
_REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["model", "input"],
    "description": "Other parameters are dropped silently.",
    "properties": {
        "model": {"type": "string", "minLength": 1, "maxLength": MAX_MODEL_NAME},
        "input": {
            "description": f"A text or a list of tokens, or at most {MAX_ITEMS} of one kind.",
            "anyOf": [*_ITEM["anyOf"], {"type": "array", "items": _ITEM, "minItems": 1, "maxItems": MAX_ITEMS}],
        },
        **_PARAMETERS.schemas(),
    },
}

EMBEDDINGS = paid(
    Embeddings,
    f"/{_PATH}",
    "Embeddings",
    Answer("OpenAI's list of embeddings", {"type": "object"}),
    Body(_REQUEST, {"model": "openai/text-embedding-3-small", "input": ["A text.", "Another text."]}),
)
