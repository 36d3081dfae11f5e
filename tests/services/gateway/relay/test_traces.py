"""A traced chat: the span of LiteLLM below that of the request, and the error of a stream that began with 200."""

from __future__ import annotations

from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from shared.telemetry.tracing import Tracing
from tests.doubles.litellm import LiteLLMDouble, Script, chunk, event, stream_of
from tests.doubles.otlp import Collector
from tests.services.gateway.conftest import Gateway
from tests.support.configs import upstream_at


async def spans(double: LiteLLMDouble) -> dict[str, Span]:
    """The spans of one streamed chat, by name."""
    async with Collector.open() as collector:
        upstream = upstream_at(double.url, virtual_key="sk-virtual")
        tracing = Tracing(collector.url, "gateway")
        async with Gateway(double, upstream, tracing=tracing).running() as gateway:
            await gateway.read({"stream": True})
        return {span.name: span for span in collector.spans}


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "") for pair in span.attributes}


async def test_litellm_has_a_span_below_that_of_the_request(double: LiteLLMDouble) -> None:
    double.script("double", Script.events(stream_of(["Hello", " you"]), pause=0.05))
    found = await spans(double)
    server, litellm = found["POST /v1/chat/completions"], found["litellm"]
    assert (litellm.parent_span_id, litellm.trace_id) == (server.span_id, server.trace_id)
    assert litellm.kind == Span.SPAN_KIND_CLIENT
    assert litellm.end_time_unix_nano - litellm.start_time_unix_nano > 0.15e9  # to the end of the stream
    assert [span.status.code for span in (server, litellm)] == [Status.STATUS_CODE_UNSET] * 2


async def test_a_stream_that_breaks_is_an_error_though_its_status_was_200(double: LiteLLMDouble) -> None:
    double.script("double", Script([("send", event(chunk("abc"))), ("cut", None)]))
    found = await spans(double)
    server, litellm = found["POST /v1/chat/completions"], found["litellm"]
    assert attributes(server)["http.response.status_code"] == 200
    assert attributes(server)["error.type"] == "upstream_error"
    assert [span.status.code for span in (server, litellm)] == [Status.STATUS_CODE_ERROR] * 2
