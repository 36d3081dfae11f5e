"""The frame of every answer: request id, metrics, a log line, security and caching headers, errors in one shape.

``Frame`` is the one middleware of a service. Handlers read ``request[REQUEST_ID]`` and may set
``request[SERVICE_TYPE]`` and ``request[USER_ID]`` for the metrics and the log line.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

import sentry_sdk
from aiohttp import web
from aiohttp.typedefs import Handler

from shared.errors import (
    BadRequest,
    DependencyUnavailable,
    Draining,
    EncodedBody,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    ServiceError,
)
from shared.telemetry import logs
from shared.telemetry.metrics import Registry

REQUEST_ID = web.RequestKey("request_id", str)
SERVICE_TYPE = web.RequestKey("service_type", str)
USER_ID = web.RequestKey("user_id", str)
#: The error in the log line: an error's code, or the dependency that failed.
ERROR = web.RequestKey("error", str)
#: More fields of the request's log line.
LOGGED = web.RequestKey("logged", dict[str, Any])

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
#: nginx's status for a client that left before the answer; only in metrics and logs.
CLIENT_CLOSED = 499
#: Statuses that the services answer with.
STATUSES = (
    *(200, 201, 204, 302, 303, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 431),
    *(CLIENT_CLOSED, 500, 502, 503, 504),
)

#: How an answer ended: below 400, refused with 4xx, failed with 5xx, or the client left before the end.
OUTCOMES = ("success", "refused", "failure", "abort")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

SECURITY_HEADERS = {
    "Strict-Transport-Security": "max-age=63072000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
HTML_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_log = logs.logger("http")
_log_request = logs.Frequent("http", "request")

ErrorRenderer = Callable[[web.Request | None, ServiceError], web.Response]
OnRefusal = Callable[[web.Request, ServiceError], None]


class HttpMetrics:
    """The metrics that both services have (deploy/METRICS.md)."""

    def __init__(self, registry: Registry, endpoints: list[str]) -> None:
        self.requests = registry.counter("requests_total", "Requests.", ("method", "endpoint", "service_type"))
        self.in_progress = registry.gauge("in_progress_requests", "Requests being answered.", ("endpoint",))
        self.statuses = registry.counter("response_status_codes_total", "Responses by status.", ("status_code",))
        self.latency = registry.histogram(
            "request_latency_seconds", "Time to the end of the response.", ("method", "endpoint")
        )
        self.dependency_errors = registry.counter(
            "dependency_errors_total", "Answers that failed because of a dependency.", ("dependency",)
        )
        self.answers = registry.counter(
            "answers_total",
            "Answers, by how they ended. A stream that broke off counts as it began.",
            ("endpoint", "outcome"),
        )
        self.answers.preset_all([*endpoints, "unmatched"], OUTCOMES)
        for dependency in ("redis", "postgres", "fxa", "play", "litellm", "auth", "signing_key"):
            self.dependency_errors.preset(dependency)
        self.in_progress.preset_all([*endpoints, "unmatched"])
        for status in STATUSES:
            self.statuses.preset(str(status))

    def preset(self, method: str, endpoint: str, service_types: Iterable[str]) -> None:
        for service_type in ("none", *service_types):
            self.requests.preset(method, endpoint, service_type)
        self.latency.preset(method, endpoint)


class Frame:
    """The outermost middleware, and the headers of every response."""

    def __init__(
        self,
        registry: Registry,
        render_error: ErrorRenderer,
        *,
        endpoints: list[str],
        user_digest: logs.UserDigest,
        service_types: Iterable[str] = (),
        probes: Iterable[str] = (),
        on_refusal: OnRefusal | None = None,
    ) -> None:
        """
        :param endpoints: the route templates: the values of the label ``endpoint``, beside ``unmatched``.
        :param service_types: the values of the label ``service_type``, beside ``none``; others after ``make_series``.
        :param probes: the endpoints that are served during a drain too.
        :param on_refusal: called for each request that is answered with an error, by a handler or before one.
        """
        self._probes = frozenset(probes)
        self._draining = False
        self._service_types = service_types
        self._routes: list[tuple[str, str]] = []
        self._render_error, self._on_refusal = render_error, on_refusal
        self._digest = user_digest
        self._metrics = HttpMetrics(registry, endpoints)

    def install(self, app: web.Application) -> None:
        """Call after the app's routes have been added."""
        for route in app.router.routes():
            if route.method in METHODS and route.method != "HEAD" and route.resource is not None:
                self._routes.append((route.method, route.resource.canonical))
        self.make_series()
        app.middlewares.append(self._middleware)
        app.on_response_prepare.append(self._add_headers)

    def make_series(self) -> None:
        """Make the series of known values, so that queries have a sum before the first request."""
        for method, endpoint in self._routes:
            self._metrics.preset(method, endpoint, () if endpoint in self._probes else self._service_types)
        for method in (*METHODS, "other"):
            self._metrics.preset(method, "unmatched", ())

    def refuse_new(self) -> None:
        """From now on requests are answered with ``Draining``, those of probes apart."""
        self._draining = True

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        headers = response.headers
        headers["X-Request-ID"] = request.get(REQUEST_ID) or str(uuid.uuid4())
        headers.setdefault("Cache-Control", "no-store")  # unless a handler said otherwise
        headers.update(SECURITY_HEADERS)
        if response.content_type == "text/html" and "Content-Security-Policy" not in headers:
            headers["Content-Security-Policy"] = HTML_POLICY
        headers.popall("Server", None)

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        given = request.headers.get("X-Request-ID", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        request[REQUEST_ID] = request_id
        token = logs.request_id.set(request_id)
        resource = request.match_info.route.resource
        endpoint = resource.canonical if resource is not None else "unmatched"
        method = request.method if request.method in METHODS else "other"
        metrics = self._metrics
        metrics.in_progress.inc(endpoint)
        status = CLIENT_CLOSED
        try:
            refused = self._draining and endpoint not in self._probes
            response = self._refuse(request, Draining()) if refused else await self._answer(request, handler)
            status = response.status
            return response
        finally:
            seconds = time.perf_counter() - started
            metrics.in_progress.dec(endpoint)
            metrics.requests.inc(method, endpoint, request.get(SERVICE_TYPE, "none"))
            metrics.statuses.inc(str(status))
            metrics.answers.inc(endpoint, outcome_of(status))
            metrics.latency.observe(seconds, method, endpoint)
            user = request.get(USER_ID)
            _log_request(
                {
                    "method": method,
                    "route": endpoint,
                    "status": status,
                    "duration_ms": round(seconds * 1000, 2),
                    "user": self._digest(user) if user else None,
                    "service_type": request.get(SERVICE_TYPE),
                    "error": request.get(ERROR),
                    **request.get(LOGGED, {}),
                }
            )
            logs.request_id.reset(token)

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if "Content-Encoding" in request.headers and _is_encoded(request):
                raise EncodedBody
            if (request.content_length or 0) > request.client_max_size:
                raise PayloadTooLarge  # before it arrives, even if no handler would read it
            return await handler(request)
        except web.RequestPayloadError:
            return self._refuse(request, BadRequest("The body is damaged."))
        except ServiceError as error:
            if isinstance(error, DependencyUnavailable):
                self._metrics.dependency_errors.inc(error.dependency)
            return self._refuse(request, error)
        except web.HTTPException as error:
            if error.status < HTTPStatus.BAD_REQUEST:
                raise
            return self._refuse(request, from_http(error))
        except Exception as error:  # last resort: an answer in our shape, and a report
            if isinstance(error, ConnectionError) and (request.transport is None or request.transport.is_closing()):
                raise  # the client has left
            _log.exception("unhandled_error")
            sentry_sdk.capture_exception(error)
            return self._refuse(request, ServiceError())

    def unreadable(self, error: ServiceError, reason: str) -> web.Response:
        """The answer to bytes that are not a readable request: counted and logged without the bytes."""
        response = self._render_error(None, error)
        response.headers.update(
            {"X-Request-ID": str(uuid.uuid4()), "Cache-Control": "no-store", "Server": "mlpa", **SECURITY_HEADERS}
        )
        self._metrics.requests.inc("other", "unmatched", "none")
        self._metrics.statuses.inc(str(response.status))
        self._metrics.answers.inc("unmatched", outcome_of(response.status))
        _log.warning("unreadable_request", status=response.status, reason=reason)
        return response

    def _refuse(self, request: web.Request, error: ServiceError) -> web.Response:
        request[ERROR] = error_name(error)
        if self._on_refusal is not None:
            self._on_refusal(request, error)
        return self._render_error(request, error)


def error_name(error: ServiceError) -> str:
    """An error in the log line: the dependency that failed, or the error's code."""
    return error.dependency if isinstance(error, DependencyUnavailable) else error.code


def _is_encoded(request: web.Request) -> bool:
    codings = (coding for value in request.headers.getall("Content-Encoding") for coding in value.split(","))
    return any(coding.strip().lower() not in ("", "identity") for coding in codings)


def outcome_of(status: int) -> str:
    """One of ``OUTCOMES``."""
    if status == CLIENT_CLOSED:
        return "abort"
    if status < HTTPStatus.BAD_REQUEST:
        return "success"
    return "refused" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "failure"


def from_http(error: web.HTTPException) -> ServiceError:
    """aiohttp's own refusals as ours."""
    if isinstance(error, web.HTTPNotFound):
        return NotFound()
    if isinstance(error, web.HTTPMethodNotAllowed):
        return MethodNotAllowed(headers={"Allow": ", ".join(sorted(error.allowed_methods))})
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return PayloadTooLarge()
    return BadRequest() if error.status < HTTPStatus.INTERNAL_SERVER_ERROR else ServiceError()
