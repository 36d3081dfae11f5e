"""A paid operation that is not chat, and a dialect that is not OpenAI's, served by the shared code."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from aiohttp import web

from services.gateway.budget.models import Reservation, Usage
from services.gateway.catalogue.prices import PricedModel
from services.gateway.catalogue.services import Catalogue
from services.gateway.dialects import OPENAI
from services.gateway.errors import InvalidRequest, Malformed, UpstreamError, kind_of
from services.gateway.relay.metrics import Labels
from services.gateway.relay.operation import Size
from services.gateway.relay.views import paid
from services.gateway.tokens.models import Principal
from shared.domain.service_types import ServiceType
from shared.telemetry.openapi import Answer, Body
from tests.doubles.litellm import DONE, LiteLLMDouble, Script, chunk, event
from tests.services.gateway.conftest import TOKEN, Gateway
from tests.support.configs import changed, upstream_at
from tests.support.service_types import service_type

#: The path of the operation at LiteLLM.
AT = "/v1/translate/any one"
AUTHORIZATION = {"Authorization": f"Bearer {TOKEN}"}


class Translation(msgspec.Struct, frozen=True):
    text: str
    stream: bool = False
    large_answer: bool = False


@dataclass
class Count:
    """A tally of answers without tokens."""

    usage: Usage | None = None
    cost: Decimal | None = None
    text: int = 0
    error: Any = None

    def read_answer(self, body: bytes) -> bytes:
        try:
            answer = json.loads(body)
        except ValueError:
            raise UpstreamError from None
        self.error = answer.get("error")
        self.usage = Usage(0, 0)
        return body.replace(b"}", b',"ours":true}')


class Metrics:
    def __init__(self) -> None:
        self.results: list[tuple[str, Labels]] = []

    def preset(self, models: Iterable[str], rows: Iterable[ServiceType]) -> None: ...

    def begun(self, seconds: float, model: str) -> None: ...

    def ended(self, result: str, seconds: float, labels: Labels, tally: Count) -> None:
        self.results.append((result, labels))


class Translate:
    """One fixed price, a path of its own at LiteLLM, a deadline, no stream."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.deadline = 0.5
        self.most_items = 10

    def parse(self, body: bytes, row: ServiceType) -> Translation:
        try:
            return msgspec.json.decode(body, type=Translation)
        except msgspec.ValidationError:
            raise InvalidRequest(param="text") from None
        except msgspec.DecodeError:
            raise Malformed from None

    def model(self, asked: Translation, row: ServiceType, catalogue: Catalogue) -> PricedModel:
        return PricedModel("translator", Decimal(0), Decimal(0))

    def size(self, asked: Translation, model: PricedModel) -> Size:
        return Size(len(asked.text), len(asked.text) // 4)

    def path(self, asked: Translation) -> str:
        return AT.removeprefix("/")

    def encode(self, asked: Translation, reservation: Reservation) -> bytes:
        return msgspec.json.encode({"text": asked.text, "user": reservation.ask.principal.user_id})

    def tally(self, asked: Translation) -> Count:
        return Count()


@pytest.fixture
def translate() -> Translate:
    return Translate()


@pytest.fixture
async def gateway(double: LiteLLMDouble, translate: Translate) -> AsyncIterator[Gateway]:
    declared = paid(lambda _settings, _registry: translate, "/v1/translate", "", Answer(""), Body({}, {}))
    async with Gateway(double, upstream_at(double.url), paid=[declared]).running() as gateway:
        yield gateway


async def ask(gateway: Gateway, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    url = f"{gateway.url}/v1/translate"
    async with gateway.session.post(url, json=body, headers=headers or AUTHORIZATION) as answer:
        return answer.status, json.loads(await answer.read())


async def test_an_operation_is_admitted_relayed_and_settled_as_it_says(gateway: Gateway, translate: Translate) -> None:
    gateway.double.script(AT, Script.json({"text": "Salut"}, x_litellm_response_cost="0.002"))
    assert await ask(gateway, {"text": "Hello there"}) == (200, {"text": "Salut", "ours": True})
    assert gateway.double.asked[0].body == {"text": "Hello there", "user": "uid:ai"}
    (admitted,) = gateway.budgets.asks
    assert (admitted.model.name, admitted.prompt_bound, admitted.estimated_prompt_tokens) == ("translator", 11, 2)
    assert (admitted.limit, admitted.n) == (0, 1)
    delivery = await gateway.budgets.wait_settled()
    assert (delivery.usage, delivery.response_cost, delivery.stream) == (Usage(0, 0), Decimal("0.002"), False)
    assert translate.metrics.results == [("success", ("translator", "ai", "none"))]
    assert gateway.metric("chat_availability_total", outcome="success", reason="none") == 1


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (Script.json({"error": {"code": "429"}}, status=429), 429, "upstream_rate_limited"),
        (Script.json({"error": {"message": "no"}}), 502, "upstream_error"),
        (Script([("send", b"{{")], content_type="application/json"), 502, "upstream_error"),
        (Script(first=[("hang", None)]), 504, "upstream_timeout"),
    ],
)
async def test_an_operation_fails_like_every_other(gateway: Gateway, script: Script, status: int, code: str) -> None:
    gateway.double.script(AT, script)
    got, body = await ask(gateway, {"text": "Hello"})
    assert (got, body["error"]["code"]) == (status, code)
    assert gateway.metric("chat_request_rejections_total", model="translator", reason=code) == 1
    await gateway.budgets.wait_settled()


@pytest.mark.parametrize("body", [{"text": 1}, "text"])
async def test_an_operation_refuses_what_it_cannot_parse(gateway: Gateway, body: Any) -> None:
    status, answer = await ask(gateway, body)
    assert (status, answer["error"]["param"]) == (400, "text")
    assert gateway.budgets.asks == []


def shout(events: bytes) -> bytes:
    return events.upper()


async def by_name(request: web.Request) -> Principal:
    row = service_type()
    return Principal(f"{request.headers['x-name']}:ai", request.headers["x-name"], row, "jti", 2e9)


NAMED = replace(
    OPENAI,
    speaks=lambda request: "x-name" in request.headers,
    authenticate=by_name,
    error_response=lambda error: web.Response(status=error.status, text=f"sorry: {kind_of(error).code}"),
    error_event=lambda error: f"sorry: {kind_of(error).code}".encode(),
    events=shout,
    comment=b"",
)


class TestDialect:
    @pytest.fixture
    async def gateway(self, double: LiteLLMDouble) -> AsyncIterator[Gateway]:
        settings = changed(streaming_timeout_seconds=0.5, keepalive_seconds=0.05)
        async with Gateway(double, upstream_at(double.url), settings, dialects=[NAMED]).running() as gateway:
            yield gateway

    async def read(self, gateway: Gateway, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json", "x-name": "Ada", **headers}
        async with gateway.session.post(f"{gateway.url}{path}", data=body, headers=headers) as answer:
            return answer.status, await answer.read()

    async def test_the_dialects_own_credential_leads_to_the_same_admission(self, gateway: Gateway) -> None:
        body = b'{"model":"double","messages":[{"role":"user","content":"Hi"}]}'
        status, _ = await self.read(gateway, "/v1/chat/completions", body, {})
        assert (status, gateway.budgets.asks[0].principal.user_id) == (200, "Ada:ai")

    @pytest.mark.parametrize(
        ("path", "body", "headers", "answer"),
        [
            ("/v1/chat/completions", b"nonsense", {}, (400, b"sorry: invalid_request")),
            ("/v1/chat/completions", b"{}", {"Content-Encoding": "gzip"}, (415, b"sorry: invalid_request")),
            ("/v1/chat/completions", b"x" * (4 * 2**20), {}, (413, b"sorry: request_too_large")),
            ("/v1/nothing", b"{}", {}, (404, b"sorry: not_found")),
        ],
    )
    async def test_every_error_is_written_in_the_requests_dialect(
        self, gateway: Gateway, path: str, body: bytes, headers: dict[str, str], answer: tuple[int, bytes]
    ) -> None:
        assert await self.read(gateway, path, body, headers) == answer

    async def test_a_stream_is_written_in_the_requests_dialect(self, gateway: Gateway) -> None:
        steps: list[tuple[str, Any]] = [("send", event(chunk("abc"))), ("sleep", 0.2), ("send", event(chunk("def")))]
        gateway.double.script("double", Script([*steps, ("hang", None)]))
        body = b'{"model":"double","stream":true,"messages":[{"role":"user","content":"Hi"}]}'
        status, got = await self.read(gateway, "/v1/chat/completions", body, {})
        assert (status, got) == (
            200,
            event(chunk("abc")).upper() + event(chunk("def")).upper() + b"sorry: upstream_timeout",
        )

    async def test_other_requests_are_answered_as_ever(self, gateway: Gateway) -> None:
        gateway.double.script("double", Script.events([event(chunk("abc")), DONE]))
        assert (await gateway.read({"stream": True}))[1] == event(chunk("abc")) + DONE
        status, body, _ = await gateway.read(b"nonsense")
        assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_request")
