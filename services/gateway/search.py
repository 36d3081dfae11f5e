"""POST /v1/search: searches of the web as a paid operation, and their documentation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from services.gateway.budget.models import Reservation, Usage
from services.gateway.catalogue import price_fields
from services.gateway.catalogue.prices import PricedModel
from services.gateway.catalogue.services import Catalogue
from services.gateway.errors import InvalidRequest
from services.gateway.relay.answers import AnswerTally, read_answer
from services.gateway.relay.fields import NULL, Parameters, Reading, check_text, members
from services.gateway.relay.metrics import RESULTS, Labels
from services.gateway.relay.operation import OperationMetrics, Size
from services.gateway.relay.raw_json import MAX_ITEMS
from services.gateway.relay.views import paid
from services.gateway.settings import GatewaySettings
from shared.domain.outcome import Outcome
from shared.domain.service_types import ServiceType
from shared.telemetry.metrics import Registry
from shared.telemetry.openapi import Answer, Body

#: Seconds for a whole search, after which clients have given up.
DEADLINE = 15.0
MAX_QUERY = 2000
MAX_RESULTS = 10
DEFAULT_RESULTS = 5

_query = msgspec.json.Decoder(Annotated[str, Meta(min_length=1, max_length=MAX_QUERY)])
_PARAMETERS = Parameters({"max_results": Annotated[int, Meta(ge=1, le=MAX_RESULTS)]}, whole=("max_results",))
_NAMES = frozenset(("query", "max_results"))
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Query:
    """A valid request, with the row's search tool; ``text`` is the query as the client wrote it."""

    stream: ClassVar[bool] = False
    large_answer: ClassVar[bool] = False
    text: msgspec.Raw
    max_results: int
    tool: str


def parse(body: bytes, row: ServiceType) -> Query:
    """Validate a body.

    :raises InvalidRequest: with the field at fault in ``param``, ``Malformed`` if it is not JSON; or the row has no
        search tool.
    """
    if row.search_tool is None:
        raise InvalidRequest("This service type has no search.")
    values: dict[str, Any] = {}
    with Reading() as reading:
        given = members(body, _NAMES)
        name = reading.name = "query"
        text = given.get(name, NULL)
        _query.decode(text)
        name = reading.name = "max_results"
        _PARAMETERS.read(name, given.get(name, NULL), values)
        reading.name = None
        check_text(body)
    return Query(text, values.get(name, DEFAULT_RESULTS), row.search_tool)


@lru_cache(maxsize=256)
def _priced(tool: str, cost_nano: int) -> PricedModel:
    zero = Decimal(0)
    return PricedModel(tool, zero, zero, prices=price_fields.per_request(Decimal(cost_nano).scaleb(-9)))


class _Answer(msgspec.Struct):
    error: Any = None


_answer = msgspec.json.Decoder(_Answer)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_list = msgspec.json.Decoder(list[msgspec.Raw])


class Tally(AnswerTally):
    """The count of one answer. A search has no tokens: it costs what LiteLLM says, or the row's price."""

    def read_answer(self, body: bytes) -> bytes:
        self.error = read_answer(body, _answer).error
        self.usage = Usage(0, 0)
        return _with_published_dates(body)


def _with_published_dates(body: bytes) -> bytes:
    """The answer with ``publishedDate``, which Firefox reads, beside each ``date``. Values stay as they are written.

    :raises UpstreamError: the names of its members are not text.
    """
    answer = read_answer(body, _members)
    try:
        results = _list.decode(answer["results"])
    except (KeyError, msgspec.ValidationError):
        return body
    answer["results"] = msgspec.Raw(_encoder.encode([_dated(result) for result in results]))
    return _encoder.encode(answer)


def _dated(result: msgspec.Raw) -> msgspec.Raw | dict[str, msgspec.Raw]:
    try:
        found = _members.decode(result)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return result
    if "date" in found:
        found.setdefault("publishedDate", found["date"])
    return found


class SearchMetrics(OperationMetrics[Tally]):
    """The metrics of searches, declared in ``registry``; at most one per registry."""

    def __init__(self, registry: Registry) -> None:
        self._latency = registry.histogram("search_latency_seconds", "Admitted searches.", ("result",))

    def preset(self, models: Iterable[str], rows: Iterable[ServiceType]) -> None:
        for result in RESULTS:
            self._latency.preset(result)

    def ended(self, result: Outcome, seconds: float, labels: Labels, tally: Tally) -> None:
        self._latency.observe(seconds, result)


class Search:
    """Searches of the web, by the search tool of LiteLLM that the row names."""

    deadline = DEADLINE
    most_items = MAX_ITEMS

    def __init__(self, settings: GatewaySettings, registry: Registry) -> None:
        self.metrics = SearchMetrics(registry)

    def parse(self, body: bytes, row: ServiceType) -> Query:
        return parse(body, row)

    def model(self, asked: Query, row: ServiceType, catalogue: Catalogue) -> PricedModel:
        return _priced(asked.tool, row.search_cost_nano)

    def size(self, asked: Query, model: PricedModel) -> Size:
        return Size(0, 0)

    def path(self, asked: Query) -> str:
        return f"v1/search/{asked.tool}"

    def encode(self, asked: Query, reservation: Reservation) -> bytes:
        user = reservation.ask.principal.user_id
        return _encoder.encode({"query": asked.text, "max_results": asked.max_results, "user": user})

    def tally(self, asked: Query) -> Tally:
        return Tally()


_REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["query"],
    "description": "Other parameters are dropped silently.",
    "properties": {
        "query": {"type": "string", "minLength": 1, "maxLength": MAX_QUERY},
        "max_results": {**_PARAMETERS.schemas()["max_results"], "default": DEFAULT_RESULTS},
    },
}
_RESULT: dict[str, Any] = {
    "type": "object",
    "properties": {name: {"type": ["string", "null"]} for name in ("title", "url", "snippet", "date", "publishedDate")},
}

SEARCH = paid(
    Search,
    "/v1/search",
    "Search the web",
    Answer(
        "LiteLLM's answer, with `publishedDate` beside each `date`",
        {"type": "object", "properties": {"results": {"type": "array", "items": _RESULT}}},
    ),
    Body(_REQUEST, {"query": "weather in Oslo", "max_results": 5}),
)
