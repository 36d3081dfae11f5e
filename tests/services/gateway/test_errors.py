"""Errors on the wire."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from services.gateway import app as gateway
from services.gateway.budget.refusals import LABELS, Refusal, label
from services.gateway.errors import GatewayError, InvalidToken, envelope, error_headers, kind_of
from services.gateway.relay.metrics import RelayMetrics
from shared.errors import BadRequest, NotFound, ServiceError
from shared.state.refusals import Word
from shared.telemetry.metrics import Registry
from tests.deploy.declarations import ROOT
from tests.services.test_protocol import errors
from tests.support.service_types import service_type

#: The public label values of chat's errors: the reasons, by their side.
PINNED = {
    "failure": {"upstream_rate_limited", "upstream_error", "upstream_timeout", "unavailable", "server_error"},
    "excluded": {
        "budget_exceeded",
        "budget_reserved",
        "rate_limit_exceeded",
        "request_too_large",
        "invalid_model",
        "invalid_request",
        "invalid_token",
        "user_blocked",
        "switched_off",
        "max_users_reached",
        "forbidden",
    },
}
METRICS = (ROOT / "deploy" / "METRICS.md").read_text()
PROTOCOL = (ROOT / "services" / "PROTOCOL.md").read_text()


def made(kind: type[ServiceError]) -> ServiceError:
    """An error with a word for each argument that it needs."""
    parameters = inspect.signature(kind).parameters.values()
    words: dict[str, Any] = {one.name: "redis" for one in parameters if one.default is one.empty}
    return kind(**words)


def test_the_reasons_of_chats_metrics_are_these() -> None:
    registry = Registry()
    RelayMetrics(registry).preset((), ())
    page = registry.render().decode()
    rejected = set(re.findall(r'^chat_request_rejections_total\{.*?reason="(\w+)"', page, re.MULTILINE))
    assert rejected == PINNED["failure"] | PINNED["excluded"]
    lines = re.findall(r'^chat_availability_total\{outcome="(\w+)",reason="(\w+)"', page, re.MULTILINE)
    sides = {side: {reason for outcome, reason in lines if outcome == side} for side, _ in lines}
    lefts = {"failure": {"abort_before_answer"}, "excluded": {"abort"}}
    assert sides == {**{side: reasons | lefts[side] for side, reasons in PINNED.items()}, "success": {"none"}}


def test_the_reasons_of_the_budgets_metrics_are_these() -> None:
    limits = {"budget_exceeded", "budget_reserved", "request_too_large", "rpm", "tpm", "streams"}
    assert set(LABELS) == limits | {"blocked", "revoked", "unavailable"}


@pytest.mark.parametrize("word", list(Word))
def test_every_word_of_a_script_has_an_error_and_a_reason_of_the_metrics(word: Word) -> None:
    error = Refusal(word).error()
    assert label(error) == (word.label or "unavailable")
    assert label(error) in LABELS
    assert envelope(error)["error"]["code"] == (word.row.code or "unavailable")
    assert ("Retry-After" in error.headers) == (label(error) == "unavailable")


@pytest.mark.parametrize("word", [Word.RPM, Word.RESERVED, Word.EXCEEDED, Word.TOTAL_EXCEEDED])
def test_a_refusal_tells_the_wait_of_the_script_and_after_a_reset_a_bit_more(word: Word) -> None:
    error = Refusal(word, retry_after=7).error(after_reset=3)
    assert error.headers["Retry-After"] == ("10" if word.row.code == "budget_exceeded" else "7")


@pytest.mark.parametrize("kind", list(errors("gateway")), ids=lambda kind: kind.__name__)
def test_every_error_has_its_status_code_and_reason_and_is_documented(kind: type[ServiceError]) -> None:
    error = made(kind)
    table, body = kind_of(error), envelope(error)["error"]
    assert error.status == kind.status
    assert body["code"] == table.code
    assert (body["message"], body["type"], body["mlpa_code"]) == (error.message, table.type, table.mlpa_code)
    side = "failure" if table.ours else "excluded"
    assert table.counted_as in PINNED[side]
    registry = Registry()
    RelayMetrics(registry).rejected(error, "other", "none")
    page = registry.render().decode()
    assert f'chat_availability_total{{outcome="{side}",reason="{table.counted_as}"}} 1' in page
    assert re.search(rf'^chat_request_rejections_total\{{.*reason="{table.counted_as}".*\}} 1', page, re.MULTILINE)
    assert f"| {kind.status} | `{table.code}` | {table.mlpa_code or ''}".rstrip() in PROTOCOL
    assert f"`{table.counted_as}`" in METRICS
    if table.code == table.counted_as and kind.status != 500 and not issubclass(kind, BadRequest):
        [chat] = [one for one in gateway.DESCRIPTION.operations if one.path == "/v1/chat/completions"]
        assert f"`{table.code}`" in chat.answers[kind.status].description


@pytest.mark.parametrize("without", ["status", "code", "message"])
def test_a_class_that_lacks_something_cannot_be_defined(without: str) -> None:
    given = {"status": 400, "code": "x", "message": "x"}
    del given[without]
    with pytest.raises(TypeError, match=without):
        type("Incomplete", (GatewayError,), given, ours=True)


def test_a_class_that_has_no_side_cannot_be_defined() -> None:
    with pytest.raises(TypeError, match="side"):
        type("Incomplete", (GatewayError,), {"status": 400, "code": "x", "message": "x"})


@pytest.mark.parametrize(
    ("error", "code", "mlpa_code"), [(BadRequest(), "invalid_request", 9), (NotFound(), None, None)]
)
def test_refusals_of_the_frame_have_the_codes_of_the_table(
    error: ServiceError, code: str | None, mlpa_code: int | None
) -> None:
    told = envelope(error)["error"]
    assert told["mlpa_code"] == mlpa_code
    assert code is None or told["code"] == code


@pytest.mark.parametrize(
    ("error", "challenge"),
    [
        (InvalidToken(missing=True), 'Bearer realm="mlpa"'),
        (
            InvalidToken(),
            'Bearer realm="mlpa", error="invalid_token", error_description="The access token is invalid."',
        ),
    ],
)
def test_a_challenge_has_a_parameter_and_names_no_error_where_no_token_was(error: InvalidToken, challenge: str) -> None:
    """RFC 6750 section 3."""
    assert error_headers(error)["WWW-Authenticate"] == challenge


@pytest.mark.parametrize("word", [word for word in Word if word.row.code and word is not Word.TOTAL_UNKNOWN])
def test_every_refusal_of_admission_tells_operators_more_than_its_code(word: Word) -> None:
    tier = service_type(rpm=40, tpm=2000, max_streams=3)
    error = Refusal(word).error(tier=tier, budget="5", spent="5.01", reserved="0")
    assert isinstance(error, GatewayError)
    told = error.why or error.message
    assert told != type(error).message
    assert "{" not in told
    assert error.why is None or error.why not in str(envelope(error))
