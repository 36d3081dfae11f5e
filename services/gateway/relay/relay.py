"""The relay of an admitted request: asks LiteLLM, answers the client, settles exactly once."""

from __future__ import annotations

import asyncio
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from aiohttp import web

from services.gateway.budget import resets
from services.gateway.budget.models import Delivery
from services.gateway.dialects import of as dialect_of
from services.gateway.errors import UpstreamError, UpstreamTimeout
from services.gateway.relay.answers import SMALL, Held, LargeAnswer
from services.gateway.relay.collaborators import Collaborators
from services.gateway.relay.metrics import Labels
from services.gateway.relay.operation import PaidOperation
from services.gateway.relay.raw_json import has_halves, mend_surrogates
from services.gateway.relay.stream import WRITE_BUFFER, StreamFailed, StreamRelay
from services.gateway.relay.watch import Watch
from services.gateway.upstream.asking import Answer
from services.gateway.upstream.classify import KNOWN_WORDS, UpstreamFailure, classify, read_event_failure, read_failure
from services.gateway.upstream.routing import RoutingFacts, call_id
from shared.domain.money import nano_to_usd
from shared.domain.outcome import Outcome
from shared.errors import ServiceError
from shared.service.web import ERROR, LOGGED, error_name
from shared.telemetry import logs, spans
from shared.telemetry.tracing import traceparent

if TYPE_CHECKING:
    from services.gateway.budget.charging import Charge
    from services.gateway.budget.models import Reservation

_log = logs.logger("relay")

#: Seconds for LiteLLM to end an answer after ``[DONE]``, so that the connection can be reused.
AFTER_DONE = 1.0
STREAM_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}


class Relay:
    """One admitted request, from its forwarding to its settlement.

    :param asked: the valid request, as ``operation`` parsed it.
    :param wanted: the completion limit that the client gave, or 0.
    :param started: ``time.perf_counter()`` when the request arrived.
    """

    def __init__(
        self,
        request: web.Request,
        shared: Collaborators,
        operation: PaidOperation[Any, Any],
        asked: Any,
        reservation: Reservation,
        wanted: int,
        started: float,
    ) -> None:
        self._request, self._shared, self._operation = request, shared, operation
        self._reservation, self._asked, self._wanted = reservation, asked, wanted
        self._started, ask = started, reservation.ask
        self._labels: Labels = (ask.model.name, ask.principal.service_type.name, ask.purpose)
        self._upstream_headers = {"X-Request-ID": ask.request_id}  # beside the pool's own
        if trace := traceparent(request):
            self._upstream_headers["traceparent"] = trace
        self._call = shared.litellm.call()
        self._tally = operation.tally(asked)
        self._stream: StreamRelay | None = None
        if asked.stream:
            response = web.StreamResponse(headers={**STREAM_HEADERS, **self._limits()})
            self._stream = StreamRelay(request, response, self._tally, dialect_of(request), self._begun)
        self._outcome = Outcome.ERROR
        self._refused = False
        self._facts: RoutingFacts | None = None
        self._asked_at = 0.0
        self._first_after: float | None = None
        self._call_id: str | None = None

    async def run(self) -> web.StreamResponse:
        """Relay the request. Returns the response: whole, or a finished stream (with an error event if it broke).

        :raises ServiceError: the answer is a plain error; nothing was sent to the client.
        :raises CancelledError, ConnectionError: the client has left.
        """
        stream = self._stream
        watch = Watch(
            self._shared.settings,
            deadline=self._operation.deadline,
            on_quiet=stream.keep_alive if stream and stream.comments else None,
            backlog=self._backlog,
            drop=self._drop,
            revoked=self._reservation.revoked,
        )
        self._shared.open_requests.watches.add(watch)
        failure: ServiceError | None = None
        try:
            with spans.child("litellm", "litellm"):
                async with self._call:
                    response = await (self._relay(stream, watch) if stream else self._answer(watch))
            self._outcome = Outcome.SUCCESS
        except (asyncio.CancelledError, ConnectionError) as left:
            failure = watch.caught() if isinstance(left, asyncio.CancelledError) else None
            if failure is None:
                self._outcome = Outcome.SUCCESS if stream and stream.complete else Outcome.ABORT
                raise
        except ServiceError as error:
            failure = error
        finally:
            watch.stop()
            self._shared.open_requests.watches.remove(watch)
            if isinstance(failure, UpstreamTimeout):
                self._outcome = Outcome.TIMEOUT
            charged = self._settle(dropped=watch.dropped)
            self._stream = None  # it holds this relay: a cycle, which would last until the next garbage collection
        try:
            return response if failure is None else await self._fail(failure, charged, stream)
        finally:
            del failure  # its traceback has this frame: another one

    async def _relay(self, stream: StreamRelay, watch: Watch) -> web.StreamResponse:
        upstream = await self._post()
        transport = self._request.transport
        if transport is not None:
            transport.set_write_buffer_limits(high=WRITE_BUFFER)
        try:
            await stream.pump(upstream.content, watch)
        except StreamFailed as failed:
            self._refused = not stream.begun
            raise self._classify(read_event_failure(failed.error), upstream) from None
        if not upstream.content.at_eof():
            watch.stop()
            await self._call.read_to_end(AFTER_DONE)
        return stream.response

    async def _answer(self, watch: Watch) -> web.StreamResponse:
        user_id = self._reservation.ask.principal.user_id
        if self._asked.large_answer:
            self._shared.answers.check(user_id)
        upstream = await self._post()
        held = Held(self._shared.answers, user_id)

        def on_data(size: int) -> None:
            watch.touch()
            held.add(size)

        body = await self._call.read_answer(on_data)
        if has_halves(body):
            body = mend_surrogates(body)
        now = time.perf_counter()
        body = self._tally.read_answer(body)
        if self._tally.error is not None:
            self._refused = True
            raise self._classify(read_event_failure(self._tally.error), upstream)
        headers = {"Content-Type": "application/json", **self._limits()}
        response = (
            web.Response(body=body, headers=headers)
            if len(body) <= SMALL
            else LargeAnswer(
                body,
                headers,
                held,
                patience=self._shared.settings.slow_client_seconds,
                backlog=self._backlog,
                drop=self._drop,
            )
        )
        self._shared.metrics.overhead.observe(self._asked_at - self._started + time.perf_counter() - now)
        return response

    async def _post(self) -> Answer:
        """:raises ServiceError: LiteLLM did not answer 200."""
        asked, self._asked = self._asked, None  # a stream is long, and its request may be large
        operation = self._operation
        # The body is not kept here: the call releases it once it is sent
        request = self._call.post(
            operation.path(asked), operation.encode(asked, self._reservation), self._upstream_headers
        )
        del asked
        self._asked_at = time.perf_counter()
        upstream = await request
        self._call_id = call_id(upstream.headers)
        if upstream.status != 200:
            self._refused = True
            raise self._classify(read_failure(upstream.status, await self._call.read_error()), upstream)
        self._facts = RoutingFacts.of(upstream.headers)
        self._shared.metrics.routing.answered(self._facts, self._labels[0])
        return upstream

    def _reported_cost(self) -> Decimal | None:
        """The cost that LiteLLM reports, where that decides: in a header, or after a fallback in the usage chunk.

        A stream has no such header, and the model's own prices are right unless another model answered.
        """
        facts = self._facts
        if facts is None or (facts.cost is None and not facts.fallbacks):
            return None
        return facts.cost or self._tally.cost

    def _classify(self, failure: UpstreamFailure, upstream: Answer) -> ServiceError:
        reservation = self._reservation
        period_end = (reservation.period_index + 1) * reservation.period_seconds
        later = resets.delay(reservation.ask.principal.user_id, reservation.period_seconds)
        error = classify(failure, upstream.headers, seconds_to_reset=max(1.0, period_end - time.time()) + later)
        self._shared.metrics.refused_upstream(error)
        _log.warning(
            "litellm_refused",
            status=failure.status,
            reason=next((word for word in (failure.type, failure.code) if word in KNOWN_WORDS), "other"),
            answered=error.code,
            model=self._labels[0],
        )
        return error

    async def _fail(self, error: ServiceError, charged: Charge, stream: StreamRelay | None) -> web.StreamResponse:
        if stream is not None and stream.committed:
            self._shared.metrics.rejected(error, self._labels[0], self._labels[1])
            self._request[ERROR] = error_name(error)
            await stream.fail(error)
            return stream.response
        if charged.cost_nano and isinstance(error, UpstreamError | UpstreamTimeout):
            error.should_retry = False
        error.headers.update(self._limits())
        try:
            raise error
        finally:
            del error  # as in run

    def _limits(self) -> dict[str, str]:
        headers = self._reservation.rate_limits.headers()
        if self._reservation.lowered or self._reservation.grant < self._wanted:
            headers["x-mlpa-max-completion-tokens"] = str(self._reservation.grant)
        return headers

    def _begun(self) -> None:
        """The first event has gone out."""
        seconds = self._first_after = time.perf_counter() - self._started
        self._operation.metrics.begun(seconds, self._labels[0])
        self._shared.metrics.overhead.observe(self._asked_at - self._started)

    def _settle(self, *, dropped: bool) -> Charge:
        """:param dropped: the client was dropped because it took nothing."""
        tally, metrics = self._tally, self._shared.metrics
        reported_cost = self._reported_cost()
        charged = self._shared.budgets.settle(
            self._reservation,
            Delivery(
                outcome=self._outcome,
                sent=self._call.sent,
                refused=self._refused,
                usage=tally.usage,
                response_cost=reported_cost,
                relayed_bytes=tally.text,
                stream=self._stream is not None,
            ),
        )
        result = Outcome.ERROR if self._outcome is Outcome.TIMEOUT else self._outcome
        if result is Outcome.SUCCESS:
            metrics.succeeded()
        elif result is Outcome.ABORT:
            metrics.left(waiting=not (dropped or (self._stream is not None and self._stream.begun)))
        self._operation.metrics.ended(result, time.perf_counter() - self._started, self._labels, tally)
        if (reported := reported_cost or tally.cost) is not None:
            metrics.routing.cost(reported, self._labels[0])
        self._request[LOGGED] = {
            "model": self._labels[0],
            "outcome": self._outcome,
            "prompt_tokens": charged.prompt_tokens,
            "completion_tokens": charged.completion_tokens,
            "cost_usd": nano_to_usd(charged.cost_nano),
            "ttft_ms": None if self._first_after is None else round(self._first_after * 1000, 2),
            "litellm_call_id": self._call_id,
        }
        return charged

    def _backlog(self) -> int:
        transport = self._request.transport
        return 0 if transport is None else transport.get_write_buffer_size()

    def _drop(self) -> None:
        """Drop a client that takes nothing."""
        self._shared.metrics.slow_clients.inc()
        transport = self._request.transport
        if transport is not None:
            transport.abort()
